//! Maps: an untyped handle, and one typed handle per kind.

mod array;
mod batch;
mod hash;
mod lpm;
mod mapped_array;
mod mapping;
mod per_cpu;
mod program_array;
mod ring_buffer;

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use zerocopy::{FromBytes, Immutable, IntoBytes};

pub use array::Array;
pub use hash::{Entries, HashKind, HashMap, Lru, LruHashMap, Plain};
#[cfg(fuzzing)]
pub(crate) use lpm::trie_key;
pub use lpm::{LpmTrie, Prefix};
pub use mapped_array::MappedArray;
pub(crate) use per_cpu::possible;
pub use per_cpu::{Aggregate, PerCpu, PerCpuArray, PerCpuHashMap};
pub use program_array::ProgramArray;
pub use ring_buffer::{Record, RingBuffer};

use crate::error::{Error, MapOperation, PinOperation, Result};
use crate::layout::{MapLayout, MapType, Mismatch};
use crate::pin;
use crate::spec::MapSpec;
use crate::sys::{self, MapFd};

/// What a map's key may be: plain bytes without padding.
///
/// Implemented for every type that derives zerocopy's traits; nothing else is needed.
pub trait MapKey: IntoBytes + FromBytes + Immutable + 'static {}
impl<T: IntoBytes + FromBytes + Immutable + 'static> MapKey for T {}

/// What a map's value may be: plain bytes without padding.
///
/// Implemented for every type that derives zerocopy's traits; nothing else is needed.
pub trait MapValue: IntoBytes + FromBytes + Immutable + 'static {}
impl<T: IntoBytes + FromBytes + Immutable + 'static> MapValue for T {}

/// Ties a handle to the types it reads and writes, owning none of them.
pub(crate) type Typed<T> = PhantomData<fn(T) -> T>;

/// When an insertion is to happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[doc(alias("BPF_ANY", "BPF_NOEXIST", "BPF_EXIST"))]
pub enum InsertMode {
    /// Whether the key is there or not.
    #[default]
    Any,
    /// Only if the key is not there; otherwise [`Error::is_already_exists`].
    NoExist,
    /// Only if the key is there; otherwise [`Error::is_not_found`].
    Exist,
}

impl InsertMode {
    fn flags(self) -> u64 {
        match self {
            Self::Any => sys::BPF_ANY,
            Self::NoExist => sys::BPF_NOEXIST,
            Self::Exist => sys::BPF_EXIST,
        }
    }
}

/// Whether there was something to remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Removal {
    /// There was, and it is gone.
    Removed,
    /// There was nothing.
    Absent,
}

/// What the kernel says of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MapInfo {
    /// The kernel's number for it, unique until reboot.
    pub id: u32,
    /// Its name, of which the kernel keeps 15 bytes.
    pub name: String,
    /// Its layout.
    pub layout: MapLayout,
}

/// A map of any kind: a descriptor and what the kernel says of it.
///
/// Dropping it closes the descriptor. The map itself lives as long as a program, a pin or another
/// descriptor refers to it.
#[derive(Debug)]
pub struct Map {
    fd: MapFd,
    name: String,
    info: MapInfo,
}

impl Map {
    /// Makes a map that no object describes. Minimum kernel: that of its kind.
    #[doc(alias = "BPF_MAP_CREATE")]
    pub fn create(spec: &MapSpec) -> Result<Self> {
        let fd = sys::map_create(spec.create_attr())
            .map_err(|source| Error::CreateMap { name: spec.name.clone(), source })?;
        Self::from_fd(fd, &spec.name)
    }

