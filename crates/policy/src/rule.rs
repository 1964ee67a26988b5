//! Rules as they are stated.

use std::{fmt, net::IpAddr, ops::RangeInclusive, str::FromStr};

use ipnetwork::IpNetwork;
use podwire_abi::{PolicyKey, Protocol as Number, identity};
use serde::{Deserialize, Serialize};

use crate::{Error, ParseError};

/// The largest identity: those above stand for prefixes.
pub const MAX_IDENTITY: u32 = PolicyKey::CIDR - 1;

/// What an endpoint may send and receive. Empty, it permits everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// What it may receive.
    #[serde(default)]
    pub ingress: Direction,
    /// What it may send.
    #[serde(default)]
    pub egress: Direction,
}

/// One direction of a policy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Direction {
    /// What becomes of packets that no rule fits.
    #[serde(default)]
    pub default: Action,
    /// In no order: a rule that denies wins over all that allow.
    #[serde(default)]
    pub rules: Vec<Rule>,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It passes.
    #[default]
    Allow,
    /// It is dropped.
    Deny,
}

/// What holds for some packets.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What becomes of them.
    pub action: Action,
    /// The other side: who sends what the endpoint receives, who receives what it sends.
    #[serde(default)]
    pub peer: Peer,
    /// The protocol.
    #[serde(default)]
    pub protocol: Protocol,
    /// The receiver's ports.
    #[serde(default)]
    pub ports: Ports,
}

/// The other side of a packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Peer {
    /// Whoever it is.
    #[default]
    Everybody,
    /// Whoever has this identity.
    Identity(u32),
    /// Whoever has an address of this prefix.
    Cidr(IpNetwork),
}

/// What a packet carries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Protocol {
    /// Whatever.
    #[default]
    Any,
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
    /// RFC 9260.
    Sctp,
    /// ICMP over IPv4 and ICMPv6 over IPv6.
    Icmp,
    /// One of IANA's "protocol-numbers".
    Number(u8),
}

/// Ports, from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Text", into = "String")]
pub struct Ports {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

/// What a policy is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// The other side's identity.
    pub identity: u32,
    /// The other side's address.
    pub peer: IpAddr,
    /// The protocol's number.
    pub protocol: u8,
    /// The receiver's port; 0 of a protocol without ports.
    pub port: u16,
}

impl Policy {
    /// Whether the rules can be meant so.
    ///
    /// # Errors
    ///
    /// For the first that cannot, with its number.
    pub fn validate(&self) -> Result<(), Error> {
        self.ingress.validate("ingress")?;
        self.egress.validate("egress")
    }
}

impl Direction {
    fn validate(&self, direction: &'static str) -> Result<(), Error> {
        for (rule, number) in self.rules.iter().zip(1..) {
            rule.validate().map_err(|why| {
                let rule = rule.to_string();
                Error::Rule { direction, number, rule, why }
            })?;
        }
        Ok(())
    }

    /// What becomes of a packet, by the rules as they stand. It looks at all of them.
    #[must_use]
    pub fn verdict(&self, packet: &Packet) -> Action {
        let mut verdict = self.default;
        for rule in self.rules.iter().filter(|rule| rule.fits(packet)) {
            match rule.action {
                Action::Deny => return Action::Deny,
                Action::Allow => verdict = Action::Allow,
            }
        }
        verdict
    }
}

impl Rule {
    fn validate(&self) -> Result<(), String> {
        if self.ports.first > self.ports.last {
            return Err("the first port is behind the last".into());
        }
        if self.ports != Ports::ANY && !self.protocol.has_ports() {
            return Err(format!("{} has no ports", self.protocol));
        }
        match self.peer {
            Peer::Identity(identity) if identity == 0 || identity > MAX_IDENTITY => {
                Err(format!("identities are 1 to {MAX_IDENTITY}"))
            }
            Peer::Cidr(cidr) if cidr.ip() != cidr.network() => Err(format!(
                "{cidr} is no prefix; did you mean {}/{}?",
                cidr.network(),
                cidr.prefix()
            )),
            Peer::Cidr(IpNetwork::V6(cidr)) if cidr.ip().to_ipv4_mapped().is_some() => {
                Err("say it as IPv4".into())
            }
            _ => Ok(()),
        }
    }

