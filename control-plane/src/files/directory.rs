//! The files of the directory, what each last said without a mistake, and what is wrong with it now.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use heddle_resources::reader::{self, Located};
use heddle_resources::{Kind, ObjectKey};
use prometheus::IntCounter;
use tokio::time::Instant;
use tracing::info;

use crate::catalog::{Issue, Reason};
use crate::index::{Batch, Event};

use super::{Extent, STATE, merge};

/// A save in place shows itself empty or cut short in the middle. Whatever says less than before is
/// believed once nothing moved for this long.
const SETTLE: Duration = Duration::from_millis(100);
/// A file written so recently may be written again within the same tick of its clock.
const CLOCK_TICK: Duration = Duration::from_millis(50);
/// One more than the reader takes, so that it is the reader who refuses.
const READ_LIMIT: u64 = 64 * 1024 * 1024 + 1;
/// Kinds whose absence could let in what they would refuse.
const RESTRICTING: [Kind; 3] = [Kind::AuthorizationPolicy, Kind::MeshTLSPolicy, Kind::Mesh];

/// The directory as last read.
pub(super) struct Directory {
    dir: PathBuf,
    failures: IntCounter,
    /// By name; those of `.state` as ".state/<name>".
    files: BTreeMap<String, Source>,
    /// What is wrong with the directory itself.
    unreadable: BTreeMap<&'static str, String>,
    /// What was told.
    told: BTreeMap<ObjectKey, Located>,
    refused: Vec<Issue>,
    is_complete: bool,
    /// The last reason for not being complete, so that each is logged once.
    incomplete: Option<String>,
}

/// What one reading comes to.
pub(super) struct Outcome {
    pub(super) batch: Option<Batch>,
    /// When to read again because something has to settle.
    pub(super) settles: Option<Instant>,
}

/// One file.
#[derive(Default)]
pub(super) struct Source {
    /// When it has this stamp, it has this content. `None`: look again.
    stamp: Option<Stamp>,
    content: Option<Vec<u8>>,
    /// What it last said without a mistake; of a file that never was without one, what is right in
    /// it, and what denies in place of the rest.
    pub(super) objects: Vec<Located>,
    was_good: bool,
    errors: Vec<reader::Error>,
    /// What it does not say may be a restriction.
    may_restrict: bool,
    /// It says less than before since then; the content it had then, `None` when it is gone.
    pub(super) shrinking: Option<(Instant, Option<Vec<u8>>)>,
}

#[derive(PartialEq, Eq, Clone, Copy)]
struct Stamp {
    modified: (i64, i64),
    changed: (i64, i64),
    len: u64,
    file: (u64, u64),
}

impl Directory {
    pub(super) fn new(dir: PathBuf, failures: IntCounter) -> Self {
        Self {
            dir,
            failures,
            files: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            told: BTreeMap::new(),
            refused: Vec::new(),
            is_complete: false,
            incomplete: None,
        }
    }

    /// Reads what changed and says what that changes.
    pub(super) fn read(&mut self, extent: Extent, now: Instant) -> Outcome {
        if extent == Extent::Everything {
            self.read_all("", now);
        }
        self.read_all(STATE, now);
        let settles = self.files.values().filter_map(|file| file.shrinking.as_ref());
        let settles = settles.map(|(since, _)| *since + SETTLE).min();
        Outcome { batch: self.batch(), settles }
    }

    fn read_all(&mut self, folder: &'static str, now: Instant) {
        let names = match list(&self.dir, folder) {
            Ok(names) => {
                self.unreadable.remove(folder);
                names
            }
            // As it was: a directory that is away for a moment takes nothing with it.
            Err(error) => {
                let message = format!("cannot be read: {error}; what it last said holds");
                if self.unreadable.insert(folder, message.clone()) != Some(message) {
                    self.failures.inc();
                }
                return;
            }
        };
        let gone: Vec<String> = self
            .files
            .keys()
            .filter(|name| folder_of(name) == folder && !names.contains(name))
            .cloned()
            .collect();
        for name in gone {
            let file = self.files.get_mut(&name).expect("listed above");
            if file.settle(None, now, folder) {
                self.files.remove(&name);
            }
        }
        for name in names {
            let file = self.files.entry(name.clone()).or_default();
            let errors = file.errors.clone();
            file.read(&self.dir.join(&name), &name, now);
            if !file.errors.is_empty() && file.errors != errors {
                self.failures.inc();
            }
        }
    }

