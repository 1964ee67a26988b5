use std::fmt;
use std::fs::{self, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use redb::{Database, ReadableTable, StorageBackend, TableDefinition};

use super::{Entry, Ledger, StoreError, Table};

/// The leases of one pool in a file, `<pool>.<life>.redb`.
///
/// Processes take turns: the file is locked from [`open`](Self::open) until it is dropped. What
/// [`write`](Self::write) has done is there for whoever comes next, also if this process is killed
/// in the moment of its return; of a change that was not finished nothing is.
///
/// Nothing is synchronised with the disk. Instead the file is bound to a life: that of the leases'
/// owners, which the caller names, mostly by the kernel's boot id. No interface outlives its
/// kernel, so that after a power loss, when files may be torn, there is nothing left to remember;
/// files of other lives are removed unread.
#[derive(Debug)]
pub struct File {
    database: Database,
    pool: String,
    path: PathBuf,
}

/// What [`File::open`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// The file of this life.
    Existing,
    /// Nothing: a new file was made.
    New,
    /// Only files of other lives: they were removed, and a new file was made.
    Renewed,
}

/// Why a [`File`] cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// Something about the file or its folder failed.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Others had the file locked all the time.
    #[error("{} was in use by others for {} s", path.display(), waited.as_secs())]
    Busy {
        /// The file.
        path: PathBuf,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The pool's name or the life's is no part of a file name.
    #[error("{name:?} cannot be part of a file name")]
    Name {
        /// The name.
        name: String,
    },
    /// The file's content cannot be used, or not be written.
    #[error("cannot {operation} {}", path.display())]
    Database {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// What the library found.
        source: DatabaseError,
    },
}

impl FileError {
    /// It may help to try again later.
    #[must_use]
    pub const fn is_busy(&self) -> bool {
        matches!(self, Self::Busy { .. })
    }
}

/// What the database found wrong.
#[derive(Debug)]
pub struct DatabaseError(Box<redb::Error>);

impl fmt::Display for DatabaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for DatabaseError {}

impl<E: Into<redb::Error>> From<E> for DatabaseError {
    fn from(error: E) -> Self {
        Self(Box::new(error.into()))
    }
}

const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("ledger");

/// The database reads a few pages and writes a few; by default it would take a gigabyte.
const CACHE: usize = 1 << 20;

impl File {
    /// Opens the file of `pool` in `folder`, or makes both, and waits for others that use it.
    ///
    /// # Errors
    ///
    /// [`FileError::Busy`] when they were not done after `patience`; everything else.
    pub fn open(
        folder: &Path,
        pool: &str,
        life: &str,
        patience: Duration,
    ) -> Result<(Self, Opened), FileError> {
        let path = path(folder, pool, life)?;
        let at = |operation| {
            let path = path.clone();
            move |source| FileError::Io { operation, path, source }
        };
        let file = loop {
            let file = open_or_create(folder, &path)?;
            lock(&file, &path, patience)?;
            if is_linked(&file).map_err(at("read"))? {
                break file;
            }
        };
        let mut opened = Opened::Existing;
        if is_unfinished(&file).map_err(at("read"))? {
            file.set_len(0).map_err(at("truncate"))?;
            opened = match remove_others(folder, pool, &path)? {
                0 => Opened::New,
                _ => Opened::Renewed,
            };
        }
        Ok((Self::on(Backend(file), pool, path)?, opened))
    }

