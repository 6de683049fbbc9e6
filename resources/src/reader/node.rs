//! YAML as a tree in which every value knows its line and column.
//!
//! Types are applied to the tree afterwards, so that a mistake of type, an unknown field and a value
//! out of range are all reported at the place where they were written.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use crate::path::{Path, Segment};

/// Largest file that is read.
pub(super) const MAX_BYTES: usize = 64 * 1024 * 1024;
/// Nesting deeper than any kind needs is a mistake or an attack.
const MAX_DEPTH: usize = 48;

/// A value and where it begins.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) line: u32,
    pub(super) column: u32,
    value: Value,
}

#[derive(Debug)]
enum Value {
    Null,
    Bool(bool),
    Number(serde_json::Number),
    String(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Debug)]
struct Entry {
    key: String,
    line: u32,
    column: u32,
    value: Node,
}

/// Why a text is not YAML that we take.
#[derive(Debug)]
pub(super) struct SyntaxError {
    pub(super) line: u32,
    pub(super) column: u32,
    pub(super) message: String,
}

/// Every document of a file.
pub(super) fn parse(text: &str) -> Result<Vec<Node>, SyntaxError> {
    if text.len() > MAX_BYTES {
        let message = format!("larger than {} MiB; split the file", MAX_BYTES >> 20);
        return Err(SyntaxError { line: 0, column: 0, message });
    }
    serde_saphyr::from_multiple_with_options(text, options()).map_err(|error| {
        let location = error.location().unwrap_or(serde_saphyr::Location::UNKNOWN);
        let (line, column) = place(&location);
        SyntaxError { line, column, message: error.without_snippet().to_string() }
    })
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_events: 16_000_000,
            max_nodes: 8_000_000,
            max_documents: 100_000,
            max_aliases: 1_000,
            max_anchors: 1_000,
        },
        alias_limits: alias_limits(),
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::Error,
        // `yes` and `off` are strings, as everywhere but in YAML 1.1.
        strict_booleans: true,
        with_snippet: false,
    }
}

/// Aliases are a convenience for people: what ten people write by hand fits, a bomb does not.
fn alias_limits() -> serde_saphyr::options::AliasLimits {
    let mut limits = serde_saphyr::options::AliasLimits::default();
    limits.max_total_replayed_events = 100_000;
    limits.max_replay_stack_depth = 8;
    limits
}

fn place(location: &serde_saphyr::Location) -> (u32, u32) {
    let clamp = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    (clamp(location.line()), clamp(location.column()))
}

impl Node {
    /// A value that never was a text, hence has no place.
    pub(super) fn from_json(value: serde_json::Value) -> Self {
        let at = |key, value| Entry { key, line: 0, column: 0, value: Self::from_json(value) };
        let value = match value {
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(value) => Value::Bool(value),
            serde_json::Value::Number(number) => Value::Number(number),
            serde_json::Value::String(text) => Value::String(text),
            serde_json::Value::Array(items) => {
                Value::List(items.into_iter().map(Self::from_json).collect())
            }
            serde_json::Value::Object(map) => {
                Value::Map(map.into_iter().map(|(key, value)| at(key, value)).collect())
            }
        };
        Self { line: 0, column: 0, value }
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(self.value, Value::Null)
    }

    pub(super) fn is_map(&self) -> bool {
        matches!(self.value, Value::Map(_))
    }

    pub(super) fn as_str(&self) -> Option<&str> {
        if let Value::String(text) = &self.value { Some(text) } else { None }
    }

    pub(super) fn as_list(&self) -> Option<&[Self]> {
        if let Value::List(items) = &self.value { Some(items) } else { None }
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries().iter().map(|entry| entry.key.as_str())
    }

    pub(super) fn field(&self, name: &str) -> Option<&Self> {
        self.entry(name).map(|entry| &entry.value)
    }

    pub(super) fn find(&self, path: &Path) -> Option<&Self> {
        path.segments().iter().try_fold(self, |node, segment| match segment {
            Segment::Field(name) => node.field(name),
            Segment::Index(index) => node.as_list()?.get(*index),
        })
    }

    /// Line and column of what `path` names, or of the nearest thing around it that exists. A field
    /// is located at its key.
    pub(super) fn locate(&self, path: &Path) -> (u32, u32) {
        let mut node = self;
        let mut at = (self.line, self.column);
        for segment in path.segments() {
            match segment {
                Segment::Field(name) => {
                    let Some(entry) = node.entry(name) else { break };
                    at = (entry.line, entry.column);
                    node = &entry.value;
                }
                Segment::Index(index) => {
                    let Some(item) = node.as_list().and_then(|items| items.get(*index)) else {
                        break;
                    };
                    at = (item.line, item.column);
                    node = item;
                }
            }
        }
        at
    }

    /// `keep_null` false: a field that is null is left out, which is how Kubernetes writes empty
    /// lists (`endpoints: null`).
    pub(super) fn to_json(&self, keep_null: bool) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Number(number) => number.clone().into(),
            Value::String(text) => text.as_str().into(),
            Value::List(items) => items.iter().map(|item| item.to_json(keep_null)).collect(),
            Value::Map(entries) => entries
                .iter()
                .filter(|entry| keep_null || !entry.value.is_null())
                .map(|entry| (entry.key.clone(), entry.value.to_json(keep_null)))
                .collect(),
        }
    }

    /// The value in one short line. Empty for lists and mappings, whose place says enough.
    pub(super) fn preview(&self) -> String {
        match &self.value {
            Value::List(_) | Value::Map(_) => String::new(),
            Value::Null => "null".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Number(number) => number.to_string(),
            Value::String(text) => {
                let short: String = text.chars().take(60).collect();
                let more = if short.len() < text.len() { "…" } else { "" };
                format!("{short:?}{more}")
            }
        }
    }

    fn entries(&self) -> &[Entry] {
        if let Value::Map(entries) = &self.value { entries } else { &[] }
    }

    fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries().iter().find(|entry| entry.key == name)
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        let (line, column) = place(&spanned.referenced);
        Ok(Self { line, column, value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping, a list, a string, a number, a boolean or null")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Value, E> {
        serde_json::Number::from_f64(number)
            .map(Value::Number)
            .ok_or_else(|| E::custom("write a finite number"))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::String(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::String(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Spanned<Value>>()? {
            let (line, column) = place(&key.referenced);
            let Value::String(text) = key.value else {
                return Err(A::Error::custom("a key is not a string; write it in quotes"));
            };
            entries.push(Entry { key: text, line, column, value: map.next_value()? });
        }
        Ok(Value::Map(entries))
    }
}
