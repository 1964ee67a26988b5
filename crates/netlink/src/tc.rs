//! Traffic control: queueing disciplines and filters, and BPF programs attached the way that works
//! on kernels without TCX.
//!
//! A link has a root qdisc for what it sends, and may have a `clsact` qdisc, whose only purpose is
//! to carry filters for what it receives and sends. BPF programs attached through TCX are not seen
//! here.

use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::link;
use crate::request::{Answers, NLM_F_ECHO};
use crate::wire::{self, Attributes, MessageBuilder, NESTED};
use crate::{
    Add, Batch, Delete, Entity, Error, IfIndex, Netlink, Operation, ParseError, Replace, Request,
    Subject,
};

pub(crate) const RTM_NEWQDISC: u16 = 36;
pub(crate) const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
pub(crate) const RTM_NEWTFILTER: u16 = 44;
pub(crate) const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_CHAIN: u16 = 11;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_TAG: u16 = 10;
const TCA_BPF_ID: u16 = 11;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;

const TCMSG_LEN: usize = 20;
const TC_H_ROOT: u32 = 0xffff_ffff;
const TC_H_CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const ETH_P_ALL: u16 = 3;

/// Which way the packets go that a filter sees, as the link sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// The link receives them.
    Ingress,
    /// The link sends them.
    Egress,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    /// The place in the clsact qdisc where such filters hang.
    pub const fn parent(self) -> TcHandle {
        match self {
            Self::Ingress => TcHandle(0xffff_fff2),
            Self::Egress => TcHandle(0xffff_fff3),
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// The number of a qdisc, class or filter: `major:minor` for the former two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct TcHandle(pub u32);

impl TcHandle {
    /// The parent of a link's root qdisc.
    pub const ROOT: Self = Self(TC_H_ROOT);
    /// The parent of a link's clsact or ingress qdisc.
    pub const CLSACT: Self = Self(TC_H_CLSACT);
}

impl fmt::Display for TcHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}:{:x}", self.0 >> 16, self.0 & 0xffff)
    }
}

/// A queueing discipline as the kernel reports it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Qdisc {
    /// The link.
    pub index: IfIndex,
    /// Its kind, such as `noqueue`, `fq_codel` or `clsact`.
    pub kind: String,
    /// Its own handle; zero for what the kernel put there by itself.
    pub handle: TcHandle,
    /// Where it hangs.
    pub parent: TcHandle,
}

impl Qdisc {
    /// Parses the payload of an `RTM_NEWQDISC` or `RTM_DELQDISC` message.
    ///
    /// # Errors
    ///
    /// When it is too short, or an attribute has the wrong length.
    pub fn parse(payload: &[u8]) -> Result<Self, ParseError> {
        let (fixed, attributes) = wire::split(payload, TCMSG_LEN)?;
        let mut kind = String::new();
        for attribute in attributes {
            let attribute = attribute?;
            if attribute.kind == TCA_KIND {
                kind = attribute.text();
            }
        }
        Ok(Self {
            index: link::index(wire::read_u32(fixed, 4), "the qdisc's link")?,
            kind,
            handle: TcHandle(wire::read_u32(fixed, 8)),
            parent: TcHandle(wire::read_u32(fixed, 12)),
        })
    }
}

/// A filter as the kernel reports it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Filter {
    /// The link.
    pub index: IfIndex,
    /// Its kind, such as `bpf`, `u32` or `flower`.
    pub kind: String,
    /// The qdisc or place in one where it hangs; see [`Direction::parent`].
    pub parent: TcHandle,
    /// Its own number among those of its priority.
    pub handle: u32,
    /// Filters are asked in this order.
    pub priority: u16,
    /// The `EtherType` it sees; 3 is all.
    pub protocol: u16,
    /// The chain it is in; packets start in chain zero.
    pub chain: u32,
    /// More about a BPF filter.
    pub bpf: Option<FilterProgram>,
}

/// The program of a BPF filter.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct FilterProgram {
    /// The name that was given when it was attached.
    pub name: String,
    /// The kernel's number for the program; `None` for classic BPF.
    pub id: Option<u32>,
    /// The hash of its instructions.
    pub tag: Option<[u8; 8]>,
    /// Whether what it returns is the verdict.
    pub mode: FilterMode,
}

/// What the return value of a BPF filter means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FilterMode {
    /// The verdict (`direct-action`).
    DirectAction,
    /// The class; actions hang below the filter.
    Classify,
}

impl Filter {
    /// Which way its packets go, if it hangs in a clsact qdisc.
    pub fn direction(&self) -> Option<Direction> {
        Direction::ALL.into_iter().find(|direction| direction.parent() == self.parent)
    }

