//! One YAML (or JSON) file → objects, or every mistake in it with file, line, column, field, value
//! and what to write instead.
//!
//! Reads text it is given; never opens a file. Nothing is ignored: an unknown field or kind is an
//! error.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use heddle_api::names::API_VERSION;
use serde::de::DeserializeOwned;

use crate::crd::{AuthorizationPolicy, Mesh, MeshTLSPolicy};
use crate::gateway;
use crate::kinds::{Kind, Object, ObjectKey};
use crate::path::{Path, Segment};
use crate::validate;

pub(crate) use self::explain::ignored;
use self::node::Node;

mod explain;
mod fallback;
mod node;
mod shape;

/// An object and where it was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Located {
    pub object: Object,
    /// `file:line` of its first line; empty when it was not read from a file.
    pub location: Arc<str>,
}

/// What a file says.
#[derive(Debug, Default)]
pub struct Reading {
    /// Objects without a mistake.
    pub objects: Vec<Located>,
    /// For a refused object whose absence would widen access: what denies instead. Meant for the
    /// case that no earlier, good version of the object is known.
    pub stand_ins: Vec<Located>,
    pub errors: Vec<Error>,
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Error {
    /// Empty when the object never was in a file.
    pub file: String,
    /// From 1; 0 when the file as a whole is meant.
    pub line: u32,
    pub column: u32,
    /// `Kind namespace/name`, as far as it could be read.
    pub object: String,
    /// Field within the object; empty for the object itself.
    pub path: String,
    /// What was seen, as YAML would write it, shortened.
    pub value: String,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.is_empty() {
            f.write_str(&self.file)?;
            if self.line > 0 {
                write!(f, ":{}:{}", self.line, self.column)?;
            }
            f.write_str(": ")?;
        }
        for part in [&self.object, &self.path, &self.value] {
            if !part.is_empty() {
                write!(f, "{part}: ")?;
            }
        }
        f.write_str(&self.message)
    }
}

/// Reads one file. `file` is only for messages.
#[must_use]
pub fn read(file: &str, text: &str) -> Reading {
    let mut reader = Reader::new(file, false);
    match node::parse(text) {
        Ok(documents) => documents.iter().for_each(|document| reader.document(document)),
        Err(error) => reader.reading.errors.push(Error {
            file: file.to_owned(),
            line: error.line,
            column: error.column,
            object: String::new(),
            path: String::new(),
            value: String::new(),
            message: error.message,
        }),
    }
    reader.reading
}

/// Reads one object that never was a text: an API server's. Its errors have no place.
#[must_use]
pub fn read_value(value: serde_json::Value) -> Reading {
    let mut reader = Reader::new("", true);
    reader.object(&Node::from_json(value));
    reader.reading
}

struct Reader<'a> {
    file: &'a str,
    /// Line at which each object was first seen.
    seen: HashMap<ObjectKey, u32>,
    reading: Reading,
    /// What is read has a schema that knows all of its fields.
    is_known: bool,
}

/// What an object says of itself before its kind's type is applied.
struct Head<'a> {
    node: &'a Node,
    /// For messages.
    label: String,
}

impl<'a> Reader<'a> {
    fn new(file: &'a str, is_known: bool) -> Self {
        Self { file, seen: HashMap::new(), reading: Reading::default(), is_known }
    }

    fn document(&mut self, node: &Node) {
        // An empty document between two `---` says nothing.
        if node.is_null() {
            return;
        }
        let is_list = node.field("kind").and_then(Node::as_str) == Some("List");
        if !is_list {
            return self.object(node);
        }
        let head = Head { node, label: "List".to_owned() };
        if node.field("apiVersion").and_then(Node::as_str) != Some("v1") {
            self.refuse(&head, &Path::root().field("apiVersion"), "write `v1` for a List");
        }
        for key in node.keys() {
            if !matches!(key, "apiVersion" | "kind" | "metadata" | "items") {
                let message = "no such field in a List; write apiVersion, kind and items";
                self.refuse(&head, &Path::root().field(key), message);
            }
        }
        match node.field("items").and_then(Node::as_list) {
            Some(items) => items.iter().for_each(|item| self.object(item)),
            None => self.refuse(&head, &Path::root().field("items"), "write a list of objects"),
        }
    }