    /// The difference to what was told, if there is one.
    fn batch(&mut self) -> Option<Batch> {
        let merged = merge::merge(&self.files);
        let mut refused = merged.issues;
        refused.extend(self.unreadable.iter().map(|(folder, message)| {
            let name = if folder.is_empty() { "." } else { folder };
            file_issue(name, String::new(), message.clone())
        }));
        refused.extend(self.files.values().flat_map(|file| file.errors.iter().map(issue)));
        refused.sort();

        let gone = self.told.keys().filter(|key| !merged.objects.contains_key(*key));
        let mut events: Vec<_> = gone.cloned().map(Event::Delete).collect();
        for (key, located) in &merged.objects {
            if self.told.get(key).is_none_or(|told| told.object != located.object) {
                events.push(Event::Apply(located.clone()));
            }
        }
        let initial = !self.is_complete && self.completes();
        if events.is_empty() && refused == self.refused && !initial {
            return None;
        }
        self.told = merged.objects;
        self.refused.clone_from(&refused);
        Some(Batch { events, initial, refused, mark: None })
    }

    /// True from the moment everything has been read. A file that cannot be read and may hold a
    /// restriction was not: publishing without it could let in what it refuses.
    fn completes(&mut self) -> bool {
        let missing = self.files.iter().find(|(_, file)| !file.was_good && file.may_restrict);
        let reason = match missing {
            Some((name, _)) => Some(format!("{name} cannot be read, and may hold a policy")),
            None => self
                .unreadable
                .values()
                .next()
                .map(|message| format!("{} {message}", self.dir.display())),
        };
        if reason != self.incomplete {
            if let Some(reason) = &reason {
                info!(reason, "nothing is published before everything is read");
            }
            self.incomplete.clone_from(&reason);
        }
        self.is_complete = reason.is_none();
        self.is_complete
    }
}

impl Source {
    fn read(&mut self, path: &Path, name: &str, now: Instant) {
        let stamp = fs::metadata(path).map(|meta| Stamp::of(&meta));
        if let Ok(stamp) = &stamp
            && self.stamp == Some(*stamp)
            && self.shrinking.is_none()
        {
            return;
        }
        match read_bounded(path) {
            Ok(content) => {
                // What was written this very moment may be written again without a new stamp.
                self.stamp = stamp.ok().filter(|stamp| !stamp.is_fresh());
                self.take(content, name, now);
            }
            // Gone between listing and reading: the next listing settles it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                self.stamp = None;
                self.content = None;
                self.may_restrict = true;
                let message = format!("cannot be read: {error}; what it last said holds");
                self.errors = vec![whole_file(name, message)];
            }
        }
    }

    fn take(&mut self, content: Vec<u8>, name: &str, now: Instant) {
        if self.content.as_ref() == Some(&content) {
            self.shrinking = None;
            return;
        }
        let Ok(text) = str::from_utf8(&content) else {
            self.errors = vec![whole_file(name, "is not UTF-8; save it as UTF-8".to_owned())];
            self.may_restrict = true;
            self.content = Some(content);
            return;
        };
        // One file must not end the source for all, whatever a parser makes of it.
        let Ok(reading) = catch_unwind(|| reader::read(name, text)) else {
            let message = "cannot be parsed; simplify it, and report the file as a bug";
            self.errors = vec![whole_file(name, message.to_owned())];
            self.may_restrict = true;
            self.content = Some(content);
            return;
        };
        if reading.errors.is_empty() {
            let keeps_all = self
                .objects
                .iter()
                .all(|old| reading.objects.iter().any(|new| new.object.key() == old.object.key()));
            let is_cut = self.was_good && !keeps_all;
            // Controllers write whole files; only one that is empty is in the making.
            let is_believed = folder_of(name) == STATE && !reading.objects.is_empty();
            if is_cut && !is_believed && !self.settle(Some(&content), now, folder_of(name)) {
                return;
            }
            self.objects = reading.objects;
            self.was_good = true;
        } else if !self.was_good {
            self.objects = reading.objects;
            self.objects.extend(reading.stand_ins);
        }
        self.shrinking = None;
        // A mistake that belongs to no object: it is not known what the file would say.
        let is_opaque = reading.errors.iter().any(|error| error.object.is_empty());
        self.may_restrict =
            is_opaque && RESTRICTING.iter().any(|kind| text.contains(kind.as_str()));
        self.errors = reading.errors;
        self.content = Some(content);
    }

    /// True when the file has said less than before, and the same, for long enough.
    fn settle(&mut self, content: Option<&[u8]>, now: Instant, folder: &str) -> bool {
        if content.is_none() && folder == STATE {
            return true;
        }
        if let Some((since, seen)) = &self.shrinking
            && seen.as_deref() == content
        {
            return now.duration_since(*since) >= SETTLE;
        }
        self.shrinking = Some((now, content.map(<[u8]>::to_vec)));
        false
    }
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        Self {
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
            len: meta.len(),
            file: (meta.dev(), meta.ino()),
        }
    }

    fn is_fresh(&self) -> bool {
        let seconds = u64::try_from(self.changed.0).unwrap_or(0);
        let nanos = u64::try_from(self.changed.1).unwrap_or(0);
        let changed =
            SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_nanos(nanos);
        // A time in the future says that the clock was set: no stamp can be trusted then.
        SystemTime::now().duration_since(changed).is_ok_and(|age| age < CLOCK_TICK)
            || changed > SystemTime::now()
    }
}

