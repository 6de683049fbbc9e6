//! A document and the patch that made it: each change is applied at once, so that the next one sees
//! it, and is noted as one operation.

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation};
use serde_json::Value;

/// One step of a path: a field, or an index of a list.
pub(super) type Step<'a> = &'a str;

#[derive(Debug)]
pub(super) struct Editor {
    value: Value,
    operations: Vec<PatchOperation>,
}

impl Editor {
    pub(super) fn new(value: &Value) -> Self {
        Self { value: value.clone(), operations: Vec::new() }
    }

    pub(super) fn find(&self, path: &[Step<'_>]) -> Option<&Value> {
        pointer(path).resolve(&self.value).ok()
    }

    /// Makes an absent or empty place hold `value`.
    pub(super) fn ensure(&mut self, path: &[Step<'_>], value: impl FnOnce() -> Value) {
        if self.find(path).is_none_or(Value::is_null) {
            self.write(path, value());
        }
    }

    /// Sets a field; no operation when it is so already. What holds it must be there.
    pub(super) fn set(&mut self, path: &[Step<'_>], value: Value) {
        if self.find(path) != Some(&value) {
            self.write(path, value);
        }
    }

    /// Puts `value` into a list before the entry at `index`.
    pub(super) fn insert(&mut self, list: &[Step<'_>], index: usize, value: Value) {
        let index = index.to_string();
        let path: Vec<_> = list.iter().copied().chain([index.as_str()]).collect();
        self.write(&path, value);
    }

    pub(super) fn append(&mut self, list: &[Step<'_>], value: Value) {
        let length = self.find(list).and_then(Value::as_array).map_or(0, Vec::len);
        self.insert(list, length, value);
    }

    pub(super) fn finish(self) -> Patch {
        Patch(self.operations)
    }

    /// RFC 6902 `add`: replaces a field, inserts into a list.
    fn write(&mut self, path: &[Step<'_>], value: Value) {
        let operation = PatchOperation::Add(AddOperation { path: pointer(path), value });
        json_patch::patch(&mut self.value, std::slice::from_ref(&operation))
            .expect("what holds the place was looked up, or made, before");
        self.operations.push(operation);
    }
}

fn pointer(path: &[Step<'_>]) -> PointerBuf {
    PointerBuf::from_tokens(path.iter().copied())
}