    fn fits(&self, packet: &Packet) -> bool {
        let peer = match self.peer {
            Peer::Everybody => true,
            Peer::Identity(identity) => identity == packet.identity,
            Peer::Cidr(cidr) => cidr.contains(packet.peer),
        };
        peer && self.places().iter().any(|places| {
            places.contains(&podwire_abi::PortRule::place(Number(packet.protocol), packet.port))
        })
    }

    /// The ranges of protocol and port in one number, as the kernel programs count.
    pub(crate) fn places(&self) -> Vec<RangeInclusive<u32>> {
        let place = podwire_abi::PortRule::place;
        let of = |numbers: &[Number]| {
            let range = |&one: &Number| place(one, self.ports.first)..=place(one, self.ports.last);
            numbers.iter().map(range).collect()
        };
        match self.protocol {
            Protocol::Any if self.ports == Ports::ANY => {
                vec![0..=podwire_abi::PortRule::PLACES - 1]
            }
            Protocol::Any => of(&WITH_PORTS),
            Protocol::Tcp => of(&[Number::TCP]),
            Protocol::Udp => of(&[Number::UDP]),
            Protocol::Sctp => of(&[Number::SCTP]),
            Protocol::Icmp => of(&[Number::ICMP, Number::ICMPV6]),
            Protocol::Number(number) => of(&[Number(number)]),
        }
    }
}

const WITH_PORTS: [Number; 3] = [Number::TCP, Number::UDP, Number::SCTP];

impl Protocol {
    fn has_ports(self) -> bool {
        match self {
            Self::Any | Self::Tcp | Self::Udp | Self::Sctp => true,
            Self::Icmp => false,
            Self::Number(number) => WITH_PORTS.contains(&Number(number)),
        }
    }

    /// A protocol by its number, named where it has a name here.
    #[must_use]
    pub const fn of(number: u8) -> Self {
        match Number(number) {
            Number::TCP => Self::Tcp,
            Number::UDP => Self::Udp,
            Number::SCTP => Self::Sctp,
            _ => Self::Number(number),
        }
    }
}

impl Ports {
    /// All of them, and of protocols that have none.
    pub const ANY: Self = Self { first: 0, last: u16::MAX };
}

impl Default for Ports {
    fn default() -> Self {
        Self::ANY
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        })
    }
}

impl FromStr for Action {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text {
            "allow" => Ok(Self::Allow),
            "deny" => Ok(Self::Deny),
            _ => Err(error("action", text, "want allow or deny")),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { action, peer, protocol, ports } = self;
        write!(f, "{action} {peer}, protocol {protocol}, ports {ports}")
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everybody => f.write_str("everybody"),
            Self::Identity(identity::HOST) => f.write_str("identity:host"),
            Self::Identity(identity::WORLD) => f.write_str("identity:world"),
            Self::Identity(identity::UNMANAGED) => f.write_str("identity:unmanaged"),
            Self::Identity(number) => write!(f, "identity:{number}"),
            Self::Cidr(cidr) => cidr.fmt(f),
        }
    }
}

impl FromStr for Peer {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wanted = "want everybody, identity:NUMBER, an address or a prefix";
        if text == "everybody" {
            return Ok(Self::Everybody);
        }
        if let Some(who) = text.strip_prefix("identity:") {
            let wanted = "want a number, host, world or unmanaged";
            return match who {
                "host" => Ok(identity::HOST),
                "world" => Ok(identity::WORLD),
                "unmanaged" => Ok(identity::UNMANAGED),
                number => number.parse().map_err(|_| error("identity", who, wanted)),
            }
            .map(Self::Identity);
        }
        text.parse().map(Self::Cidr).map_err(|_| error("peer", text, wanted))
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Tcp => f.write_str("tcp"),
            Self::Udp => f.write_str("udp"),
            Self::Sctp => f.write_str("sctp"),
            Self::Icmp => f.write_str("icmp"),
            Self::Number(number) => number.fmt(f),
        }
    }
}

impl FromStr for Protocol {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Ok(match text {
            "any" => Self::Any,
            "tcp" => Self::Tcp,
            "udp" => Self::Udp,
            "sctp" => Self::Sctp,
            "icmp" => Self::Icmp,
            _ => Self::Number(text.parse().map_err(|_| {
                error("protocol", text, "want any, tcp, udp, sctp, icmp or a number up to 255")
            })?),
        })
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ANY => f.write_str("any"),
            Self { first, last } if first == last => first.fmt(f),
            Self { first, last } => write!(f, "{first}-{last}"),
        }
    }
}

