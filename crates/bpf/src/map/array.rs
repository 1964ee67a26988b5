//! Arrays.

use std::fmt;
use std::marker::PhantomData;

use super::batch::columns;
use super::{InsertMode, Map, MapValue, Typed, TypedMap, typed_map};
use crate::error::Result;
use crate::layout::MapType;
use crate::spec::MapSpec;
use crate::sys::Afterwards;

/// An array: every element is always there, zero at first, and none can be removed.
///
/// Minimum kernel: 3.19; batches 5.6.
#[doc(alias = "BPF_MAP_TYPE_ARRAY")]
pub struct Array<V> {
    map: Map,
    types: Typed<V>,
}

typed_map!(Array<V: MapValue>);

impl<V: MapValue> Array<V> {
    /// Makes a map that no object describes.
    pub fn create(name: &str, length: u32) -> Result<Self> {
        let spec = MapSpec::new(name, MapType::Array).entry::<u32, V>().max_entries(length);
        Self::from_map(Map::create(&spec)?)
    }

    /// The number of elements.
    #[expect(clippy::len_without_is_empty, reason = "no array is empty")]
    pub fn len(&self) -> u32 {
        self.max_entries()
    }

    /// The element at `index`; [`Error::OutOfRange`](crate::Error::OutOfRange) if there is none.
    pub fn get(&self, index: u32) -> Result<V> {
        self.map.check_index(index)?;
        let mut value = V::new_zeroed();
        // No element of an array is ever absent.
        self.map.lookup_into(&index.to_ne_bytes(), value.as_mut_bytes())?;
        Ok(value)
    }

    /// Writes the element at `index`; [`Error::OutOfRange`](crate::Error::OutOfRange) if there is
    /// none. A program that reads meanwhile may see half of it, except for values of at most 8
    /// aligned bytes.
    pub fn set(&self, index: u32, value: &V) -> Result<()> {
        self.map.check_index(index)?;
        self.map.update(&index.to_ne_bytes(), value.as_bytes(), InsertMode::Any)
    }

    /// Reads all elements, in batches. Minimum kernel: 5.6.
    #[doc(alias = "BPF_MAP_LOOKUP_BATCH")]
    pub fn values(&self) -> Result<Vec<V>> {
        self.map.read_batches(Afterwards::Keep, |_index: u32, value| {
            let mut owned = V::new_zeroed();
            owned.as_mut_bytes().copy_from_slice(value);
            Ok(owned)
        })
    }

    /// Writes many elements. When one is refused, those before it stay and
    /// [`Error::Batch`](crate::Error::Batch) says how many. Minimum kernel: 5.6.
    #[doc(alias = "BPF_MAP_UPDATE_BATCH")]
    pub fn set_batch(&self, elements: &[(u32, V)]) -> Result<()> {
        for (index, _) in elements {
            self.map.check_index(*index)?;
        }
        let (keys, values) = columns(elements.iter().map(|(index, value)| (index, value)));
        self.map.write_batch(&keys, &values)
    }
}

impl<V: MapValue> TypedMap for Array<V> {
    fn from_map(map: Map) -> Result<Self> {
        map.expect(MapType::Array, size_of::<u32>(), size_of::<V>())?;
        Ok(Self { map, types: PhantomData })
    }

    fn as_map(&self) -> &Map {
        &self.map
    }
}

impl<V> fmt::Debug for Array<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Array").field("map", &self.map).finish()
    }
}
