//! News of single kinds, told in every awkward order.

use heddle_resources::reader::Located;
use serde_json::json;

use super::*;
use crate::kubernetes::read;

const POLICY: Kind = Kind::AuthorizationPolicy;

/// Two kinds that must be there, one that may be missing.
fn collection() -> Collection {
    let mut collection =
        Collection::new([(Kind::Service, false), (POLICY, false), (Kind::TrafficSplit, true)]);
    collection.begin(1, 10);
    collection
}

fn tell(collection: &mut Collection, kind: Kind, epoch: u64, news: Vec<News>) {
    for news in news {
        collection.take(Told { kind, epoch, news });
    }
}

fn key(kind: Kind, name: &str) -> ObjectKey {
    ObjectKey::new(kind, "shop", name)
}

fn service(name: &str, number: u64) -> News {
    let object = json!({ "metadata": { "name": name, "namespace": "shop" }, "spec": {} });
    let reading = read::service(serde_json::from_value(object).unwrap());
    let key = key(Kind::Service, name);
    News::Apply { key, uid: name.to_owned(), number, reading: Box::new(reading) }
}

fn policy(uid: &str, number: u64, action: &str) -> News {
    let object = json!({
        "metadata": { "name": "a", "namespace": "shop", "uid": uid },
        "spec": {
            "targetRef": { "kind": "Pods", "selector": { "app": "web" } },
            "rules": [{ "action": action, "from": [{ "serviceAccount": "web" }] }],
        },
    });
    let reading = read::custom(POLICY, serde_json::from_value(object).unwrap());
    let key = key(POLICY, "a");
    News::Apply { key, uid: uid.to_owned(), number, reading: Box::new(reading) }
}

fn all(collection: &mut Collection, epoch: u64, services: Vec<News>, revision: u64) {
    let mut news = vec![News::Begin];
    news.extend(services);
    news.push(News::Complete { revision });
    tell(collection, Kind::Service, epoch, news);
    tell(collection, POLICY, epoch, vec![News::Begin, News::Complete { revision }]);
    tell(collection, Kind::TrafficSplit, epoch, vec![News::Absent]);
}

/// What a batch says, by name: "+" for an object that is there, "-" for one that is not.
fn said(batch: &Batch) -> Vec<String> {
    let one = |event: &Event| match event {
        Event::Apply(Located { object, .. }) => format!("+{}", object.key().name),
        Event::Delete(key) => format!("-{}", key.name),
    };
    batch.events.iter().map(one).collect()
}

#[test]
fn nothing_is_complete_before_every_kind_is() {
    let mut collection = collection();
    let problem = collection.problem().unwrap();
    assert!(problem.contains("Service: not read yet"), "{problem}");
    let begun = vec![News::Begin, service("a", 4), service("b", 7)];
    tell(&mut collection, Kind::Service, 1, begun);
    tell(&mut collection, Kind::TrafficSplit, 1, vec![News::Absent]);
    let first = collection.batch(true).unwrap();
    assert_eq!(
        (first.initial, said(&first), first.mark),
        (false, vec!["+a".into(), "+b".into()], None)
    );
    tell(&mut collection, Kind::Service, 1, vec![News::Complete { revision: 12 }]);
    assert!(!collection.is_urgent());
    tell(&mut collection, POLICY, 1, vec![News::Absent]);
    let problem = collection.problem().unwrap();
    assert_eq!(problem, "AuthorizationPolicy: is not installed; install the chart heddle-crds");
    tell(&mut collection, POLICY, 1, vec![News::Begin, News::Complete { revision: 11 }]);
    assert!(collection.is_urgent());
    let last = collection.batch(false).unwrap();
    assert!(last.initial);
    // Told: the highest object. Known: what every list was complete up to.
    assert_eq!(last.mark, Some(Mark { epoch: 1, seen: 7, known: 11 }));
    assert_eq!(collection.problem(), None);
    assert!(collection.batch(true).is_none());
}

