//! Maps and their entries.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{
    Command, OBJECT_NAME_LEN, RawMapInfo, address, address_mut, bpf, bpf_fd, map_info, number,
};

#[derive(Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct MapCreate {
    pub(crate) map_type: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) map_flags: u32,
    pub(crate) inner_map_fd: u32,
    pub(crate) numa_node: u32,
    pub(crate) map_name: [u8; OBJECT_NAME_LEN],
    pub(crate) map_ifindex: u32,
    pub(crate) btf_fd: u32,
    pub(crate) btf_key_type_id: u32,
    pub(crate) btf_value_type_id: u32,
    pub(crate) btf_vmlinux_value_type_id: u32,
    pub(crate) map_extra: u64,
}

pub(crate) fn map_create(mut attr: MapCreate) -> io::Result<OwnedFd> {
    // SAFETY: the command reads no address; descriptors that are not what they should be are
    // refused.
    unsafe { bpf_fd(Command::MapCreate, &mut attr) }
}

#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct MapElement {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct MapBatch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// A map's descriptor with the sizes that the kernel itself gave for it, so that no buffer handed
/// to the kernel can be too short.
#[derive(Debug)]
pub(crate) struct MapFd {
    fd: OwnedFd,
    key_size: usize,
    value_stride: usize,
}

/// How far a batch came, and what ended it.
#[derive(Debug)]
pub(crate) struct BatchOutcome {
    pub(crate) count: usize,
    pub(crate) result: io::Result<()>,
}

impl MapFd {
    pub(crate) fn new(fd: OwnedFd) -> io::Result<(Self, RawMapInfo)> {
        let info = map_info(fd.as_fd())?;
        let value_size = info.value_size as usize;
        let value_stride = if is_per_cpu(info.map_type) {
            value_size.next_multiple_of(8) * crate::cpu::possible()?
        } else {
            value_size
        };
        Ok((Self { fd, key_size: info.key_size as usize, value_stride }, info))
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        let Self { ref fd, key_size, value_stride } = *self;
        Ok(Self { fd: fd.try_clone()?, key_size, value_stride })
    }

    /// Bytes that user space sees of one value: for a per-CPU map, all of them.
    pub(crate) fn value_stride(&self) -> usize {
        self.value_stride
    }

    pub(crate) fn key_size(&self) -> usize {
        self.key_size
    }

    pub(crate) fn lookup(&self, key: &[u8], value: &mut [u8]) -> io::Result<()> {
        self.element(Command::MapLookup, key, address_mut(self.check_value(value)?), 0)
    }

    pub(crate) fn lookup_and_delete(&self, key: &[u8], value: &mut [u8]) -> io::Result<()> {
        self.element(Command::MapLookupAndDelete, key, address_mut(self.check_value(value)?), 0)
    }

    pub(crate) fn update(&self, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
        check_length(value, self.value_stride)?;
        self.element(Command::MapUpdate, key, address(value), flags)
    }

    pub(crate) fn delete(&self, key: &[u8]) -> io::Result<()> {
        self.element(Command::MapDelete, key, 0, 0)
    }

    /// The key after `key` (the first for `None`) is written to `next`.
    pub(crate) fn next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<()> {
        check_length(next, self.key_size)?;
        if let Some(key) = key {
            check_length(key, self.key_size)?;
        }
        let mut attr = MapElement {
            map_fd: number(self.fd.as_fd()),
            padding: 0,
            key: key.map_or(0, address),
            value: address_mut(next),
            flags: 0,
        };
        // SAFETY: both addresses hold `key_size` bytes, checked above.
        unsafe { bpf(Command::MapNextKey, &mut attr) }.map(drop)
    }

