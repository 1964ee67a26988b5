use std::error::Error;
use std::fs::OpenOptions;
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
                DatabaseError::Storage(StorageError::Io(source)) => {
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
