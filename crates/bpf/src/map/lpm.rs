//! Longest-prefix match.

use std::fmt;
use std::marker::PhantomData;

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::batch::{column, columns};
use super::hash::Entries;
use super::{InsertMode, Map, MapKey, MapValue, Removal, Typed, TypedMap, typed_map};
use crate::error::{Error, Result};
use crate::layout::MapType;
use crate::spec::MapSpec;
use crate::sys::Afterwards;

/// The first `length` bits of `data`, counted from its first byte's highest bit, as in an address
/// in network byte order.
///
/// The bits after them are kept as they were given, and are not compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix<D> {
    length: u32,
    data: D,
}

impl<D: MapKey> Prefix<D> {
    /// All bits of the data, of which the kernel takes at most 2048.
    #[expect(clippy::cast_possible_truncation, reason = "at most 256 bytes")]
    pub const BITS: u32 = {
        assert!(size_of::<D>() <= 256, "a trie's key holds at most 256 bytes");
        size_of::<D>() as u32 * 8
    };

    /// The first `length` bits of `data`; fails if there are not so many.
    pub fn new(data: D, length: u32) -> Result<Self> {
        if length > Self::BITS {
            return Err(Error::PrefixTooLong { length, bits: Self::BITS });
        }
        Ok(Self { length, data })
    }

    /// All bits of `data`: a single address.
    pub fn full(data: D) -> Self {
        Self { length: Self::BITS, data }
    }

    /// The number of bits.
    pub fn length(&self) -> u32 {
        self.length
    }

    /// The data, those bits included that are not compared.
    pub fn data(&self) -> &D {
        &self.data
    }

    /// The data.
    pub fn into_data(self) -> D {
        self.data
    }

    /// Whether the other prefix begins with this one.
    pub fn covers(&self, other: &Self) -> bool {
        self.length <= other.length && self.agrees(&other.data)
    }

    /// Whether `data` begins with this prefix.
    pub(crate) fn agrees(&self, data: &D) -> bool {
        let (mine, others) = (self.data.as_bytes(), data.as_bytes());
        let whole = (self.length / 8) as usize;
        let rest = self.length % 8;
        mine[..whole] == others[..whole]
            && (rest == 0 || (mine[whole] ^ others[whole]) >> (8 - rest) == 0)
    }
}

/// `struct bpf_lpm_trie_key_u8` of the kernel.
#[derive(Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C, packed)]
struct WireKey<D> {
    length: u32,
    data: D,
}

impl<D: MapKey> WireKey<D> {
    fn of(prefix: &Prefix<D>) -> Self {
        let mut key = Self::new_zeroed();
        key.length = prefix.length;
        let header = size_of::<u32>();
        key.as_mut_bytes()[header..].copy_from_slice(prefix.data.as_bytes());
        key
    }

    fn into_prefix(self) -> Prefix<D> {
        let Self { length, data } = self;
        Prefix { length, data }
    }
}

/// The bytes of a key, there and back.
#[cfg(fuzzing)]
pub(crate) fn trie_key<D: MapKey>(prefix: &Prefix<D>) -> (Vec<u8>, Option<Prefix<D>>) {
    let bytes = WireKey::of(prefix).as_bytes().to_vec();
    let back = WireKey::read_from_bytes(&bytes).ok().map(WireKey::into_prefix);
    (bytes, back)
}

/// A trie of prefixes: looking up answers with the value of the longest that matches.
///
/// `D` is what the prefixes are of, an address in network byte order for instance, without the
/// prefix length that goes before it in the kernel's key.
///
/// A full trie refuses new prefixes ([`Error::is_full`]). Before Linux 6.13 a full trie refuses
/// replacing an entry, too.
///
/// Minimum kernel: 4.11; reading all entries 4.16, batches 5.6.
#[doc(alias = "BPF_MAP_TYPE_LPM_TRIE")]
pub struct LpmTrie<D, V> {
    map: Map,
    types: Typed<(D, V)>,
}

typed_map!(LpmTrie<D: MapKey, V: MapValue>);

impl<D: MapKey, V: MapValue> LpmTrie<D, V> {
    /// Makes a map that no object describes.
    pub fn create(name: &str, max_entries: u32) -> Result<Self> {
        let spec = MapSpec::new(name, MapType::LpmTrie)
            .entry::<WireKey<D>, V>()
            .max_entries(max_entries)
            // The kernel has no trie with memory taken in advance.
            .flags(aya_obj::generated::BPF_F_NO_PREALLOC);
        Self::from_map(Map::create(&spec)?)
    }

    /// The value of the longest prefix that `data` begins with.
    pub fn longest_match(&self, data: D) -> Result<Option<V>> {
        self.longest_match_of(&Prefix::full(data))
    }

    /// The value of the longest prefix that covers `prefix`: at most as long, and with the same
    /// bits. The kernel does not say which prefix that is.
    pub fn longest_match_of(&self, prefix: &Prefix<D>) -> Result<Option<V>> {
        self.map.lookup(WireKey::of(prefix).as_bytes())
    }