#[test]
fn a_second_list_tells_what_has_gone_meanwhile() {
    let mut collection = collection();
    all(&mut collection, 1, vec![service("a", 4), service("b", 7)], 12);
    assert!(collection.batch(true).unwrap().initial);
    tell(&mut collection, Kind::Service, 1, vec![News::Begin, service("b", 7), service("c", 20)]);
    // Until the list is whole nothing has gone.
    assert_eq!(said(&collection.batch(true).unwrap()), ["+b", "+c"]);
    tell(&mut collection, Kind::Service, 1, vec![News::Complete { revision: 31 }]);
    let batch = collection.batch(true).unwrap();
    assert_eq!((said(&batch), batch.initial), (vec!["-a".to_owned()], false));
    // Nobody numbered the loss: only who knows as much as the list may serve after us.
    assert_eq!(batch.mark.unwrap().seen, 31);
    // A deletion while the list is on its way counts, too.
    let news = vec![
        News::Begin,
        service("b", 7),
        service("c", 20),
        News::Delete { key: key(Kind::Service, "c"), number: 40 },
        News::Complete { revision: 39 },
    ];
    tell(&mut collection, Kind::Service, 1, news);
    let batch = collection.batch(true).unwrap();
    assert_eq!(
        (said(&batch), batch.mark.unwrap().seen),
        (vec!["+b".into(), "+c".into(), "-c".into()], 40)
    );
}

#[test]
fn a_refused_object_keeps_its_last_good_version_and_else_denies() {
    let mut collection = collection();
    all(&mut collection, 1, Vec::new(), 5);
    assert!(collection.batch(true).unwrap().initial);
    // Never good: what denies stands in.
    tell(&mut collection, POLICY, 1, vec![policy("u", 6, "Perhaps")]);
    let batch = collection.batch(true).unwrap();
    assert_eq!(said(&batch), ["+a"]);
    assert_eq!(batch.refused.len(), 1);
    assert_eq!(&*batch.refused[0].path, "spec.rules[0].action");
    // Good, then refused again: the good one holds, and the refusal is told.
    tell(&mut collection, POLICY, 1, vec![policy("u", 7, "Allow")]);
    let batch = collection.batch(true).unwrap();
    assert_eq!((said(&batch).len(), batch.refused.len()), (1, 0));
    tell(&mut collection, POLICY, 1, vec![policy("u", 8, "Perhaps")]);
    let batch = collection.batch(true).unwrap();
    assert_eq!((said(&batch).len(), batch.refused.len()), (0, 1));
    // Another object of the same name has no last good version.
    tell(&mut collection, POLICY, 1, vec![policy("v", 9, "Perhaps")]);
    assert_eq!(said(&collection.batch(true).unwrap()), ["+a"]);
    tell(&mut collection, POLICY, 1, vec![News::Delete { key: key(POLICY, "a"), number: 10 }]);
    let batch = collection.batch(true).unwrap();
    assert_eq!((said(&batch), batch.refused.len()), (vec!["-a".to_owned()], 0));
}

#[test]
fn a_kind_that_is_taken_away_keeps_what_was_told() {
    let mut collection = collection();
    all(&mut collection, 1, vec![service("a", 4)], 5);
    assert!(collection.batch(true).unwrap().initial);
    for kind in [Kind::Service, POLICY, Kind::TrafficSplit] {
        tell(&mut collection, kind, 1, vec![News::Absent]);
    }
    assert!(collection.batch(true).is_none());
    assert_eq!(collection.problem(), None, "what was complete stays so");
}

#[test]
fn a_new_epoch_counts_once_everything_was_read_under_it() {
    let mut collection = collection();
    all(&mut collection, 1, vec![service("a", 400), service("b", 700)], 900);
    assert_eq!(collection.batch(true).unwrap().mark.unwrap().epoch, 1);
    collection.begin(2, 300);
    tell(&mut collection, Kind::Service, 2, vec![News::Begin, service("a", 200)]);
    let between = collection.batch(true).unwrap();
    assert_eq!(between.mark.unwrap().epoch, 1);
    // What is left of the epoch before has nothing to say any more.
    tell(&mut collection, Kind::Service, 1, vec![service("z", 901)]);
    all(&mut collection, 2, vec![service("a", 200)], 310);
    let batch = collection.batch(true).unwrap();
    assert_eq!(batch.mark, Some(Mark { epoch: 2, seen: 310, known: 310 }));
    assert_eq!(said(&batch), ["+a", "-b"]);
    assert!(!batch.initial);
    assert_eq!(collection.highest(2), 310);
}

#[test]
fn bookmarks_alone_raise_what_is_known() {
    let mut collection = collection();
    all(&mut collection, 1, vec![service("a", 4)], 5);
    let first = collection.batch(true).unwrap().mark.unwrap();
    assert_eq!((first.seen, first.known), (4, 10));
    for kind in [Kind::Service, POLICY] {
        assert!(!collection.is_pending());
        tell(&mut collection, kind, 1, vec![News::Progress { revision: 50 }]);
    }
    assert!(collection.is_pending() && !collection.is_urgent());
    let batch = collection.batch(true).unwrap();
    assert_eq!((batch.events.len(), batch.mark), (0, Some(Mark { epoch: 1, seen: 4, known: 50 })));
}
