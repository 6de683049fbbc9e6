//! The one client of the API server. Reads its address and credentials; asks it nothing.

use std::path::Path;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::config::Kubernetes;
use crate::error::Error;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For a request that does not leave the client: a watch is long only in its answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Makes the client: by the given kubeconfig, else by the pod's service account, whose token and
/// certificate authority are read again as the kubelet renews them.
pub(super) async fn connect(settings: &Kubernetes) -> Result<kube::Client, Error> {
    let mut config = match &settings.kubeconfig {
        Some(path) => from_file(path).await?,
        None => kube::Config::incluster().map_err(|error| {
            let chain = crate::error::chain(&error);
            Error::Config(vec![format!(
                "this is no pod with a service account ({chain}); run it in one, or write \
                 --kubeconfig"
            )])
        })?,
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.write_timeout = Some(WRITE_TIMEOUT);
    // Each part waits between attempts by itself; two such waits multiply.
    config.default_retry = false;
    kube::Client::try_from(config).map_err(|source| Error::api("set up a client", source))
}

async fn from_file(path: &Path) -> Result<kube::Config, Error> {
    let problem =
        |error: kube::config::KubeconfigError| Error::content(path, crate::error::chain(&error));
    let kubeconfig = Kubeconfig::read_from(path).map_err(problem)?;
    let options = KubeConfigOptions::default();
    kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(problem)
}
