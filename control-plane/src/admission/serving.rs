//! The certificate that is served: follows the Secret, whoever wrote it. One that cannot be used
//! changes nothing.

use std::sync::Arc;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::runtime::{WatchStreamExt as _, watcher};
use prometheus::IntCounter;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::version::TLS13;
use tokio::sync::watch;

use super::SECRET;
use super::certificate::{self, CERTIFICATE, KEY};
use crate::error::{Error, chain};

pub(super) struct Follower {
    pub(super) secrets: Api<Secret>,
    pub(super) tls: watch::Sender<Option<Arc<ServerConfig>>>,
    pub(super) failures: IntCounter,
}

impl Follower {
    /// Follows the Secret until `stop` resolves.
    pub(super) async fn run(self, stop: impl Future<Output = ()>) {
        let mut events =
            watcher::watch_object(self.secrets.clone(), SECRET).default_backoff().boxed();
        let mut stop = std::pin::pin!(stop);
        loop {
            let event = tokio::select! {
                Some(event) = events.next() => event,
                () = &mut stop => return,
            };
            match event {
                Ok(Some(secret)) => self.take(secret),
                // The one in use goes on being served; the leader, or its owner, writes it again.
                Ok(None) if self.tls.borrow().is_some() => {
                    tracing::warn!(secret = SECRET, "the webhook's certificate is gone");
                }
                Ok(None) => {}
                Err(error) => {
                    self.failures.inc();
                    tracing::warn!(
                        error = chain(&error),
                        "cannot follow the webhook's certificate"
                    );
                }
            }
        }
    }

    fn take(&self, secret: Secret) {
        let data = secret.data.unwrap_or_default();
        let value = |key: &str| data.get(key).map(|value| value.0.as_slice()).unwrap_or_default();
        match configure(value(CERTIFICATE), value(KEY)) {
            Ok(config) => {
                self.tls.send_replace(Some(Arc::new(config)));
                tracing::info!(secret = SECRET, "serving the webhook's certificate");
            }
            Err(error) => {
                self.failures.inc();
                let error = chain(&error);
                tracing::warn!(
                    secret = SECRET,
                    error,
                    "the certificate cannot be used: write tls.crt and tls.key"
                );
            }
        }
    }
}

fn configure(chain: &[u8], key: &[u8]) -> Result<ServerConfig, Error> {
    let (chain, key) = certificate::parse(chain, key)?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
