//! Programs at host links and at `podwire_net`, and the pins that keep them there.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use podwire_abi::program;
use podwire_bpf::{
    AttachMode, AttachPoint, Attachment, ClsactFilter, Direction, FilterSlot, IfIndex, Removal,
    TcxLink, probe_tcx,
};

use crate::{
    datapath::Datapath,
    error::{Error, Result},
};

/// Which way of attaching is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Attach {
    /// Filters at host links, but TCX links where [`By::Link`] asks for them; TCX at the router pair,
    /// if the kernel has it, found by asking it.
    #[default]
    Auto,
    /// TCX links (Linux 6.6), or an error.
    Tcx,
    /// Filters of a clsact queueing discipline.
    Clsact,
}

/// By what an endpoint's programs are attached to its host link.
///
/// A TCX link takes the kernel a grace period, 7 to 16 ms, to attach and as much to lose when the
/// interface is deleted, for each of the two programs, while all other changes of interfaces wait
/// (`tcx_entry_sync` of include/net/tcx.h). A filter costs neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum By {
    /// Filters of a clsact queueing discipline.
    #[default]
    Filter,
    /// TCX links (Linux 6.6), which leave the interface's queueing disciplines to others.
    Link,
}

impl Attach {
    pub(crate) fn resolve(self) -> Result<AttachMode> {
        match self {
            Self::Auto => Ok(AttachMode::detect()?),
            Self::Clsact => Ok(AttachMode::Clsact),
            Self::Tcx if probe_tcx()? => Ok(AttachMode::Tcx),
            Self::Tcx => {
                let (feature, since) = ("TCX links", "6.6");
                Err(podwire_bpf::Error::Unsupported { feature, since }.into())
            }
        }
    }
}

/// How far a host link's programs are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[must_use]
pub enum Attached {
    /// In the node's way of attaching.
    InPlace,
    /// By filters, on a node whose way is TCX: in force, and to be moved when the node is idle.
    Provisionally,
}

/// A folder of pinned links, named after its interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkPin {
    /// The interface's name.
    pub name: String,
    /// The interface's index; `None` if it is gone and the pins are dead files.
    pub ifindex: Option<u32>,
}

/// Where our filters are among those of a clsact queueing discipline.
const FILTER: FilterSlot = FilterSlot { priority: 0x70, handle: 0x7077 };

/// Whether a filter of a clsact queueing discipline, seen with these properties, is ours.
#[must_use]
pub fn is_own_filter(priority: u16, handle: u32, program: &str) -> bool {
    FILTER == FilterSlot { priority, handle } && program::ALL.contains(&program)
}

/// What `podwire_net`'s pins are called by.
const ROUTER_NET: &str = "podwire_net";

