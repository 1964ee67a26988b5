//! Memory of maps.
#![expect(unsafe_code, reason = "the memory is shared with the kernel")]

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::Map;

#[derive(Clone, Copy)]
pub(super) enum Access {
    ReadOnly,
    ReadWrite,
}

/// Memory of a map, unmapped when dropped.
pub(super) struct Mapping {
    start: NonNull<c_void>,
    length: usize,
}

// SAFETY: the mapping belongs to this value alone and is not tied to a thread.
unsafe impl Send for Mapping {}
// SAFETY: through a shared reference only the address is read; those who use it answer for the rest.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(super) fn new(
        map: &Map,
        length: usize,
        offset: usize,
        access: Access,
    ) -> Result<Self, Errno> {
        let size = NonZeroUsize::new(length).ok_or(Errno::EINVAL)?;
        let offset = offset.try_into().map_err(|_| Errno::EOVERFLOW)?;
        let protection = match access {
            Access::ReadOnly => ProtFlags::PROT_READ,
            Access::ReadWrite => ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
        };
        // SAFETY: a new shared mapping at an address of the kernel's choice overlaps nothing.
        let start =
            unsafe { mmap(None, size, protection, MapFlags::MAP_SHARED, map.as_fd(), offset) }?;
        Ok(Self { start, length })
    }

    /// Where it begins, at a page.
    pub(super) fn start(&self) -> NonNull<c_void> {
        self.start
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length, and nothing borrows from it any more.
        let unmapped = unsafe { munmap(self.start, self.length) };
        debug_assert_eq!(unmapped, Ok(()), "the mapping was valid");
    }
}
