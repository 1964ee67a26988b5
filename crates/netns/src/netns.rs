use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;

use podwire_netlink::Netlink;

use crate::{Error, sys};

/// The calling thread's own namespace. `/proc/self` would be that of the process's first thread.
const THREAD_NETNS: &str = "/proc/thread-self/ns/net";

/// A network namespace, held by a descriptor.
///
/// The namespace lives at least as long as this value. Dropping it leaves in the kernel whatever
/// else holds the namespace: processes, sockets, pins.
///
/// Minimum kernel: 4.11 (`NS_GET_NSTYPE`).
#[doc(alias = "CLONE_NEWNET")]
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    inode: NetnsInode,
}

/// What tells two namespaces apart as long as both exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetnsInode {
    /// The file system the namespace is on.
    pub device: u64,
    /// Its number there, the one in `net:[4026531833]`.
    pub inode: u64,
}

impl Netns {
    /// Opens the namespace at a path, such as `/proc/1/ns/net` or `/run/netns/pod`.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when nothing is there, [`Error::NotANetns`] when something else is;
    /// [`Error::Open`] for other reasons, such as lack of permission.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        // Without O_NONBLOCK a FIFO would keep us waiting for a writer.
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file = opened.map_err(|source| match source.raw_os_error() {
            Some(libc::ENOENT) => Error::NotFound { path: path.to_owned() },
            Some(libc::ENOTDIR) => Error::NotANetns {
                path: path.to_owned(),
                found: "a path through something that is no directory",
            },
            // What a socket answers.
            Some(libc::ENXIO) => Error::NotANetns { path: path.to_owned(), found: "a socket" },
            _ => Error::Open { path: path.to_owned(), source },
        })?;
        Self::from_file(file.into(), path)
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// [`Error::Open`] when `/proc` is missing.
    pub fn current() -> Result<Self, Error> {
        Self::open(THREAD_NETNS)
    }

    /// Takes a descriptor that may be a network namespace.
    ///
    /// # Errors
    ///
    /// [`Error::NotANetns`] when it is not.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, Error> {
        Self::from_file(fd, Path::new("the descriptor"))
    }

    /// Makes a new namespace that nobody else holds; it ends with this value. Its loopback interface
    /// is down.
    ///
    /// # Errors
    ///
    /// [`Error::Thread`], [`Error::Enter`], [`Error::Open`].
    pub fn create() -> Result<Self, Error> {
        on_thread(|| {
            sys::unshare().map_err(|source| Error::Enter { source })?;
            Self::current()
        })?
    }

    /// Makes a new namespace and pins it at a path, where it stays until
    /// [`remove_pinned`](Self::remove_pinned). The folder must exist; nothing may be at the path.
    ///
    /// # Errors
    ///
    /// [`Error::PinTaken`] when something is there; otherwise [`Error::Pin`], and nothing is left at
    /// the path.
    pub fn create_pinned(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let pin = |step| move |source| Error::Pin { step, path: path.to_owned(), source };
        OpenOptions::new().write(true).create_new(true).mode(0o444).open(path).map_err(
            |source| match source.kind() {
                io::ErrorKind::AlreadyExists => Error::PinTaken { path: path.to_owned() },
                _ => pin("create the file")(source),
            },
        )?;
        let pinned = on_thread(|| {
            sys::unshare().map_err(pin("make a network namespace"))?;
            sys::bind_mount(Path::new(THREAD_NETNS), path).map_err(pin("mount it"))?;
            Self::current()
        });
        let pinned = pinned.and_then(|made| made);
        if pinned.is_err() {
            // The first failure is the one to report.
            let _ = Self::remove_pinned(path);
        }
        pinned
    }

    /// Removes the pin at a path. The namespace ends when nothing else holds it.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when nothing is there; [`Error::NotANetns`] when it is neither a namespace
    /// nor the empty file that a pin leaves when its mount is gone, and is then left alone;
    /// [`Error::Unpin`].
    pub fn remove_pinned(path: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref();
        let unpin = |step| move |source| Error::Unpin { step, path: path.to_owned(), source };
        match Self::open(path) {
            Ok(_) => sys::unmount(path).map_err(unpin("unmount it"))?,
            Err(Error::NotANetns { .. }) if is_empty_file(path) => {}
            Err(error) => return Err(error),
        }
        fs::remove_file(path).map_err(unpin("remove the file"))
    }

    /// Runs a closure inside the namespace, on a thread that ends with it, and gives what it returns.
    /// A panic in the closure goes on in the caller.
    ///
    /// The thread shares everything else with the caller, the file system included.
    ///
    /// # Errors
    ///
    /// [`Error::Thread`] and [`Error::Enter`]; the closure has not run then.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> Result<R, Error> {
        on_thread(|| {
            sys::enter(self).map_err(|source| Error::Enter { source })?;
            Ok(work())
        })?
    }

    /// Opens a netlink socket in the namespace.
    ///
    /// # Errors
    ///
    /// [`Error::Netlink`].
    pub fn netlink(&self) -> Result<Netlink, Error> {
        Ok(Netlink::open_in(self.as_fd())?)
    }

    /// What tells this namespace from others.
    pub fn inode(&self) -> NetnsInode {
        self.inode
    }

    fn from_file(fd: OwnedFd, path: &Path) -> Result<Self, Error> {
        let other = |found| Error::NotANetns { path: path.to_owned(), found };
        let failed = |source| Error::Open { path: path.to_owned(), source };
        let file = File::from(fd);
        let about = file.metadata().map_err(failed)?;
        if !sys::is_nsfs(&file).map_err(failed)? {
            return Err(other(describe(&about)));
        }
        match sys::namespace_type(&file) {
            Ok(libc::CLONE_NEWNET) => {}
            Ok(_) => return Err(other("a namespace of another kind")),
            Err(_) => return Err(other("something else of the namespaces' file system")),
        }
        let inode = NetnsInode { device: about.dev(), inode: about.ino() };
        Ok(Self { fd: file.into(), inode })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Netns> for OwnedFd {
    fn from(netns: Netns) -> Self {
        netns.fd
    }
}

/// Runs a closure on a new thread, whose namespaces may then be changed without a trace.
fn on_thread<R: Send>(work: impl FnOnce() -> R + Send) -> Result<R, Error> {
    thread::scope(|scope| {
        let started = thread::Builder::new().name("netns".into()).spawn_scoped(scope, work);
        match started.map_err(|source| Error::Thread { source })?.join() {
            Ok(result) => Ok(result),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn describe(about: &fs::Metadata) -> &'static str {
    let kind = about.file_type();
    if kind.is_dir() {
        "a folder"
    } else if kind.is_file() && about.len() == 0 {
        "an empty file (a pin whose mount is gone?)"
    } else if kind.is_file() {
        "a file"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_char_device() || kind.is_block_device() {
        "a device"
    } else {
        "something else"
    }
}

fn is_empty_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|about| about.is_file() && about.len() == 0)
}

#[cfg(test)]
#[path = "tests/netns.rs"]
mod tests;
