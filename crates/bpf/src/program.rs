//! A program in the kernel.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::map::text;
use crate::pin;
use crate::spec::ProgramType;
use crate::sys;

/// The hash of a program's instructions, as `bpftool` prints it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProgramTag(pub [u8; 8]);

impl fmt::Display for ProgramTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ProgramTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What the kernel says of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProgramInfo {
    /// The kernel's number for it, unique until reboot.
    pub id: u32,
    /// Its name, of which the kernel keeps 15 bytes.
    pub name: String,
    /// Its kind.
    pub kind: ProgramType,
    /// The hash of its instructions.
    pub tag: ProgramTag,
    /// When it was loaded, counted from boot.
    pub loaded_at: Duration,
    /// Bytes of machine code; 0 without the compiler.
    pub jited_bytes: u32,
    /// Bytes of eBPF instructions, as the verifier has rewritten them.
    pub translated_bytes: u32,
    /// Instructions the verifier looked at, each path counted. Zero before Linux 5.16.
    pub verified_instructions: u32,
    /// How often it ran; counted only while `kernel.bpf_stats_enabled` is 1.
    pub run_count: u64,
    /// How long it ran altogether; counted only while `kernel.bpf_stats_enabled` is 1.
    pub run_time: Duration,
}

/// A loaded program.
///
/// Dropping it closes the descriptor. The program stays loaded while a link, a filter, a pin or a
/// slot of a program array refers to it.
#[derive(Debug)]
pub struct Program {
    fd: OwnedFd,
    name: String,
    id: u32,
    kind: ProgramType,
    tag: ProgramTag,
}

impl Program {
    /// Opens a pinned program.
    #[doc(alias = "BPF_OBJ_GET")]
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        Self::from_fd(pin::open(path)?, name.as_deref().unwrap_or_default())
    }

    /// Opens a program by the kernel's number for it. Privileges: `CAP_SYS_ADMIN`.
    #[doc(alias = "BPF_PROG_GET_FD_BY_ID")]
    pub fn by_id(id: u32) -> Result<Self> {
        let object = || format!("program {id}");
        let fd =
            sys::program_by_id(id).map_err(|source| Error::Info { object: object(), source })?;
        let info = sys::program_info(fd.as_fd())
            .map_err(|source| Error::Info { object: object(), source })?;
        Self::from_fd(fd, &text(&info.name))
    }

    pub(crate) fn from_fd(fd: OwnedFd, name: &str) -> Result<Self> {
        let info = sys::program_info(fd.as_fd())
            .map_err(|source| Error::Info { object: format!("program {name}"), source })?;
        Ok(Self {
            fd,
            name: name.to_owned(),
            id: info.id,
            kind: ProgramType::from_number(info.prog_type),
            tag: ProgramTag(info.tag),
        })
    }

    /// Its whole name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The kernel's number for it, unique until reboot.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Its kind.
    pub fn kind(&self) -> ProgramType {
        self.kind
    }

    /// The hash of its instructions: two programs of the same tag do the same, maps aside.
    pub fn tag(&self) -> ProgramTag {
        self.tag
    }

    /// What the kernel says of it now.
    #[doc(alias = "BPF_OBJ_GET_INFO_BY_FD")]
    pub fn info(&self) -> Result<ProgramInfo> {
        let raw = sys::program_info(self.fd.as_fd())
            .map_err(|source| Error::Info { object: format!("program {}", self.name), source })?;
        Ok(ProgramInfo {
            id: raw.id,
            name: text(&raw.name),
            kind: ProgramType::from_number(raw.prog_type),
            tag: ProgramTag(raw.tag),
            loaded_at: Duration::from_nanos(raw.load_time),
            jited_bytes: raw.jited_prog_len,
            translated_bytes: raw.xlated_prog_len,
            verified_instructions: raw.verified_insns,
            run_count: raw.run_cnt,
            run_time: Duration::from_nanos(raw.run_time_ns),
        })
    }

    /// Pins it, so that it outlives this process.
    #[doc(alias = "BPF_OBJ_PIN")]
    pub fn pin(&self, path: impl AsRef<Path>) -> Result<()> {
        pin::create(self.fd.as_fd(), path.as_ref())
    }

    pub(crate) fn expect_classifier(&self) -> Result<()> {
        if self.kind == ProgramType::Classifier {
            return Ok(());
        }
        Err(Error::WrongProgramType {
            program: self.name.clone(),
            found: self.kind.to_string(),
            needed: "a traffic control classifier",
        })
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
