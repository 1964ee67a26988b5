//! How far a conversation has come, and how long it may be idle then.

use std::{fmt, str::FromStr};

use podwire_abi::{Flow, Pending, Protocol, tcp_seen};

use crate::error::{Error, Result};

/// How far a conversation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum FlowState {
    /// A TCP connection that is not open yet: no answer, or no third packet.
    Opening,
    /// An open TCP connection.
    Established,
    /// A TCP connection of which one side has said that it sends no more.
    Closing,
    /// A TCP connection that both sides have closed, or one has reset.
    Ended,
    /// Another protocol, and only one side has spoken.
    OneSided,
    /// Another protocol, and both sides have spoken.
    Replied,
}

impl FlowState {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Opening,
        Self::Established,
        Self::Closing,
        Self::Ended,
        Self::OneSided,
        Self::Replied,
    ];

    /// Its stable name, as tools print it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Established => "established",
            Self::Closing => "closing",
            Self::Ended => "ended",
            Self::OneSided => "one-sided",
            Self::Replied => "replied",
        }
    }

    /// Of a flow that both sides have spoken in.
    #[must_use]
    pub const fn of_confirmed(protocol: Protocol, flow: &Flow) -> Self {
        if protocol.0 != Protocol::TCP.0 {
            return Self::Replied;
        }
        match fins(flow.tcp()) {
            0 => Self::Established,
            1 => Self::Closing,
            _ => Self::Ended,
        }
    }

    /// Of a flow that only one side has spoken in, or of a TCP connection that is not open.
    #[must_use]
    pub const fn of_pending(protocol: Protocol, pending: &Pending) -> Self {
        if protocol.0 != Protocol::TCP.0 {
            // Both have, where the table of confirmed flows was full.
            return if pending.reply_packets > 0 { Self::Replied } else { Self::OneSided };
        }
        if fins(pending.tcp) == 2 || either(pending.tcp) & tcp_seen::RST != 0 {
            Self::Ended
        } else {
            Self::Opening
        }
    }
}

/// What both directions have shown, together.
const fn either(tcp: u32) -> u32 {
    tcp | tcp >> tcp_seen::PEER
}

/// How many sides have said that they send no more.
const fn fins(tcp: u32) -> u32 {
    (tcp & (tcp_seen::FIN | tcp_seen::FIN << tcp_seen::PEER)).count_ones()
}

impl fmt::Display for FlowState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Whose idle time is limited: flows of a protocol in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Timeout {
    /// TCP, [`FlowState::Opening`].
    TcpOpening,
    /// TCP, [`FlowState::Established`].
    TcpEstablished,
    /// TCP, [`FlowState::Closing`].
    TcpClosing,
    /// TCP, [`FlowState::Ended`].
    TcpEnded,
    /// UDP, [`FlowState::OneSided`].
    UdpOneSided,
    /// UDP, [`FlowState::Replied`].
    UdpReplied,
    /// ICMP and ICMPv6, in any state.
    Icmp,
    /// SCTP, [`FlowState::OneSided`].
    SctpOneSided,
    /// SCTP, [`FlowState::Replied`].
    SctpReplied,
    /// Every other protocol, [`FlowState::OneSided`].
    OtherOneSided,
    /// Every other protocol, [`FlowState::Replied`].
    OtherReplied,
}

impl Timeout {
    /// How many there are.
    pub const COUNT: usize = 11;

    /// All of them.
    pub const ALL: [Self; Self::COUNT] = [
        Self::TcpOpening,
        Self::TcpEstablished,
        Self::TcpClosing,
        Self::TcpEnded,
        Self::UdpOneSided,
        Self::UdpReplied,
        Self::Icmp,
        Self::SctpOneSided,
        Self::SctpReplied,
        Self::OtherOneSided,
        Self::OtherReplied,
    ];

    /// The most seconds that there can be: 30 days.
    pub const MOST: u32 = 30 * 24 * 3600;

