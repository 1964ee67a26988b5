//! Hash maps, plain and with eviction.

use std::fmt;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use super::batch::{column, columns};
use super::{InsertMode, Map, MapKey, MapValue, Removal, Typed, TypedMap};
use crate::error::{Error, Result};
use crate::layout::MapType;
use crate::spec::MapSpec;
use crate::sys::Afterwards;

/// What a full hash map does: see [`Plain`] and [`Lru`].
pub trait HashKind: fmt::Debug + 'static {
    /// The kernel's kind of map.
    const TYPE: MapType;
}

/// A full map refuses new keys.
#[derive(Debug)]
pub enum Plain {}

/// A full map makes room by removing entries that were not used for long.
#[derive(Debug)]
pub enum Lru {}

impl HashKind for Plain {
    const TYPE: MapType = MapType::Hash;
}

impl HashKind for Lru {
    const TYPE: MapType = MapType::LruHash;
}

/// A hash map that refuses new keys when it is full ([`Error::is_full`]).
///
/// Minimum kernel: 3.19; batches 5.6, [`take`](Self::take) 5.14.
#[doc(alias = "BPF_MAP_TYPE_HASH")]
pub struct HashMap<K, V, T: HashKind = Plain> {
    map: Map,
    types: Typed<(K, V, T)>,
}

/// A hash map that makes room for new keys by evicting entries that programs have not used for
/// long.
///
/// The kernel's order is approximate: it keeps free entries per CPU, so eviction may begin before
/// the map is full, and only a program's use counts, not a lookup from here.
///
/// Minimum kernel: 4.10; batches 5.6, [`take`](HashMap::take) 5.14.
#[doc(alias = "BPF_MAP_TYPE_LRU_HASH")]
pub type LruHashMap<K, V> = HashMap<K, V, Lru>;

impl<K: MapKey, V: MapValue, T: HashKind> HashMap<K, V, T> {
    /// Makes a map that no object describes.
    pub fn create(name: &str, max_entries: u32) -> Result<Self> {
        let spec = MapSpec::new(name, T::TYPE).entry::<K, V>().max_entries(max_entries);
        Self::from_map(Map::create(&spec)?)
    }

    /// Opens a pinned map and checks its layout.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::from_map(Map::open(path)?)
    }

    /// The untyped handle: its properties, its pin.
    pub fn as_map(&self) -> &Map {
        &self.map
    }

    /// A second handle on the same map.
    pub fn try_clone(&self) -> Result<Self> {
        Self::from_map(self.map.try_clone()?)
    }

    /// The most entries it takes.
    pub fn max_entries(&self) -> u32 {
        self.map.layout().max_entries
    }

    /// The value of `key`.
    pub fn get(&self, key: &K) -> Result<Option<V>> {
        self.map.lookup(key.as_bytes())
    }

    /// Inserts or replaces an entry.
    pub fn insert(&self, key: &K, value: &V) -> Result<()> {
        self.insert_with(key, value, InsertMode::Any)
    }

    /// Inserts or replaces an entry, as `mode` says.
    pub fn insert_with(&self, key: &K, value: &V, mode: InsertMode) -> Result<()> {
        self.map.update(key.as_bytes(), value.as_bytes(), mode)
    }

    /// Removes an entry.
    pub fn remove(&self, key: &K) -> Result<Removal> {
        self.map.delete(key.as_bytes())
    }

    /// Removes an entry and answers its value, atomically. Minimum kernel: 5.14.
    #[doc(alias = "BPF_MAP_LOOKUP_AND_DELETE_ELEM")]
    pub fn take(&self, key: &K) -> Result<Option<V>> {
        let mut value = V::new_zeroed();
        Ok(self.map.take_into(key.as_bytes(), value.as_mut_bytes())?.map(|()| value))
    }

    /// Reads all entries, in batches. An entry that is there throughout is read exactly once; one
    /// that comes or goes meanwhile may or may not be among them. Minimum kernel: 5.6.
    #[doc(alias = "BPF_MAP_LOOKUP_BATCH")]
    pub fn entries(&self) -> Result<Vec<(K, V)>> {
        self.read(Afterwards::Keep)
    }

    /// Reads all entries, in batches, and gives each to `visit`: the memory of one batch suffices for
    /// any map. What `visit` does to the map itself is as if another had done it: the entries of the
    /// batch at hand have been read already. Ends with the first error. Minimum kernel: 5.6.
    #[doc(alias = "BPF_MAP_LOOKUP_BATCH")]
    pub fn visit<E: From<Error>>(
        &self,
        mut visit: impl FnMut(K, V) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        self.map.visit_batches(Afterwards::Keep, |key, value| {
            let mut owned = V::new_zeroed();
            owned.as_mut_bytes().copy_from_slice(value);
            visit(key, owned)
        })
    }

    /// Reads all entries and removes them, in batches: each counted exactly once. Minimum kernel:
    /// 5.6.
    #[doc(alias = "BPF_MAP_LOOKUP_AND_DELETE_BATCH")]
    pub fn drain(&self) -> Result<Vec<(K, V)>> {
        self.read(Afterwards::Delete)
    }

    /// Inserts or replaces many entries. When one is refused, those before it stay and
    /// [`Error::Batch`] says how many. Minimum kernel: 5.6.
    #[doc(alias = "BPF_MAP_UPDATE_BATCH")]
    pub fn insert_batch(&self, entries: &[(K, V)]) -> Result<()> {
        let (keys, values) = columns(entries.iter().map(|(key, value)| (key, value)));
        self.map.write_batch(&keys, &values)
    }

    /// Removes many keys; answers how many were there. Minimum kernel: 5.6.
    #[doc(alias = "BPF_MAP_DELETE_BATCH")]
    pub fn remove_batch(&self, keys: &[K]) -> Result<usize> {
        self.map.delete_batch(&column(keys.iter()))
    }

    /// Walks key by key, with two calls for each entry: for kernels without batches, and for
    /// stopping early.
    ///
    /// When the key it stands on is removed meanwhile the kernel begins again, so that an entry
    /// may come twice.
    pub fn iter(&self) -> Entries<'_, K, V> {
        Entries::new(&self.map)
    }

    fn read(&self, then: Afterwards) -> Result<Vec<(K, V)>> {
        self.map.read_batches(then, |key, value| {
            let mut owned = V::new_zeroed();
            owned.as_mut_bytes().copy_from_slice(value);
            Ok((key, owned))
        })
    }
}