/// The files of a folder that are read, by name.
fn list(dir: &Path, folder: &str) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir.join(folder)) {
        Ok(entries) => entries,
        // Nobody has filled anything in.
        Err(error) if error.kind() == io::ErrorKind::NotFound && folder == STATE => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        // Through a link, which is how a ConfigMap is mounted; never a pipe, which would block.
        let is_file = || fs::metadata(entry.path()).is_ok_and(|meta| meta.is_file());
        if is_read(&name) && is_file() {
            names.push(if folder.is_empty() { name } else { format!("{folder}/{name}") });
        }
    }
    names.sort();
    Ok(names)
}

/// Not what editors leave beside a file.
fn is_read(name: &str) -> bool {
    let is_kept = !name.starts_with(['.', '#']) && !name.ends_with('~');
    let extension = name.rsplit_once('.').map(|(_, extension)| extension);
    is_kept && matches!(extension, Some("yaml" | "yml" | "json"))
}

fn folder_of(name: &str) -> &'static str {
    if name.strip_prefix(STATE).is_some_and(|rest| rest.starts_with('/')) { STATE } else { "" }
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(READ_LIMIT).read_to_end(&mut content)?;
    Ok(content)
}

fn whole_file(name: &str, message: String) -> reader::Error {
    reader::Error {
        file: name.to_owned(),
        line: 0,
        column: 0,
        object: String::new(),
        path: String::new(),
        value: String::new(),
        message,
    }
}

/// A reader's error as an issue.
fn issue(error: &reader::Error) -> Issue {
    let location = match error.line {
        0 => error.file.clone(),
        line => format!("{}:{line}:{}", error.file, error.column),
    };
    let message = match error.value.as_str() {
        "" => error.message.clone(),
        value => format!("{value}: {}", error.message),
    };
    let Some((kind, name)) = error.object.split_once(' ') else {
        return Issue { path: error.path.clone(), ..file_issue(&error.file, location, message) };
    };
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    Issue {
        kind: kind.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        location,
        path: error.path.clone(),
        reason: Reason::Invalid,
        message,
        generation: None,
    }
}

fn file_issue(name: &str, location: String, message: String) -> Issue {
    Issue {
        kind: "File".to_owned(),
        namespace: String::new(),
        name: name.to_owned(),
        location,
        path: String::new(),
        reason: Reason::Invalid,
        message,
        generation: None,
    }
}