    /// Parses the payload of an `RTM_NEWTFILTER` or `RTM_DELTFILTER` message.
    ///
    /// # Errors
    ///
    /// When it is too short, or an attribute has the wrong length.
    pub fn parse(payload: &[u8]) -> Result<Self, ParseError> {
        let (fixed, attributes) = wire::split(payload, TCMSG_LEN)?;
        let mut kind = String::new();
        let mut chain = 0;
        let mut options = Attributes::new(&[]);
        for attribute in attributes {
            let attribute = attribute?;
            match attribute.kind {
                TCA_KIND => kind = attribute.text(),
                TCA_OPTIONS => options = attribute.nested(),
                TCA_CHAIN => chain = attribute.u32()?,
                _ => {}
            }
        }
        let handle = wire::read_u32(fixed, 8);
        // The first message about a group of filters has no filter in it yet.
        let bpf = if kind == "bpf" && handle != 0 { Some(parse_program(options)?) } else { None };
        let info = wire::read_u32(fixed, 16);
        Ok(Self {
            index: link::index(wire::read_u32(fixed, 4), "the filter's link")?,
            kind,
            parent: TcHandle(wire::read_u32(fixed, 12)),
            handle,
            priority: u16::try_from(info >> 16).unwrap_or(0),
            protocol: u16::from_be(u16::try_from(info & 0xffff).unwrap_or(0)),
            chain,
            bpf,
        })
    }
}

/// The clsact qdisc of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clsact(pub IfIndex);

impl Entity for Clsact {
    const NEW: u16 = RTM_NEWQDISC;
    const DELETE: u16 = RTM_DELQDISC;

    fn emit(&self, message: &mut MessageBuilder<'_>) {
        tcmsg(message, self.0, CLSACT_HANDLE, TC_H_CLSACT, 0);
        message.attr_str(TCA_KIND, b"clsact");
    }

    fn subject(&self) -> Subject {
        Subject::Qdisc { kind: "clsact", index: self.0 }
    }
}

/// Where a BPF filter hangs: what names it when it is replaced or removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FilterPlace {
    /// The link.
    pub index: IfIndex,
    /// Which way the packets go.
    pub direction: Direction,
    /// Its priority, from 1; zero lets the kernel choose.
    pub priority: u16,
    /// Its number among those of its priority, from 1; zero lets the kernel choose.
    pub handle: u32,
}

/// A BPF program as a filter of a link's clsact qdisc, in direct-action mode, for every protocol.
#[derive(Debug, Clone, Copy)]
pub struct BpfFilter<'a> {
    /// Where it hangs.
    pub place: FilterPlace,
    /// The program, of type `BPF_PROG_TYPE_SCHED_CLS`.
    pub program: BorrowedFd<'a>,
    /// A name to know it by.
    pub name: &'a str,
}

impl Entity for BpfFilter<'_> {
    const NEW: u16 = RTM_NEWTFILTER;
    const DELETE: u16 = RTM_DELTFILTER;

    fn emit(&self, message: &mut MessageBuilder<'_>) {
        self.place.emit(message);
        message.nest(TCA_OPTIONS | NESTED, |options| {
            options.attr_i32(TCA_BPF_FD, self.program.as_raw_fd());
            options.attr_str(TCA_BPF_NAME, self.name.as_bytes());
            options.attr_u32(TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT);
        });
    }

    fn subject(&self) -> Subject {
        self.place.subject()
    }
}

/// A place stands for the filter in it; adding needs a [`BpfFilter`].
impl Entity for FilterPlace {
    const NEW: u16 = RTM_NEWTFILTER;
    const DELETE: u16 = RTM_DELTFILTER;

    fn emit(&self, message: &mut MessageBuilder<'_>) {
        let info = tc_info(self.priority, ETH_P_ALL);
        tcmsg(message, self.index, self.handle, self.direction.parent().0, info);
        message.attr_str(TCA_KIND, b"bpf");
    }

    fn subject(&self) -> Subject {
        Subject::Filter { index: self.index, direction: self.direction, priority: self.priority }
    }
}

/// Attaches a program, making the clsact qdisc if there is none.
///
/// # Errors
///
/// When the place is taken ([`Error::is_exists`]), when the link has an `ingress` qdisc instead of a
/// clsact one (likewise; its one filter list would take an egress filter for an ingress one), or
/// the kernel refuses for another reason.
pub fn attach(netlink: &mut Netlink, filter: &BpfFilter<'_>) -> Result<(), Error> {
    ensure_clsact(netlink, filter.place.index)?;
    netlink.execute(&Add(filter))
}