    /// Opens a pinned map.
    #[doc(alias = "BPF_OBJ_GET")]
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let fd = pin::open(path)?;
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        Self::from_fd(fd, name.as_deref().unwrap_or_default())
    }

    /// Takes a descriptor that is known as `name` in errors.
    pub(crate) fn from_fd(fd: OwnedFd, name: &str) -> Result<Self> {
        let (fd, raw) =
            MapFd::new(fd).map_err(|source| Error::Info { object: name.to_owned(), source })?;
        let info = MapInfo {
            id: raw.id,
            name: text(&raw.name),
            layout: MapLayout {
                kind: raw.map_type.into(),
                key_size: raw.key_size,
                value_size: raw.value_size,
                max_entries: raw.max_entries,
                flags: raw.map_flags,
            },
        };
        Ok(Self { fd, name: name.to_owned(), info })
    }

    /// The name it goes by: that in the object, or its pin's.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the kernel said of it when it was opened; none of it changes.
    pub fn info(&self) -> &MapInfo {
        &self.info
    }

    /// Its layout.
    pub fn layout(&self) -> MapLayout {
        self.info.layout
    }

    /// The bytes of kernel memory it takes, as the kernel accounts them (`memlock` of fdinfo).
    ///
    /// Before Linux 6.4 this is an estimate for full maps.
    pub fn memory_bytes(&self) -> Result<u64> {
        let fd = sys::raw(self.fd.as_fd());
        let error = |source| Error::Info { object: self.name.clone(), source };
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).map_err(error)?;
        text.lines()
            .find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok())
            .ok_or_else(|| error(io::Error::other("fdinfo has no memlock")))
    }

    /// Pins it, so that it outlives this process.
    #[doc(alias = "BPF_OBJ_PIN")]
    pub fn pin(&self, path: impl AsRef<Path>) -> Result<()> {
        pin::create(self.fd.as_fd(), path.as_ref())
    }

    /// A second handle on the same map.
    pub fn try_clone(&self) -> Result<Self> {
        let fd = self.fd.try_clone().map_err(self.error(MapOperation::Duplicate))?;
        Ok(Self { fd, name: self.name.clone(), info: self.info.clone() })
    }

    /// Checks that it is of one of `kinds` and holds keys and values of these sizes.
    fn expect(&self, kind: MapType, key_size: usize, value_size: usize) -> Result<()> {
        let found = self.layout();
        let size = |size| u32::try_from(size).unwrap_or(u32::MAX);
        let wanted =
            MapLayout { kind, key_size: size(key_size), value_size: size(value_size), ..found };
        let differences = wanted.differences(&found);
        if differences.is_empty() {
            return Ok(());
        }
        Err(Error::WrongMapType { mismatch: Mismatch { map: self.name.clone(), differences } })
    }

    fn lookup_into(&self, key: &[u8], value: &mut [u8]) -> Result<Option<()>> {
        absent_is_none(self.fd.lookup(key, value)).map_err(self.error(MapOperation::Lookup))
    }

    fn take_into(&self, key: &[u8], value: &mut [u8]) -> Result<Option<()>> {
        match absent_is_none(self.fd.lookup_and_delete(key, value)) {
            Err(error) if is_missing_operation(&error) => Err(Error::Unsupported {
                feature: "lookup-and-delete of a single entry of a hash map",
                since: "5.14",
            }),
            other => other.map_err(self.error(MapOperation::Take)),
        }
    }

    fn lookup<V: MapValue>(&self, key: &[u8]) -> Result<Option<V>> {
        let mut value = V::new_zeroed();
        Ok(self.lookup_into(key, value.as_mut_bytes())?.map(|()| value))
    }

    fn update(&self, key: &[u8], value: &[u8], mode: InsertMode) -> Result<()> {
        self.fd.update(key, value, mode.flags()).map_err(self.error(MapOperation::Insert))
    }

    fn delete(&self, key: &[u8]) -> Result<Removal> {
        match absent_is_none(self.fd.delete(key)) {
            Ok(Some(())) => Ok(Removal::Removed),
            Ok(None) => Ok(Removal::Absent),
            Err(source) => Err(self.error(MapOperation::Remove)(source)),
        }
    }

    fn next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> Result<Option<()>> {
        absent_is_none(self.fd.next_key(key, next)).map_err(self.error(MapOperation::Walk))
    }

    fn check_index(&self, index: u32) -> Result<()> {
        check_index(&self.name, index, self.info.layout.max_entries)
    }

    /// Nobody but programs may write to it from now on.
    pub(crate) fn freeze(&self) -> Result<()> {
        self.fd.freeze().map_err(self.error(MapOperation::Freeze))
    }

    /// Fills the single element of a data section.
    pub(crate) fn fill(&self, contents: &[u8]) -> Result<()> {
        self.update(&0_u32.to_ne_bytes(), contents, InsertMode::Any)
    }

    fn error(&self, operation: MapOperation) -> impl FnOnce(io::Error) -> Error + '_ {
        move |source| Error::Map { operation, map: self.name.clone(), source }
    }
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A typed handle on a map: what [`Object::map`](crate::Object::map) answers with.
pub trait TypedMap: Sized {
    /// Checks that `map` is of this kind and these sizes, and takes it.
    fn from_map(map: Map) -> Result<Self>;

    /// The untyped handle: its properties, its pin.
    fn as_map(&self) -> &Map;
}

/// The inherent functions that all typed handles share.
macro_rules! typed_map {
    ($name:ident $(<$($parameter:ident: $bound:path),+>)?) => {
        impl $(<$($parameter: $bound),+>)? $name $(<$($parameter),+>)? {
            /// Opens a pinned map and checks its layout.
            pub fn open(path: impl AsRef<std::path::Path>) -> $crate::Result<Self> {
                <Self as $crate::map::TypedMap>::from_map($crate::map::Map::open(path)?)
            }

            /// The untyped handle: its properties, its pin.
            pub fn as_map(&self) -> &$crate::map::Map {
                &self.map
            }

            /// A second handle on the same map.
            pub fn try_clone(&self) -> $crate::Result<Self> {
                <Self as $crate::map::TypedMap>::from_map(self.map.try_clone()?)
            }

            /// The most entries it takes.
            pub fn max_entries(&self) -> u32 {
                self.map.layout().max_entries
            }
        }

        impl $(<$($parameter: $bound),+>)? std::os::fd::AsFd for $name $(<$($parameter),+>)? {
            fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
                self.map.as_fd()
            }
        }
    };
}
use typed_map;

pub(crate) fn check_index(map: &str, index: u32, length: u32) -> Result<()> {
    if index < length {
        Ok(())
    } else {
        Err(Error::OutOfRange { map: map.to_owned(), index, length })
    }
}

/// A fixed-size kernel name as text.
pub(crate) fn text(name: &[u8]) -> String {
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    String::from_utf8_lossy(&name[..end]).into_owned()
}

fn absent_is_none(result: io::Result<()>) -> io::Result<Option<()>> {
    match result {
        Ok(()) => Ok(Some(())),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the kernel, or this kind of map in it, lacks the command.
fn is_missing_operation(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(sys::ENOTSUPP | libc::EINVAL | libc::EOPNOTSUPP))
}

/// Whether `path` holds a map (and not a program or a link).
pub(crate) fn open_existing(path: &Path, name: &str) -> Result<Option<Map>> {
    match pin::open(path) {
        Ok(fd) => Map::from_fd(fd, name).map(Some),
        Err(Error::Pin { operation: PinOperation::Open, source, .. })
            if source.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
