//! Programs at the sides of an interface, in either of the kernel's two ways.

mod clsact;
mod tcx;

use std::fmt;
use std::path::Path;

use podwire_netlink::{Direction, IfIndex};

pub use clsact::{ClsactFilter, FilterSlot};
pub use tcx::{TcxLink, TcxLinkInfo, probe_tcx, reap_links, tcx_programs};

use crate::error::{Error, Result};
use crate::map::Removal;
use crate::pin;
use crate::program::Program;

/// The way in which programs are attached.
///
/// A link belongs to whoever holds its pin, and nobody removes it by accident; a filter goes when
/// anyone deletes the interface's `clsact` qdisc. A filter is attached in a few hundred
/// microseconds. A link takes an RCU grace period, which the kernel waits for while it holds the
/// lock of all network configuration (`tcx_entry_sync` in kernel/bpf/tcx.c): 7 to 16 ms each were
/// measured at `HZ=250`, and as much again for detaching. Replacing takes microseconds either way.
///
/// Programs attached by links run first. Those of filters run only when all of them answer
/// `TCX_NEXT`: a program that decides can be attached by a filter at once and by a link later, and
/// no packet meets it twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AttachMode {
    /// By TCX links, pinned so that they stay. Minimum kernel: 6.6.
    Tcx,
    /// By filters of a `clsact` qdisc, which stay as long as their interface. Minimum kernel: 4.5.
    Clsact,
}

impl AttachMode {
    /// The better of those that the running kernel has, found by asking for it. Privileges:
    /// `CAP_NET_ADMIN`.
    pub fn detect() -> Result<Self> {
        Ok(if probe_tcx()? { Self::Tcx } else { Self::Clsact })
    }
}

impl fmt::Display for AttachMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcx => "tcx",
            Self::Clsact => "tc",
        })
    }
}

/// Where a program is to be, and how it is found again after a restart.
#[derive(Clone, Copy, Debug)]
pub struct AttachPoint<'p> {
    /// The interface, in the network namespace of the calling thread.
    pub ifindex: IfIndex,
    /// The side of it.
    pub direction: Direction,
    /// The way.
    pub mode: AttachMode,
    /// TCX: where the link is pinned.
    pub pin: &'p Path,
    /// clsact: the filter's place among others.
    pub slot: FilterSlot,
}

/// A program at one side of an interface that stays there when this process ends.
///
/// Dropping it leaves the program attached; [`detach`](Self::detach) removes it. The calling
/// thread's network namespace must be the interface's.
#[derive(Debug)]
#[non_exhaustive]
pub enum Attachment {
    /// By a pinned TCX link.
    Tcx(TcxLink),
    /// By a filter of a `clsact` qdisc.
    Clsact(ClsactFilter),
}

/// What [`Attachment::ensure`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ensured {
    /// There was nothing, or only what a former interface had left.
    Created,
    /// Another program was there, and was replaced without a gap.
    Changed,
    /// The program was there already.
    Unchanged,
}

/// What is attached, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AttachmentInfo {
    /// The way.
    pub mode: AttachMode,
    /// The interface; `None` once it is gone.
    pub ifindex: Option<IfIndex>,
    /// The side of it.
    pub direction: Direction,
    /// The kernel's number of the program in place.
    pub program_id: u32,
}

impl Attachment {
    /// Attaches a program where nothing of ours is yet; the folder of the pin is made.
    /// [`Error::is_already_exists`] when the pin or the filter's place is taken.
    pub fn attach(program: &Program, at: &AttachPoint<'_>) -> Result<Self> {
        match at.mode {
            AttachMode::Tcx => {
                if let Some(folder) = at.pin.parent() {
                    pin::create_folder(folder)?;
                }
                let link = TcxLink::attach(program, at.ifindex, at.direction)?;
                // Not pinned is not attached: dropping the link takes the program off again.
                link.pin(at.pin)?;
                Ok(Self::Tcx(link))
            }
            AttachMode::Clsact => {
                ClsactFilter::attach(program, at.ifindex, at.direction, at.slot).map(Self::Clsact)
            }
        }
    }

    /// Opens what is attached already; `None` if nothing is. A pinned link whose interface is gone
    /// is opened, too: [`info`](Self::info) tells.
    pub fn open(at: &AttachPoint<'_>) -> Result<Option<Self>> {
        match at.mode {
            AttachMode::Tcx => match TcxLink::open(at.pin) {
                Ok(link) => Ok(Some(Self::Tcx(link))),
                Err(Error::Pin { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                    Ok(None)
                }
                Err(error) => Err(error),
            },
            AttachMode::Clsact => {
                let filter = ClsactFilter::open(at.ifindex, at.direction, at.slot)?;
                Ok(filter.map(Self::Clsact))
            }
        }
    }

    /// Sees to it that the program is attached: attaches it, puts it in the place of another one
    /// without a gap, or leaves it alone. A pinned link of an interface that is gone, or of another
    /// one, gives way to a new link.
    pub fn ensure(program: &Program, at: &AttachPoint<'_>) -> Result<(Self, Ensured)> {
        if let Some(attachment) = Self::open(at)? {
            let info = attachment.info()?;
            if info.ifindex == Some(at.ifindex) && info.direction == at.direction {
                if info.program_id == program.id() {
                    return Ok((attachment, Ensured::Unchanged));
                }
                attachment.update(program)?;
                return Ok((attachment, Ensured::Changed));
            }
            // Only a link can be elsewhere: a filter is looked for on the interface itself.
            Self::remove(at)?;
        }
        Ok((Self::attach(program, at)?, Ensured::Created))
    }

    /// Puts another program in place, atomically: each packet meets the one or the other.
    pub fn update(&self, program: &Program) -> Result<()> {
        match self {
            Self::Tcx(link) => link.update(program),
            Self::Clsact(filter) => filter.update(program),
        }
    }

    /// What is attached now.
    pub fn info(&self) -> Result<AttachmentInfo> {
        match self {
            Self::Tcx(link) => {
                let info = link.info()?;
                Ok(AttachmentInfo {
                    mode: AttachMode::Tcx,
                    ifindex: info.ifindex,
                    direction: info.direction,
                    program_id: info.program_id,
                })
            }
            Self::Clsact(filter) => filter.info(),
        }
    }

    /// Takes the program off, whoever holds its link; the pin is removed. `Absent` when nothing is
    /// attached there.
    pub fn remove(at: &AttachPoint<'_>) -> Result<Removal> {
        match Self::open(at)? {
            Some(attachment) => attachment.detach(at),
            None => Ok(Removal::Absent),
        }
    }

    /// Takes the program off and removes the pin at `at`.
    pub fn detach(self, at: &AttachPoint<'_>) -> Result<Removal> {
        match self {
            Self::Tcx(link) => {
                match link.detach() {
                    // The interface is gone, and with it the attachment.
                    Err(error) if error.is_not_found() => {}
                    other => other?,
                }
                pin::remove(at.pin)
            }
            Self::Clsact(filter) => filter.detach(),
        }
    }
}
