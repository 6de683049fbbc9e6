//! The server's own record of what it was asked to do: one line per request, written before the
//! answer. Two lines with one id are a duplicate; an answer without a line is impossible.
//!
//! Each line is one `write(2)` to a descriptor in append mode, so a kill -9 loses no line of a
//! request that was answered, and servers may share one file.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::Context as _;

/// First word of every line, so that a ledger can share standard output with other text.
const MARK: &str = "ledger";

/// One request the server took on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub server: String,
    pub pod: String,
    pub id: String,
    pub method: String,
    pub body_sha256: String,
}

#[derive(Debug)]
pub struct Ledger {
    file: File,
}

impl Ledger {
    /// Opens for appending; `-` is standard output.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let file = if path == Path::new("-") {
            File::from(io::stdout().as_fd().try_clone_to_owned()?)
        } else {
            let opened = OpenOptions::new().create(true).append(true).open(path);
            opened.with_context(|| format!("cannot open the ledger {}", path.display()))?
        };
        Ok(Self { file })
    }

    pub fn record(&self, entry: &Entry) -> io::Result<()> {
        let Entry { server, pod, id, method, body_sha256 } = entry;
        let line = format!("{MARK} {server} {pod} {id} {method} {body_sha256}\n");
        (&self.file).write_all(line.as_bytes())
    }
}

/// Reads the entries out of a ledger, or out of a log that holds one. Other lines are skipped; a
/// line cut short by a crash is not an entry.
pub fn parse_ledger(text: &str) -> impl Iterator<Item = Entry> + '_ {
    text.split_inclusive('\n').filter_map(|line| parse_line(line.strip_suffix('\n')?))
}

fn parse_line(line: &str) -> Option<Entry> {
    // Whoever collects the output may have put a prefix before it.
    let start = line.find(MARK)?;
    let mut words = line[start..].split(' ');
    let mut next = || words.next().map(str::to_owned);
    let mark = next()?;
    let (server, pod, id, method, body_sha256) = (next()?, next()?, next()?, next()?, next()?);
    let complete = mark == MARK && words.next().is_none();
    complete.then_some(Entry { server, pod, id, method, body_sha256 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str) -> Entry {
        Entry {
            server: "web-v1".into(),
            pod: "web-v1-a".into(),
            id: id.into(),
            method: "POST".into(),
            body_sha256: "00ff".into(),
        }
    }

    #[test]
    fn lines_come_back_as_written_and_damaged_ones_do_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let ledger = Ledger::open(file.path()).unwrap();
        ledger.record(&entry("1")).unwrap();
        // A second process appends to the same file.
        Ledger::open(file.path()).unwrap().record(&entry("2")).unwrap();
        let mut text = std::fs::read_to_string(file.path()).unwrap();
        text.push_str("listening on 8080\nledger web-v1 web-v1-a 3 POST\nledger web-v1 web-v1-a 4");
        let entries: Vec<_> = parse_ledger(&text).collect();
        assert_eq!(entries, [entry("1"), entry("2")]);
    }
}