impl Datapath {
    /// Attaches both programs to a host link in the node's way; replaces, without a gap, what is
    /// attached already, in whichever way.
    ///
    /// [`By`] says what a TCX attachment costs. Endpoints are therefore added with filters, and where
    /// TCX is wanted for all this may follow when the node is idle.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn attach(&self, host_link: &str, ifindex: u32) -> Result<()> {
        let by = match self.attach {
            Attach::Tcx => By::Link,
            Attach::Clsact => By::Filter,
            Attach::Auto if self.has_links(host_link, ifindex)? => By::Link,
            Attach::Auto => By::Filter,
        };
        self.attach_by(host_link, ifindex, by)
    }

    /// Replaces, without a gap, the programs of a host link, and attaches those that are missing, in
    /// the way that costs least; tells whether [`attach`](Self::attach) is still to follow.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn refresh(&self, host_link: &str, ifindex: u32) -> Result<Attached> {
        if self.attach != Attach::Tcx || self.has_links(host_link, ifindex)? {
            self.attach(host_link, ifindex)?;
            return Ok(Attached::InPlace);
        }
        self.attach_both(host_link, ifindex, AttachMode::Clsact)?;
        Ok(Attached::Provisionally)
    }

    /// Attaches both programs, and detaches what was attached in the other way.
    pub(crate) fn attach_by(&self, host_link: &str, ifindex: u32, by: By) -> Result<()> {
        let (mode, other) = match by {
            // A TCX program comes first and decides; the filter behind it has nothing to do.
            By::Link => (AttachMode::Tcx, AttachMode::Clsact),
            By::Filter => (AttachMode::Clsact, AttachMode::Tcx),
        };
        self.attach_both(host_link, ifindex, mode)?;
        self.detach_mode(host_link, ifindex, other)?;
        Ok(())
    }

    /// Which of an endpoint's programs are attached to its host link, by their names.
    ///
    /// # Errors
    ///
    /// If the kernel does not tell.
    pub fn attached(&self, host_link: &str, ifindex: u32) -> Result<[(&'static str, bool); 2]> {
        let folder = self.links_folder().join(host_link);
        let is = |direction: Direction| -> Result<bool> {
            let pinned = match TcxLink::open(folder.join(direction.to_string())) {
                Ok(link) => link.info()?.ifindex.map(IfIndex::as_u32) == Some(ifindex),
                Err(error) if error.is_not_found() => false,
                Err(error) => return Err(error.into()),
            };
            let filter = IfIndex::new(ifindex)
                .map(|index| ClsactFilter::open(index, direction, FILTER))
                .transpose();
            match filter {
                Ok(filter) => Ok(pinned || filter.flatten().is_some()),
                Err(error) if error.is_not_found() => Ok(pinned),
                Err(error) => Err(error.into()),
            }
        };
        Ok([
            (program::FROM_CONTAINER, is(Direction::Ingress)?),
            (program::TO_CONTAINER, is(Direction::Egress)?),
        ])
    }

    /// Whether TCX links are wanted for all endpoints.
    #[must_use]
    pub fn is_all_links(&self) -> bool {
        self.attach == Attach::Tcx
    }

    pub(crate) fn has_links(&self, host_link: &str, ifindex: u32) -> Result<bool> {
        let folder = self.links_folder().join(host_link);
        for direction in [Direction::Ingress, Direction::Egress] {
            match TcxLink::open(folder.join(direction.to_string())) {
                Ok(link) if link.info()?.ifindex.map(IfIndex::as_u32) == Some(ifindex) => {}
                Ok(_) => return Ok(false),
                Err(error) if error.is_not_found() => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    pub(crate) fn attach_both(
        &self,
        host_link: &str,
        ifindex: u32,
        mode: AttachMode,
    ) -> Result<()> {
        // The way in comes last: nothing is forwarded before all is in place.
        for (name, direction) in [
            (program::TO_CONTAINER, Direction::Egress),
            (program::FROM_CONTAINER, Direction::Ingress),
        ] {
            self.attach_one(host_link, ifindex, name, direction, mode)?;
        }
        Ok(())
    }

    /// Detaches both programs from a host link, whether it still exists or not.
    ///
    /// Where the link is to be deleted, delete it first: that detaches them at no cost of its own,
    /// and this then removes the pins.
    ///
    /// # Errors
    ///
    /// If a pin or filter cannot be removed.
    pub fn detach(&self, host_link: &str, ifindex: u32) -> Result<Removal> {
        let link = self.detach_mode(host_link, ifindex, AttachMode::Tcx)?;
        let filter = self.detach_mode(host_link, ifindex, AttachMode::Clsact)?;
        Ok(if link == Removal::Removed { link } else { filter })
    }

    fn detach_mode(&self, host_link: &str, ifindex: u32, mode: AttachMode) -> Result<Removal> {
        let folder = self.links_folder().join(host_link);
        let mut removal = Removal::Absent;
        if let Some(ifindex) = IfIndex::new(ifindex) {
            for direction in [Direction::Ingress, Direction::Egress] {
                let pin = folder.join(direction.to_string());
                let removed = Attachment::remove(&point(ifindex, direction, mode, &pin));
                match removed {
                    Ok(Removal::Removed) => removal = Removal::Removed,
                    Ok(Removal::Absent) => {}
                    // Filters go with their link.
                    Err(error) if error.is_not_found() => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        if mode == AttachMode::Clsact {
            return Ok(removal);
        }
        match fs::remove_dir(&folder) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(Error::Folder { operation: "remove", path: folder, source })
            }
            _ => Ok(removal),
        }
    }

    pub(crate) fn attach_router(&self, ifindex: u32) -> Result<()> {
        let mode = self.attach_mode();
        self.attach_one(ROUTER_NET, ifindex, program::FROM_HOST, Direction::Ingress, mode)?;
        let other = match mode {
            AttachMode::Tcx => AttachMode::Clsact,
            AttachMode::Clsact => AttachMode::Tcx,
        };
        self.detach_mode(ROUTER_NET, ifindex, other).map(drop)
    }

    /// The pinned links of host links, dead ones included.
    ///
    /// # Errors
    ///
    /// If the folder or a pin cannot be read.
    pub fn link_pins(&self) -> Result<Vec<LinkPin>> {
        link_pins(&self.links_folder())
    }

    fn attach_one(
        &self,
        link: &str,
        ifindex: u32,
        program: &str,
        direction: Direction,
        mode: AttachMode,
    ) -> Result<()> {
        let program = self.program(program)?;
        let ifindex = IfIndex::new(ifindex).ok_or(Error::NoEndpoint { ifindex })?;
        let pin = self.links_folder().join(link).join(direction.to_string());
        Attachment::ensure(program, &point(ifindex, direction, mode, &pin))?;
        Ok(())
    }

    fn links_folder(&self) -> PathBuf {
        links_folder(self.bpffs())
    }
}

/// Where a program of ours is, and how it is found again.
pub(crate) fn point(
    ifindex: IfIndex,
    direction: Direction,
    mode: AttachMode,
    pin: &Path,
) -> AttachPoint<'_> {
    AttachPoint { ifindex, direction, mode, pin, slot: FILTER }
}

pub(crate) fn links_folder(bpffs: &Path) -> PathBuf {
    bpffs.join("links")
}

fn link_pins(folder: &Path) -> Result<Vec<LinkPin>> {
    let failed = |source| Error::Folder { operation: "list", path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut pins = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        if name == ROUTER_NET {
            continue;
        }
        let mut ifindex = None;
        for direction in [Direction::Ingress, Direction::Egress] {
            match TcxLink::open(folder.join(&name).join(direction.to_string())) {
                Ok(link) => ifindex = link.info()?.ifindex.map(IfIndex::as_u32),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
        }
        pins.push(LinkPin { name, ifindex });
    }
    pins.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(pins)
}