    /// Opens the file of `pool` in `folder` if there is one of this life, as [`open`](Self::open)
    /// does.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn open_existing(
        folder: &Path,
        pool: &str,
        life: &str,
        patience: Duration,
    ) -> Result<Option<Self>, FileError> {
        let path = path(folder, pool, life)?;
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(FileError::Io { operation: "open", path, source }),
        };
        lock(&file, &path, patience)?;
        match is_linked(&file).and_then(|linked| Ok(linked && !is_unfinished(&file)?)) {
            Ok(true) => Self::on(Backend(file), pool, path).map(Some),
            Ok(false) => Ok(None),
            Err(source) => Err(FileError::Io { operation: "read", path, source }),
        }
    }

    fn on(backend: impl StorageBackend, pool: &str, path: PathBuf) -> Result<Self, FileError> {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE);
        match builder.create_with_backend(backend) {
            Ok(database) => Ok(Self { database, pool: pool.to_owned(), path }),
            Err(error) => {
                Err(FileError::Database { operation: "open", path, source: error.into() })
            }
        }
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Calls `change` with the ledger, and keeps what it did if it succeeds, all of it at once.
    ///
    /// # Errors
    ///
    /// What `change` fails with; [`StoreError::Table`] also when its work cannot be kept.
    pub fn write<R>(
        &self,
        change: impl FnOnce(&mut Ledger<FileTable<'_>>) -> Result<R, StoreError<FileError>>,
    ) -> Result<R, StoreError<FileError>> {
        self.with_ledger(change, Finish::Commit)
    }

    /// Calls `look` with the ledger; a change that it makes is not kept.
    ///
    /// # Errors
    ///
    /// What `look` fails with; [`StoreError::Table`].
    pub fn read<R>(
        &self,
        look: impl FnOnce(&mut Ledger<FileTable<'_>>) -> Result<R, StoreError<FileError>>,
    ) -> Result<R, StoreError<FileError>> {
        self.with_ledger(look, Finish::Abort)
    }

    fn with_ledger<R>(
        &self,
        act: impl FnOnce(&mut Ledger<FileTable<'_>>) -> Result<R, StoreError<FileError>>,
        finish: Finish,
    ) -> Result<R, StoreError<FileError>> {
        let fail = |operation, source: DatabaseError| {
            StoreError::Table(FileError::Database { operation, path: self.path.clone(), source })
        };
        let mut transaction =
            self.database.begin_write().map_err(|error| fail("write", error.into()))?;
        // The next process need not read all of the file to find out what in it is free.
        transaction.set_quick_repair(true);
        let outcome = {
            let table = transaction.open_table(TABLE);
            let table = table.map_err(|error| fail("read", error.into()))?;
            act(&mut Ledger::new(FileTable { table, path: &self.path }, self.pool.as_str()))
        };
        match (finish, &outcome) {
            (Finish::Commit, Ok(_)) => {
                transaction.commit().map_err(|error| fail("write", error.into()))?;
            }
            _ => transaction.abort().map_err(|error| fail("read", error.into()))?,
        }
        outcome
    }
}

#[derive(Clone, Copy)]
enum Finish {
    Commit,
    Abort,
}

/// The table of a [`File`] during one change.
#[derive(Debug)]
pub struct FileTable<'a> {
    table: redb::Table<'a, &'static [u8], &'static [u8]>,
    path: &'a Path,
}

impl FileTable<'_> {
    fn failed(&self, operation: &'static str, error: redb::StorageError) -> FileError {
        FileError::Database { operation, path: self.path.to_owned(), source: error.into() }
    }
}

impl Table for FileTable<'_> {
    type Error = FileError;

    fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>, FileError> {
        let found = self.table.get(key).map_err(|error| self.failed("read", error))?;
        Ok(found.map(|value| value.value().to_vec()))
    }

    fn first_from(&self, key: &[u8]) -> Result<Option<Entry>, FileError> {
        let mut range = self.table.range(key..).map_err(|error| self.failed("read", error))?;
        let found = range.next().transpose().map_err(|error| self.failed("read", error))?;
        Ok(found.map(|(key, value)| (key.value().to_vec(), value.value().to_vec())))
    }

    fn last_to(&self, key: &[u8]) -> Result<Option<Entry>, FileError> {
        let mut range = self.table.range(..=key).map_err(|error| self.failed("read", error))?;
        let found = range.next_back().transpose().map_err(|error| self.failed("read", error))?;
        Ok(found.map(|(key, value)| (key.value().to_vec(), value.value().to_vec())))
    }

    fn insert(&mut self, key: &[u8], value: &[u8]) -> Result<(), FileError> {
        let written = self.table.insert(key, value).map(|_| ());
        written.map_err(|error| self.failed("write", error))
    }

    fn remove(&mut self, key: &[u8]) -> Result<(), FileError> {
        let removed = self.table.remove(key).map(|_| ());
        removed.map_err(|error| self.failed("write", error))
    }
}

/// The file as the database sees it. It is locked already, and never synchronised (see [`File`]);
/// the page cache shows every process the writes of the others in their order.
#[derive(Debug)]
struct Backend(fs::File);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.metadata().map(|metadata| metadata.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }
}

fn path(folder: &Path, pool: &str, life: &str) -> Result<PathBuf, FileError> {
    check_name(pool)?;
    check_name(life)?;
    // Otherwise it would not be seen where in the file's name it begins.
    if life.contains('.') {
        return Err(FileError::Name { name: life.to_owned() });
    }
    Ok(folder.join(format!("{pool}.{life}.redb")))
}

fn check_name(name: &str) -> Result<(), FileError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if !name.is_empty() && !name.starts_with('.') && name.bytes().all(fits) {
        return Ok(());
    }
    Err(FileError::Name { name: name.to_owned() })
}

fn open_or_create(folder: &Path, path: &Path) -> Result<fs::File, FileError> {
    let open = || {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
    };
    let opened = match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(folder).map_err(|source| FileError::Io {
                operation: "make the folder",
                path: folder.to_owned(),
                source,
            })?;
            open()
        }
        other => other,
    };
    opened.map_err(|source| FileError::Io { operation: "open", path: path.to_owned(), source })
}

