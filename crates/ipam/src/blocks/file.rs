use std::error::Error;
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::{fmt, fs, io};

use redb::backends::FileBackend;
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError,
    TableDefinition,
};

use super::{Expected, New, Registry, Revision, Swap, Versioned};

/// Key to revision and value.
const ENTRIES: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("registry");
/// `revision`: the last one that was used.
const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");

/// The database would take a gigabyte by default.
const CACHE: usize = 1 << 20;

type Source = Box<dyn Error + Send + Sync>;

/// A registry in a file of its own that one process has open, for a node without a cluster.
///
/// Each swap is one transaction, and on the disk when it returns: whoever is killed in between, or
/// loses power, finds either what was before or what should be after.
pub struct FileRegistry {
    path: PathBuf,
    opener: Opener,
    /// `None` after a failed write: the database does nothing more until it is opened again.
    database: Mutex<Option<Database>>,
}

type Opener = Box<dyn Fn(&Builder) -> Result<Database, Refused> + Send + Sync>;

enum Refused {
    File(io::Error),
    Database(DatabaseError),
}

/// Why a [`FileRegistry`] cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileRegistryError {
    /// The file or its folder cannot be opened or made.
    #[error("cannot open {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Another process has the file open.
    #[error("{} is in use by another process", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// The file's content makes no sense. Nothing was changed in it.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the database found.
        source: Source,
    },
    /// The file cannot be read or written. A swap may or may not have taken effect.
    #[error("cannot {operation} {}", path.display())]
    Database {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// What the database found.
        source: Source,
    },
}

impl FileRegistry {
    /// Opens the file, or makes it and its folder. Every page of it is verified.
    ///
    /// # Errors
    ///
    /// All of [`FileRegistryError`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, FileRegistryError> {
        let path = path.into();
        if let Some(folder) = path.parent() {
            let made = fs::create_dir_all(folder);
            made.map_err(|source| FileRegistryError::Open { path: path.clone(), source })?;
        }
        let file = path.clone();
        Self::on(path, move |builder| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let file = options.open(&file).map_err(Refused::File)?;
            let backend = FileBackend::new(file).map_err(Refused::Database)?;
            builder.create_with_backend(backend).map_err(Refused::Database)
        })
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn on(
        path: PathBuf,
        opener: impl Fn(&Builder) -> Result<Database, Refused> + Send + Sync + 'static,
    ) -> Result<Self, FileRegistryError> {
        let registry = Self { path, opener: Box::new(opener), database: Mutex::new(None) };
        registry.with_database("read", |_| Ok(()))?;
        Ok(registry)
    }

    fn with_database<T>(
        &self,
        operation: &'static str,
        act: impl FnOnce(&Database) -> Result<T, Source>,
    ) -> Result<T, FileRegistryError> {
        let mut slot = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let database = match slot.take() {
            Some(open) => open,
            None => self.open_database()?,
        };
        let done = act(&database).map_err(|source| FileRegistryError::Database {
            operation,
            path: self.path.clone(),
            source,
        })?;
        *slot = Some(database);
        Ok(done)
    }

    fn open_database(&self) -> Result<Database, FileRegistryError> {
        let path = self.path.clone();
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE).set_check_integrity_on_open(true);
        // redb may panic over a page that is damaged in a way it did not think of.
        match catch_unwind(AssertUnwindSafe(|| (self.opener)(&builder))) {
            Ok(Ok(database)) => Ok(database),
            Ok(Err(Refused::File(source))) => Err(FileRegistryError::Open { path, source }),
            Ok(Err(Refused::Database(error))) => Err(match error {
                DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
                    FileRegistryError::Locked { path }
                }
                // What is no database at all is invalid data, as redb has it.
                DatabaseError::Storage(StorageError::Io(source))
                    if !matches!(
                        source.kind(),
                        ErrorKind::InvalidData | ErrorKind::UnexpectedEof
                    ) =>
                {
                    FileRegistryError::Open { path, source }
                }
                source => FileRegistryError::Damaged { path, source: source.into() },
            }),
            Err(_) => {
                let source = "the database cannot make sense of it".into();
                Err(FileRegistryError::Damaged { path, source })
            }
        }
    }
}