    /// Inserts or replaces a prefix.
    pub fn insert(&self, prefix: &Prefix<D>, value: &V) -> Result<()> {
        self.insert_with(prefix, value, InsertMode::Any)
    }

    /// Inserts or replaces a prefix, as `mode` says.
    pub fn insert_with(&self, prefix: &Prefix<D>, value: &V, mode: InsertMode) -> Result<()> {
        self.map.update(WireKey::of(prefix).as_bytes(), value.as_bytes(), mode)
    }

    /// Removes exactly this prefix.
    pub fn remove(&self, prefix: &Prefix<D>) -> Result<Removal> {
        self.map.delete(WireKey::of(prefix).as_bytes())
    }

    /// Reads all entries, in batches. Minimum kernel: 5.6.
    ///
    /// The kernel walks a trie prefix by prefix, and begins again when the prefix it stands on is
    /// removed meanwhile: then entries may come twice.
    #[doc(alias = "BPF_MAP_LOOKUP_BATCH")]
    pub fn entries(&self) -> Result<Vec<(Prefix<D>, V)>> {
        self.map.read_batches(Afterwards::Keep, |key: WireKey<D>, value| {
            let mut owned = V::new_zeroed();
            owned.as_mut_bytes().copy_from_slice(value);
            Ok((key.into_prefix(), owned))
        })
    }

    /// Inserts or replaces many prefixes. When one is refused, those before it stay and
    /// [`Error::Batch`] says how many. Minimum kernel: 5.6.
    #[doc(alias = "BPF_MAP_UPDATE_BATCH")]
    pub fn insert_batch(&self, entries: &[(Prefix<D>, V)]) -> Result<()> {
        let keys: Vec<_> = entries.iter().map(|(prefix, _)| WireKey::of(prefix)).collect();
        let values = entries.iter().map(|(_, value)| value);
        let (keys, values) = columns(keys.iter().zip(values));
        self.map.write_batch(&keys, &values)
    }

    /// Removes many prefixes; answers how many were there. Minimum kernel: 5.6.
    #[doc(alias = "BPF_MAP_DELETE_BATCH")]
    pub fn remove_batch(&self, prefixes: &[Prefix<D>]) -> Result<usize> {
        let keys: Vec<_> = prefixes.iter().map(WireKey::of).collect();
        self.map.delete_batch(&column(keys.iter()))
    }

    /// Walks prefix by prefix, with two calls for each entry: for kernels without batches, and for
    /// stopping early. More specific prefixes come before those that cover them.
    ///
    /// When the prefix it stands on is removed meanwhile the kernel begins again, so that an entry
    /// may come twice.
    pub fn iter(&self) -> impl Iterator<Item = Result<(Prefix<D>, V)>> + '_ {
        Entries::<WireKey<D>, V>::new(&self.map)
            .map(|entry| entry.map(|(key, value)| (key.into_prefix(), value)))
    }
}

impl<D: MapKey, V: MapValue> TypedMap for LpmTrie<D, V> {
    fn from_map(map: Map) -> Result<Self> {
        map.expect(MapType::LpmTrie, size_of::<WireKey<D>>(), size_of::<V>())?;
        Ok(Self { map, types: PhantomData })
    }

    fn as_map(&self) -> &Map {
        &self.map
    }
}

impl<D, V> fmt::Debug for LpmTrie<D, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LpmTrie").field("map", &self.map).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_at_most_as_long_as_its_data() {
        assert_eq!(Prefix::<[u8; 4]>::BITS, 32);
        assert!(Prefix::new([10_u8, 0, 0, 0], 32).is_ok());
        assert!(matches!(
            Prefix::new([10_u8, 0, 0, 0], 33),
            Err(Error::PrefixTooLong { length: 33, bits: 32 })
        ));
    }

    #[test]
    fn only_the_bits_of_the_prefix_are_compared() {
        let prefix = Prefix::new([10_u8, 1, 0x80, 0xff], 17).unwrap();
        assert!(prefix.agrees(&[10, 1, 0xff, 0]));
        assert!(!prefix.agrees(&[10, 1, 0x7f, 0]));
        assert!(Prefix::new([1_u8, 2, 3, 4], 0).unwrap().agrees(&[9, 9, 9, 9]));
        assert!(Prefix::full([1_u8, 2, 3, 4]).agrees(&[1, 2, 3, 4]));
        let shorter = Prefix::new([10_u8, 1, 0, 0], 16).unwrap();
        assert!(shorter.covers(&prefix) && !prefix.covers(&shorter) && prefix.covers(&prefix));
    }

    #[test]
    fn the_key_is_the_length_in_host_order_then_the_data() {
        let key = WireKey::of(&Prefix::new([10_u8, 2, 3, 4], 24).unwrap());
        let mut expected = 24_u32.to_ne_bytes().to_vec();
        expected.extend([10, 2, 3, 4]);
        assert_eq!(key.as_bytes(), expected);
        assert_eq!(key.into_prefix(), Prefix::new([10_u8, 2, 3, 4], 24).unwrap());
    }
}
