//! The system calls, each with its own error.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// Moves the current thread, and only it, into a network namespace.
pub(crate) fn enter(netns: impl AsFd) -> io::Result<()> {
    // SAFETY: the descriptor is open as long as it is borrowed.
    check(unsafe { libc::setns(netns.as_fd().as_raw_fd(), libc::CLONE_NEWNET) })
}

/// Moves the current thread, and only it, into a new network namespace.
pub(crate) fn unshare() -> io::Result<()> {
    // SAFETY: takes no pointers; a thread may leave its namespace at any time.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) })
}

/// The kind of namespace, a `CLONE_NEW*` number; an error when the file is no namespace.
pub(crate) fn namespace_type(fd: impl AsFd) -> io::Result<i32> {
    // SAFETY: this ioctl takes no argument.
    let kind = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), NS_GET_NSTYPE) };
    if kind < 0 { Err(io::Error::last_os_error()) } else { Ok(kind) }
}

/// Whether a file lies on the namespaces' own file system. Only there does the ioctl above mean what
/// it says; a device driver may understand the same number otherwise.
pub(crate) fn is_nsfs(fd: impl AsFd) -> io::Result<bool> {
    let mut about = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: `about` has room for one statfs.
    check(unsafe { libc::fstatfs(fd.as_fd().as_raw_fd(), about.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so it filled `about`.
    let about = unsafe { about.assume_init() };
    Ok(about.f_type == libc::NSFS_MAGIC)
}

/// Makes what `source` is visible at `target`.
pub(crate) fn bind_mount(source: &Path, target: &Path) -> io::Result<()> {
    let (source, target) = (c_path(source)?, c_path(target)?);
    let none = std::ptr::null();
    // SAFETY: both paths end in NUL and live until the call returns; the rest may be null.
    check(unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), none, libc::MS_BIND, none.cast())
    })
}

/// Takes the topmost mount away at once; the namespace lives on where it is still used.
pub(crate) fn unmount(target: &Path) -> io::Result<()> {
    let target = c_path(target)?;
    let flags = libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW;
    // SAFETY: the path ends in NUL and lives until the call returns.
    check(unsafe { libc::umount2(target.as_ptr(), flags) })
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