impl fmt::Debug for FileRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileRegistry").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Registry for FileRegistry {
    type Error = FileRegistryError;

    fn read(&self, key: &str) -> Result<Option<Versioned>, FileRegistryError> {
        self.with_database("read", |database| {
            let transaction = database.begin_read()?;
            match transaction.open_table(ENTRIES) {
                Ok(table) => Ok(table.get(key)?.map(|found| versioned(found.value()))),
                Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
                Err(error) => Err(error.into()),
            }
        })
    }

    fn list(&self, prefix: &str) -> Result<Vec<(String, Versioned)>, FileRegistryError> {
        self.with_database("read", |database| {
            let transaction = database.begin_read()?;
            let table = match transaction.open_table(ENTRIES) {
                Ok(table) => table,
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                Err(error) => return Err(error.into()),
            };
            let mut listed = Vec::new();
            for entry in table.range(prefix..)? {
                let (key, found) = entry?;
                if !key.value().starts_with(prefix) {
                    break;
                }
                listed.push((key.value().to_owned(), versioned(found.value())));
            }
            Ok(listed)
        })
    }

    fn swap(
        &self,
        key: &str,
        expected: &Expected,
        new: New<'_>,
    ) -> Result<Swap, FileRegistryError> {
        self.with_database("write", |database| {
            let transaction = database.begin_write()?;
            let swap = {
                let mut entries = transaction.open_table(ENTRIES)?;
                let found = entries.get(key)?.map(|found| versioned(found.value()));
                if !expected.is_met_by(found.as_ref().map(|found| &found.revision)) {
                    return Ok(Swap::Conflict(found));
                }
                Swap::Swapped(match new {
                    New::Put(value) => {
                        let mut counters = transaction.open_table(COUNTERS)?;
                        let last = counters.get("revision")?.map_or(0, |last| last.value());
                        counters.insert("revision", last + 1)?;
                        entries.insert(key, (last + 1, value))?;
                        Some(Revision::from(last + 1))
                    }
                    New::Delete => {
                        entries.remove(key)?;
                        None
                    }
                })
            };
            transaction.commit()?;
            Ok(swap)
        })
    }
}

