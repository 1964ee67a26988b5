use std::fmt;
use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};
use rustix::fs::{Advice, Mode, OFlags};

use super::{Change, Entry, Store};

/// Tables in one file, which this process alone may have open.
///
/// The file is a [redb](redb) database: a tree of pages with checksums, and a commit is one sync.
/// It is verified whole when it is opened.
///
/// After an error of the disk the file is closed, what the kernel remembers of it is dropped, and
/// it is opened and verified again at the next call: only what is on the disk counts.
pub struct FileStore {
    path: PathBuf,
    open: Box<dyn FnMut() -> Result<Database, FileStoreError> + Send>,
    /// `None` after an error.
    database: Option<Database>,
}

/// Why a [`FileStore`] cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileStoreError {
    /// Another process has the file open.
    #[error("{} is in use by another process", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// The file is no database, or not what was written into it.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The disk or the kernel failed.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The answer.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl FileStoreError {
    /// Another process has the file open.
    #[must_use]
    pub const fn is_locked(&self) -> bool {
        matches!(self, Self::Locked { .. })
    }

    /// The file will not get better by itself: set it aside.
    #[must_use]
    pub const fn is_damaged(&self) -> bool {
        matches!(self, Self::Damaged { .. })
    }
}

/// By default the database takes up to a gigabyte; the kernel remembers pages as well.
const CACHE: usize = 4 << 20;

impl FileStore {
    /// Opens the file, or makes it, readable by its owner only. A symbolic link is refused.
    ///
    /// # Errors
    ///
    /// [`FileStoreError`].
    pub fn open(path: &Path) -> Result<Self, FileStoreError> {
        let file = path.to_owned();
        let mut earlier = false;
        Self::with_backend(path, move || {
            // What is not there any more is an error then, and not an empty store.
            let create = if earlier { OFlags::empty() } else { OFlags::CREATE };
            let file = open_file(&file, create)?;
            if std::mem::replace(&mut earlier, true) {
                // Pages of a failed sync count as written from then on, though they never were. It
                // is advice, which the file system may not take.
                let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
            }
            FileBackend::new(file).map_err(io::Error::other)
        })
    }

    /// Tables on a medium of the caller's own; `open` is called once, and again after each error.
    /// `path` is what errors call it.
    ///
    /// # Errors
    ///
    /// [`FileStoreError`].
    pub fn with_backend<B: StorageBackend>(
        path: &Path,
        mut open: impl FnMut() -> io::Result<B> + Send + 'static,
    ) -> Result<Self, FileStoreError> {
        let name = path.to_owned();
        let open = move || {
            let failed =
                |error: io::Error| Failure::from(redb::Error::from(error)).at("open", &name);
            let backend = open().map_err(failed)?;
            let opened = guarded(|| {
                let mut builder = Database::builder();
                builder.set_cache_size(CACHE).set_check_integrity_on_open(true);
                Ok(builder.create_with_backend(backend)?)
            });
            opened.map_err(|failure| failure.at("open", &name))
        };
        let mut store = Self { path: path.to_owned(), open: Box::new(open), database: None };
        store.database = Some((store.open)()?);
        Ok(store)
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets `act` use the database; after a failure it is not used again.
    fn with_database<T>(
        &mut self,
        operation: &'static str,
        act: impl FnOnce(&Database) -> Result<T, Failure>,
    ) -> Result<T, FileStoreError> {
        let database = match self.database.take() {
            Some(database) => database,
            None => (self.open)()?,
        };
        let outcome = guarded(|| act(&database));
        match outcome {
            Ok(value) => {
                self.database = Some(database);
                Ok(value)
            }
            Err(failure) => {
                // Closing it after an error may panic as well.
                let _ = guarded(|| {
                    drop(database);
                    Ok(())
                });
                Err(failure.at(operation, &self.path))
            }
        }
    }
}

impl Store for FileStore {
    type Error = FileStoreError;

    fn load(&mut self, table: &str) -> Result<Vec<Entry>, FileStoreError> {
        self.with_database("read", |database| {
            let transaction = database.begin_read()?;
            let table = match transaction.open_table(definition(table)) {
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                other => other?,
            };
            let mut entries = Vec::new();
            for entry in table.iter()? {
                let (key, value) = entry?;
                entries.push((key.value().to_vec(), value.value().to_vec()));
            }
            Ok(entries)
        })
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), FileStoreError> {
        self.with_database("write", |database| {
            let transaction = database.begin_write()?;
            let mut tables: Vec<&'static str> = changes.iter().map(|change| change.table).collect();
            tables.sort_unstable();
            tables.dedup();
            for name in tables {
                let mut table = transaction.open_table(definition(name))?;
                for Change { key, value, .. } in changes.iter().filter(|c| c.table == name) {
                    match value {
                        Some(value) => table.insert(key.as_slice(), value.as_slice())?,
                        None => table.remove(key.as_slice())?,
                    };
                }
            }
            Ok(transaction.commit()?)
        })
    }
}

impl fmt::Debug for FileStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileStore").field("path", &self.path).finish_non_exhaustive()
    }
}

