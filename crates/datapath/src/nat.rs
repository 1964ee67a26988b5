//! Masquerade: the mappings as rows, their end, and what is masqueraded.

use std::{
    collections::{HashMap as Map, HashSet},
    net::IpAddr,
    path::Path,
    time::Duration,
};

use ipnetwork::IpNetwork;
use nix::time::{ClockId, clock_gettime};
use podwire_abi::{
    Address, NatDevice, NatEntry, NatKey, Protocol, map, nat_direction, nat_flag, nat_tcp,
};
use podwire_bpf::{HashMap, LpmTrie, LruHashMap, Prefix, Removal};

use crate::{
    datapath::Datapath,
    error::{Error, Result},
    flows::{FlowState, Timeout, Timeouts},
    tables::maps_folder,
};

/// The pinned maps of the programs at uplinks.
///
/// They can be opened while no agent runs, as [`Tables`](crate::Tables).
#[derive(Debug)]
pub struct Nat {
    mappings: HashMap<NatKey, NatEntry>,
    inbound: LruHashMap<NatKey, u32>,
    fragments: LruHashMap<podwire_abi::FragmentKey, podwire_abi::FragmentPorts>,
    pub(crate) devices: HashMap<u32, NatDevice>,
    pods: LpmTrie<Address, u32>,
    excluded: LpmTrie<Address, u32>,
}

/// A conversation that crosses an uplink under an address of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatRow {
    /// The protocol.
    pub protocol: Protocol,
    /// Who began it: a pod, or the node.
    pub local: NatEnd,
    /// What it is to the rest of the world.
    pub translated: NatEnd,
    /// With whom it speaks.
    pub remote: NatEnd,
    /// Interface index of the uplink that it began at.
    pub ifindex: u32,
    /// Whether the node itself began it.
    pub origin: NatOrigin,
    /// How far it is.
    pub state: FlowState,
    /// How long ago it began.
    pub age: Duration,
    /// How long no packet was seen.
    pub idle: Duration,
    /// What left.
    pub sent: NatCount,
    /// What came.
    pub received: NatCount,
}

/// One end of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NatEnd {
    /// The address.
    pub address: IpAddr,
    /// The port; of an echo the identifier, on the side that asks; else 0.
    pub port: u16,
}

/// Packets and bytes of a direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NatCount {
    /// Packets.
    pub packets: u64,
    /// Bytes, link headers included.
    pub bytes: u64,
}

/// Who began a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NatOrigin {
    /// A pod.
    Pod,
    /// The node: kept out of the way of pods' mappings, or they out of its.
    Node,
}

/// Which mappings are meant: those that all of it applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NatFilter {
    /// Any of the three ends has this address.
    pub address: Option<IpAddr>,
    /// Any of the three ends has this port.
    pub port: Option<u16>,
    /// The protocol.
    pub protocol: Option<Protocol>,
}

impl NatFilter {
    /// Whether a mapping is meant.
    #[must_use]
    pub fn matches(&self, row: &NatRow) -> bool {
        let ends = [row.local, row.translated, row.remote];
        self.address.is_none_or(|address| ends.iter().any(|end| end.address == address))
            && self.port.is_none_or(|port| ends.iter().any(|end| end.port == port))
            && self.protocol.is_none_or(|protocol| row.protocol == protocol)
    }
}

/// What a sweep has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NatSwept {
    /// Mappings that are left.
    pub mappings: u32,
    /// Mappings that were idle for too long, and are gone, in the order of [`Timeout::ALL`].
    pub expired: [u64; Timeout::COUNT],
    /// Mappings that there is room for.
    pub room: u32,
}

impl NatSwept {
    /// Mappings that were idle for too long.
    #[must_use]
    pub fn expired_in_all(&self) -> u64 {
        self.expired.iter().sum()
    }
}

/// An uplink, as its programs know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UplinkConfig {
    /// What pods' IPv4 packets leave under.
    pub ipv4: Option<std::net::Ipv4Addr>,
    /// What pods' IPv6 packets leave under.
    pub ipv6: Option<std::net::Ipv6Addr>,
    /// What its frames begin with.
    pub header: LinkHeader,
    /// The ports that mappings may get.
    pub ports: PortRange,
}

