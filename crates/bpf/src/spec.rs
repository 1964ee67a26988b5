//! What an object says, as plain data: nothing here has touched the kernel.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use aya_obj::ProgramSection;
use aya_obj::generated::bpf_attach_type;
use zerocopy::IntoBytes;

use crate::error::{Error, Result};
use crate::layout::{MapLayout, MapType};
use crate::sys;

/// The maps and programs that an eBPF object file describes.
///
/// Plain data: reading it needs no privileges and touches nothing. [`Loader`](crate::Loader) makes
/// kernel objects of the same bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ObjectSpec {
    /// The licence that the object declares to the kernel; some helpers are for GPL-compatible
    /// ones only.
    pub license: String,
    /// The maps, data sections (`.rodata` and so on) included, by name.
    pub maps: BTreeMap<String, MapSpec>,
    /// The programs, by name.
    pub programs: BTreeMap<String, ProgramSpec>,
}

impl ObjectSpec {
    /// Reads an object file.
    pub fn parse(object: &[u8]) -> Result<Self> {
        Self::of(&parse(object)?)
    }

    pub(crate) fn of(object: &aya_obj::Object) -> Result<Self> {
        let maps = object.maps.iter().map(|(name, map)| (name.clone(), MapSpec::of(name, map)));
        let programs = object.programs.iter().map(|(name, program)| {
            let size = object.functions.get(&program.function_key());
            Ok((
                name.clone(),
                ProgramSpec {
                    name: name.clone(),
                    kind: ProgramType::of(&program.section),
                    instructions: size.map_or(0, |function| function.instructions.len()),
                },
            ))
        });
        Ok(Self {
            license: object.license.to_string_lossy().into_owned(),
            maps: maps.collect(),
            programs: programs.collect::<Result<_>>()?,
        })
    }
}

/// Reads an object from bytes of any alignment.
pub(crate) fn parse(object: &[u8]) -> Result<aya_obj::Object> {
    let parse = |bytes: &[u8]| {
        unpanicking(|| {
            aya_obj::Object::parse(bytes).map_err(|error| Error::Parse { source: Box::new(error) })
        })
    };
    if object.as_ptr().cast::<u64>().is_aligned() {
        return parse(object);
    }
    // ELF headers are read in place, and a byte string of a program may lie anywhere.
    let mut aligned = vec![0_u64; object.len().div_ceil(size_of::<u64>())];
    let bytes = &mut aligned.as_mut_bytes()[..object.len()];
    bytes.copy_from_slice(object);
    parse(bytes)
}

/// Does what aya-obj does with a file's contents. It takes most numbers in it for what they say: of
/// files with a few random bytes wrong, one in thirty makes it panic.
///
/// Nothing of what `work` was doing may be used after an error.
pub(crate) fn unpanicking<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason");
        Err(Error::Parse { source: format!("its parts do not fit together: {said}").into() })
    })
}

/// A map to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MapSpec {
    /// Its name; the kernel keeps 15 bytes of it, pins all.
    pub name: String,
    /// Its layout.
    pub layout: MapLayout,
    /// What depends on the kind of map (`map_extra`).
    pub extra: u64,
    /// For a data section, what it holds at first.
    pub contents: Option<Vec<u8>>,
    /// Whether programs may only read it (`.rodata`); it is frozen once it is filled.
    pub read_only: ReadOnly,
    btf: BtfTypes,
}

/// Whether a data section may be written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadOnly {
    /// By nobody, once it is loaded.
    Yes,
    /// By programs and user space.
    No,
}

/// The numbers of the key's and the value's types in the object's type information.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct BtfTypes {
    key: u32,
    value: u32,
}

impl MapSpec {
    /// A map of a kind, with nothing else said yet.
    pub fn new(name: &str, kind: MapType) -> Self {
        Self {
            name: name.to_owned(),
            layout: MapLayout { kind, key_size: 0, value_size: 0, max_entries: 0, flags: 0 },
            extra: 0,
            contents: None,
            read_only: ReadOnly::No,
            btf: BtfTypes::default(),
        }
    }

