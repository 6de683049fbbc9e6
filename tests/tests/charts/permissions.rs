//! The control plane's permissions, from the rendered roles and from the document, in one form.

use std::collections::BTreeSet;

use serde_json::Value;

use super::helm::Rendering;

/// One permission: where, group, resource, names, verbs.
pub(crate) type Permission = [String; 5];

/// What the control plane's roles grant.
pub(crate) fn granted(rendering: &Rendering) -> BTreeSet<Permission> {
    let mut granted = BTreeSet::new();
    for (kind, place) in [("ClusterRole", "everywhere"), ("Role", "heddle-system")] {
        let role = rendering.one(kind, "heddle-control-plane");
        for rule in role["rules"].as_array().expect("a role has rules") {
            for group in texts(&rule["apiGroups"]) {
                for resource in texts(&rule["resources"]) {
                    granted.insert([
                        place.to_owned(),
                        if group.is_empty() { "core".to_owned() } else { group.clone() },
                        resource,
                        texts(&rule["resourceNames"]).join(", "),
                        texts(&rule["verbs"]).join(", "),
                    ]);
                }
            }
        }
    }
    granted
}

fn texts(list: &Value) -> Vec<String> {
    let items = list.as_array().map_or(&[][..], Vec::as_slice);
    items.iter().map(|item| item.as_str().expect("a text").to_owned()).collect()
}

/// What the table of the document lists. Its last column says what for.
pub(crate) fn documented(text: &str) -> BTreeSet<Permission> {
    let mut documented = BTreeSet::new();
    for line in text.lines().filter(|line| {
        line.starts_with("| everywhere | ") || line.starts_with("| heddle-system | ")
    }) {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [place, group, resources, names, verbs, purpose] = cells[..] else {
            panic!("not six columns: {line}");
        };
        assert!(purpose.len() > 10, "what is this for? {line}");
        for resource in resources.split(", ") {
            let permission =
                [place, group, resource, names, verbs].map(|cell| cell.replace('`', ""));
            assert!(documented.insert(permission), "twice: {line}");
        }
    }
    documented
}
