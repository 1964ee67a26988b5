//! The crate's one error type.

use std::fmt;
use std::io;
use std::path::PathBuf;

use podwire_netlink::Direction;

use crate::layout::{Differences, Mismatch};
use crate::verifier::VerifierLog;

/// What went wrong, with which object, and the kernel's own reason.
///
/// `{}` is one line. `{:#}` of [`Error::LoadProgram`] is followed by the verifier's whole log.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes are no eBPF object this crate can read.
    #[error("reading the object: {source}")]
    Parse {
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// A value given for a global variable does not fit the object.
    #[error("setting global variable {name}: {source}")]
    Global {
        /// The variable's name.
        name: String,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// The object has no map of that name.
    #[error("no map {name}; there are: {}", known.join(", "))]
    UnknownMap {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: Vec<String>,
    },

    /// The object has no program of that name.
    #[error("no program {name}; there are: {}", known.join(", "))]
    UnknownProgram {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: Vec<String>,
    },

    /// A reference between parts of the object, or to the kernel's types, cannot be resolved.
    #[error("linking the object: {source}")]
    Relocate {
        /// Which reference, and why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// The kernel refused to make a map.
    #[error("creating map {name}: {source}")]
    CreateMap {
        /// The map's name.
        name: String,
        /// The kernel's reason.
        source: io::Error,
    },

    /// Maps that are already pinned have another layout than the object's. All differences of all
    /// maps are listed. Nothing has been changed.
    #[error("pinned maps of another layout: {}", Differences(mismatches))]
    IncompatibleMaps {
        /// One element per map that differs.
        mismatches: Vec<Mismatch>,
    },

    /// A map is not what the type it was opened as needs.
    #[error("a typed map of another layout: {mismatch}")]
    WrongMapType {
        /// The differences.
        mismatch: Mismatch,
    },

    /// The kernel refused the object's type information.
    #[error(fmt = fmt_load_btf)]
    LoadBtf {
        /// What the kernel wrote about it.
        log: VerifierLog,
        /// The kernel's error.
        source: io::Error,
    },

    /// The verifier refused a program.
    #[error(fmt = fmt_load_program)]
    LoadProgram {
        /// The program's name.
        program: String,
        /// What the verifier wrote about it.
        log: VerifierLog,
        /// The kernel's error.
        source: io::Error,
    },

    /// The folder for pins is not on a BPF file system.
    #[error("{0} is not on a bpf file system; to mount one: mount -t bpf bpf {0}", path.display())]
    NotBpffs {
        /// The folder.
        path: PathBuf,
    },

    /// Something about a pin failed.
    #[error("{operation} {}: {source}", path.display())]
    Pin {
        /// What was tried.
        operation: PinOperation,
        /// The pin.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },

    /// An operation on a map failed.
    #[error("{operation} map {map}: {source}")]
    Map {
        /// What was tried.
        operation: MapOperation,
        /// The map's name.
        map: String,
        /// The kernel's reason.
        source: io::Error,
    },

    /// A batch ended early; what came before was done.
    #[error("{operation} map {map}, after {done} of {asked} entries: {source}")]
    Batch {
        /// What was tried.
        operation: MapOperation,
        /// The map's name.
        map: String,
        /// Entries done.
        done: usize,
        /// Entries asked for.
        asked: usize,
        /// The kernel's reason.
        source: io::Error,
    },

    /// An array has no such index.
    #[error("index {index} of map {map}, which has {length}")]
    OutOfRange {
        /// The map's name.
        map: String,
        /// The index asked for.
        index: u32,
        /// The number of its elements.
        length: u32,
    },

    /// The values given for a per-CPU entry are not one for each possible CPU.
    #[error("{given} per-CPU values for map {map} on a machine of {possible} possible CPUs")]
    CpuCount {
        /// The map's name.
        map: String,
        /// How many values were given.
        given: usize,
        /// How many are needed.
        possible: usize,
    },

    /// A prefix is longer than the data it is of.
    #[error("a prefix of {length} bits of {bits}")]
    PrefixTooLong {
        /// The length asked for.
        length: u32,
        /// The most there is.
        bits: u32,
    },

    /// A program could not be test-run.
    #[error("test-running program {program}: {source}")]
    TestRun {
        /// The program's name.
        program: String,
        /// The kernel's reason.
        source: io::Error,
    },

    /// A program could not be attached, or another put in its place.
    #[error("attaching program {program} to the {direction} of interface {ifindex}: {source}")]
    Attach {
        /// The program's name.
        program: String,
        /// The interface.
        ifindex: u32,
        /// The side of it.
        direction: Direction,
        /// The reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// An operation on an existing link failed.
    #[error("{operation} link {link}: {source}")]
    Link {
        /// What was tried.
        operation: LinkOperation,
        /// The link: its pin or its number.
        link: String,
        /// The kernel's reason.
        source: io::Error,
    },

    /// An operation on an existing filter failed.
    #[error("{} filter {filter}: {source}", operation.verb())]
    Filter {
        /// What was tried.
        operation: LinkOperation,
        /// The filter: priority, handle, place.
        filter: String,
        /// The reason, with the kernel's own words.
        source: Box<podwire_netlink::Error>,
    },

    /// A program of another kind than the operation needs.
    #[error("program {program} is {found}, {needed} is needed")]
    WrongProgramType {
        /// The program's name.
        program: String,
        /// Its kind.
        found: String,
        /// The kind needed.
        needed: &'static str,
    },

    /// The running kernel lacks a feature. Found by trying, not by its version.
    #[error("{feature} needs Linux {since}, or a kernel built with it")]
    Unsupported {
        /// What is missing.
        feature: &'static str,
        /// The first kernel that has it.
        since: &'static str,
    },

    /// The kernel would not say what an object is.
    #[error("asking for the properties of {object}: {source}")]
    Info {
        /// The object.
        object: String,
        /// The kernel's reason.
        source: io::Error,
    },

    /// A resource limit could not be raised.
    #[error("raising the limit of {limit}: {source}")]
    Limit {
        /// The limit.
        limit: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },

    /// Waiting on a descriptor failed.
    #[error("waiting for {object}: {source}")]
    Wait {
        /// What was waited for.
        object: String,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// `Result` with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Whether what was asked for is not there: a key, a pin, a link's device.
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::UnknownMap { .. } | Self::UnknownProgram { .. } | Self::OutOfRange { .. } => true,
            _ => matches!(self.errno(), Some(libc::ENOENT | libc::ENODEV | libc::ENOLINK)),
        }
    }

    /// Whether it is there already: a key inserted as new, a pin.
    pub fn is_already_exists(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }

    /// Whether a map has no room for another entry.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Map { .. } | Self::Batch { .. })
            && matches!(self.errno(), Some(libc::E2BIG | libc::ENOSPC))
    }

    /// Whether the caller lacks a capability.
    pub fn is_permission_denied(&self) -> bool {
        matches!(self.errno(), Some(libc::EPERM | libc::EACCES))
            // The verifier says EACCES for an access that it refuses.
            && !matches!(self, Self::LoadProgram { log, .. } if !log.as_str().is_empty())
    }

    /// Whether the kernel lacks the feature.
    pub fn is_unsupported(&self) -> bool {
        matches!(self, Self::Unsupported { .. })
    }

    /// Whether a map's layout, rather than any operation on it, is the problem.
    pub fn is_incompatible(&self) -> bool {
        matches!(self, Self::IncompatibleMaps { .. } | Self::WrongMapType { .. })
    }

    fn errno(&self) -> Option<i32> {
        match self {
            Self::CreateMap { source, .. }
            | Self::LoadBtf { source, .. }
            | Self::LoadProgram { source, .. }
            | Self::Pin { source, .. }
            | Self::Map { source, .. }
            | Self::Batch { source, .. }
            | Self::TestRun { source, .. }
            | Self::Link { source, .. }
            | Self::Info { source, .. }
            | Self::Limit { source, .. }
            | Self::Wait { source, .. } => source.raw_os_error(),
            Self::Filter { source, .. } => source.raw_os_error(),
            Self::Attach { source, .. } => source
                .downcast_ref::<podwire_netlink::Error>()
                .and_then(podwire_netlink::Error::raw_os_error)
                .or_else(|| source.downcast_ref::<io::Error>()?.raw_os_error()),
            _ => None,
        }
    }
}

/// What was tried with a pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PinOperation {
    /// Making the folder for it.
    CreateFolder,
    /// Making it.
    Create,
    /// Opening the object it holds.
    Open,
    /// Removing it.
    Remove,
    /// Reading the folder it is in.
    List,
}

impl fmt::Display for PinOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CreateFolder => "making the folder",
            Self::Create => "pinning",
            Self::Open => "opening the pin",
            Self::Remove => "removing the pin",
            Self::List => "listing the pins in",
        })
    }
}

