//! The consumer's side of a ring buffer.
#![expect(unsafe_code, reason = "the buffer is memory shared with the kernel")]

use std::fmt;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::mapping::{Access, Mapping};
use super::{Map, TypedMap};
use crate::error::{Error, MapOperation, Result};
use crate::layout::MapType;
use crate::spec::{MapSpec, page_size};

const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;
/// The header of a record: its length with the two bits above, and a page offset for the kernel.
const HEADER: usize = 8;

/// Records from programs to one reader, in the order in which programs reserved them.
///
/// The reader waits on the descriptor with `epoll` or [`wait`](Self::wait) and then reads until
/// there is no more. A record is freed when the [`Record`] is dropped.
///
/// Only one `RingBuffer` of a map may read at a time in the whole system: the kernel keeps a single
/// reader's position and cannot tell two readers apart.
///
/// Minimum kernel: 5.8.
#[doc(alias = "BPF_MAP_TYPE_RINGBUF")]
pub struct RingBuffer {
    map: Map,
    consumer: Mapping,
    producer: Mapping,
    /// Of the data area, which is mapped twice in a row: no record is ever torn at the end.
    mask: usize,
    position: u64,
}

impl RingBuffer {
    /// Makes a ring buffer that no object describes, of at least that many bytes.
    pub fn create(name: &str, bytes: u32) -> Result<Self> {
        Self::from_map(Map::create(&MapSpec::new(name, MapType::RingBuffer).max_entries(bytes))?)
    }

    /// Opens a pinned ring buffer.
    pub fn open(path: impl AsRef<std::path::Path>) -> Result<Self> {
        Self::from_map(Map::open(path)?)
    }

    /// The untyped handle: its properties, its pin.
    pub fn as_map(&self) -> &Map {
        &self.map
    }

    /// Bytes of the data area.
    pub fn capacity(&self) -> usize {
        self.mask + 1
    }

    /// Bytes that programs have written or reserved and that are not read yet.
    pub fn backlog(&self) -> usize {
        let produced = self.produced().load(Ordering::Acquire);
        usize::try_from(produced.wrapping_sub(self.position)).unwrap_or(usize::MAX)
    }

    /// The next record, if there is one that is complete.
    #[expect(clippy::should_implement_trait, reason = "a record borrows the buffer")]
    pub fn next(&mut self) -> Option<Record<'_>> {
        loop {
            if self.position == self.produced().load(Ordering::Acquire) {
                return None;
            }
            let offset = self.offset();
            // SAFETY: the offset is masked to the data area.
            let header = unsafe { self.data().add(offset) };
            // SAFETY: 8-byte aligned, since every record's length is rounded up to that; the kernel
            // writes the header atomically.
            let header = unsafe { AtomicU32::from_ptr(header.cast().as_ptr()) };
            let header = header.load(Ordering::Acquire);
            if header & BUSY != 0 {
                return None;
            }
            let length = (header & !DISCARDED) as usize;
            let size = (HEADER + length).next_multiple_of(HEADER) as u64;
            if header & DISCARDED == 0 {
                return Some(Record { ring: self, offset: offset + HEADER, length, size });
            }
            self.advance(size);
        }
    }

    /// Gives each record that is complete to `read`, and answers how many there were. Ends after
    /// those, however fast programs write.
    pub fn read_all(&mut self, mut read: impl FnMut(&[u8])) -> usize {
        let end = self.produced().load(Ordering::Acquire);
        let mut count = 0;
        // Positions wrap; what is left is at most the capacity.
        while end.wrapping_sub(self.position).wrapping_sub(1) < self.capacity() as u64 {
            let Some(record) = self.next() else { break };
            read(&record);
            count += 1;
        }
        count
    }

    /// Waits until there is something to read; `false` when the time has run out first.
    pub fn wait(&self, timeout: Duration) -> Result<bool> {
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.map.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::EINTR) => Ok(false),
            Err(errno) => {
                Err(Error::Wait { object: self.map.name().to_owned(), source: errno.into() })
            }
        }
    }

    fn advance(&mut self, size: u64) {
        self.position = self.position.wrapping_add(size);
        self.consumed().store(self.position, Ordering::Release);
    }

    #[expect(clippy::cast_possible_truncation, reason = "masked to the buffer's size")]
    fn offset(&self) -> usize {
        self.position as usize & self.mask
    }

    /// Where programs will write next.
    fn produced(&self) -> &AtomicU64 {
        // SAFETY: the producer's page begins with its position, which the kernel writes atomically.
        unsafe { AtomicU64::from_ptr(self.producer.start().cast().as_ptr()) }
    }

    /// Where the reader is.
    fn consumed(&self) -> &AtomicU64 {
        // SAFETY: the consumer's page begins with its position, which the kernel reads atomically.
        unsafe { AtomicU64::from_ptr(self.consumer.start().cast().as_ptr()) }
    }

    /// The data area, after the producer's page.
    fn data(&self) -> NonNull<u8> {
        // SAFETY: the mapping is one page and twice the data area long.
        unsafe { self.producer.start().cast::<u8>().add(page_size()) }
    }
}

impl TypedMap for RingBuffer {
    fn from_map(map: Map) -> Result<Self> {
        map.expect(MapType::RingBuffer, 0, 0)?;
        let page = page_size();
        let size = map.layout().max_entries as usize;
        let error = |errno: Errno| map.error(MapOperation::MapMemory)(errno.into());
        let consumer = Mapping::new(&map, page, 0, Access::ReadWrite).map_err(error)?;
        let producer =
            Mapping::new(&map, page + 2 * size, page, Access::ReadOnly).map_err(error)?;
        let mut ring = Self { map, consumer, producer, mask: size - 1, position: 0 };
        ring.position = ring.consumed().load(Ordering::Acquire);
        Ok(ring)
    }

    fn as_map(&self) -> &Map {
        &self.map
    }
}

impl AsFd for RingBuffer {
    /// Readable, to `poll` and `epoll`, while there is something to read.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

impl fmt::Debug for RingBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingBuffer").field("map", &self.map).finish_non_exhaustive()
    }
}

/// A record in place in the ring buffer; freed when dropped.
pub struct Record<'r> {
    ring: &'r mut RingBuffer,
    offset: usize,
    length: usize,
    size: u64,
}

impl Deref for Record<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the offset is that of a record's header in the data area, plus the header.
        let start = unsafe { self.ring.data().add(self.offset) };
        // SAFETY: the kernel has completed the record and will not write to it before the reader's
        // position has passed it, which waits for the drop. The data area is mapped twice, so that
        // `length` bytes lie in a row.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), self.length) }
    }
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        self.ring.advance(self.size);
    }
}

impl fmt::Debug for Record<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Record").field(&&**self).finish()
    }
}
