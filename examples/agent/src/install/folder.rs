//! Files that are replaced at once.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::error::{Error, Result};

/// A folder in which no other install is at work while this value lives.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    handle: File,
}

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placed {
    Created,
    Changed,
    Unchanged,
}

/// What became of a file that was to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Removed {
    Removed,
    Absent,
}

impl Folder {
    /// Opens a folder, and makes it if it is not there.
    pub(super) fn create(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).map_err(failed("make", path))?;
        Self::open(path)?.ok_or_else(|| failed("open", path)(ErrorKind::NotFound.into()))
    }

    /// Opens a folder; `None` if it is not there.
    pub(super) fn open(path: &Path) -> Result<Option<Self>> {
        let handle = match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(failed("open", path))?,
        };
        if !handle.metadata().map_err(failed("open", path))?.is_dir() {
            return Err(failed("open", path)(ErrorKind::NotADirectory.into()));
        }
        handle.lock().map_err(failed("lock", path))?;
        Ok(Some(Self { path: path.to_owned(), handle }))
    }

    /// Whether it is what is at this path. To be asked before that is opened as well: nobody gets a
    /// second lock on a folder.
    pub(super) fn is_at(&self, path: &Path) -> Result<bool> {
        let own = self.handle.metadata().map_err(failed("look at", &self.path))?;
        match fs::metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(failed("look at", path)(error)),
            Ok(found) => Ok((own.dev(), own.ino()) == (found.dev(), found.ino())),
        }
    }

    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Names of everything in it, sorted.
    pub(super) fn names(&self) -> Result<Vec<String>> {
        let list = || -> io::Result<Vec<String>> {
            let entries = fs::read_dir(&self.path)?;
            let name = |entry: io::Result<fs::DirEntry>| {
                Ok(entry?.file_name().to_string_lossy().into_owned())
            };
            let mut names = entries.map(name).collect::<io::Result<Vec<_>>>()?;
            names.sort();
            Ok(names)
        };
        list().map_err(failed("list", &self.path))
    }

    /// A file's content; `None` if it is not there.
    pub(super) fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.path_of(name);
        match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            read => read.map(Some).map_err(failed("read", &path)),
        }
    }

    /// Sees to it that a file has this content and these permissions, and that it stays so after a
    /// crash of the machine. Whoever opens it meanwhile finds the old file or the new one, whole.
    pub(super) fn put(&self, name: &str, content: &[u8], mode: u32) -> Result<Placed> {
        let path = self.path_of(name);
        self.sweep(name)?;
        let placed = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Placed::Created,
            Err(error) => return Err(failed("look at", &path)(error)),
            // A link is replaced by the file, and what it leads to is left alone.
            Ok(found) if found.is_symlink() => Placed::Changed,
            Ok(found) if !found.is_file() => return Err(Error::NotAFile { path }),
            Ok(found) => {
                let same = found.mode() & 0o7777 == mode
                    && fs::read(&path).map_err(failed("read", &path))? == content;
                if same {
                    return Ok(Placed::Unchanged);
                }
                Placed::Changed
            }
        };
        let new = self.unfinished(name);
        let written = write(&new, content, mode).map_err(failed("write", &new));
        let renamed =
            written.and_then(|()| fs::rename(&new, &path).map_err(failed("replace", &path)));
        if let Err(error) = renamed {
            // The first failure is the one to tell; the next install sweeps.
            let _ = fs::remove_file(&new);
            return Err(error);
        }
        self.sync()?;
        Ok(placed)
    }

    /// Removes a file, for good even if the machine crashes.
    pub(super) fn remove(&self, name: &str) -> Result<Removed> {
        self.sweep(name)?;
        let removed = remove(&self.path_of(name))?;
        self.sync()?;
        Ok(removed)
    }

    /// Removes what an install that was killed has left of a file. No other is at work here.
    fn sweep(&self, name: &str) -> Result<()> {
        remove(&self.unfinished(name)).map(drop)
    }

    /// Not a name that a runtime takes for a configuration or a plugin.
    fn unfinished(&self, name: &str) -> PathBuf {
        self.path.join(format!(".{name}.podwire-new"))
    }

    fn sync(&self) -> Result<()> {
        self.handle.sync_all().map_err(failed("sync", &self.path))
    }
}

fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

fn remove(path: &Path) -> Result<Removed> {
    match fs::remove_file(path) {
        Ok(()) => Ok(Removed::Removed),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Removed::Absent),
        Err(error) => Err(failed("remove", path)(error)),
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::File { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_file_is_made_changed_and_left_alone() {
        let base = tempfile::tempdir().unwrap();
        let folder = Folder::create(&base.path().join("opt/bin")).unwrap();
        let put = |content: &str, mode| folder.put("x", content.as_bytes(), mode).unwrap();
        assert_eq!(put("one", 0o755), Placed::Created);
        assert_eq!(put("one", 0o755), Placed::Unchanged);
        assert_eq!(put("two", 0o755), Placed::Changed);
        assert_eq!(put("two", 0o644), Placed::Changed);
        assert_eq!(folder.read("x").unwrap().unwrap(), b"two");
        let mode = fs::metadata(folder.path_of("x")).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o644);
        assert_eq!(folder.names().unwrap(), ["x"]);
        assert_eq!(folder.remove("x").unwrap(), Removed::Removed);
        assert_eq!(folder.remove("x").unwrap(), Removed::Absent);
        assert_eq!(folder.read("x").unwrap(), None);
    }

    #[test]
    fn what_a_killed_install_has_left_is_swept() {
        let base = tempfile::tempdir().unwrap();
        let folder = Folder::create(base.path()).unwrap();
        folder.put("x", b"one", 0o644).unwrap();
        fs::write(base.path().join(".x.podwire-new"), "tw").unwrap();
        assert_eq!(folder.put("x", b"one", 0o644).unwrap(), Placed::Unchanged);
        assert_eq!(folder.names().unwrap(), ["x"]);
    }

    #[test]
    fn links_are_replaced_and_folders_are_not() {
        let base = tempfile::tempdir().unwrap();
        let folder = Folder::create(&base.path().join("bin")).unwrap();
        let elsewhere = base.path().join("elsewhere");
        fs::write(&elsewhere, "one").unwrap();
        symlink(&elsewhere, folder.path_of("x")).unwrap();
        assert_eq!(folder.put("x", b"two", 0o644).unwrap(), Placed::Changed);
        assert_eq!(fs::read(elsewhere).unwrap(), b"one");
        assert!(fs::symlink_metadata(folder.path_of("x")).unwrap().is_file());
        fs::create_dir(folder.path_of("y")).unwrap();
        let error = folder.put("y", b"two", 0o644).unwrap_err();
        assert!(matches!(error, Error::NotAFile { .. }), "{error}");
    }

    #[test]
    fn a_second_install_waits_for_the_first() {
        let base = tempfile::tempdir().unwrap();
        let first = Folder::create(base.path()).unwrap();
        let second = File::open(base.path()).unwrap();
        assert!(second.try_lock().is_err());
        drop(first);
        second.try_lock().unwrap();
    }
}
