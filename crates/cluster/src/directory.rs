use std::fmt;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use crate::folder::Folder;
use crate::{Error, Problem, Snapshot, Source};

/// Files that change together are read together: once nothing has changed for this long ..
const QUIET: Duration = Duration::from_millis(50);

/// .. or, if there is no end to it, after this.
const PATIENCE: Duration = Duration::from_millis(500);

/// How often everything is read anew: a file behind a symlink changes without an event.
const REREAD: Duration = Duration::from_secs(30);

/// The same, of a folder that is not there or cannot be watched.
const RETRY: Duration = Duration::from_secs(1);

/// A directory of Kubernetes manifests, watched by a thread that ends when this is dropped.
///
/// Read are the files whose names end in `.yaml`, `.yml` or `.json` and do not begin with a dot.
/// Subfolders are not.
///
/// Minimum kernel: any that has inotify.
pub struct Directory {
    shared: Arc<Shared>,
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
    /// Dropping it ends the thread.
    stop: Option<UnixStream>,
}

#[derive(Default)]
struct Shared {
    current: Mutex<Arc<Snapshot>>,
    changed: Condvar,
}

impl Directory {
    /// Reads a directory, and watches it from then on. It may be missing, and come later: that is a
    /// [`Problem`] of the snapshot, and the directory is [unread](Snapshot::unread).
    ///
    /// # Errors
    ///
    /// When there is no instance of inotify or no thread to be had.
    pub fn watch(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        let of_watch = |source: io::Error| Error::Watch { path: path.clone(), source };
        let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
        let inotify = Inotify::init(flags).map_err(|errno| of_watch(errno.into()))?;
        let (stop, stopped) = UnixStream::pair().map_err(of_watch)?;
        let shared = Arc::new(Shared::default());
        let mut watcher = Watcher {
            folder: Folder::new(path.clone()),
            inotify,
            watch: None,
            stopped,
            shared: shared.clone(),
        };
        watcher.refresh();
        let thread = thread::Builder::new()
            .name("podwire-cluster".into())
            .spawn(move || watcher.run())
            .map_err(|source| Error::Thread { path: path.clone(), source })?;
        Ok(Self { shared, path, thread: Some(thread), stop: Some(stop) })
    }

    /// Waits until the snapshot is a later one than this; tells whether it is.
    #[must_use]
    pub fn wait_for_change(&self, revision: u64, timeout: Duration) -> bool {
        let wait =
            self.shared.changed.wait_timeout_while(self.shared.current(), timeout, |current| {
                current.revision == revision
            });
        let (current, _) = wait.unwrap_or_else(PoisonError::into_inner);
        current.revision != revision
    }
}

impl Source for Directory {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.current().clone()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of it has been printed already.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let revision = self.shared.current().revision;
        f.debug_struct("Directory")
            .field("path", &self.path)
            .field("revision", &revision)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn current(&self) -> MutexGuard<'_, Arc<Snapshot>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the thread owns.
struct Watcher {
    folder: Folder,
    inotify: Inotify,
    watch: Option<WatchDescriptor>,
    stopped: UnixStream,
    shared: Arc<Shared>,
}

/// Why the thread goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Woken {
    Changed,
    Timeout,
    Stopped,
}

impl Watcher {
    fn run(mut self) {
        loop {
            let well = self.watch.is_some() && self.folder.is_there();
            match self.wait(if well { REREAD } else { RETRY }) {
                Woken::Stopped => return,
                Woken::Timeout => {}
                Woken::Changed => {
                    let since = Instant::now();
                    loop {
                        match self.wait(QUIET) {
                            Woken::Stopped => return,
                            Woken::Changed if since.elapsed() < PATIENCE => {}
                            Woken::Changed | Woken::Timeout => break,
                        }
                    }
                }
            }
            self.refresh();
        }
    }

    /// Watches first, so that what changes while the folder is read is an event.
    fn refresh(&mut self) {
        let unwatched = self.watch_again().err();
        self.folder.read();
        let mut snapshot = self.folder.snapshot();
        if let Some(errno) = unwatched.filter(|_| self.folder.is_there()) {
            let path = self.folder.path().to_owned();
            snapshot.problems.insert(0, Problem::Unwatched { path, why: errno.desc().into() });
        }
        let mut current = self.shared.current();
        snapshot.revision = current.revision;
        if **current != snapshot {
            snapshot.revision += 1;
            *current = Arc::new(snapshot);
            self.shared.changed.notify_all();
        }
    }

    /// Another folder may have the path by now. The kernel gives the same watch for the same one.
    fn watch_again(&mut self) -> Result<(), Errno> {
        let mask = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        let watch = self.inotify.add_watch(self.folder.path(), mask);
        let before = match watch {
            Ok(watch) => self.watch.replace(watch).filter(|before| *before != watch),
            Err(_) => self.watch.take(),
        };
        if let Some(before) = before {
            // The kernel has removed it already if its folder is gone.
            let _ = self.inotify.rm_watch(before);
        }
        watch.map(drop)
    }

    fn wait(&self, timeout: Duration) -> Woken {
        let until = Instant::now() + timeout;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            // Rounded up, or the last part of a millisecond is spent spinning.
            let left = PollTimeout::try_from(left + Duration::from_micros(999))
                .unwrap_or(PollTimeout::MAX);
            let mut fds = [
                PollFd::new(self.stopped.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, left) {
                Ok(0) => return Woken::Timeout,
                Err(Errno::EINTR) => continue,
                // Not to be expected of two good descriptors; the folder is then looked at by time.
                Err(_) => {
                    thread::sleep(timeout);
                    return Woken::Timeout;
                }
                Ok(_) => {}
            }
            if fds[0].any().unwrap_or(true) {
                return Woken::Stopped;
            }
            if self.drain() {
                return Woken::Changed;
            }
        }
    }

    /// Takes the events; tells whether there was one. Which files they are about does not matter.
    fn drain(&self) -> bool {
        let mut any = false;
        loop {
            match self.inotify.read_events() {
                Ok(_) => any = true,
                Err(errno) if io::Error::from(errno).kind() == ErrorKind::Interrupted => {}
                Err(_) => return any,
            }
        }
    }
}