    /// Takes the sizes of keys and values from their types.
    #[must_use]
    pub fn entry<K, V>(self) -> Self {
        let size = |size| u32::try_from(size).unwrap_or(u32::MAX);
        self.sizes(size(size_of::<K>()), size(size_of::<V>()))
    }

    /// Sets the sizes of keys and values in bytes.
    #[must_use]
    pub fn sizes(mut self, key_size: u32, value_size: u32) -> Self {
        self.layout.key_size = key_size;
        self.layout.value_size = value_size;
        self
    }

    /// Sets the most entries it takes; for a ring buffer, its bytes.
    #[must_use]
    pub fn max_entries(mut self, max_entries: u32) -> Self {
        self.layout.max_entries = max_entries;
        self.normalise();
        self
    }

    /// Sets the `BPF_F_*` flags.
    #[must_use]
    pub fn flags(mut self, flags: u32) -> Self {
        self.layout.flags = flags;
        self
    }

    /// Whether it is a data section rather than a declared map.
    pub fn is_data(&self) -> bool {
        self.contents.is_some()
    }

    fn of(name: &str, map: &aya_obj::Map) -> Self {
        use aya_obj::EbpfSectionKind::{Bss, Data, Rodata};
        let kind = map.section_kind();
        let btf = match map {
            aya_obj::Map::Btf(map) => {
                BtfTypes { key: map.def.btf_key_type_id, value: map.def.btf_value_type_id }
            }
            aya_obj::Map::Legacy(_) => BtfTypes::default(),
        };
        let mut spec = Self {
            name: name.to_owned(),
            layout: MapLayout {
                kind: map.map_type().into(),
                key_size: map.key_size(),
                value_size: map.value_size(),
                max_entries: map.max_entries(),
                flags: map.map_flags(),
            },
            extra: map.map_extra(),
            contents: matches!(kind, Bss | Data | Rodata).then(|| map.data().to_vec()),
            read_only: if kind == Rodata { ReadOnly::Yes } else { ReadOnly::No },
            btf,
        };
        spec.normalise();
        spec
    }

    /// Gives the layout the values that the kernel insists on.
    fn normalise(&mut self) {
        if self.layout.kind == MapType::RingBuffer {
            // A power of two of pages. Declarations in Rust carry a value size, for the type.
            let page = u32::try_from(page_size()).unwrap_or(4096);
            self.layout.max_entries =
                self.layout.max_entries.max(page).checked_next_power_of_two().unwrap_or(1 << 31);
            self.layout.key_size = 0;
            self.layout.value_size = 0;
        }
    }

    pub(crate) fn create_attr(&self) -> sys::MapCreate {
        sys::MapCreate {
            map_type: self.layout.kind.number(),
            key_size: self.layout.key_size,
            value_size: self.layout.value_size,
            max_entries: self.layout.max_entries,
            map_flags: self.layout.flags,
            map_extra: self.extra,
            map_name: sys::object_name(&self.name),
            ..sys::MapCreate::default()
        }
    }

    /// As [`create_attr`](Self::create_attr), with the object's type information.
    pub(crate) fn create_attr_with(&self, btf: std::os::fd::BorrowedFd<'_>) -> sys::MapCreate {
        let mut attr = self.create_attr();
        if takes_types(self.layout.kind) {
            attr.btf_fd = sys::raw(btf).cast_unsigned();
            attr.btf_key_type_id = self.btf.key;
            attr.btf_value_type_id = self.btf.value;
        }
        attr
    }
}

/// The kinds whose keys and values the kernel lets be described.
fn takes_types(kind: MapType) -> bool {
    matches!(
        kind,
        MapType::Hash
            | MapType::Array
            | MapType::PerCpuHash
            | MapType::PerCpuArray
            | MapType::LruHash
            | MapType::LruPerCpuHash
            | MapType::LpmTrie
    )
}

pub(crate) fn page_size() -> usize {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|size| usize::try_from(size).ok())
        .unwrap_or(4096)
}