/// What a device's frames begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LinkHeader {
    /// An Ethernet header.
    Ethernet,
    /// Nothing: the IP header.
    None,
}

/// Ports, first and last included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// The ports from `first` to `last`; `None` if there is none, or port 0 is one.
    #[must_use]
    pub const fn new(first: u16, last: u16) -> Option<Self> {
        if first == 0 || first > last { None } else { Some(Self { first, last }) }
    }

    /// How many there are.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.last as u32 - self.first as u32 + 1
    }

    /// The first one.
    #[must_use]
    pub const fn first(self) -> u16 {
        self.first
    }

    /// The last one.
    #[must_use]
    pub const fn last(self) -> u16 {
        self.last
    }
}

impl Default for PortRange {
    /// From 32768 on: not those of node ports, and where Linux takes the ports of most connections from.
    fn default() -> Self {
        Self { first: 32768, last: u16::MAX }
    }
}

impl Nat {
    /// Opens the pinned maps below `bpffs`.
    ///
    /// # Errors
    ///
    /// If a map is not there ([`is_not_found`](crate::Error::is_not_found)), may not be opened, or
    /// has another layout than this version's.
    pub fn open(bpffs: impl AsRef<Path>) -> Result<Self> {
        let folder = maps_folder(bpffs.as_ref());
        Ok(Self {
            mappings: HashMap::open(folder.join(map::NAT))?,
            inbound: LruHashMap::open(folder.join(map::NAT_INBOUND))?,
            fragments: LruHashMap::open(folder.join(map::NAT_FRAGMENTS))?,
            devices: HashMap::open(folder.join(map::NAT_DEVICES))?,
            pods: LpmTrie::open(folder.join(map::NAT_PODS))?,
            excluded: LpmTrie::open(folder.join(map::NAT_EXCLUDED))?,
        })
    }

    /// In the order of [`map::ALL`], whose last ones they are.
    pub(crate) fn maps(&self) -> [&podwire_bpf::Map; 6] {
        [
            self.mappings.as_map(),
            self.inbound.as_map(),
            self.fragments.as_map(),
            self.devices.as_map(),
            self.pods.as_map(),
            self.excluded.as_map(),
        ]
    }

