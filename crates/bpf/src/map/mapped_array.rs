//! Arrays in memory that programs and user space share.
#![expect(unsafe_code, reason = "the elements are memory shared with the kernel")]

use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::AtomicU64;

use nix::errno::Errno;

use super::mapping::{Access, Mapping};
use super::{Map, MapValue, Typed, TypedMap, typed_map};
use crate::error::{MapOperation, Result};
use crate::layout::MapType;
use crate::spec::{MapSpec, page_size};

const WORD: usize = size_of::<u64>();

/// An array whose elements are read and changed in place, without system calls, while programs do so too.
///
/// Whatever is not one word may be seen half written; how that is told is for the two sides to agree on. The first
/// element begins at a page.
///
/// Minimum kernel: 5.5.
#[doc(alias("BPF_F_MMAPABLE", "BPF_MAP_TYPE_ARRAY"))]
pub struct MappedArray<V> {
    map: Map,
    memory: Mapping,
    types: Typed<V>,
}

typed_map!(MappedArray<V: MapValue>);

impl<V: MapValue> MappedArray<V> {
    /// Words of one element.
    pub const WORDS: usize = size_of::<V>().div_ceil(WORD);

    /// Makes a map that no object describes.
    pub fn create(name: &str, length: u32) -> Result<Self> {
        let spec = MapSpec::new(name, MapType::Array)
            .entry::<u32, V>()
            .max_entries(length)
            .flags(crate::sys::BPF_F_MMAPABLE);
        Self::from_map(Map::create(&spec)?)
    }

    /// The number of elements.
    #[expect(clippy::len_without_is_empty, reason = "no array is empty")]
    pub fn len(&self) -> u32 {
        self.max_entries()
    }

    /// The words of the element at `index`; [`Error::OutOfRange`](crate::Error::OutOfRange) if there is none.
    /// Behind a value of another size than whole words there are zeros.
    pub fn element(&self, index: u32) -> Result<&[AtomicU64]> {
        self.map.check_index(index)?;
        let start = self.memory.start().cast::<AtomicU64>();
        // SAFETY: the mapping is as many elements long, as `from_map` has made it.
        let element = unsafe { start.add(index as usize * Self::WORDS) };
        // SAFETY: it begins at a page, lives as long as `self`, and both sides' words are atomic. Every pattern
        // of bits is a number.
        Ok(unsafe { std::slice::from_raw_parts(element.as_ptr(), Self::WORDS) })
    }
}

impl<V: MapValue> TypedMap for MappedArray<V> {
    fn from_map(map: Map) -> Result<Self> {
        map.expect(MapType::Array, size_of::<u32>(), size_of::<V>())?;
        let error = |errno: Errno| map.error(MapOperation::MapMemory)(errno.into());
        let bytes = (map.layout().max_entries as usize)
            .checked_mul(Self::WORDS * WORD)
            .and_then(|bytes| bytes.checked_next_multiple_of(page_size()))
            .ok_or(Errno::EOVERFLOW)
            .map_err(error)?;
        let memory = Mapping::new(&map, bytes, 0, Access::ReadWrite).map_err(error)?;
        Ok(Self { map, memory, types: PhantomData })
    }

    fn as_map(&self) -> &Map {
        &self.map
    }
}

impl<V> fmt::Debug for MappedArray<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MappedArray").field("map", &self.map).finish_non_exhaustive()
    }
}
