//! Files the control plane keeps: written atomically, secrets readable by their owner alone.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::Error;

/// No file of ours is larger; what is, is not ours.
const SIZE_LIMIT: u64 = 1 << 20;
/// How often a watched file is looked at. Polling sees what happens on every file system, and a
/// key or a root is not awaited by the millisecond.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Makes `path` and its parents; `mode` is for directories that do not exist yet.
pub(crate) fn create_dir(path: &Path, mode: u32) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(Error::file("create directory", path))
}

/// Replaces `path` in one step: a reader sees the old content or the new, also after a crash.
pub(crate) fn write_atomic(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let staged = directory.join(format!(".{}.{}.new", name.to_string_lossy(), std::process::id()));
    let written = write_and_rename(&staged, path, content, mode);
    if written.is_err() {
        // What is left of a failed write only takes room on a disk that may be full.
        let _ = fs::remove_file(&staged);
        return written;
    }
    File::open(directory)?.sync_all()
}

fn write_and_rename(staged: &Path, path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(staged)?;
    // The mode above is subject to the umask, and says nothing about a file left by a crash.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(staged, path)
}

/// Reads a secret, refusing one that others could read or replace. `None` when it does not exist.
pub(crate) fn read_secret(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let Some((content, mode)) = read(path)? else { return Ok(None) };
    if mode & 0o077 != 0 {
        return Err(Error::Mode { path: path.to_owned(), mode: mode & 0o7777, wanted: 0o600 });
    }
    Ok(Some(content))
}

/// Reads a file that is no secret. `None` when it does not exist.
pub(crate) fn read_public(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    Ok(read(path)?.map(|(content, _)| content))
}

fn read(path: &Path) -> Result<Option<(Vec<u8>, u32)>, Error> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::file("open", path)(error)),
    };
    let mode = file.metadata().map_err(Error::file("read", path))?.mode();
    let mut content = Vec::new();
    file.take(SIZE_LIMIT + 1).read_to_end(&mut content).map_err(Error::file("read", path))?;
    if content.len() as u64 > SIZE_LIMIT {
        return Err(Error::content(path, format!("is larger than {SIZE_LIMIT} bytes")));
    }
    Ok(Some((content, mode)))
}

/// Refuses a directory that others may enter.
pub(crate) fn check_private_dir(path: &Path) -> Result<(), Error> {
    let mode = fs::metadata(path).map_err(Error::file("read", path))?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(Error::Mode { path: path.to_owned(), mode, wanted: 0o700 });
    }
    Ok(())
}

/// A small file read again and again, each reading told apart from the one before.
pub(crate) struct Polled {
    path: PathBuf,
    read: fn(&Path) -> Result<Option<Vec<u8>>, Error>,
    last: Option<Result<Option<Vec<u8>>, String>>,
}

impl Polled {
    pub(crate) fn new(path: PathBuf, read: fn(&Path) -> Result<Option<Vec<u8>>, Error>) -> Self {
        Self { path, read, last: None }
    }

    /// The content when it is not what it was at the last call. `None` within: no such file.
    pub(crate) fn changed(&mut self) -> Option<Result<Option<Vec<u8>>, String>> {
        let now = (self.read)(&self.path).map_err(|error| crate::error::chain(&error));
        if self.last.as_ref() == Some(&now) {
            return None;
        }
        self.last = Some(now.clone());
        Some(now)
    }

    /// Calls `changed` at every interval until `stop` resolves.
    pub(crate) async fn run(
        mut self,
        stop: impl Future<Output = ()>,
        mut apply: impl FnMut(Result<Option<Vec<u8>>, String>),
    ) {
        let mut interval = tokio::time::interval(POLL_INTERVAL);
        let mut stop = std::pin::pin!(stop);
        loop {
            tokio::select! {
                _ = interval.tick() => {}
                () = &mut stop => return,
            }
            if let Some(content) = self.changed() {
                apply(content);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_whole_files_with_their_mode_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_atomic(&path, b"one", 0o644).unwrap();
        write_atomic(&path, b"two", 0o600).unwrap();
        assert_eq!(read_secret(&path).unwrap().unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn refuses_secrets_that_others_can_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        assert!(read_secret(&path).unwrap().is_none());
        write_atomic(&path, b"x", 0o640).unwrap();
        let error = read_secret(&path).unwrap_err().to_string();
        assert!(error.contains("has mode 0640"), "{error}");
        assert!(error.contains("chmod 600"), "{error}");
        assert_eq!(read_public(&path).unwrap().unwrap(), b"x");
    }

    #[test]
    fn a_polled_file_is_told_once_per_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("roots.pem");
        let mut polled = Polled::new(path.clone(), read_public);
        assert_eq!(polled.changed(), Some(Ok(None)));
        assert_eq!(polled.changed(), None);
        write_atomic(&path, b"a", 0o644).unwrap();
        assert_eq!(polled.changed(), Some(Ok(Some(b"a".to_vec()))));
        assert_eq!(polled.changed(), None);
        fs::remove_file(&path).unwrap();
        assert_eq!(polled.changed(), Some(Ok(None)));
    }
}