/// Attaches a program, or puts it in the place of the one that is there: no packet passes between
/// the two. The clsact qdisc is made if there is none.
///
/// # Errors
///
/// As [`attach`], except that the place may be taken.
pub fn replace(netlink: &mut Netlink, filter: &BpfFilter<'_>) -> Result<(), Error> {
    ensure_clsact(netlink, filter.place.index)?;
    netlink.execute(&Replace(filter))
}

/// Detaches the program at a place. The clsact qdisc stays: it may carry others' filters.
///
/// # Errors
///
/// When there is no such filter ([`Error::is_not_found`]) or no such link. The kernel says `EINVAL`
/// where there is no clsact qdisc; here that is `ENOENT` too.
pub fn detach(netlink: &mut Netlink, place: FilterPlace) -> Result<(), Error> {
    match netlink.execute(&Delete(&place)) {
        Err(Error::Refused { operation, subject, source, message })
            if source.raw_os_error() == Some(libc::EINVAL)
                && query(netlink, place.index, TcHandle::CLSACT)?.is_none() =>
        {
            let source = std::io::Error::from_raw_os_error(libc::ENOENT);
            Err(Error::Refused { operation, subject, source, message })
        }
        other => other,
    }
}

/// The filters of a link's clsact qdisc in one direction.
///
/// # Errors
///
/// When the kernel refuses.
pub fn list(
    netlink: &mut Netlink,
    index: IfIndex,
    direction: Direction,
) -> Result<Vec<Filter>, Error> {
    filters(netlink, index, direction.parent())
}

/// What hangs on a link: see [`survey`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Survey {
    /// The root qdisc; `None` as long as the link is down and has only the one that drops all.
    pub root: Option<Qdisc>,
    /// The clsact or ingress qdisc.
    pub ingress: Option<Qdisc>,
    /// The filters of the clsact or ingress qdisc.
    pub filters: Vec<Filter>,
}

/// Something on a link that somebody else put there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foreign<'a> {
    /// A qdisc that does something by itself.
    Qdisc(&'a Qdisc),
    /// A filter.
    Filter(&'a Filter),
}

impl fmt::Display for Foreign<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Qdisc(Qdisc { kind, handle, .. }) => write!(f, "qdisc {kind} {handle}"),
            Self::Filter(Filter { kind, parent, priority, bpf, .. }) => {
                write!(f, "filter {kind} {priority} at {parent}")?;
                match bpf {
                    Some(program) => write!(f, " ({})", program.name),
                    None => Ok(()),
                }
            }
        }
    }
}

impl Survey {
    /// What others put there: every qdisc other than `noqueue` and `clsact`, and every filter that
    /// is not ours.
    pub fn foreign(&self, ours: impl Fn(&Filter) -> bool) -> Vec<Foreign<'_>> {
        let qdiscs = self.root.iter().chain(&self.ingress);
        let qdiscs = qdiscs.filter(|qdisc| qdisc.kind != "noqueue" && qdisc.kind != "clsact");
        let filters = self.filters.iter().filter(|filter| !ours(filter));
        qdiscs.map(Foreign::Qdisc).chain(filters.map(Foreign::Filter)).collect()
    }
}

/// Looks at what hangs on one link; how many other links there are does not matter.
///
/// # Errors
///
/// When there is no such link, or the kernel refuses.
pub fn survey(netlink: &mut Netlink, index: IfIndex) -> Result<Survey, Error> {
    let root = query(netlink, index, TcHandle::ROOT)?;
    let ingress = query(netlink, index, TcHandle::CLSACT)?;
    let mut found = Survey { root, ingress, filters: Vec::new() };
    if let Some(qdisc) = &found.ingress {
        // The ingress qdisc has one list and gives it for either direction.
        let directions: &[Direction] =
            if qdisc.kind == "clsact" { &Direction::ALL } else { &[Direction::Ingress] };
        for direction in directions {
            found.filters.extend(filters(netlink, index, direction.parent())?);
        }
    }
    Ok(found)
}

/// The qdiscs of all links.
///
/// # Errors
///
/// When the kernel refuses.
pub fn qdiscs(netlink: &mut Netlink) -> Result<Vec<Qdisc>, Error> {
    netlink.dump(&List(RTM_GETQDISC), |message| Qdisc::parse(message.payload).map(Some))
}