/// What was tried with a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MapOperation {
    /// Looking up a key.
    Lookup,
    /// Inserting or replacing an entry.
    Insert,
    /// Removing a key.
    Remove,
    /// Removing a key and answering its value.
    Take,
    /// Going from one key to the next.
    Walk,
    /// Reading many entries.
    LookupBatch,
    /// Writing many entries.
    InsertBatch,
    /// Removing many keys.
    RemoveBatch,
    /// Reading and removing many entries.
    TakeBatch,
    /// Making the map read-only for user space.
    Freeze,
    /// Mapping its memory.
    MapMemory,
    /// Making a second handle.
    Duplicate,
}

impl fmt::Display for MapOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lookup => "looking up in",
            Self::Insert => "inserting into",
            Self::Remove => "removing from",
            Self::Take => "taking from",
            Self::Walk => "walking",
            Self::LookupBatch => "reading in batches from",
            Self::InsertBatch => "writing in batches to",
            Self::RemoveBatch => "removing in batches from",
            Self::TakeBatch => "taking in batches from",
            Self::Freeze => "freezing",
            Self::MapMemory => "mapping the memory of",
            Self::Duplicate => "duplicating the handle of",
        })
    }
}

/// What was tried with a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LinkOperation {
    /// Putting another program in place.
    Update,
    /// Taking it off its device.
    Detach,
    /// Asking what it is.
    Info,
}

impl LinkOperation {
    fn verb(self) -> &'static str {
        match self {
            Self::Update => "updating",
            Self::Detach => "detaching",
            Self::Info => "asking for the properties of",
        }
    }
}

impl fmt::Display for LinkOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.verb())
    }
}

fn fmt_load_program(
    program: &str,
    log: &VerifierLog,
    source: &io::Error,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    write!(f, "loading program {program}: {source}")?;
    fmt_log(log, f)
}

fn fmt_load_btf(log: &VerifierLog, source: &io::Error, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "loading the object's type information: {source}")?;
    fmt_log(log, f)
}

fn fmt_log(log: &VerifierLog, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if f.alternate() {
        write!(f, "\n{}", log.as_str().trim_end())
    } else {
        match log.summary() {
            Some(line) => write!(f, ": {line}"),
            None => Ok(()),
        }
    }
}
