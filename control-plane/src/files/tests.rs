//! A directory that people and editors write to, read as the source reads it.

use std::fs;
use std::path::Path;

use heddle_resources::Object;
use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::index::Event;

const LIMIT: Duration = Duration::from_secs(10);

fn service(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: {name} }}\nspec: {{ ports: [{{ port: 80 }}] }}\n---\n"
    )
}

fn policy(name: &str) -> String {
    format!(
        "apiVersion: heddle.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{ name: {name} }}\nspec: {{ targetRef: {{ kind: Pods, selector: {{ a: b }} }}, rules: [{{ action: Allow, from: [{{ namespace: x }}] }}] }}\n---\n"
    )
}

fn pod(name: &str, status: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {name} }}\nspec: {{ containers: [{{ name: app }}] }}\n{status}\n---\n"
    )
}

const RUNNING: &str = "status: { phase: Running, podIPs: [{ ip: 10.0.0.1 }] }";

/// A directory that is read by hand.
struct Lab {
    dir: TempDir,
    directory: Directory,
    failures: IntCounter,
    now: Instant,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let failures = IntCounter::new("failures", "x").unwrap();
        let directory = Directory::new(dir.path().to_owned(), failures.clone());
        Self { dir, directory, failures, now: Instant::now() }
    }

    fn of(files: &[(&str, &str)]) -> Self {
        let mut lab = Self::new();
        files.iter().for_each(|(name, text)| lab.write(name, text));
        assert!(lab.read().unwrap().initial);
        lab
    }

    fn write(&mut self, name: &str, text: &str) {
        write(self.dir.path(), name, text);
    }

    fn remove(&mut self, name: &str) {
        fs::remove_file(self.dir.path().join(name)).unwrap();
    }

    fn read(&mut self) -> Option<Batch> {
        self.directory.read(Extent::Everything, self.now).batch
    }

    fn read_after(&mut self, millis: u64) -> Option<Batch> {
        self.now += Duration::from_millis(millis);
        self.read()
    }
}

fn write(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// `+Kind namespace/name` and `-Kind namespace/name`, sorted.
fn told(batch: &Batch) -> Vec<String> {
    let mut told: Vec<_> = batch
        .events
        .iter()
        .map(|event| match event {
            Event::Apply(located) => format!("+{}", located.object.key()),
            Event::Delete(key) => format!("-{key}"),
        })
        .collect();
    told.sort();
    told
}

fn refused(batch: &Batch) -> String {
    let print = |i: &crate::catalog::Issue| {
        format!("{}: {} {}: {}: {}", i.location, i.kind, i.name, i.path, i.message)
    };
    batch.refused.iter().map(print).collect::<Vec<_>>().join("\n")
}

#[test]
fn reads_what_is_meant_to_be_read() {
    let mut lab = Lab::new();
    for name in ["a.yaml", "b.yml", "c.json", ".state/d.yaml"] {
        let text = match name {
            "c.json" => {
                r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "json"}}"#
                    .to_owned()
            }
            ".state/d.yaml" => pod("state", RUNNING),
            name => service(&name[..1]),
        };
        lab.write(name, &text);
    }
    for name in [
        ".a.yaml.swp",
        ".#a.yaml",
        "a.yaml~",
        "#a.yaml#",
        ".hidden.yaml",
        "README.md",
        "sub/x.yaml",
        ".state/sub/x.yaml",
        "yaml",
    ] {
        lab.write(name, "not: [read");
    }
    fs::create_dir(lab.dir.path().join("dir.yaml")).unwrap();
    let batch = lab.read().unwrap();
    assert!(batch.initial && batch.refused.is_empty(), "{}", refused(&batch));
    assert_eq!(
        told(&batch),
        ["+Namespace json", "+Pod default/state", "+Service default/a", "+Service default/b"]
    );
    assert!(lab.read().is_none());
}