/// A program to be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProgramSpec {
    /// Its name; the kernel keeps 15 bytes of it.
    pub name: String,
    /// Its kind.
    pub kind: ProgramType,
    /// Its length in instructions, without the functions that it calls.
    pub instructions: usize,
}

/// The kinds of program, by where they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProgramType {
    /// `BPF_PROG_TYPE_SOCKET_FILTER`
    SocketFilter,
    /// `BPF_PROG_TYPE_SCHED_CLS`: traffic control, at either side of an interface.
    Classifier,
    /// `BPF_PROG_TYPE_XDP`
    Xdp,
    /// `BPF_PROG_TYPE_CGROUP_SKB`
    CgroupSkb,
    /// `BPF_PROG_TYPE_CGROUP_SOCK`
    CgroupSock,
    /// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`, with the hook's number in `enum bpf_attach_type`.
    CgroupSockAddr(u32),
    /// `BPF_PROG_TYPE_SOCK_OPS`
    SockOps,
    /// `BPF_PROG_TYPE_SK_LOOKUP`
    SkLookup,
    /// A kind that this crate does not load.
    Other,
}

impl ProgramType {
    fn of(section: &ProgramSection) -> Self {
        match section {
            ProgramSection::SocketFilter => Self::SocketFilter,
            ProgramSection::SchedClassifier => Self::Classifier,
            ProgramSection::Xdp { .. } => Self::Xdp,
            ProgramSection::CgroupSkb { .. } => Self::CgroupSkb,
            ProgramSection::CgroupSock { .. } => Self::CgroupSock,
            ProgramSection::CgroupSockAddr { attach_type } => {
                Self::CgroupSockAddr(bpf_attach_type::from(*attach_type) as u32)
            }
            ProgramSection::SockOps => Self::SockOps,
            ProgramSection::SkLookup => Self::SkLookup,
            _ => Self::Other,
        }
    }

    /// The kernel's numbers: program type and expected attach type.
    pub(crate) fn numbers(self, section: &ProgramSection) -> Option<(u32, u32)> {
        let attach_type = match section {
            ProgramSection::Xdp { attach_type, .. } => bpf_attach_type::from(*attach_type) as u32,
            ProgramSection::CgroupSkb { attach_type: Some(attach_type) } => {
                bpf_attach_type::from(*attach_type) as u32
            }
            ProgramSection::CgroupSock { attach_type } => {
                bpf_attach_type::from(*attach_type) as u32
            }
            ProgramSection::SkLookup => bpf_attach_type::BPF_SK_LOOKUP as u32,
            ProgramSection::SockOps => bpf_attach_type::BPF_CGROUP_SOCK_OPS as u32,
            _ => 0,
        };
        Some(match self {
            Self::SocketFilter => (1, 0),
            Self::Classifier => (sys::PROG_TYPE_SCHED_CLS, 0),
            Self::Xdp => (6, attach_type),
            Self::CgroupSkb => (8, attach_type),
            Self::CgroupSock => (9, attach_type),
            Self::SockOps => (13, attach_type),
            Self::CgroupSockAddr(hook) => (18, hook),
            Self::SkLookup => (30, attach_type),
            Self::Other => return None,
        })
    }

    pub(crate) fn from_number(number: u32) -> Self {
        match number {
            1 => Self::SocketFilter,
            sys::PROG_TYPE_SCHED_CLS => Self::Classifier,
            6 => Self::Xdp,
            8 => Self::CgroupSkb,
            9 => Self::CgroupSock,
            13 => Self::SockOps,
            18 => Self::CgroupSockAddr(0),
            30 => Self::SkLookup,
            _ => Self::Other,
        }
    }
}

impl fmt::Display for ProgramType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SocketFilter => "a socket filter",
            Self::Classifier => "a traffic control classifier",
            Self::Xdp => "an XDP program",
            Self::CgroupSkb => "a cgroup packet program",
            Self::CgroupSock => "a cgroup socket program",
            Self::CgroupSockAddr(_) => "a cgroup socket address program",
            Self::SockOps => "a socket operations program",
            Self::SkLookup => "a socket lookup program",
            Self::Other => "of a kind that is not supported",
        })
    }
}
