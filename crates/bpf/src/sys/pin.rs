//! Files that keep objects alive.

use std::ffi::CStr;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Command, bpf, bpf_fd, number};

#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Obj {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

pub(crate) fn pin(object: BorrowedFd<'_>, path: &CStr) -> io::Result<()> {
    let mut attr = Obj { pathname: path.as_ptr() as u64, bpf_fd: number(object), file_flags: 0 };
    // SAFETY: the path is a C string borrowed by this call.
    unsafe { bpf(Command::ObjPin, &mut attr) }.map(drop)
}

pub(crate) fn open_pin(path: &CStr) -> io::Result<OwnedFd> {
    let mut attr = Obj { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: the path is a C string borrowed by this call.
    unsafe { bpf_fd(Command::ObjGet, &mut attr) }
}