    /// The mappings, in order.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn rows(&self) -> Result<Vec<NatRow>> {
        let now = seconds()?;
        let mut rows: Vec<_> =
            pairs(&self.mappings.entries()?).map(|pair| row(&pair, now)).collect();
        rows.sort_by_key(|row| (row.protocol.0, row.local, row.remote));
        Ok(rows)
    }

    /// Removes mappings; tells how many. What still belongs to one begins anew with its next packet that
    /// leaves, with the same port if that is free; what arrives before is the node's.
    ///
    /// # Errors
    ///
    /// If the map cannot be read or changed.
    pub fn flush(&self, filter: &NatFilter) -> Result<usize> {
        let now = seconds()?;
        let entries = self.mappings.entries()?;
        self.remove_all(pairs(&entries).filter(|pair| filter.matches(&row(pair, now))))
    }

    /// Removes the mappings whose address is none of these: answers do not come there any more. Tells how
    /// many.
    ///
    /// # Errors
    ///
    /// If the map cannot be read or changed.
    pub fn retain_addresses(&self, keep: impl Fn(IpAddr) -> bool) -> Result<usize> {
        let entries = self.mappings.entries()?;
        self.remove_all(pairs(&entries).filter(|pair| !keep(pair.out.1.address.into())))
    }

    /// How long mappings may be idle unless something else is wanted: as flows, but where a mapping that is
    /// gone is a conversation that is broken.
    ///
    /// UDP has two minutes, answered or not (RFC 4787, REQ-5), an echo one (RFC 5508, REQ-2). A connection that
    /// one side has closed counts as established (RFC 5382, REQ-5): it has more than the two hours after which
    /// keep-alive probes begin. One that opens or has ended has less than the four minutes that are asked for
    /// there: each takes a port, and nothing is lost with it but the answer to a repeated FIN.
    #[must_use]
    pub fn default_timeouts() -> Timeouts {
        let mut timeouts = Timeouts::default();
        for (timeout, seconds) in
            [(Timeout::TcpClosing, 8000), (Timeout::UdpOneSided, 120), (Timeout::Icmp, 60)]
        {
            // Only what is out of range is refused.
            let _ = timeouts.set(timeout, seconds);
        }
        timeouts
    }

    /// Removes what was idle, in both directions, for longer than it may.
    ///
    /// # Errors
    ///
    /// If the map cannot be read or changed.
    pub fn sweep(&self, timeouts: &Timeouts) -> Result<NatSwept> {
        // Before the entries: what is seen later is younger than that.
        let now = seconds()?;
        let entries = self.mappings.entries()?;
        let room = self.mappings.max_entries() / 2;
        let mut swept = NatSwept { room, ..NatSwept::default() };
        let mut stale = Vec::new();
        let mut known = HashSet::new();
        for pair in pairs(&entries) {
            known.insert(pair.out.0.other(&pair.out.1));
            let timeout = Timeout::of(pair.out.0.protocol, state(&pair));
            if timeouts.is_over(timeout, seen(&pair), now) {
                stale.push((pair, timeout));
            } else {
                swept.mappings += 1;
            }
        }
        for (pair, timeout) in stale {
            // It may have been used since it was read.
            let unchanged = |key: &NatKey, seen: u32| -> Result<bool> {
                Ok(self.mappings.get(key)?.is_none_or(|entry| entry.seen == seen))
            };
            let back = pair.out.0.other(&pair.out.1);
            let back_seen = pair.back.map_or(0, |back| back.seen);
            if unchanged(&pair.out.0, pair.out.1.seen)?
                && (pair.back.is_none() || unchanged(&back, back_seen)?)
            {
                self.remove_pair(&pair.out.0, &back)?;
                swept.expired[timeout as usize] += 1;
            } else {
                swept.mappings += 1;
            }
        }
        // The way back is made first and removed last; a moment later its other half is there or gone.
        for (key, entry) in &entries {
            let is_half = key.direction == nat_direction::IN && !known.contains(key);
            if is_half
                && now.saturating_sub(entry.created) > HALF_MADE
                && self.mappings.get(&key.other(entry))?.is_none()
            {
                self.mappings.remove(key)?;
            }
        }
        Ok(swept)
    }

    /// Says which prefixes are pods' whose packets are masqueraded, and to which destinations they are
    /// not. Nothing that was excluded and still is, is masqueraded in between; nor is anything else not.
    ///
    /// # Errors
    ///
    /// If a map refuses.
    pub fn set_prefixes(&self, pods: &[IpNetwork], excluded: &[IpNetwork]) -> Result<()> {
        let (pods, excluded) = (prefixes(pods)?, prefixes(excluded)?);
        for (trie, wanted) in [(&self.excluded, &excluded), (&self.pods, &pods)] {
            for prefix in wanted {
                trie.insert(prefix, &1)?;
            }
        }
        for (trie, wanted) in [(&self.pods, &pods), (&self.excluded, &excluded)] {
            for (prefix, _) in trie.entries()? {
                if !wanted.contains(&prefix) {
                    trie.remove(&prefix)?;
                }
            }
        }
        Ok(())
    }

    /// Interface indices of the uplinks whose programs are told what to do.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn uplinks(&self) -> Result<Vec<u32>> {
        let mut uplinks: Vec<_> =
            self.devices.entries()?.into_iter().map(|(ifindex, _)| ifindex).collect();
        uplinks.sort_unstable();
        Ok(uplinks)
    }

    fn remove_all(&self, pairs: impl Iterator<Item = Pair>) -> Result<usize> {
        let mut removed = 0;
        for pair in pairs {
            self.remove_pair(&pair.out.0, &pair.out.0.other(&pair.out.1))?;
            removed += 1;
        }
        Ok(removed)
    }

    /// What leaves first: who finds nothing there begins a mapping, and the port of this one is not free
    /// yet.
    fn remove_pair(&self, out: &NatKey, back: &NatKey) -> Result<Removal> {
        let removal = self.mappings.remove(out)?;
        self.mappings.remove(back)?;
        Ok(removal)
    }
}

