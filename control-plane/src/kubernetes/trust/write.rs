//! What the leader writes of the trust root: the Secret when there is none, and the record of the
//! roots that everybody has been told of.

use std::time::{Duration, SystemTime};

use heddle_api::names::{FIELD_MANAGER, TRUST_ANCHORS_SECRET, TRUST_ROOT_SECRET};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::time::Instant;

use super::{BUSY_INTERVAL, Keeper, Seen};
use crate::ca::rotation::Record;
use crate::ca::secret;
use crate::error::chain;

const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// A Secret that vanished is written again after this, unless somebody else has written a new one.
const RESTORE_AFTER: Duration = Duration::from_secs(10);

impl Keeper {
    /// Makes the root, or restores the one in force. Creates and never overwrites: of two replicas
    /// that both think they lead one fails, and reads what the other wrote.
    pub(super) async fn write_root(&self, seen: &mut Seen, since: Instant) -> Result<(), String> {
        if self.is_signing() && since.elapsed() < RESTORE_AFTER {
            return Ok(());
        }
        let data = match &seen.good {
            Some(data) => data.clone(),
            None => secret::make(SystemTime::now()).map_err(|error| chain(&error))?,
        };
        let (mut object, is_new) = (object(TRUST_ROOT_SECRET), seen.good.is_none());
        object.type_ = Some("kubernetes.io/tls".to_owned());
        let bytes = data.into_iter().map(|(key, value)| (key, ByteString(value)));
        object.data = Some(bytes.collect());
        let post =
            PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..Default::default() };
        let created =
            tokio::time::timeout(WRITE_TIMEOUT, self.secrets.create(&post, &object)).await;
        match created {
            Ok(Ok(_)) if is_new => tracing::info!("made a new trust root"),
            Ok(Ok(_)) => tracing::warn!("restored the trust root, which had been deleted"),
            // Somebody was faster; the watch tells what they wrote.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => {}
            Ok(Err(error)) => {
                return Err(format!("the Secret cannot be created: {}", chain(&error)));
            }
            Err(_) => return Err("the Secret cannot be created: no answer".to_owned()),
        }
        // The watch needs a moment.
        seen.write_after = Some(Instant::now() + BUSY_INTERVAL);
        Ok(())
    }

    /// Records what everybody has been told of, once new pods find it in their ConfigMap.
    pub(super) async fn write_record(
        &self,
        seen: &mut Seen,
        record: &Record,
    ) -> Result<(), String> {
        seen.write_after = None;
        let (current, bundle) = (self.authority.borrow().clone(), self.bundle.borrow().clone());
        let Some(bundle) = bundle else { return Ok(()) };
        let told = &bundle.roots;
        let next = match (&seen.candidate, current) {
            (None, Some(current)) => record.next(told, &current, SystemTime::now()),
            _ => record.with(told),
        };
        let is_written = *self.maps.borrow() == Some(bundle.encoded.hash);
        // A root may leave the record before it leaves the ConfigMaps, never enter it before.
        let is_current = seen.is_recorded && next == *record;
        if is_current || !(is_written || seen.is_recorded && record.contains(&next)) {
            return Ok(());
        }
        let mut object = object(TRUST_ANCHORS_SECRET);
        object.string_data = Some(next.write());
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let (name, patch) = (TRUST_ANCHORS_SECRET, Patch::Apply(&object));
        let applied =
            tokio::time::timeout(WRITE_TIMEOUT, self.secrets.patch(name, &params, &patch));
        match applied.await {
            Ok(Ok(written)) => {
                self.read_record(Some(written), seen);
                Ok(())
            }
            Ok(Err(error)) => Err(format!("{name} cannot be written: {}", chain(&error))),
            Err(_) => Err(format!("{name} cannot be written: no answer")),
        }
    }
}

fn object(name: &str) -> Secret {
    let labels = json!({
        "app.kubernetes.io/name": "heddle",
        "app.kubernetes.io/component": "control-plane",
        "app.kubernetes.io/managed-by": FIELD_MANAGER,
    });
    let mut secret = Secret::default();
    secret.metadata.name = Some(name.to_owned());
    secret.metadata.labels = serde_json::from_value(labels).ok();
    secret
}