/// Waits for the lock without looking again and again: who waits longest is woken first.
fn lock(file: &fs::File, path: &Path, patience: Duration) -> Result<(), FileError> {
    let failed = |source| FileError::Io { operation: "lock", path: path.to_owned(), source };
    match file.try_lock() {
        Ok(()) => return Ok(()),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    }
    let (done, waiting) = mpsc::channel();
    // The lock belongs to the open file, which both handles share. When nobody waits any more, the
    // thread gives up the lock it may get later by closing its handle, the last one.
    let handle = file.try_clone().map_err(failed)?;
    thread::spawn(move || {
        let _ = done.send(handle.lock());
    });
    match waiting.recv_timeout(patience) {
        Ok(locked) => locked.map_err(failed),
        Err(_) => Err(FileError::Busy { path: path.to_owned(), waited: patience }),
    }
}

/// Whether the file still has a name: somebody may have removed it while it was waited for.
fn is_linked(file: &fs::File) -> io::Result<bool> {
    file.metadata().map(|metadata| metadata.nlink() > 0)
}

/// Whether the file is empty, or as good as: the database writes its first bytes last.
fn is_unfinished(file: &fs::File) -> io::Result<bool> {
    let mut head = [0; 8];
    let length = file.read_at(&mut head, 0)?;
    Ok(head[..length].iter().all(|byte| *byte == 0))
}

/// Removes the files of the pool's other lives, and counts them.
fn remove_others(folder: &Path, pool: &str, own: &Path) -> Result<usize, FileError> {
    let at = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| FileError::Io { operation, path, source }
    };
    let mut removed = 0;
    for entry in fs::read_dir(folder).map_err(at("list", folder))? {
        let path = entry.map_err(at("list", folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let life = name.strip_prefix(pool).and_then(|rest| rest.strip_prefix('.'));
        let life = life.and_then(|rest| rest.strip_suffix(".redb"));
        // With a dot in it, it is the file of another pool whose name begins like this one's.
        if path == own || life.is_none_or(|life| life.contains('.')) {
            continue;
        }
        match fs::remove_file(&path) {
            Ok(()) => removed += 1,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(at("remove", &path)(source)),
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::{Owner, Plan, RangeSpec};

    /// A process that is killed after so many writes: the file has those and no others.
    #[derive(Debug)]
    struct Mortal(Backend, Arc<AtomicU32>);

    impl Mortal {
        fn live(&self) -> io::Result<()> {
            let left =
                self.1.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            left.map(|_| ()).map_err(|_| io::Error::other("killed"))
        }
    }

    impl StorageBackend for Mortal {
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.0.read(offset, out)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.live()?;
            self.0.set_len(len)
        }

        fn sync_data(&self) -> io::Result<()> {
            self.0.sync_data()
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.live()?;
            self.0.write(offset, data)
        }
    }

    /// For the making of the file, a grant and a release: whatever the number of writes after
    /// which the process dies, the next one finds what was before or what should be after.
    #[test]
    fn a_process_may_die_after_any_write() {
        let folder = tempfile::tempdir().unwrap();
        let life = Duration::from_secs(10);
        let range = RangeSpec::new("10.0.0.0/24".parse().unwrap()).build().unwrap();
        let plan = Plan::new(vec![vec![range]]).unwrap();
        let (old, new) = (Owner::new("old", "eth0"), Owner::new("new", "eth0"));
        for step in ["make", "grant", "release"] {
            let mut writes = 0;
            loop {
                let pool = format!("{step}-{writes}");
                let path = path(folder.path(), &pool, "a").unwrap();
                if step != "make" {
                    let (file, _) = File::open(folder.path(), &pool, "a", life).unwrap();
                    file.write(|ledger| ledger.allocate(&old, &plan, &[])).unwrap();
                }
                let left = Arc::new(AtomicU32::new(writes));
                let file = open_or_create(folder.path(), &path).unwrap();
                let mortal = Mortal(Backend(file), left.clone());
                let done = File::on(mortal, &pool, path.clone()).is_ok_and(|file| {
                    let result = match step {
                        "release" => file.write(|ledger| ledger.release(&old)).map(|_| ()),
                        _ => file.write(|ledger| ledger.allocate(&new, &plan, &[])).map(|_| ()),
                    };
                    result.is_ok()
                });

                let (file, _) = File::open(folder.path(), &pool, "a", life)
                    .unwrap_or_else(|error| panic!("{pool}: {error}: {error:?}"));
                let held = |owner| file.read(|ledger| ledger.held(owner)).unwrap();
                let before = (step != "make", false);
                let after = (step == "grant", step != "release");
                let now = (!held(&old).is_empty(), !held(&new).is_empty());
                assert!(now == after || (!done && now == before), "{pool}: {now:?}, {done}");
                // It works on, and every address can still be granted.
                for number in 0..253 {
                    let owner = Owner::new(&number.to_string(), "eth0");
                    let taken = usize::from(now.0) + usize::from(now.1);
                    let granted = file.write(|ledger| ledger.allocate(&owner, &plan, &[]));
                    assert_eq!(granted.is_ok(), number < 253 - taken, "{pool}: {number}");
                    if number > 2 && writes % 8 != 0 {
                        break;
                    }
                }
                if done && left.load(Ordering::SeqCst) > 0 {
                    break;
                }
                writes += 1;
            }
            assert!(writes > 5, "{step} has only {writes} writes");
        }
    }
}