#[test]
fn one_reading_is_one_batch() {
    let mut lab = Lab::of(&[("a.yaml", &service("a"))]);
    lab.write("a.yaml", &(service("a").replace("80", "81") + &service("b")));
    lab.write("c.yaml", &service("c"));
    let batch = lab.read().unwrap();
    assert_eq!(told(&batch), ["+Service default/a", "+Service default/b", "+Service default/c"]);
    assert!(!batch.initial);
}

#[test]
fn a_mistake_keeps_what_the_file_last_said() {
    let mut lab = Lab::of(&[("a.yaml", &(service("a") + &service("b")))]);
    lab.write("a.yaml", &(service("a").replace("80", "81") + &service("b").replace("80", "0")));
    let batch = lab.read().unwrap();
    assert_eq!(told(&batch), [""; 0]);
    assert!(
        refused(&batch).contains("a.yaml:9:19: Service b: spec.ports[0].port: 0: write 1 to 65535"),
        "{}",
        refused(&batch)
    );
    assert!(lab.read().is_none(), "told once");
    assert_eq!(lab.failures.get(), 1);
    lab.write("a.yaml", "half: [");
    assert!(refused(&lab.read().unwrap()).contains("a.yaml:1:7: File a.yaml: : unclosed"));
    lab.write("a.yaml", &(service("a").replace("80", "81") + &service("b")));
    let batch = lab.read().unwrap();
    assert_eq!(
        (told(&batch), refused(&batch)),
        (vec!["+Service default/a".to_owned()], String::new())
    );
}

#[test]
fn saying_less_is_believed_when_it_has_settled() {
    let both = service("a") + &service("b");
    let mut lab = Lab::of(&[("a.yaml", &both)]);
    // Cut short by an editor, and complete again.
    for cut in [service("a").as_str(), ""] {
        lab.write("a.yaml", cut);
        assert!(lab.read_after(0).is_none());
        assert!(lab.read_after(60).is_none());
        lab.write("a.yaml", &both);
        assert!(lab.read_after(60).is_none());
        assert!(lab.read_after(500).is_none());
    }
    // Still being written: each new content begins anew.
    lab.write("a.yaml", "");
    assert!(lab.read_after(0).is_none());
    lab.write("a.yaml", &service("a"));
    assert!(lab.read_after(99).is_none());
    assert!(lab.read_after(99).is_none());
    assert_eq!(told(&lab.read_after(1).unwrap()), ["-Service default/b"]);
    // The same for a file that is away, as when an editor renames it before it writes.
    lab.remove("a.yaml");
    assert!(lab.read_after(0).is_none());
    lab.write("a.yaml", &service("a"));
    assert!(lab.read_after(50).is_none());
    lab.remove("a.yaml");
    assert!(lab.read_after(60).is_none());
    assert_eq!(told(&lab.read_after(100).unwrap()), ["-Service default/a"]);
}

#[test]
fn what_waits_to_settle_is_read_again_in_time() {
    let mut lab = Lab::of(&[("a.yaml", &service("a"))]);
    lab.write("a.yaml", "");
    let outcome = lab.directory.read(Extent::Everything, lab.now);
    assert_eq!(outcome.settles, Some(lab.now + Duration::from_millis(100)));
}

#[test]
fn the_first_file_keeps_an_object_that_two_have() {
    let mut lab =
        Lab::of(&[("a.yaml", &service("x")), ("b.yaml", &service("x").replace("80", "81"))]);
    assert!(lab.read().is_none());
    lab.write("c.yaml", &service("x").replace("80", "82"));
    let batch = lab.read().unwrap();
    let text = refused(&batch);
    assert!(told(&batch).is_empty());
    assert!(
        text.contains("b.yaml:1: Service x: : is also at a.yaml:1, which is in force"),
        "{text}"
    );
    assert!(text.contains("c.yaml:1: Service x: : is also at a.yaml:1"), "{text}");
    lab.remove("a.yaml");
    lab.read_after(0);
    let batch = lab.read_after(100).unwrap();
    assert_eq!(told(&batch), ["+Service default/x"]);
    assert!(refused(&batch).starts_with("c.yaml:1: Service x: : is also at b.yaml:1"));
}

