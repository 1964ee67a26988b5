//! Routing rules: which table is asked for which packets.

use std::fmt;

use ipnetwork::IpNetwork;

use crate::family::{Family, network};
use crate::link;
use crate::wire::{self, MessageBuilder};
use crate::{Entity, IfName, Operation, ParseError, Request, RouteProtocol, Subject, TableId};

pub(crate) const RTM_NEWRULE: u16 = 32;
pub(crate) const RTM_DELRULE: u16 = 33;
const RTM_GETRULE: u16 = 34;

const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_IIFNAME: u16 = 3;
const FRA_GOTO: u16 = 4;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_SUPPRESS_IFGROUP: u16 = 13;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_OIFNAME: u16 = 17;
const FRA_PAD: u16 = 18;
const FRA_PROTOCOL: u16 = 21;

const FIB_RULE_HDR_LEN: usize = 12;
const FIB_RULE_INVERT: u32 = 2;
const FR_ACT_TO_TBL: u8 = 1;
const FR_ACT_GOTO: u8 = 2;
const FR_ACT_NOP: u8 = 3;
const FR_ACT_BLACKHOLE: u8 = 6;
const FR_ACT_UNREACHABLE: u8 = 7;
const FR_ACT_PROHIBIT: u8 = 8;

/// A routing rule.
///
/// Add one with [`Add`](crate::Add): the kernel refuses an identical one then, while with
/// [`Replace`](crate::Replace) it would keep both. It also refuses one that leaves open what an
/// existing rule of the same priority and action says (a mark, a prefix): whoever has looked and knows
/// that they differ uses [`Append`](crate::Append). Likewise, what is removed is the first rule that
/// has what the description says, with or without more.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Rule {
    /// The family of the packets.
    pub family: Family,
    /// Rules are asked in this order.
    pub priority: u32,
    /// What happens to a packet that fits.
    pub action: RuleAction,
    /// Packets from here.
    pub source: Option<IpNetwork>,
    /// Packets to there.
    pub destination: Option<IpNetwork>,
    /// Packets that came by this interface, whether it exists or not.
    pub input: Option<IfName>,
    /// Packets of sockets bound to this interface.
    pub output: Option<IfName>,
    /// Packets with this mark.
    pub mark: Option<Mark>,
    /// The service field; zero is any.
    pub tos: u8,
    /// Whether the packets are meant that fit, or those that do not.
    pub sense: Sense,
    /// Who made it.
    pub protocol: RouteProtocol,
    /// Routes with a prefix of at most this length do not count.
    pub suppress_prefix_length: Option<u32>,
    /// Conditions that this crate does not know, by attribute type and value. They go back to the
    /// kernel unchanged, so that no other rule is taken for this one.
    pub other: Vec<(u16, Box<[u8]>)>,
}

/// What happens to a packet that fits a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RuleAction {
    /// A table is asked.
    Table(TableId),
    /// Rules with less than this priority are skipped.
    Goto(u32),
    /// Nothing.
    Nothing,
    /// It is dropped.
    Blackhole,
    /// It is refused: network unreachable.
    Unreachable,
    /// It is refused: administratively prohibited.
    Prohibit,
}

/// A mark of packets; only the bits of the mask count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mark {
    /// The value.
    pub value: u32,
    /// The bits that count.
    pub mask: u32,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}/{:#x}", self.value, self.mask)
    }
}

/// Whether a rule is for packets that fit its conditions, or for the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Sense {
    /// For those that fit.
    #[default]
    Matching,
    /// For those that do not.
    Inverted,
}

impl Rule {
    /// A rule that asks a table for every packet of a family.
    pub fn lookup(family: Family, priority: u32, table: TableId) -> Self {
        Self {
            family,
            priority,
            action: RuleAction::Table(table),
            source: None,
            destination: None,
            input: None,
            output: None,
            mark: None,
            tos: 0,
            sense: Sense::Matching,
            protocol: RouteProtocol::UNSPEC,
            suppress_prefix_length: None,
            other: Vec::new(),
        }
    }

    /// Only for packets from here.
    #[must_use]
    pub fn from(mut self, source: IpNetwork) -> Self {
        self.source = Some(source);
        self
    }

    /// Only for packets to there.
    #[must_use]
    pub fn to(mut self, destination: IpNetwork) -> Self {
        self.destination = Some(destination);
        self
    }

    /// Only for packets that came by this interface.
    #[must_use]
    pub fn input(mut self, name: IfName) -> Self {
        self.input = Some(name);
        self
    }

    /// Only for packets with this mark.
    #[must_use]
    pub fn mark(mut self, mark: Mark) -> Self {
        self.mark = Some(mark);
        self
    }

    /// Says who makes it.
    #[must_use]
    pub fn protocol(mut self, protocol: RouteProtocol) -> Self {
        self.protocol = protocol;
        self
    }