impl Datapath {
    /// The maps of the programs at uplinks.
    ///
    /// # Errors
    ///
    /// If a map cannot be opened.
    pub fn nat(&self) -> Result<Nat> {
        Nat::open(self.bpffs())
    }
}

/// Seconds after which half a mapping is nobody's who is at work on it.
const HALF_MADE: u32 = 5;

/// Both directions of a mapping.
#[derive(Debug, Clone, Copy)]
struct Pair {
    out: (NatKey, NatEntry),
    back: Option<NatEntry>,
}

fn pairs(entries: &[(NatKey, NatEntry)]) -> impl Iterator<Item = Pair> {
    let back: Map<NatKey, NatEntry> =
        entries.iter().filter(|(key, _)| key.direction == nat_direction::IN).copied().collect();
    entries.iter().filter(|(key, _)| key.direction == nat_direction::OUT).map(move |out| {
        let back = back.get(&out.0.other(&out.1)).copied();
        Pair { out: *out, back }
    })
}

fn row(pair: &Pair, now: u32) -> NatRow {
    let (key, entry) = &pair.out;
    let back = pair.back.unwrap_or_default();
    let count = |entry: &NatEntry| NatCount { packets: entry.packets, bytes: entry.bytes };
    NatRow {
        protocol: key.protocol,
        local: NatEnd { address: key.local.into(), port: key.local_port.get() },
        translated: NatEnd { address: entry.address.into(), port: entry.port.get() },
        remote: NatEnd { address: key.remote.into(), port: key.remote_port.get() },
        ifindex: entry.ifindex,
        origin: if entry.flags & nat_flag::NODE == 0 { NatOrigin::Pod } else { NatOrigin::Node },
        state: state(pair),
        age: Duration::from_secs(now.saturating_sub(entry.created).into()),
        idle: Duration::from_secs(now.saturating_sub(seen(pair)).into()),
        sent: count(entry),
        received: count(&back),
    }
}

/// When a packet of either direction was.
fn seen(pair: &Pair) -> u32 {
    let back = pair.back.filter(|back| back.packets != 0).map_or(0, |back| back.seen);
    pair.out.1.seen.max(back)
}

fn state(pair: &Pair) -> FlowState {
    const ACK: u8 = nat_tcp::ACK;
    const FIN: u8 = nat_tcp::FIN;
    let back = pair.back.unwrap_or_default();
    let (sent, received) = (pair.out.1.tcp, back.tcp);
    match pair.out.0.protocol {
        Protocol::TCP if (sent | received) & nat_tcp::RST != 0 => FlowState::Ended,
        Protocol::TCP if sent & received & FIN != 0 => FlowState::Ended,
        // Also a FIN that nobody has answered to: it may be of no connection at all.
        Protocol::TCP if sent & received & ACK == 0 => FlowState::Opening,
        Protocol::TCP if (sent | received) & FIN != 0 => FlowState::Closing,
        Protocol::TCP => FlowState::Established,
        _ if back.packets == 0 => FlowState::OneSided,
        _ => FlowState::Replied,
    }
}

fn prefixes(networks: &[IpNetwork]) -> Result<HashSet<Prefix<Address>>> {
    networks
        .iter()
        .map(|network| {
            let longer = if network.is_ipv4() { 96 } else { 0 };
            let length = u32::from(network.prefix()) + longer;
            Ok(Prefix::new(network.network().into(), length)?)
        })
        .collect()
}

