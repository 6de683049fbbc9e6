//! What a person should know of the control plane's own state: what holds now, one entry for each
//! reason, not a history. Logs what appears and what goes; whoever tells people (Events, `heddle
//! check`) follows it.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

/// What is known of one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// What it is about, for instance `Secret`.
    pub kind: &'static str,
    pub namespace: String,
    pub name: String,
    /// Whether somebody must act.
    pub is_warning: bool,
    /// What is so, and what to do.
    pub message: String,
}

/// Everything that holds, by reason, a word in CamelCase.
pub type Held = Arc<BTreeMap<&'static str, Condition>>;

/// Tells. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Conditions(watch::Sender<Held>);

impl Conditions {
    /// From now on `reason` holds.
    pub fn set(&self, reason: &'static str, condition: Condition) {
        self.0.send_if_modified(|held| {
            if held.get(reason) == Some(&condition) {
                return false;
            }
            let Condition { kind, namespace, name, is_warning, message } = &condition;
            if *is_warning {
                tracing::warn!(reason, kind, namespace, name, message, "attention is needed");
            } else {
                tracing::info!(reason, kind, namespace, name, message, "state changed");
            }
            Arc::make_mut(held).insert(reason, condition);
            true
        });
    }

    /// From now on it does not.
    pub fn clear(&self, reason: &'static str) {
        self.0.send_if_modified(|held| {
            if !held.contains_key(reason) {
                return false;
            }
            Arc::make_mut(held).remove(reason);
            tracing::info!(reason, "no longer so");
            true
        });
    }

    /// What holds, whenever it changes.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Held> {
        self.0.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn followers_hear_of_changes_only() {
        let conditions = Conditions::default();
        let mut held = conditions.subscribe();
        let condition = |message: &str| Condition {
            kind: "Secret",
            namespace: "heddle-system".to_owned(),
            name: "x".to_owned(),
            is_warning: true,
            message: message.to_owned(),
        };
        conditions.clear("Missing");
        assert!(!held.has_changed().unwrap());
        conditions.set("Missing", condition("a"));
        assert_eq!(held.borrow_and_update()["Missing"], condition("a"));
        conditions.set("Missing", condition("a"));
        assert!(!held.has_changed().unwrap());
        conditions.set("Missing", condition("b"));
        assert!(held.has_changed().unwrap());
        conditions.clear("Missing");
        assert!(held.borrow_and_update().is_empty());
    }
}