    /// Which one limits a flow.
    #[must_use]
    pub const fn of(protocol: Protocol, state: FlowState) -> Self {
        let is_one_sided = matches!(state, FlowState::OneSided);
        match (protocol, state) {
            (Protocol::TCP, FlowState::Established) => Self::TcpEstablished,
            (Protocol::TCP, FlowState::Closing) => Self::TcpClosing,
            (Protocol::TCP, FlowState::Ended) => Self::TcpEnded,
            (Protocol::TCP, _) => Self::TcpOpening,
            (Protocol::UDP, _) if is_one_sided => Self::UdpOneSided,
            (Protocol::UDP, _) => Self::UdpReplied,
            (Protocol::ICMP | Protocol::ICMPV6, _) => Self::Icmp,
            (Protocol::SCTP, _) if is_one_sided => Self::SctpOneSided,
            (Protocol::SCTP, _) => Self::SctpReplied,
            (_, _) if is_one_sided => Self::OtherOneSided,
            (_, _) => Self::OtherReplied,
        }
    }

    /// Its stable name: the protocol and the state.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TcpOpening => "tcp-opening",
            Self::TcpEstablished => "tcp-established",
            Self::TcpClosing => "tcp-closing",
            Self::TcpEnded => "tcp-ended",
            Self::UdpOneSided => "udp-one-sided",
            Self::UdpReplied => "udp-replied",
            Self::Icmp => "icmp",
            Self::SctpOneSided => "sctp-one-sided",
            Self::SctpReplied => "sctp-replied",
            Self::OtherOneSided => "other-one-sided",
            Self::OtherReplied => "other-replied",
        }
    }

    /// Seconds, unless something else is wanted.
    #[must_use]
    pub const fn default_seconds(self) -> u32 {
        match self {
            Self::TcpEstablished => 8000,
            Self::TcpClosing => 600,
            Self::TcpEnded | Self::UdpOneSided | Self::Icmp => 30,
            Self::UdpReplied => 120,
            Self::TcpOpening | Self::SctpOneSided | Self::OtherOneSided => 60,
            Self::SctpReplied | Self::OtherReplied => 300,
        }
    }
}

impl fmt::Display for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Timeout {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = Self::ALL.into_iter().find(|timeout| timeout.name() == name);
        known.ok_or_else(|| Error::UnknownTimeout { name: name.to_owned() })
    }
}

/// How long flows may be idle, in seconds, by protocol and state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts([u32; Timeout::COUNT]);

impl Default for Timeouts {
    fn default() -> Self {
        Self(Timeout::ALL.map(Timeout::default_seconds))
    }
}

impl Timeouts {
    /// Seconds that such a flow may be idle.
    #[must_use]
    pub const fn get(&self, timeout: Timeout) -> u32 {
        self.0[timeout as usize]
    }

    /// Changes one of them.
    ///
    /// # Errors
    ///
    /// If it is no second at all, or more than [`Timeout::MOST`].
    pub fn set(&mut self, timeout: Timeout, seconds: u32) -> Result<()> {
        if !(1..=Timeout::MOST).contains(&seconds) {
            return Err(Error::TimeoutRange { timeout, seconds });
        }
        self.0[timeout as usize] = seconds;
        Ok(())
    }

    /// The same, each divided by so much, but at least a second.
    #[must_use]
    pub fn divided_by(&self, divisor: u32) -> Self {
        Self(self.0.map(|seconds| seconds.checked_div(divisor).unwrap_or(seconds).max(1)))
    }

    /// Whether a flow has been idle for longer than it may. The clock counts whole seconds: none is over
    /// before its time.
    #[must_use]
    pub const fn is_over(&self, timeout: Timeout, seen: u32, now: u32) -> bool {
        idle(seen, now) > self.get(timeout)
    }
}