    /// Reads as many entries as the buffers hold. `cursor` is opaque: `started` says whether it
    /// holds a position.
    pub(crate) fn lookup_batch(
        &self,
        started: bool,
        cursor: &mut [u8],
        keys: &mut [u8],
        values: &mut [u8],
        then: Afterwards,
    ) -> io::Result<BatchOutcome> {
        // A hash table's cursor is a bucket number, the others' a key.
        check_length(cursor, self.key_size.max(4))?;
        let count = self.batch_count(keys, Some(values))?;
        let cursor = address_mut(cursor);
        let attr = MapBatch {
            in_batch: if started { cursor } else { 0 },
            out_batch: cursor,
            keys: address_mut(keys),
            values: address_mut(values),
            count,
            map_fd: number(self.fd.as_fd()),
            elem_flags: 0,
            flags: 0,
        };
        let command = match then {
            Afterwards::Keep => Command::MapLookupBatch,
            Afterwards::Delete => Command::MapLookupAndDeleteBatch,
        };
        Ok(batch(command, attr))
    }

    pub(crate) fn update_batch(&self, keys: &[u8], values: &[u8]) -> io::Result<BatchOutcome> {
        let count = self.batch_count(keys, Some(values))?;
        let attr = self.batch_attr(address(keys), address(values), count);
        Ok(batch(Command::MapUpdateBatch, attr))
    }

    pub(crate) fn delete_batch(&self, keys: &[u8]) -> io::Result<BatchOutcome> {
        let count = self.batch_count(keys, None)?;
        Ok(batch(Command::MapDeleteBatch, self.batch_attr(address(keys), 0, count)))
    }

    pub(crate) fn freeze(&self) -> io::Result<()> {
        let mut attr = self.batchless();
        // SAFETY: the command reads no address.
        unsafe { bpf(Command::MapFreeze, &mut attr) }.map(drop)
    }

    fn batchless(&self) -> MapElement {
        MapElement { map_fd: number(self.fd.as_fd()), padding: 0, key: 0, value: 0, flags: 0 }
    }

    fn element(&self, command: Command, key: &[u8], value: u64, flags: u64) -> io::Result<()> {
        check_length(key, self.key_size)?;
        let mut attr = MapElement { key: address(key), value, flags, ..self.batchless() };
        // SAFETY: the key has `key_size` bytes; `value` is zero or holds `value_stride` bytes, both
        // checked against the kernel's own sizes.
        unsafe { bpf(command, &mut attr) }.map(drop)
    }

    fn check_value<'v>(&self, value: &'v mut [u8]) -> io::Result<&'v mut [u8]> {
        check_length(value, self.value_stride)?;
        Ok(value)
    }

    fn batch_attr(&self, keys: u64, values: u64, count: u32) -> MapBatch {
        MapBatch {
            in_batch: 0,
            out_batch: 0,
            keys,
            values,
            count,
            map_fd: number(self.fd.as_fd()),
            elem_flags: 0,
            flags: 0,
        }
    }

    /// Checks that the buffers hold the same number of entries, and says how many.
    fn batch_count(&self, keys: &[u8], values: Option<&[u8]>) -> io::Result<u32> {
        let count = keys.len().checked_div(self.key_size).unwrap_or(0);
        check_length(keys, count * self.key_size)?;
        if let Some(values) = values {
            check_length(values, count * self.value_stride)?;
        }
        u32::try_from(count).map_err(io::Error::other)
    }
}

impl AsFd for MapFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What becomes of the entries that a batch has read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Afterwards {
    Keep,
    Delete,
}

fn batch(command: Command, mut attr: MapBatch) -> BatchOutcome {
    let asked = attr.count;
    // SAFETY: the callers above have checked every buffer against `count` and the kernel's sizes.
    let result = unsafe { bpf(command, &mut attr) }.map(drop);
    // The kernel leaves `count` alone when it refuses the call as a whole.
    let refused = matches!(&result, Err(error)
        if attr.count == asked && error.raw_os_error() != Some(libc::ENOENT));
    BatchOutcome { count: if refused { 0 } else { attr.count as usize }, result }
}

fn check_length(buffer: &[u8], expected: usize) -> io::Result<()> {
    if buffer.len() == expected {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a buffer of {} bytes where the map has {expected}", buffer.len()),
        ))
    }
}

/// `PERCPU_HASH`, `PERCPU_ARRAY`, `LRU_PERCPU_HASH`, `PERCPU_CGROUP_STORAGE`.
pub(crate) fn is_per_cpu(map_type: u32) -> bool {
    matches!(map_type, 5 | 6 | 10 | 21)
}