impl<K: MapKey, V: MapValue, T: HashKind> TypedMap for HashMap<K, V, T> {
    fn from_map(map: Map) -> Result<Self> {
        map.expect(T::TYPE, size_of::<K>(), size_of::<V>())?;
        Ok(Self { map, types: PhantomData })
    }

    fn as_map(&self) -> &Map {
        &self.map
    }
}

impl<K, V, T: HashKind> AsFd for HashMap<K, V, T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

impl<K, V, T: HashKind> fmt::Debug for HashMap<K, V, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HashMap").field("map", &self.map).finish()
    }
}

impl<'m, K: MapKey, V: MapValue, T: HashKind> IntoIterator for &'m HashMap<K, V, T> {
    type Item = Result<(K, V)>;
    type IntoIter = Entries<'m, K, V>;

    fn into_iter(self) -> Entries<'m, K, V> {
        self.iter()
    }
}

/// Walks a map key by key. Ends after an error.
#[derive(Debug)]
pub struct Entries<'m, K, V> {
    map: &'m Map,
    position: Position<K>,
    value: PhantomData<fn() -> V>,
}

#[derive(Debug)]
enum Position<K> {
    Start,
    After(K),
    End,
}

impl<'m, K: MapKey, V: MapValue> Entries<'m, K, V> {
    pub(super) fn new(map: &'m Map) -> Self {
        Self { map, position: Position::Start, value: PhantomData }
    }

    fn step(&mut self) -> Result<Option<(K, V)>> {
        loop {
            let after = match &self.position {
                Position::Start => None,
                Position::After(key) => Some(key.as_bytes()),
                Position::End => return Ok(None),
            };
            let mut key = K::new_zeroed();
            let found = self.map.next_key(after, key.as_mut_bytes())?;
            if found.is_none() {
                self.position = Position::End;
                return Ok(None);
            }
            let value = self.map.lookup(key.as_bytes())?;
            let mut copy = K::new_zeroed();
            copy.as_mut_bytes().copy_from_slice(key.as_bytes());
            self.position = Position::After(key);
            // Removed between the two calls: go on with the next.
            if let Some(value) = value {
                return Ok(Some((copy, value)));
            }
        }
    }
}

impl<K: MapKey, V: MapValue> Iterator for Entries<'_, K, V> {
    type Item = Result<(K, V)>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step().transpose();
        if matches!(step, Some(Err(_))) {
            self.position = Position::End;
        }
        step
    }
}
