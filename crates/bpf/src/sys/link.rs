//! Links, and what is attached where.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Command, address_mut, bpf, bpf_fd, number};

#[derive(Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative_fd: u32,
    padding: u32,
    expected_revision: u64,
}

pub(crate) fn tcx_link_create(
    program: BorrowedFd<'_>,
    ifindex: u32,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate {
        prog_fd: number(program),
        target_ifindex: ifindex,
        attach_type,
        ..LinkCreate::default()
    };
    // SAFETY: the command reads no address.
    unsafe { bpf_fd(Command::LinkCreate, &mut attr) }
}

#[derive(Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr =
        LinkUpdate { link_fd: number(link), new_prog_fd: number(program), ..LinkUpdate::default() };
    // SAFETY: the command reads no address.
    unsafe { bpf(Command::LinkUpdate, &mut attr) }.map(drop)
}

pub(crate) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = number(link);
    // SAFETY: the command reads no address; its attribute is the descriptor alone.
    unsafe { bpf(Command::LinkDetach, &mut attr) }.map(drop)
}

#[derive(Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct ProgQuery {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    padding: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// The ids of the programs at one hook of a device of the calling thread's network namespace, in
/// the order in which they run.
pub(crate) fn tcx_query(ifindex: u32, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; 64];
    loop {
        let mut attr = ProgQuery {
            target_ifindex: ifindex,
            attach_type,
            prog_ids: address_mut(&mut ids),
            count: u32::try_from(ids.len()).map_err(io::Error::other)?,
            ..ProgQuery::default()
        };
        // SAFETY: `prog_ids` holds `count` numbers; the other addresses are zero, which the kernel
        // takes as "not wanted".
        match unsafe { bpf(Command::ProgQuery, &mut attr) } {
            Ok(_) => {
                ids.truncate(attr.count as usize);
                return Ok(ids);
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                ids.resize((attr.count as usize).max(ids.len() * 2), 0);
            }
            Err(error) => return Err(error),
        }
    }
}