fn versioned((revision, value): (u64, &[u8])) -> Versioned {
    Versioned { value: value.to_vec(), revision: Revision::from(revision) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use redb::StorageBackend;

    use super::*;

    /// A disk that forgets what was not synchronised when the power goes.
    #[derive(Debug, Default)]
    struct Disk {
        /// As processes see it.
        seen: Mutex<Vec<u8>>,
        /// As it was when it was last synchronised, and what has been done since.
        synced: Mutex<(Vec<u8>, Vec<Done>)>,
        /// So many operations succeed.
        left: AtomicU32,
    }

    #[derive(Clone, Debug)]
    enum Done {
        Length(usize),
        Write(usize, Vec<u8>),
    }

    impl Done {
        fn to(&self, content: &mut Vec<u8>) {
            match self {
                Self::Length(length) => content.resize(*length, 0),
                Self::Write(offset, data) => {
                    let end = offset + data.len();
                    content.resize(content.len().max(end), 0);
                    content[*offset..end].copy_from_slice(data);
                }
            }
        }
    }

    impl Disk {
        fn act(&self, done: Done) -> io::Result<()> {
            self.live()?;
            done.to(&mut self.seen.lock().unwrap());
            self.synced.lock().unwrap().1.push(done);
            Ok(())
        }

        fn live(&self) -> io::Result<()> {
            let less = |left: u32| left.checked_sub(1);
            let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
            left.map(|_| ()).map_err(|_| io::Error::other("killed"))
        }

        /// What the next process finds after a kill: everything that was written.
        fn after_kill(&self) -> Self {
            Self::with(self.seen.lock().unwrap().clone())
        }

        /// What it finds after a power loss: some of what was not synchronised, and some half.
        fn after_power_loss(&self, mut luck: u64) -> Self {
            let (mut content, done) = self.synced.lock().unwrap().clone();
            for done in done {
                luck = luck.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                match (luck >> 33) % 3 {
                    0 => {}
                    1 => done.to(&mut content),
                    _ => match done {
                        Done::Write(offset, data) => {
                            Done::Write(offset, data[..data.len() / 2].to_vec()).to(&mut content);
                        }
                        whole @ Done::Length(_) => whole.to(&mut content),
                    },
                }
            }
            Self::with(content)
        }

        fn with(content: Vec<u8>) -> Self {
            let (seen, synced) = (Mutex::new(content.clone()), Mutex::new((content, Vec::new())));
            Self { seen, synced, left: AtomicU32::new(u32::MAX) }
        }
    }

    #[derive(Debug)]
    struct Handle(Arc<Disk>);

    impl StorageBackend for Handle {
        fn len(&self) -> io::Result<u64> {
            Ok(self.0.seen.lock().unwrap().len() as u64)
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            let offset = usize::try_from(offset).unwrap();
            let seen = self.0.seen.lock().unwrap();
            let part = seen.get(offset..offset + out.len());
            out.copy_from_slice(part.ok_or(ErrorKind::UnexpectedEof)?);
            Ok(())
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.0.act(Done::Length(usize::try_from(len).unwrap()))
        }

        fn sync_data(&self) -> io::Result<()> {
            self.0.live()?;
            let seen = self.0.seen.lock().unwrap().clone();
            *self.0.synced.lock().unwrap() = (seen, Vec::new());
            Ok(())
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.0.act(Done::Write(usize::try_from(offset).unwrap(), data.to_vec()))
        }
    }

    fn open(disk: &Arc<Disk>) -> Result<FileRegistry, FileRegistryError> {
        let disk = disk.clone();
        FileRegistry::on("disk".into(), move |builder| {
            builder.create_with_backend(Handle(disk.clone())).map_err(Refused::Database)
        })
    }

    fn put(registry: &FileRegistry, key: &str, expected: &Expected, value: &str) -> Revision {
        match registry.swap(key, expected, New::Put(value.as_bytes())).unwrap() {
            Swap::Swapped(Some(revision)) => revision,
            other => panic!("{key}: {other:?}"),
        }
    }

    fn value(registry: &FileRegistry, key: &str) -> Option<String> {
        let found = registry.read(key).unwrap();
        found.map(|found| String::from_utf8(found.value).unwrap())
    }

    /// Whatever the number of operations after which the process dies or the power goes, and
    /// whatever of them has reached the disk: the next process finds a swap whole or not at all,
    /// and a swap that has returned whole.
    #[test]
    fn a_swap_is_there_whole_or_not_at_all() {
        for (new, after) in [(New::Put(b"new"), Some("new")), (New::Delete, None)] {
            let before = Arc::new(Disk::with(Vec::new()));
            let first = open(&before).unwrap();
            let revision = put(&first, "k", &Expected::Absent, "old");
            drop(first);
            let mut operations = 0;
            loop {
                let disk = Arc::new(before.after_kill());
                disk.left.store(operations, Ordering::SeqCst);
                let expected = Expected::Revision(revision.clone());
                // Never closed, as by a process that is gone.
                let done = match open(&disk).map(std::mem::ManuallyDrop::new) {
                    Ok(registry) => registry.swap("k", &expected, new).is_ok(),
                    Err(_) => false,
                };
                let lost = (0..8).map(|luck| disk.after_power_loss(luck * 977 + 1));
                for found in std::iter::once(disk.after_kill()).chain(lost) {
                    let registry = open(&Arc::new(found)).unwrap();
                    let now = value(&registry, "k");
                    let fits = now.as_deref() == after || (!done && now.as_deref() == Some("old"));
                    assert!(fits, "{operations} operations, done {done}: {now:?}");
                    // It works on, and gives no revision twice.
                    let next = put(&registry, "next", &Expected::Absent, "x");
                    let there = registry.read("k").unwrap().map(|found| found.revision);
                    assert!(next != revision && there != Some(next));
                }
                if done && disk.left.load(Ordering::SeqCst) > 0 {
                    break;
                }
                operations += 1;
            }
            assert!(operations > 3, "only {operations} operations");
        }
    }

    #[test]
    fn a_registry_works_on_after_a_failed_write() {
        let disk = Arc::new(Disk::with(Vec::new()));
        let registry = open(&disk).unwrap();
        let revision = put(&registry, "k", &Expected::Absent, "old");
        let expected = Expected::Revision(revision);
        disk.left.store(0, Ordering::SeqCst);
        let error = registry.swap("k", &expected, New::Put(b"new")).unwrap_err();
        assert!(matches!(error, FileRegistryError::Database { operation: "write", .. }), "{error}");
        registry.swap("k", &expected, New::Put(b"new")).unwrap_err();
        disk.left.store(u32::MAX, Ordering::SeqCst);
        assert_eq!(value(&registry, "k").as_deref(), Some("old"));
        put(&registry, "k", &expected, "new");
        assert_eq!(value(&registry, "k").as_deref(), Some("new"));
    }
}