#[test]
fn state_completes_what_people_write() {
    let own = service("web") + &pod("p", RUNNING) + &pod("q", "");
    let mut lab = Lab::of(&[("a.yaml", &own)]);
    let find = |batch: &Batch, name: &str| {
        let found = batch.events.iter().find_map(|event| match event {
            Event::Apply(located) if *located.object.key().name == *name => {
                Some(located.object.clone())
            }
            Event::Apply(_) | Event::Delete(_) => None,
        });
        found.unwrap()
    };
    let Event::Apply(first) =
        &Directory::new(lab.dir.path().to_owned(), IntCounter::new("x", "x").unwrap())
            .read(Extent::Everything, lab.now)
            .batch
            .unwrap()
            .events[1]
    else {
        panic!("deleted")
    };
    let Object::Pod(p) = &first.object else { panic!("{first:?}") };
    assert!(p.status.is_none(), "a pod that only people wrote does not run");

    let lent = service("web")
        .replace("spec: {", "spec: { clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1],")
        .replace("80", "99");
    lab.write(".state/all.yaml", &(lent + &pod("p", RUNNING) + &service("orphan") + &policy("no")));
    let batch = lab.read().unwrap();
    assert_eq!(told(&batch), ["+Pod default/p", "+Service default/web"]);
    let Object::Service(web) = find(&batch, "web") else { panic!("no Service") };
    let spec = web.spec.as_ref().unwrap();
    assert_eq!(
        (spec.cluster_ip.as_deref(), spec.ports.as_ref().unwrap()[0].port),
        (Some("10.96.0.1"), 80)
    );
    assert!(
        refused(&batch)
            .contains("AuthorizationPolicy no: : .state takes Pod, Service and EndpointSlice")
    );
    // What controllers take away is away at once.
    lab.write(".state/all.yaml", &pod("q", RUNNING));
    let batch = lab.directory.read(Extent::State, lab.now).batch.unwrap();
    assert_eq!(told(&batch), ["+Pod default/p", "+Pod default/q", "+Service default/web"]);
    lab.remove(".state/all.yaml");
    let batch = lab.directory.read(Extent::State, lab.now).batch.unwrap();
    assert_eq!(told(&batch), ["+Pod default/q"]);
}

#[test]
fn a_directory_that_is_away_takes_nothing_with_it() {
    let mut lab = Lab::of(&[("a.yaml", &service("a")), (".state/p.yaml", &pod("p", RUNNING))]);
    let (path, aside) = (lab.dir.path().to_owned(), lab.dir.path().with_extension("aside"));
    fs::rename(&path, &aside).unwrap();
    let batch = lab.read_after(5_000).unwrap();
    assert!(told(&batch).iter().all(|event| !event.contains("Service")), "{:?}", told(&batch));
    assert!(refused(&batch).contains("File .: : cannot be read"), "{}", refused(&batch));
    fs::rename(&aside, &path).unwrap();
    assert_eq!(refused(&lab.read().unwrap()), "");
}

#[test]
fn a_policy_that_was_never_good_denies_and_one_that_cannot_be_read_holds_everything_back() {
    let mut lab = Lab::new();
    lab.write("a.yaml", &service("a"));
    lab.write("p.yaml", &policy("p").replace("Allow", "allow"));
    let batch = lab.read().unwrap();
    assert!(batch.initial);
    assert_eq!(told(&batch), ["+AuthorizationPolicy default/p", "+Service default/a"]);

    let mut lab = Lab::new();
    lab.write("a.yaml", &service("a"));
    lab.write("p.yaml", &(policy("p") + "half: ["));
    let batch = lab.read().unwrap();
    assert!(!batch.initial && !batch.refused.is_empty());
    lab.write("p.yaml", &policy("p"));
    assert!(lab.read().unwrap().initial);

    // A file that says nothing of policies holds nothing back.
    let mut lab = Lab::new();
    lab.write("a.yaml", "half: [");
    assert!(lab.read().unwrap().initial);
}

