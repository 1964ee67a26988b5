//! TCX: programs attached by links.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use podwire_netlink::{Direction, IfIndex};

use crate::error::{Error, LinkOperation, PinOperation, Result};
use crate::map::Removal;
use crate::pin;
use crate::program::Program;
use crate::sys;

/// Whether the kernel has TCX, found by asking it about an interface that cannot exist.
///
/// Privileges: `CAP_NET_ADMIN`.
pub fn probe_tcx() -> Result<bool> {
    const NO_INTERFACE: u32 = i32::MAX.unsigned_abs();
    match sys::tcx_query(NO_INTERFACE, sys::BPF_TCX_INGRESS) {
        Ok(_) => Ok(true),
        Err(error) => match error.raw_os_error() {
            // The kernel knows the hook and has looked for the interface.
            Some(libc::ENODEV) => Ok(true),
            Some(libc::EINVAL) => Ok(false),
            _ => Err(Error::Info { object: "the TCX hooks".to_owned(), source: error }),
        },
    }
}

/// The numbers of all programs at one side of an interface of the calling thread's network
/// namespace, ours or not, in the order in which they run. Minimum kernel: 6.6.
#[doc(alias = "BPF_PROG_QUERY")]
pub fn tcx_programs(ifindex: IfIndex, direction: Direction) -> Result<Vec<u32>> {
    sys::tcx_query(ifindex.as_u32(), hook(direction)).map_err(|source| Error::Info {
        object: format!("the {direction} of interface {ifindex}"),
        source,
    })
}

/// A program attached to one side of an interface by a link.
///
/// Dropping it closes the descriptor, which detaches the program unless the link is pinned. A
/// pinned link stays until its pin is removed and every descriptor of it is closed; when its
/// interface goes it stays as a dead file ([`TcxLinkInfo::ifindex`] is `None`).
///
/// Minimum kernel: 6.6. Privileges: `CAP_BPF` and `CAP_NET_ADMIN`.
#[doc(alias("BPF_LINK_CREATE", "tcx"))]
#[derive(Debug)]
pub struct TcxLink {
    fd: OwnedFd,
    name: String,
}

/// What the kernel says of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TcxLinkInfo {
    /// The kernel's number for the link, unique until reboot.
    pub link_id: u32,
    /// The program in place.
    pub program_id: u32,
    /// The interface, numbered in its own network namespace; `None` once it is gone.
    pub ifindex: Option<IfIndex>,
    /// The side of it.
    pub direction: Direction,
}

impl TcxLink {
    /// Attaches a program after those that are there already. The interface is looked for in the
    /// network namespace of the calling thread.
    pub fn attach(program: &Program, ifindex: IfIndex, direction: Direction) -> Result<Self> {
        program.expect_classifier()?;
        let fd = sys::tcx_link_create(program.as_fd(), ifindex.as_u32(), hook(direction)).map_err(
            |source| match source.raw_os_error() {
                Some(libc::EINVAL) if matches!(probe_tcx(), Ok(false)) => {
                    Error::Unsupported { feature: "TCX links", since: "6.6" }
                }
                _ => Error::Attach {
                    program: program.name().to_owned(),
                    ifindex: ifindex.as_u32(),
                    direction,
                    source: Box::new(source),
                },
            },
        )?;
        Ok(Self { fd, name: format!("at the {direction} of interface {ifindex}") })
    }

    /// Opens a pinned link, dead ones included.
    #[doc(alias = "BPF_OBJ_GET")]
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let link = Self { fd: pin::open(path)?, name: path.display().to_string() };
        link.info()?;
        Ok(link)
    }

    /// Pins it, so that the program stays attached when this process ends.
    #[doc(alias = "BPF_OBJ_PIN")]
    pub fn pin(&self, path: impl AsRef<Path>) -> Result<()> {
        pin::create(self.fd.as_fd(), path.as_ref())
    }

    /// Removes a pin of a link. The program is detached once no descriptor of the link is left.
    pub fn unpin(path: impl AsRef<Path>) -> Result<Removal> {
        pin::remove(path.as_ref())
    }

    /// Puts another program in place, atomically: each packet meets the one or the other.
    /// [`Error::is_not_found`] when the interface is gone.
    #[doc(alias = "BPF_LINK_UPDATE")]
    pub fn update(&self, program: &Program) -> Result<()> {
        program.expect_classifier()?;
        sys::link_update(self.fd.as_fd(), program.as_fd())
            .map_err(self.error(LinkOperation::Update))
    }

    /// Takes the program off its interface now, whatever pins and descriptors of the link remain.
    #[doc(alias = "BPF_LINK_DETACH")]
    pub fn detach(&self) -> Result<()> {
        sys::link_detach(self.fd.as_fd()).map_err(self.error(LinkOperation::Detach))
    }

    /// What the kernel says of it now.
    #[doc(alias = "BPF_OBJ_GET_INFO_BY_FD")]
    pub fn info(&self) -> Result<TcxLinkInfo> {
        let raw = sys::link_info(self.fd.as_fd()).map_err(self.error(LinkOperation::Info))?;
        let direction = direction_of(raw.attach_type);
        let (sys::LINK_TYPE_TCX, Some(direction)) = (raw.link_type, direction) else {
            let found = io::Error::other(format!("is of type {}, not TCX", raw.link_type));
            return Err(self.error(LinkOperation::Info)(found));
        };
        Ok(TcxLinkInfo {
            link_id: raw.id,
            program_id: raw.prog_id,
            ifindex: IfIndex::new(raw.ifindex),
            direction,
        })
    }

    fn error(&self, operation: LinkOperation) -> impl FnOnce(io::Error) -> Error + '_ {
        move |source| Error::Link { operation, link: self.name.clone(), source }
    }
}

impl AsFd for TcxLink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Removes the pins of dead links from a folder, not from those below it, and answers which.
///
/// A dead link is one whose interface is gone. Pins of live links and of anything else stay.
pub fn reap_links(folder: impl AsRef<Path>) -> Result<Vec<PathBuf>> {
    let folder = folder.as_ref();
    let list = || pin::error(PinOperation::List, folder);
    let mut reaped = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(list())? {
        let entry = entry.map_err(list())?;
        if !entry.file_type().map_err(list())?.is_file() {
            continue;
        }
        let path = entry.path();
        let is_dead = match TcxLink::open(&path).and_then(|link| link.info()) {
            Ok(info) => info.ifindex.is_none(),
            // A map, a program, another kind of link; or removed by someone else meanwhile.
            Err(Error::Link { .. }) => false,
            Err(error) if error.is_not_found() => false,
            Err(error) => return Err(error),
        };
        if is_dead && pin::remove(&path)? == Removal::Removed {
            reaped.push(path);
        }
    }
    Ok(reaped)
}

/// The kernel's number of a hook.
fn hook(direction: Direction) -> u32 {
    match direction {
        Direction::Ingress => sys::BPF_TCX_INGRESS,
        Direction::Egress => sys::BPF_TCX_EGRESS,
    }
}

fn direction_of(hook: u32) -> Option<Direction> {
    match hook {
        sys::BPF_TCX_INGRESS => Some(Direction::Ingress),
        sys::BPF_TCX_EGRESS => Some(Direction::Egress),
        _ => None,
    }
}
