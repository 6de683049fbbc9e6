//! What admission asks the API server, for one question at a time. Nothing is kept: the answer is
//! always what holds now, and an object of ours or a pod is written rarely.

use std::collections::BTreeMap;
use std::time::Duration;

use heddle_resources::crd::{TrafficPolicy, TrafficSplit};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::serde::de::DeserializeOwned;
use kube::api::ListParams;
use kube::{Api, Client};

/// Well below what the API server waits for us.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Objects of one kind in one namespace that are looked at for advice.
const MAX_LIST: u32 = 500;

#[derive(Clone)]
pub(super) struct Cluster {
    client: Client,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the API server says no")]
    Api(#[from] kube::Error),
    #[error("the API server does not answer within {} s", TIMEOUT.as_secs())]
    Timeout(#[from] tokio::time::error::Elapsed),
}

impl Cluster {
    pub(super) fn new(client: Client) -> Self {
        Self { client }
    }

    pub(super) async fn namespace_labels(
        &self,
        name: &str,
    ) -> Result<BTreeMap<String, String>, Error> {
        let namespaces = Api::<Namespace>::all(self.client.clone());
        let found = tokio::time::timeout(TIMEOUT, namespaces.get_metadata(name)).await??;
        Ok(found.metadata.labels.unwrap_or_default())
    }

    pub(super) async fn has_service(&self, namespace: &str, name: &str) -> Result<bool, Error> {
        let services = Api::<Service>::namespaced(self.client.clone(), namespace);
        let found = tokio::time::timeout(TIMEOUT, services.get_metadata_opt(name)).await??;
        Ok(found.is_some())
    }

    pub(super) async fn splits(&self, namespace: &str) -> Result<Vec<TrafficSplit>, Error> {
        list(Api::namespaced(self.client.clone(), namespace)).await
    }

    pub(super) async fn policies(&self, namespace: &str) -> Result<Vec<TrafficPolicy>, Error> {
        list(Api::namespaced(self.client.clone(), namespace)).await
    }
}

async fn list<K>(api: Api<K>) -> Result<Vec<K>, Error>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let params = ListParams::default().limit(MAX_LIST);
    Ok(tokio::time::timeout(TIMEOUT, api.list(&params)).await??.items)
}