#[test]
fn unreadable_files_keep_what_they_said() {
    let mut lab = Lab::of(&[("a.yaml", &service("a"))]);
    fs::write(lab.dir.path().join("a.yaml"), [0xff, 0xfe]).unwrap();
    let batch = lab.read().unwrap();
    assert_eq!(
        (told(&batch).len(), refused(&batch).as_str()),
        (0, "a.yaml: File a.yaml: : is not UTF-8; save it as UTF-8")
    );
}

/// The task on a real directory.
fn start(dir: &Path) -> mpsc::Receiver<Batch> {
    let (sender, receiver) = mpsc::channel(8);
    tokio::spawn(run(dir.to_owned(), sender, IntCounter::new("failures", "x").unwrap()));
    receiver
}

async fn next(batches: &mut mpsc::Receiver<Batch>) -> Batch {
    timeout(LIMIT, batches.recv()).await.unwrap().unwrap()
}

#[tokio::test]
async fn changes_are_seen_as_they_happen() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a.yaml", &service("a"));
    let mut batches = start(dir.path());
    assert!(next(&mut batches).await.initial);

    // A rename over the file, a save in place, and what appears later.
    write(dir.path(), ".new", &(service("a") + &service("b")));
    fs::rename(dir.path().join(".new"), dir.path().join("a.yaml")).unwrap();
    assert_eq!(told(&next(&mut batches).await), ["+Service default/b"]);
    write(dir.path(), "a.yaml", &service("a"));
    assert_eq!(told(&next(&mut batches).await), ["-Service default/b"]);
    write(dir.path(), ".state/p.yaml", &pod("p", RUNNING));
    assert_eq!(told(&next(&mut batches).await), ["+Pod default/p"]);
    write(dir.path(), ".state/p.yaml", &pod("p", RUNNING).replace(".1", ".2"));
    assert_eq!(told(&next(&mut batches).await), ["+Pod default/p"]);
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    assert_eq!(told(&next(&mut batches).await), ["-Service default/a"]);
}

#[tokio::test]
async fn a_burst_is_one_batch_and_state_does_not_wait_for_it() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), ".state/p.yaml", &pod("p", RUNNING));
    let mut batches = start(dir.path());
    assert!(next(&mut batches).await.initial);
    for name in ["a", "b", "c", "d"] {
        write(dir.path(), &format!("{name}.yaml"), &service(name));
    }
    assert_eq!(next(&mut batches).await.events.len(), 4);
    write(dir.path(), "e.yaml", &service("e"));
    write(dir.path(), ".state/.new", &pod("q", RUNNING));
    fs::rename(dir.path().join(".state/.new"), dir.path().join(".state/p.yaml")).unwrap();
    assert_eq!(told(&next(&mut batches).await), ["+Pod default/q", "-Pod default/p"]);
    assert_eq!(told(&next(&mut batches).await), ["+Service default/e"]);
}

#[tokio::test]
async fn a_directory_that_is_replaced_is_watched_again() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("dir");
    let mut batches = start(&dir);
    let batch = next(&mut batches).await;
    assert!(!batch.initial && refused(&batch).contains("cannot be read"));
    // Made aside and moved into place, so that it is never seen without its file.
    let made = parent.path().join("made");
    write(&made, "a.yaml", &service("a"));
    fs::rename(&made, &dir).unwrap();
    assert!(next(&mut batches).await.initial);
    fs::rename(&dir, parent.path().join("old")).unwrap();
    write(&made, "a.yaml", &service("b"));
    fs::rename(&made, &dir).unwrap();
    let mut told_so_far = Vec::new();
    while told_so_far.len() < 2 {
        told_so_far.extend(told(&next(&mut batches).await));
    }
    assert_eq!(told_so_far, ["+Service default/b", "-Service default/a"]);
    write(&dir, "a.yaml", &(service("b") + &service("c")));
    assert_eq!(told(&next(&mut batches).await), ["+Service default/c"]);
}
