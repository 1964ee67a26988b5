//! What a map looks like, and how two looks differ.

use std::fmt;

/// The kinds of map, numbered as in the kernel's `enum bpf_map_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum MapType {
    /// `BPF_MAP_TYPE_HASH`
    Hash,
    /// `BPF_MAP_TYPE_ARRAY`
    Array,
    /// `BPF_MAP_TYPE_PROG_ARRAY`
    ProgramArray,
    /// `BPF_MAP_TYPE_PERF_EVENT_ARRAY`
    PerfEventArray,
    /// `BPF_MAP_TYPE_PERCPU_HASH`
    PerCpuHash,
    /// `BPF_MAP_TYPE_PERCPU_ARRAY`
    PerCpuArray,
    /// `BPF_MAP_TYPE_LRU_HASH`
    LruHash,
    /// `BPF_MAP_TYPE_LRU_PERCPU_HASH`
    LruPerCpuHash,
    /// `BPF_MAP_TYPE_LPM_TRIE`
    LpmTrie,
    /// `BPF_MAP_TYPE_ARRAY_OF_MAPS`
    ArrayOfMaps,
    /// `BPF_MAP_TYPE_HASH_OF_MAPS`
    HashOfMaps,
    /// `BPF_MAP_TYPE_RINGBUF`
    RingBuffer,
    /// Any other, by its number.
    Other(u32),
}

const NUMBERS: [(MapType, u32, &str); 12] = [
    (MapType::Hash, 1, "hash"),
    (MapType::Array, 2, "array"),
    (MapType::ProgramArray, 3, "program array"),
    (MapType::PerfEventArray, 4, "perf event array"),
    (MapType::PerCpuHash, 5, "per-CPU hash"),
    (MapType::PerCpuArray, 6, "per-CPU array"),
    (MapType::LruHash, 9, "LRU hash"),
    (MapType::LruPerCpuHash, 10, "LRU per-CPU hash"),
    (MapType::LpmTrie, 11, "LPM trie"),
    (MapType::ArrayOfMaps, 12, "array of maps"),
    (MapType::HashOfMaps, 13, "hash of maps"),
    (MapType::RingBuffer, 27, "ring buffer"),
];

impl MapType {
    /// The kernel's number for it.
    pub fn number(self) -> u32 {
        match self {
            Self::Other(number) => number,
            known => {
                NUMBERS.iter().find(|(kind, ..)| *kind == known).map_or(0, |(_, number, _)| *number)
            }
        }
    }
}

impl From<u32> for MapType {
    fn from(number: u32) -> Self {
        NUMBERS
            .iter()
            .find(|(_, known, _)| *known == number)
            .map_or(Self::Other(number), |(kind, ..)| *kind)
    }
}

impl fmt::Display for MapType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NUMBERS.iter().find(|(kind, ..)| kind == self) {
            Some((_, _, name)) => f.write_str(name),
            None => write!(f, "map type {}", self.number()),
        }
    }
}

/// The properties of a map that its programs and its readers rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapLayout {
    /// The kind of map.
    pub kind: MapType,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value; in a per-CPU map, of one CPU's.
    pub value_size: u32,
    /// The most entries it takes; bytes for a ring buffer.
    pub max_entries: u32,
    /// The `BPF_F_*` flags it was made with.
    pub flags: u32,
}

impl MapLayout {
    /// All differences between what is wanted (`self`) and what is there.
    pub fn differences(&self, found: &Self) -> Vec<Difference> {
        let mut differences = Vec::new();
        if self.kind != found.kind {
            differences.push(Difference::Kind { wanted: self.kind, found: found.kind });
        }
        let mut number = |property, wanted, found| {
            if wanted != found {
                differences.push(Difference::Number { property, wanted, found });
            }
        };
        number(Property::KeySize, self.key_size, found.key_size);
        number(Property::ValueSize, self.value_size, found.value_size);
        number(Property::MaxEntries, self.max_entries, found.max_entries);
        number(Property::Flags, self.flags, found.flags);
        differences
    }
}

/// A property of a map that is a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Property {
    /// Bytes of a key.
    KeySize,
    /// Bytes of a value.
    ValueSize,
    /// The most entries.
    MaxEntries,
    /// The flags it was made with.
    Flags,
}

/// One property in which a map differs from what is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Difference {
    /// Another kind of map.
    Kind {
        /// The kind wanted.
        wanted: MapType,
        /// The kind there is.
        found: MapType,
    },
    /// Another number.
    Number {
        /// Which property.
        property: Property,
        /// The number wanted.
        wanted: u32,
        /// The number there is.
        found: u32,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind { wanted, found } => write!(f, "is a {found}, wanted a {wanted}"),
            Self::Number { property, wanted, found } => match property {
                Property::KeySize => write!(f, "key of {found} bytes, wanted {wanted}"),
                Property::ValueSize => write!(f, "value of {found} bytes, wanted {wanted}"),
                Property::MaxEntries => write!(f, "{found} entries, wanted {wanted}"),
                Property::Flags => write!(f, "flags {found:#x}, wanted {wanted:#x}"),
            },
        }
    }
}

/// A map that differs from what is wanted, in one or more properties.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mismatch {
    /// The map: its name, or its pin.
    pub map: String,
    /// Every property that differs.
    pub differences: Vec<Difference>,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.map)?;
        for (index, difference) in self.differences.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            difference.fmt(f)?;
        }
        Ok(())
    }
}

pub(crate) struct Differences<'a>(pub(crate) &'a [Mismatch]);

impl fmt::Display for Differences<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mismatch) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            mismatch.fmt(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_kinds_are_the_same_both_ways() {
        for number in 0..64 {
            assert_eq!(MapType::from(number).number(), number);
        }
        assert_eq!(MapType::from(9), MapType::LruHash);
        assert_eq!(MapType::from(99).to_string(), "map type 99");
    }

    #[test]
    fn every_difference_is_listed() {
        let wanted = MapLayout {
            kind: MapType::Hash,
            key_size: 4,
            value_size: 8,
            max_entries: 16,
            flags: 0,
        };
        assert!(wanted.differences(&wanted).is_empty());
        let found = MapLayout {
            kind: MapType::LruHash,
            key_size: 8,
            value_size: 16,
            max_entries: 32,
            flags: 1,
        };
        let mismatch = Mismatch { map: "M".into(), differences: wanted.differences(&found) };
        assert_eq!(
            mismatch.to_string(),
            "M: is a LRU hash, wanted a hash, key of 8 bytes, wanted 4, value of 16 bytes, \
             wanted 8, 32 entries, wanted 16, flags 0x1, wanted 0x0"
        );
    }
}