/// Seconds since a packet. The clock may have gone on since `now` was read, and it goes round after 136 years.
pub(crate) const fn idle(seen: u32, now: u32) -> u32 {
    match now.wrapping_sub(seen) {
        idle if idle <= u32::MAX / 2 => idle,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FIN: u32 = tcp_seen::FIN;
    const OPEN: u32 = (tcp_seen::SYN | tcp_seen::ACK) * (1 | 1 << tcp_seen::PEER);

    fn confirmed(tcp: u32) -> FlowState {
        FlowState::of_confirmed(Protocol::TCP, &Flow::default().with(0, tcp))
    }

    fn pending(tcp: u32) -> FlowState {
        FlowState::of_pending(Protocol::TCP, &Pending { tcp, ..Pending::default() })
    }

    #[test]
    fn a_connection_goes_through_its_states() {
        assert_eq!(pending(tcp_seen::SYN), FlowState::Opening);
        assert_eq!(pending(tcp_seen::SYN | tcp_seen::SYN << tcp_seen::PEER), FlowState::Opening);
        assert_eq!(confirmed(OPEN), FlowState::Established);
        assert_eq!(confirmed(OPEN | FIN), FlowState::Closing);
        assert_eq!(confirmed(OPEN | FIN << tcp_seen::PEER), FlowState::Closing);
        assert_eq!(pending(FIN | FIN << tcp_seen::PEER), FlowState::Ended);
        assert_eq!(pending(tcp_seen::RST), FlowState::Ended);
        assert_eq!(pending(tcp_seen::RST << tcp_seen::PEER), FlowState::Ended);
        // What goes on after a reset has both sides' word for it.
        assert_eq!(confirmed(OPEN | tcp_seen::RST), FlowState::Established);
    }

    #[test]
    fn other_protocols_are_answered_or_not() {
        let mut one = Pending::default();
        assert_eq!(FlowState::of_pending(Protocol::UDP, &one), FlowState::OneSided);
        one.reply_packets = 1;
        assert_eq!(FlowState::of_pending(Protocol::UDP, &one), FlowState::Replied);
        let flow = Flow::default().with(0, FIN);
        assert_eq!(FlowState::of_confirmed(Protocol::UDP, &flow), FlowState::Replied);
    }

    #[test]
    fn every_timeout_has_a_name_and_a_place() {
        let mut timeouts = Timeouts::default();
        for (place, timeout) in Timeout::ALL.into_iter().enumerate() {
            assert_eq!(timeout as usize, place);
            assert_eq!(timeout.name().parse::<Timeout>().unwrap(), timeout);
            timeouts.set(timeout, 7).unwrap();
            assert_eq!(timeouts.get(timeout), 7);
        }
        assert_eq!(timeouts.divided_by(4).get(Timeout::Icmp), 1);
        assert_eq!(timeouts.divided_by(100).get(Timeout::Icmp), 1);
        let unknown = "tcp-half-open".parse::<Timeout>().unwrap_err().to_string();
        assert!(unknown.contains("tcp-half-open") && unknown.contains("tcp-opening"), "{unknown}");
        assert!(timeouts.set(Timeout::Icmp, 0).is_err());
        assert!(timeouts.set(Timeout::Icmp, Timeout::MOST + 1).is_err());
        assert_eq!(Timeout::of(Protocol(47), FlowState::OneSided), Timeout::OtherOneSided);
        assert_eq!(Timeout::of(Protocol::ICMPV6, FlowState::Replied), Timeout::Icmp);
    }

    proptest! {
        /// Against plain arithmetic on a clock that does not go round.
        #[test]
        fn a_flow_is_over_when_its_time_is(
            seen in any::<u32>(), later in 0..1_u32 << 31, limit in 1..=Timeout::MOST,
            place in 0..Timeout::COUNT,
        ) {
            let timeout = Timeout::ALL[place];
            let mut timeouts = Timeouts::default();
            timeouts.set(timeout, limit).unwrap();
            prop_assert_eq!(timeouts.is_over(timeout, seen, seen.wrapping_add(later)), later > limit);
        }

        /// The entry is younger than the clock that was read before it.
        #[test]
        fn what_was_just_seen_is_not_over(now in any::<u32>(), later in 0..1000_u32, place in 0..Timeout::COUNT) {
            let timeout = Timeout::ALL[place];
            prop_assert!(!Timeouts::default().is_over(timeout, now.wrapping_add(later), now));
        }

        /// A state is what a plain reading of the bits says.
        #[test]
        fn bits_are_read_alike(tcp in 0..1_u32 << 16) {
            let own_fin = tcp & FIN != 0;
            let other_fin = tcp >> 8 & FIN != 0;
            let reset = (tcp | tcp >> 8) & tcp_seen::RST != 0;
            let expected = match (own_fin, other_fin) {
                (true, true) => FlowState::Ended,
                (false, false) => FlowState::Established,
                _ => FlowState::Closing,
            };
            prop_assert_eq!(confirmed(tcp), expected);
            prop_assert_eq!(pending(tcp) == FlowState::Ended, own_fin && other_fin || reset);
        }
    }
}
