//! What the kernel says of its objects.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::{Command, OBJECT_NAME_LEN, address_mut, bpf, length, number};

#[derive(Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Info {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// `struct bpf_map_info`, the part every supported kernel has.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct RawMapInfo {
    pub(crate) map_type: u32,
    pub(crate) id: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) map_flags: u32,
    pub(crate) name: [u8; OBJECT_NAME_LEN],
    pub(crate) ifindex: u32,
    pub(crate) btf_vmlinux_value_type_id: u32,
    pub(crate) netns_dev: u64,
    pub(crate) netns_ino: u64,
    pub(crate) btf_id: u32,
    pub(crate) btf_key_type_id: u32,
    pub(crate) btf_value_type_id: u32,
    pub(crate) btf_vmlinux_id: u32,
    pub(crate) map_extra: u64,
}

/// `struct bpf_prog_info` up to `verified_insns`, without the variable parts.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct RawProgramInfo {
    pub(crate) prog_type: u32,
    pub(crate) id: u32,
    pub(crate) tag: [u8; 8],
    pub(crate) jited_prog_len: u32,
    pub(crate) xlated_prog_len: u32,
    pub(crate) jited_prog_insns: u64,
    pub(crate) xlated_prog_insns: u64,
    pub(crate) load_time: u64,
    pub(crate) created_by_uid: u32,
    pub(crate) nr_map_ids: u32,
    pub(crate) map_ids: u64,
    pub(crate) name: [u8; OBJECT_NAME_LEN],
    pub(crate) ifindex: u32,
    pub(crate) bits: u32,
    pub(crate) netns_dev: u64,
    pub(crate) netns_ino: u64,
    pub(crate) symbols: [u64; 3],
    pub(crate) btf_id: u32,
    pub(crate) func_info_rec_size: u32,
    pub(crate) func_info: u64,
    pub(crate) nr_func_info: u32,
    pub(crate) nr_line_info: u32,
    pub(crate) line_info: u64,
    pub(crate) jited_line_info: u64,
    pub(crate) nr_jited_line_info: u32,
    pub(crate) line_info_rec_size: u32,
    pub(crate) jited_line_info_rec_size: u32,
    pub(crate) nr_prog_tags: u32,
    pub(crate) prog_tags: u64,
    pub(crate) run_time_ns: u64,
    pub(crate) run_cnt: u64,
    pub(crate) recursion_misses: u64,
    pub(crate) verified_insns: u32,
    pub(crate) attach_btf_obj_id: u32,
}

/// `struct bpf_link_info` with the TCX member of its union.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct RawLinkInfo {
    pub(crate) link_type: u32,
    pub(crate) id: u32,
    pub(crate) prog_id: u32,
    padding: u32,
    pub(crate) ifindex: u32,
    pub(crate) attach_type: u32,
}

/// `BPF_LINK_TYPE_TCX`
pub(crate) const LINK_TYPE_TCX: u32 = 11;

/// # Safety
///
/// `T` must be the kernel's info structure for the kind of object that `fd` is, with no address in
/// it that the kernel would write to: a zeroed one has none.
unsafe fn info<T: FromZeros + IntoBytes + FromBytes>(fd: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = T::new_zeroed();
    let bytes = info.as_mut_bytes();
    let mut attr = Info { bpf_fd: number(fd), info_len: length(bytes)?, info: address_mut(bytes) };
    // SAFETY: `info` is a buffer of `info_len` bytes and holds no address, being zeroed.
    unsafe { bpf(Command::ObjInfo, &mut attr) }?;
    Ok(info)
}

pub(crate) fn map_info(fd: BorrowedFd<'_>) -> io::Result<RawMapInfo> {
    expect_kind(fd, ObjectKind::Map)?;
    // SAFETY: the descriptor is a map's.
    unsafe { info(fd) }
}

pub(crate) fn program_info(fd: BorrowedFd<'_>) -> io::Result<RawProgramInfo> {
    expect_kind(fd, ObjectKind::Program)?;
    // SAFETY: the descriptor is a program's.
    unsafe { info(fd) }
}

pub(crate) fn link_info(fd: BorrowedFd<'_>) -> io::Result<RawLinkInfo> {
    expect_kind(fd, ObjectKind::Link)?;
    // SAFETY: the descriptor is a link's; links of other kinds have no address in these bytes that
    // a zeroed structure would make the kernel follow.
    unsafe { info(fd) }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ObjectKind {
    Map,
    Program,
    Link,
}

impl ObjectKind {
    fn label(self) -> &'static str {
        match self {
            Self::Map => "bpf-map",
            Self::Program => "bpf-prog",
            Self::Link => "bpf-link",
        }
    }
}

/// The info command fills whatever structure fits the descriptor, so the kind is asked first: the
/// kernel names it in the anonymous inode.
fn expect_kind(fd: BorrowedFd<'_>, kind: ObjectKind) -> io::Result<()> {
    let target = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    let target = target.to_string_lossy();
    // A link is `bpf_link` where it was made and `bpf-link` where it was opened.
    let found = target.strip_prefix("anon_inode:").unwrap_or(&target).replace('_', "-");
    if found.trim_start_matches('[').trim_end_matches(']') == kind.label() {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a {found} where a {} is needed", kind.label()),
        ))
    }
}
