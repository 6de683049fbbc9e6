//! Finds lists that serde took for a mapping: it fills a struct from a list, field by field in the
//! order of their declaration, which nobody means and an API server refuses.

use serde_json::Value;

use crate::kinds::Object;
use crate::path::Path;

use super::node::Node;

/// The first place at which `node` has a list and `object`, which was made of it, has a mapping. Of
/// our kinds alone: Kubernetes' types take only mappings.
pub(super) fn misread_list(node: &Node, object: &Object) -> Option<Path> {
    let read = match object {
        Object::TrafficSplit(object) => serde_json::to_value(&**object),
        Object::TrafficPolicy(object) => serde_json::to_value(&**object),
        Object::AuthorizationPolicy(object) => serde_json::to_value(&**object),
        Object::MeshTLSPolicy(object) => serde_json::to_value(&**object),
        Object::Mesh(object) => serde_json::to_value(&**object),
        Object::Namespace(_)
        | Object::ServiceAccount(_)
        | Object::Service(_)
        | Object::Pod(_)
        | Object::Deployment(_)
        | Object::EndpointSlice(_)
        | Object::HTTPRoute(_)
        | Object::GRPCRoute(_) => return None,
    };
    find(&node.to_json(true), &read.expect("what was read can be written"), &Path::root())
}

fn find(written: &Value, read: &Value, path: &Path) -> Option<Path> {
    match (written, read) {
        (Value::Array(_), Value::Object(_)) => Some(path.clone()),
        (Value::Array(written), Value::Array(read)) => {
            let mut pairs = written.iter().zip(read).enumerate();
            pairs.find_map(|(index, (written, read))| find(written, read, &path.index(index)))
        }
        (Value::Object(written), Value::Object(read)) => written
            .iter()
            .find_map(|(name, written)| find(written, read.get(name)?, &path.field(name))),
        _ => None,
    }
}