    fn object(&mut self, node: &Node) {
        let head = Head { node, label: label(node) };
        let Some(kind) = self.kind(&head) else { return };
        let errors = self.reading.errors.len();
        let object = match kind {
            Kind::Namespace => self.typed(&head, Object::Namespace),
            Kind::ServiceAccount => self.typed(&head, Object::ServiceAccount),
            Kind::Service => self.typed(&head, Object::Service),
            Kind::Pod => self.typed(&head, Object::Pod),
            Kind::Deployment => self.typed(&head, Object::Deployment),
            Kind::EndpointSlice => self.typed(&head, Object::EndpointSlice),
            Kind::HTTPRoute => self.typed(&head, Object::HTTPRoute),
            Kind::GRPCRoute => self.typed(&head, Object::GRPCRoute),
            Kind::TrafficSplit => self.typed(&head, Object::TrafficSplit),
            Kind::TrafficPolicy => self.typed(&head, Object::TrafficPolicy),
            Kind::AuthorizationPolicy => self.typed(&head, Object::AuthorizationPolicy),
            Kind::MeshTLSPolicy => self.typed(&head, Object::MeshTLSPolicy),
            Kind::Mesh => self.typed(&head, Object::Mesh),
        };
        if let Some(object) = &object {
            if let Some(path) = shape::misread_list(node, object) {
                self.refuse(&head, &path, "write a mapping of fields to values");
            }
            // Somebody else's kind that its own schema let pass: what we have against it is for its
            // status to say, for which it has to be known.
            let is_judged = self.is_known && kind.is_route();
            let findings = if is_judged { Vec::new() } else { validate::validate(object) };
            for finding in findings {
                self.push(&head, &finding.path, finding.value, finding.message);
            }
            self.check_duplicate(&head, object);
        }
        let location: Arc<str> = match node.line {
            0 => self.file.into(),
            line => format!("{}:{line}", self.file).into(),
        };
        if self.reading.errors.len() > errors {
            let stand_in = fallback::stand_in(kind, node, object.as_ref());
            self.reading.stand_ins.extend(stand_in.map(|object| Located { object, location }));
        } else if let Some(object) = object {
            self.reading.objects.push(Located { object, location });
        }
    }

    /// The kind, when `apiVersion` and `kind` are ones we read.
    fn kind(&mut self, head: &Head<'_>) -> Option<Kind> {
        if !head.node.is_map() {
            let message = "write an object with apiVersion, kind, metadata and spec";
            self.refuse(head, &Path::root(), message);
            return None;
        }
        let path = Path::root().field("kind");
        let Some(kind) = head.node.field("kind").and_then(Node::as_str).and_then(Kind::parse)
        else {
            let known: Vec<_> = Kind::ALL.iter().map(|kind| kind.as_str()).collect();
            self.refuse(head, &path, &format!("unknown kind; write one of {}", known.join(", ")));
            return None;
        };
        let path = Path::root().field("apiVersion");
        if head.node.field("apiVersion").and_then(Node::as_str) != Some(kind.api_version()) {
            let message = format!("a {kind} is of `{}`; write that", kind.api_version());
            self.refuse(head, &path, &message);
        }
        Some(kind)
    }

    fn typed<T: DeserializeOwned>(
        &mut self,
        head: &Head<'_>,
        wrap: fn(Arc<T>) -> Object,
    ) -> Option<Object> {
        let api_version = head.node.field("apiVersion").and_then(Node::as_str);
        let is_route = api_version == Some(gateway::API_VERSION);
        let value = head.node.to_json(api_version == Some(API_VERSION));
        let mut unknown = Vec::new();
        let mut ignored = |path: serde_ignored::Path<'_>| unknown.push(explain::ignored(&path));
        let deserializer = serde_ignored::Deserializer::new(value, &mut ignored);
        let typed = serde_path_to_error::deserialize::<_, T>(deserializer);
        for path in unknown {
            // `status` belongs to whoever writes it; ours is tolerated unread.
            let is_status = path.segments().first() == Some(&Segment::Field("status".to_owned()));
            // What a route may say and we do not do is reported in its status, in every source alike.
            let is_reported =
                is_route && (self.is_known || gateway::is_known_to_gateway_api(&path));
            if !is_status && !is_reported {
                self.refuse(head, &path, "no such field; remove it, or look at its spelling");
            }
        }
        match typed {
            Ok(typed) => Some(wrap(Arc::new(typed))),
            Err(error) => {
                let (path, message) = explain::error(&error);
                self.refuse(head, &path, &message);
                None
            }
        }
    }

    fn check_duplicate(&mut self, head: &Head<'_>, object: &Object) {
        let key = object.key();
        if key.name.is_empty() {
            return;
        }
        if let Some(line) = self.seen.get(&key) {
            let message = format!("is in this file already, at line {line}; keep one of the two");
            return self.refuse(head, &Path::root().field("metadata").field("name"), &message);
        }
        self.seen.insert(key, head.node.line);
    }

    fn refuse(&mut self, head: &Head<'_>, path: &Path, message: &str) {
        let value = head.node.find(path).map(Node::preview).unwrap_or_default();
        self.push(head, path, value, message.to_owned());
    }

    fn push(&mut self, head: &Head<'_>, path: &Path, value: String, message: String) {
        let (line, column) = head.node.locate(path);
        self.reading.errors.push(Error {
            file: self.file.to_owned(),
            line,
            column,
            object: head.label.clone(),
            path: path.to_string(),
            value,
            message,
        });
    }
}

/// `Kind namespace/name` for messages, with what is there.
fn label(node: &Node) -> String {
    let text = |node: Option<&Node>| node.and_then(Node::as_str).unwrap_or_default().to_owned();
    let kind = text(node.field("kind"));
    let metadata = node.field("metadata");
    let name = text(metadata.and_then(|metadata| metadata.field("name")));
    let namespace = text(metadata.and_then(|metadata| metadata.field("namespace")));
    let scoped = Kind::parse(&kind).is_none_or(Kind::is_namespaced);
    let label = match (scoped, namespace.is_empty()) {
        _ if name.is_empty() => kind,
        (true, true) => format!("{kind} default/{name}"),
        (true, false) => format!("{kind} {namespace}/{name}"),
        (false, _) => format!("{kind} {name}"),
    };
    // Peer-chosen text is bounded wherever it is printed.
    label.chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests;