fn definition(name: &str) -> TableDefinition<'_, &'static [u8], &'static [u8]> {
    TableDefinition::new(name)
}

fn open_file(path: &Path, create: OFlags) -> io::Result<File> {
    let flags = OFlags::RDWR | create | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?.into())
}

/// A failure before it is known which file it is about.
enum Failure {
    Redb(Box<redb::Error>),
    Panic,
}

impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Redb(Box::new(error.into()))
    }
}

impl Failure {
    fn at(self, operation: &'static str, path: &Path) -> FileStoreError {
        let path = path.to_owned();
        let error = match self {
            Self::Redb(error) => error,
            Self::Panic => {
                let source = "the database cannot make sense of it".into();
                return FileStoreError::Damaged { path, source };
            }
        };
        match *error {
            redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => {
                FileStoreError::Locked { path }
            }
            redb::Error::Io(source) => match source.kind() {
                // "This is no database", and a file that ends where a page should be.
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                    FileStoreError::Damaged { path, source: source.into() }
                }
                _ => FileStoreError::Io { operation, path, source: source.into() },
            },
            error @ (redb::Error::PreviousIo | redb::Error::ValueTooLarge(_)) => {
                FileStoreError::Io { operation, path, source: error.into() }
            }
            error => FileStoreError::Damaged { path, source: error.into() },
        }
    }
}

/// The database may panic over a file that is damaged in a way it did not think of.
fn guarded<T>(act: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or(Err(Failure::Panic))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn numbered(number: u32) -> Change {
        Change::put("t", number.to_be_bytes(), number.to_string())
    }

    #[test]
    fn what_is_committed_is_there_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let mut store = FileStore::open(&path).unwrap();
        assert_eq!(store.load("t").unwrap(), []);
        let other = Change::put("other", "x", "y");
        store.commit(&[numbered(2), numbered(1), other, numbered(3)]).unwrap();
        store.commit(&[Change::remove("t", 3u32.to_be_bytes())]).unwrap();
        // The last one counts.
        store.commit(&[numbered(4), Change::remove("t", 4u32.to_be_bytes())]).unwrap();
        drop(store);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        let mut store = FileStore::open(&path).unwrap();
        let values: Vec<_> = store.load("t").unwrap().into_iter().map(|(_, value)| value).collect();
        assert_eq!(values, [b"1", b"2"]);
        assert_eq!(store.load("other").unwrap(), [(b"x".to_vec(), b"y".to_vec())]);
    }

    #[test]
    fn a_second_owner_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let _first = FileStore::open(&path).unwrap();
        assert!(FileStore::open(&path).unwrap_err().is_locked());
    }

    #[test]
    fn links_and_folders_are_errors_of_the_kernel() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("link");
        symlink(folder.path().join("target"), &path).unwrap();
        for path in [&path, folder.path(), &folder.path().join("no/such")] {
            let error = FileStore::open(path).unwrap_err();
            assert!(matches!(error, FileStoreError::Io { operation: "open", .. }), "{error:?}");
        }
        assert!(!folder.path().join("target").exists());
    }

    /// Whatever page is hit, the entries are whole or the file is refused.
    #[test]
    fn damage_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, b"this is no database").unwrap();
        assert!(FileStore::open(&path).unwrap_err().is_damaged());
        fs::remove_file(&path).unwrap();

        let mut store = FileStore::open(&path).unwrap();
        store.commit(&(0..2000).map(numbered).collect::<Vec<_>>()).unwrap();
        drop(store);
        let whole = fs::read(&path).unwrap();
        let mut refused = 0;
        for page in 0..(whole.len() / 4096).min(64) {
            let mut bytes = whole.clone();
            for byte in &mut bytes[page * 4096..page * 4096 + 512] {
                *byte ^= 0xa5;
            }
            let other = folder.path().join(page.to_string());
            fs::write(&other, &bytes).unwrap();
            match FileStore::open(&other).and_then(|mut store| store.load("t")) {
                Ok(entries) => assert_eq!(entries.len(), 2000, "page {page}"),
                Err(error) => {
                    assert!(error.is_damaged(), "page {page}: {error:?}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 10, "only {refused} pages are refused");
        // Cut off in the middle.
        fs::write(folder.path().join("cut"), &whole[..whole.len() / 2]).unwrap();
        assert!(FileStore::open(&folder.path().join("cut")).unwrap_err().is_damaged());
    }
}