/// The clock of the programs.
fn seconds() -> Result<u32> {
    let failed = |errno: nix::Error| Error::Clock { source: errno.into() };
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_err(failed)?;
    Ok(u32::try_from(now.tv_sec()).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use podwire_abi::Be16;

    use super::*;

    fn pair(protocol: Protocol, sent: u8, received: Option<u8>) -> Pair {
        let address = |text: &str| text.parse::<IpAddr>().unwrap().into();
        let key = NatKey {
            local: address("10.1.0.2"),
            remote: address("192.0.2.1"),
            local_port: Be16::new(40000),
            remote_port: Be16::new(80),
            protocol,
            direction: nat_direction::OUT,
            reserved: [0; 2],
        };
        let entry = |address, port, tcp, packets| NatEntry {
            address,
            port: Be16::new(port),
            tcp,
            packets,
            seen: 100,
            created: 100,
            ..NatEntry::default()
        };
        let packets = u64::from(received.is_some());
        Pair {
            out: (key, entry(address("198.51.100.1"), 50000, sent, 1)),
            back: Some(entry(key.local, 40000, received.unwrap_or(0), packets)),
        }
    }

    #[test]
    fn states_follow_both_directions() {
        use nat_tcp::{ACK, FIN, RST, SYN};
        let of = |sent, received| state(&pair(Protocol::TCP, sent, Some(received)));
        assert_eq!(of(SYN, 0), FlowState::Opening);
        assert_eq!(of(SYN, SYN | ACK), FlowState::Opening);
        assert_eq!(of(SYN | ACK, SYN | ACK), FlowState::Established);
        assert_eq!(of(SYN | ACK | FIN, SYN | ACK), FlowState::Closing);
        assert_eq!(of(ACK | FIN, 0), FlowState::Opening);
        assert_eq!(of(SYN | ACK | FIN, SYN | ACK | FIN), FlowState::Ended);
        assert_eq!(of(SYN | ACK, ACK | RST), FlowState::Ended);
        assert_eq!(state(&pair(Protocol::UDP, 0, None)), FlowState::OneSided);
        assert_eq!(state(&pair(Protocol::UDP, 0, Some(0))), FlowState::Replied);
    }

    #[test]
    fn a_mapping_stays_as_long_as_its_conversation_may_need_it() {
        let timeouts = Nat::default_timeouts();
        let seconds = |protocol, state| timeouts.get(Timeout::of(protocol, state));
        assert!(seconds(Protocol::TCP, FlowState::Established) >= 124 * 60);
        assert!(seconds(Protocol::TCP, FlowState::Closing) >= 124 * 60);
        assert_eq!(seconds(Protocol::TCP, FlowState::Opening), 60);
        assert_eq!(seconds(Protocol::TCP, FlowState::Ended), 30);
        assert_eq!(seconds(Protocol::UDP, FlowState::OneSided), 120);
        assert_eq!(seconds(Protocol::UDP, FlowState::Replied), 120);
        assert_eq!(seconds(Protocol::ICMP, FlowState::Replied), 60);
        assert_eq!(seconds(Protocol::SCTP, FlowState::Replied), 300);
    }

    #[test]
    fn rows_tell_the_three_ends() {
        let row = row(&pair(Protocol::UDP, 0, Some(0)), 107);
        let end = |text: &str, port| NatEnd { address: text.parse().unwrap(), port };
        assert_eq!(row.local, end("10.1.0.2", 40000));
        assert_eq!(row.translated, end("198.51.100.1", 50000));
        assert_eq!(row.remote, end("192.0.2.1", 80));
        assert_eq!((row.idle.as_secs(), row.age.as_secs()), (7, 7));
        let filter = |address: Option<&str>, port, protocol| NatFilter {
            address: address.map(|text| text.parse().unwrap()),
            port,
            protocol,
        };
        assert!(filter(None, None, None).matches(&row));
        for text in ["10.1.0.2", "198.51.100.1", "192.0.2.1"] {
            assert!(filter(Some(text), None, Some(Protocol::UDP)).matches(&row));
        }
        for port in [40000, 50000, 80] {
            assert!(filter(None, Some(port), None).matches(&row));
        }
        assert!(!filter(Some("10.1.0.3"), None, None).matches(&row));
        assert!(!filter(Some("10.1.0.2"), Some(81), None).matches(&row));
        assert!(!filter(Some("10.1.0.2"), None, Some(Protocol::TCP)).matches(&row));
    }

    #[test]
    fn a_silent_way_back_does_not_keep_a_mapping() {
        let mut one = pair(Protocol::UDP, 0, None);
        one.back.as_mut().unwrap().seen = 105;
        assert_eq!(seen(&one), 100);
        one.back.as_mut().unwrap().packets = 1;
        assert_eq!(seen(&one), 105);
    }
}