    /// Parses the payload of an `RTM_NEWRULE` or `RTM_DELRULE` message.
    ///
    /// # Errors
    ///
    /// When it is too short, is of neither IP family, or a field is out of range.
    pub fn parse(payload: &[u8]) -> Result<Self, ParseError> {
        let (fixed, attributes) = wire::split(payload, FIB_RULE_HDR_LEN)?;
        let family = Family::from_u8(fixed[0])?;
        let mut table = TableId(u32::from(fixed[4]));
        let mut rule = Self::lookup(family, 0, table);
        rule.tos = fixed[3];
        if wire::read_u32(fixed, 8) & FIB_RULE_INVERT != 0 {
            rule.sense = Sense::Inverted;
        }
        let (mut goto, mut mark, mut mask) = (0, None, None);
        for attribute in attributes {
            let attribute = attribute?;
            match attribute.kind {
                FRA_DST => rule.destination = Some(network(family.ip(&attribute)?, fixed[1])?),
                FRA_SRC => rule.source = Some(network(family.ip(&attribute)?, fixed[2])?),
                FRA_IIFNAME => rule.input = Some(link::if_name(&attribute, "the rule's input")?),
                FRA_OIFNAME => rule.output = Some(link::if_name(&attribute, "the rule's output")?),
                FRA_GOTO => goto = attribute.u32()?,
                FRA_PRIORITY => rule.priority = attribute.u32()?,
                FRA_FWMARK => mark = Some(attribute.u32()?),
                FRA_FWMASK => mask = Some(attribute.u32()?),
                FRA_TABLE => table = TableId(attribute.u32()?),
                FRA_PROTOCOL => rule.protocol = RouteProtocol(attribute.u8()?),
                FRA_SUPPRESS_PREFIXLEN => {
                    // -1 is how the kernel says that nothing is suppressed.
                    rule.suppress_prefix_length = Some(attribute.u32()?).filter(|n| *n != u32::MAX);
                }
                FRA_SUPPRESS_IFGROUP if attribute.value == [0xff; 4] => {}
                FRA_PAD => {}
                kind => rule.other.push((kind, attribute.value.into())),
            }
        }
        rule.mark = match (mark, mask) {
            (None | Some(0), None | Some(0)) => None,
            (value, mask) => {
                Some(Mark { value: value.unwrap_or(0), mask: mask.unwrap_or(u32::MAX) })
            }
        };
        rule.action = match fixed[7] {
            FR_ACT_TO_TBL => RuleAction::Table(table),
            FR_ACT_GOTO => RuleAction::Goto(goto),
            FR_ACT_NOP => RuleAction::Nothing,
            FR_ACT_BLACKHOLE => RuleAction::Blackhole,
            FR_ACT_UNREACHABLE => RuleAction::Unreachable,
            FR_ACT_PROHIBIT => RuleAction::Prohibit,
            _ => return Err(ParseError::Range { field: "the rule's action" }),
        };
        Ok(rule)
    }
}

impl Entity for Rule {
    const NEW: u16 = RTM_NEWRULE;
    const DELETE: u16 = RTM_DELRULE;

    fn emit(&self, message: &mut MessageBuilder<'_>) {
        let (action, table) = match self.action {
            RuleAction::Table(table) => (FR_ACT_TO_TBL, table.0),
            RuleAction::Goto(_) => (FR_ACT_GOTO, 0),
            RuleAction::Nothing => (FR_ACT_NOP, 0),
            RuleAction::Blackhole => (FR_ACT_BLACKHOLE, 0),
            RuleAction::Unreachable => (FR_ACT_UNREACHABLE, 0),
            RuleAction::Prohibit => (FR_ACT_PROHIBIT, 0),
        };
        let mut fixed = [
            self.family.as_u8(),
            self.destination.map_or(0, |destination| destination.prefix()),
            self.source.map_or(0, |source| source.prefix()),
            self.tos,
            u8::try_from(table).unwrap_or(0),
            0,
            0,
            action,
            0,
            0,
            0,
            0,
        ];
        if self.sense == Sense::Inverted {
            fixed[8..].copy_from_slice(&FIB_RULE_INVERT.to_ne_bytes());
        }
        message.fixed(&fixed);
        message.attr_u32(FRA_PRIORITY, self.priority);
        if table != 0 {
            message.attr_u32(FRA_TABLE, table);
        }
        if let RuleAction::Goto(target) = self.action {
            message.attr_u32(FRA_GOTO, target);
        }
        // The kernel refuses an address for a prefix of no bits.
        for (kind, prefix) in [(FRA_DST, self.destination), (FRA_SRC, self.source)] {
            if let Some(prefix) = prefix.filter(|prefix| prefix.prefix() != 0) {
                message.attr_ip(kind, prefix.ip());
            }
        }
        for (kind, name) in [(FRA_IIFNAME, self.input), (FRA_OIFNAME, self.output)] {
            if let Some(name) = name {
                message.attr_str(kind, name.as_bytes());
            }
        }
        if let Some(Mark { value, mask }) = self.mark {
            message.attr_u32(FRA_FWMARK, value);
            message.attr_u32(FRA_FWMASK, mask);
        }
        if self.protocol != RouteProtocol::UNSPEC {
            message.attr_u8(FRA_PROTOCOL, self.protocol.0);
        }
        if let Some(length) = self.suppress_prefix_length {
            message.attr_u32(FRA_SUPPRESS_PREFIXLEN, length);
        }
        for (kind, value) in &self.other {
            message.attr(*kind, value);
        }
    }

    fn subject(&self) -> Subject {
        Subject::Rule { priority: self.priority, version: self.family.version() }
    }
}

/// A request for the rules of one family.
#[derive(Debug, Clone, Copy)]
pub(crate) struct List(pub(crate) Family);

impl Request for List {
    fn message_type(&self) -> u16 {
        RTM_GETRULE
    }

    fn flags(&self) -> u16 {
        0
    }

    fn emit(&self, message: &mut MessageBuilder<'_>) {
        let mut fixed = [0; FIB_RULE_HDR_LEN];
        fixed[0] = self.0.as_u8();
        message.fixed(&fixed);
    }

    fn operation(&self) -> Operation {
        Operation::List
    }

    fn subject(&self) -> Subject {
        Subject::Named("rules")
    }
}

#[cfg(test)]
#[path = "tests/rule.rs"]
mod tests;
