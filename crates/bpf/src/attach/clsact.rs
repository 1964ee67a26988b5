//! clsact: programs attached by filters of traffic control.

use podwire_netlink::tc::{self, BpfFilter, Filter, FilterPlace};
use podwire_netlink::{Direction, IfIndex, Netlink};

use super::{AttachMode, AttachmentInfo};
use crate::error::{Error, LinkOperation, Result};
use crate::map::Removal;
use crate::program::Program;

/// A filter's place among the others on its side of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FilterSlot {
    /// Filters are asked in this order; from 1.
    pub priority: u16,
    /// The number among those of the same priority; from 1.
    pub handle: u32,
}

impl Default for FilterSlot {
    /// The first of all.
    fn default() -> Self {
        Self { priority: 1, handle: 1 }
    }
}

/// A program attached to one side of an interface by a filter of its `clsact` qdisc, which is made
/// when it is missing and never removed: it may carry others' filters.
///
/// The value only says where the filter is. Dropping it changes nothing: the filter stays until it
/// is removed or its interface goes.
///
/// Every operation opens a netlink socket in the network namespace of the calling thread.
///
/// Minimum kernel: 4.5. Privileges: `CAP_NET_ADMIN`.
#[doc(alias("tc", "BPF_PROG_TYPE_SCHED_CLS"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClsactFilter {
    ifindex: IfIndex,
    direction: Direction,
    slot: FilterSlot,
}

impl ClsactFilter {
    /// Attaches a program, in direct-action mode, under its own name.
    /// [`Error::is_already_exists`] when the place is taken.
    pub fn attach(
        program: &Program,
        ifindex: IfIndex,
        direction: Direction,
        slot: FilterSlot,
    ) -> Result<Self> {
        program.expect_classifier()?;
        let filter = Self { ifindex, direction, slot };
        Netlink::open()
            .and_then(|mut netlink| tc::attach(&mut netlink, &filter.request(program)))
            .map_err(|source| Error::Attach {
                program: program.name().to_owned(),
                ifindex: ifindex.as_u32(),
                direction,
                source: Box::new(source),
            })?;
        Ok(filter)
    }

    /// Finds a filter that is there already; `None` if the place is empty or no eBPF program is in
    /// it.
    pub fn open(ifindex: IfIndex, direction: Direction, slot: FilterSlot) -> Result<Option<Self>> {
        let filter = Self { ifindex, direction, slot };
        match filter.find() {
            Ok(found) => Ok(found.is_some().then_some(filter)),
            Err(error) => Err(filter.error(LinkOperation::Info, error)),
        }
    }

    /// Puts another program in place, atomically: each packet meets the one or the other.
    /// [`Error::is_not_found`] when the filter or its interface is gone.
    pub fn update(&self, program: &Program) -> Result<()> {
        program.expect_classifier()?;
        // The kernel's replacing request would make the filter anew after someone removed it.
        self.info_for(LinkOperation::Update)?;
        Netlink::open()
            .and_then(|mut netlink| tc::replace(&mut netlink, &self.request(program)))
            .map_err(|error| self.error(LinkOperation::Update, error))
    }

    /// What is attached now.
    pub fn info(&self) -> Result<AttachmentInfo> {
        self.info_for(LinkOperation::Info)
    }

    /// Removes the filter.
    pub fn detach(&self) -> Result<Removal> {
        let place = self.place();
        match Netlink::open().and_then(|mut netlink| tc::detach(&mut netlink, place)) {
            Ok(()) => Ok(Removal::Removed),
            Err(error) if error.is_not_found() => Ok(Removal::Absent),
            Err(error) => Err(self.error(LinkOperation::Detach, error)),
        }
    }

    fn info_for(&self, operation: LinkOperation) -> Result<AttachmentInfo> {
        let found = self.find().map_err(|error| self.error(operation, error))?;
        let program_id = found.and_then(|filter| filter.bpf?.id).ok_or_else(|| Error::Link {
            operation,
            link: self.to_string(),
            source: std::io::Error::from_raw_os_error(libc::ENOENT),
        })?;
        Ok(AttachmentInfo {
            mode: AttachMode::Clsact,
            ifindex: Some(self.ifindex),
            direction: self.direction,
            program_id,
        })
    }

    fn find(&self) -> Result<Option<Filter>, podwire_netlink::Error> {
        let filters = tc::list(&mut Netlink::open()?, self.ifindex, self.direction)?;
        Ok(filters.into_iter().find(|filter| {
            filter.handle == self.slot.handle
                && filter.priority == self.slot.priority
                && filter.bpf.as_ref().is_some_and(|program| program.id.is_some())
        }))
    }

    fn place(&self) -> FilterPlace {
        FilterPlace {
            index: self.ifindex,
            direction: self.direction,
            priority: self.slot.priority,
            handle: self.slot.handle,
        }
    }

    fn request<'p>(&self, program: &'p Program) -> BpfFilter<'p> {
        use std::os::fd::AsFd;
        BpfFilter { place: self.place(), program: program.as_fd(), name: program.name() }
    }

    fn error(&self, operation: LinkOperation, source: podwire_netlink::Error) -> Error {
        Error::Filter { operation, filter: self.to_string(), source: Box::new(source) }
    }
}

impl std::fmt::Display for ClsactFilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { ifindex, direction, slot: FilterSlot { priority, handle } } = self;
        write!(f, "{priority}:{handle} at the {direction} of interface {ifindex}")
    }
}