impl FromStr for Ports {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text == "any" {
            return Ok(Self::ANY);
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let parsed = first.parse().and_then(|first| Ok(Self { first, last: last.parse()? }));
        parsed.map_err(|_| error("ports", text, "want any, a port or a range such as 8000-8099"))
    }
}

fn error(what: &'static str, text: &str, wanted: &'static str) -> ParseError {
    ParseError { what, text: text.to_owned(), wanted }
}

/// One port may stand there as a number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Text {
    Number(u64),
    Text(String),
}

impl TryFrom<Text> for Ports {
    type Error = ParseError;

    fn try_from(text: Text) -> Result<Self, ParseError> {
        match text {
            Text::Number(number) => number.to_string().parse(),
            Text::Text(text) => text.parse(),
        }
    }
}

macro_rules! by_text {
    ($($type:ty),*) => {$(
        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }
    )*};
}

by_text!(Peer, Protocol, Ports);

impl TryFrom<String> for Peer {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl TryFrom<String> for Protocol {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_and_written_alike() {
        for peer in ["everybody", "identity:host", "identity:4711", "10.0.0.0/8", "fd00::/64"] {
            assert_eq!(peer.parse::<Peer>().unwrap().to_string(), peer);
        }
        assert_eq!("10.1.2.3".parse::<Peer>().unwrap().to_string(), "10.1.2.3/32");
        assert_eq!("identity:1".parse(), Ok(Peer::Identity(identity::HOST)));
        for protocol in ["any", "tcp", "udp", "sctp", "icmp", "47"] {
            assert_eq!(protocol.parse::<Protocol>().unwrap().to_string(), protocol);
        }
        for ports in ["any", "0", "80", "8000-8099"] {
            assert_eq!(ports.parse::<Ports>().unwrap().to_string(), ports);
        }
        for nonsense in ["", "everyone", "identity:", "identity:-1", "10.0.0.0/33", "10.0.0"] {
            assert!(nonsense.parse::<Peer>().is_err(), "{nonsense}");
        }
        assert!("256".parse::<Protocol>().is_err() && "TCP".parse::<Protocol>().is_err());
        for nonsense in ["", "-", "80-", "65536", "1-2-3", "http"] {
            assert!(nonsense.parse::<Ports>().is_err(), "{nonsense}");
        }
    }

    fn refused(rule: &str) -> String {
        let rule: Rule = serde_json::from_str(rule).unwrap();
        let ingress = Direction { default: Action::Deny, rules: vec![rule] };
        Policy { ingress, ..Policy::default() }.validate().unwrap_err().to_string()
    }

    #[test]
    fn what_cannot_be_meant_is_refused_and_named() {
        assert_eq!(
            refused(r#"{"action": "allow", "protocol": "icmp", "ports": 80}"#),
            "ingress rule 1 (allow everybody, protocol icmp, ports 80): icmp has no ports"
        );
        assert!(refused(r#"{"action": "deny", "peer": "10.1.2.3/8"}"#).contains("10.0.0.0/8?"));
        assert!(refused(r#"{"action": "deny", "peer": "identity:0"}"#).contains("1 to 2147483647"));
        assert!(refused(r#"{"action": "deny", "peer": "::ffff:10.0.0.1"}"#).contains("IPv4"));
        assert!(
            refused(r#"{"action": "deny", "protocol": "tcp", "ports": "9-8"}"#).contains("9-8")
        );
    }

    #[test]
    fn json_is_as_documented() {
        let unknown = r#"{"action": "deny", "port": 80}"#;
        assert!(serde_json::from_str::<Rule>(unknown).unwrap_err().to_string().contains("`port`"));
        let policy: Policy = serde_json::from_str("{}").unwrap();
        assert_eq!(policy, Policy::default());
        let rule: Rule = serde_json::from_str(r#"{"action": "deny"}"#).unwrap();
        assert_eq!(
            serde_json::to_string(&rule).unwrap(),
            r#"{"action":"deny","peer":"everybody","protocol":"any","ports":"any"}"#
        );
    }
}