fn ensure_clsact(netlink: &mut Netlink, index: IfIndex) -> Result<(), Error> {
    let mut batch = Batch::new();
    let added = batch.push(&Add(&Clsact(index)));
    let asked = batch.push(&QdiscQuery { index, parent: TcHandle::CLSACT });
    let mut replies = netlink.send(&mut batch)?;
    match replies.outcome(added) {
        Err(error) if error.is_exists() => {}
        _ => return replies.into_outcomes().next().unwrap_or(Ok(())),
    }
    let present = replies.take(asked, Qdisc::parse)?;
    if present.kind == "clsact" { Ok(()) } else { replies.all_ok() }
}

fn query(netlink: &mut Netlink, index: IfIndex, parent: TcHandle) -> Result<Option<Qdisc>, Error> {
    let mut batch = Batch::new();
    let asked = batch.push(&QdiscQuery { index, parent });
    match netlink.send(&mut batch)?.take_optional(asked, Qdisc::parse) {
        // ENODEV is about the link.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        other => other,
    }
}

fn filters(netlink: &mut Netlink, index: IfIndex, parent: TcHandle) -> Result<Vec<Filter>, Error> {
    let listed = netlink.dump(&FilterList { index, parent }, |message| {
        let filter = Filter::parse(message.payload)?;
        Ok(Some(filter).filter(|filter| filter.handle != 0))
    })?;
    Ok(listed)
}

/// A request for the qdisc of a link at one place.
#[derive(Debug, Clone, Copy)]
struct QdiscQuery {
    index: IfIndex,
    parent: TcHandle,
}

impl Request for QdiscQuery {
    fn message_type(&self) -> u16 {
        RTM_GETQDISC
    }

    fn flags(&self) -> u16 {
        // The answer is a notification, which the asker gets only on demand.
        NLM_F_ECHO
    }

    fn emit(&self, message: &mut MessageBuilder<'_>) {
        tcmsg(message, self.index, 0, self.parent.0, 0);
    }

    fn operation(&self) -> Operation {
        Operation::Query
    }

    fn subject(&self) -> Subject {
        let kind = if self.parent == TcHandle::ROOT { "root" } else { "clsact" };
        Subject::Qdisc { kind, index: self.index }
    }

    fn answers(&self) -> Answers {
        Answers::Object
    }
}

#[derive(Debug, Clone, Copy)]
struct FilterList {
    index: IfIndex,
    parent: TcHandle,
}

impl Request for FilterList {
    fn message_type(&self) -> u16 {
        RTM_GETTFILTER
    }

    fn flags(&self) -> u16 {
        0
    }

    fn emit(&self, message: &mut MessageBuilder<'_>) {
        tcmsg(message, self.index, 0, self.parent.0, 0);
    }

    fn operation(&self) -> Operation {
        Operation::List
    }

    fn subject(&self) -> Subject {
        Subject::Named("filters")
    }
}

#[derive(Debug, Clone, Copy)]
struct List(u16);

impl Request for List {
    fn message_type(&self) -> u16 {
        self.0
    }

    fn flags(&self) -> u16 {
        0
    }

    fn emit(&self, message: &mut MessageBuilder<'_>) {
        message.fixed(&[0; TCMSG_LEN]);
    }

    fn operation(&self) -> Operation {
        Operation::List
    }

    fn subject(&self) -> Subject {
        Subject::Named("qdiscs")
    }
}

/// `struct tcmsg`: family, padding, interface, handle, parent, info.
fn tcmsg(message: &mut MessageBuilder<'_>, index: IfIndex, handle: u32, parent: u32, info: u32) {
    let mut fixed = [0; TCMSG_LEN];
    for (place, value) in [index.as_u32(), handle, parent, info].into_iter().enumerate() {
        fixed[4 + 4 * place..8 + 4 * place].copy_from_slice(&value.to_ne_bytes());
    }
    message.fixed(&fixed);
}

/// The priority above, the `EtherType` in network order below.
fn tc_info(priority: u16, protocol: u16) -> u32 {
    u32::from(priority) << 16 | u32::from(protocol.to_be())
}

fn parse_program(options: Attributes<'_>) -> Result<FilterProgram, ParseError> {
    let mut program =
        FilterProgram { name: String::new(), id: None, tag: None, mode: FilterMode::Classify };
    for option in options {
        let option = option?;
        match option.kind {
            TCA_BPF_NAME => program.name = option.text(),
            TCA_BPF_ID => program.id = Some(option.u32()?),
            TCA_BPF_TAG => program.tag = Some(option.array()?),
            TCA_BPF_FLAGS if option.u32()? & TCA_BPF_FLAG_ACT_DIRECT != 0 => {
                program.mode = FilterMode::DirectAction;
            }
            _ => {}
        }
    }
    Ok(program)
}

#[cfg(test)]
#[path = "tests/tc.rs"]
mod tests;
