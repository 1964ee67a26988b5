//! Every bpf(2) call of the crate, each as a function whose arguments cannot be wrong in a way that
//! corrupts memory.
//!
//! [`bpf`] is the one place that enters the kernel. The attribute structures are those of
//! `include/uapi/linux/bpf.h`, one per command instead of the header's union: the kernel takes the
//! part it is given and reads the rest as zero.
#![expect(unsafe_code, reason = "bpf(2) takes addresses as integers")]

mod info;
mod link;
mod map;
mod pin;
mod program;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use zerocopy::{FromBytes, IntoBytes};

pub(crate) use info::{LINK_TYPE_TCX, RawMapInfo, link_info, map_info, program_info};
pub(crate) use link::{link_detach, link_update, tcx_link_create, tcx_query};
pub(crate) use map::{Afterwards, MapCreate, MapFd, map_create};
pub(crate) use pin::{open_pin, pin};
pub(crate) use program::{
    DebugInfo, ProgramLoad, RunInput, btf_load, program_by_id, program_load, program_test_run,
};

pub(crate) const BPF_ANY: u64 = 0;
pub(crate) const BPF_NOEXIST: u64 = 1;
pub(crate) const BPF_EXIST: u64 = 2;

pub(crate) const BPF_F_MMAPABLE: u32 = 1 << 10;

/// What the kernel answers where a map type has no such operation; libc has no name for it.
pub(crate) const ENOTSUPP: i32 = 524;

pub(crate) const PROG_TYPE_SCHED_CLS: u32 = 3;
pub(crate) const BPF_TCX_INGRESS: u32 = 46;
pub(crate) const BPF_TCX_EGRESS: u32 = 47;

const OBJECT_NAME_LEN: usize = 16;

#[derive(Clone, Copy)]
#[repr(u32)]
enum Command {
    MapCreate = 0,
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    MapNextKey = 4,
    ProgLoad = 5,
    ObjPin = 6,
    ObjGet = 7,
    ProgTestRun = 10,
    ProgFdById = 13,
    ObjInfo = 15,
    ProgQuery = 16,
    BtfLoad = 18,
    MapLookupAndDelete = 21,
    MapFreeze = 22,
    MapLookupBatch = 24,
    MapLookupAndDeleteBatch = 25,
    MapUpdateBatch = 26,
    MapDeleteBatch = 27,
    LinkCreate = 28,
    LinkUpdate = 29,
    LinkDetach = 34,
}

/// The one place that enters the kernel.
///
/// # Safety
///
/// Each address in `attr` must be valid for what `command` reads or writes there.
unsafe fn bpf<A: IntoBytes + FromBytes>(command: Command, attr: &mut A) -> io::Result<i32> {
    let bytes = attr.as_mut_bytes();
    // SAFETY: `bytes` is a valid attribute of its own length; the addresses in it are the caller's
    // promise.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_long, bytes.as_mut_ptr(), bytes.len())
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}

/// As [`bpf`], for the commands that answer with a new file descriptor (close-on-exec).
///
/// # Safety
///
/// As [`bpf`], and `command` returns a descriptor.
unsafe fn bpf_fd<A: IntoBytes + FromBytes>(command: Command, attr: &mut A) -> io::Result<OwnedFd> {
    // SAFETY: passed on to the caller.
    let fd = unsafe { bpf(command, attr) }?;
    // SAFETY: the kernel has just opened it for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn address<T>(slice: &[T]) -> u64 {
    if slice.is_empty() { 0 } else { slice.as_ptr() as u64 }
}

fn address_mut<T>(slice: &mut [T]) -> u64 {
    if slice.is_empty() { 0 } else { slice.as_mut_ptr() as u64 }
}

fn length(bytes: &[u8]) -> io::Result<u32> {
    u32::try_from(bytes.len()).map_err(io::Error::other)
}

/// The kernel keeps 15 bytes of a name and accepts letters, digits, `_` and `.` in it.
pub(crate) fn object_name(name: &str) -> [u8; OBJECT_NAME_LEN] {
    let mut field = [0; OBJECT_NAME_LEN];
    for (to, from) in field[..OBJECT_NAME_LEN - 1].iter_mut().zip(name.bytes()) {
        *to =
            if from.is_ascii_alphanumeric() || from == b'_' || from == b'.' { from } else { b'_' };
    }
    field
}

/// The number that a program array stores for a program.
pub(crate) fn raw(fd: BorrowedFd<'_>) -> RawFd {
    fd.as_raw_fd()
}
