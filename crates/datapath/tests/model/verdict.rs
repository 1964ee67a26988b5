//! Who may send what, and where it goes.

use std::net::{IpAddr, Ipv6Addr};

use podwire_datapath::abi::{MARK_DECIDED, Reason};

use super::{
    Action, Config, Endpoint, Fate, Node, Packet, Through, answers,
    flows::{Way, Word},
    parse::{Ethernet, Ethertype, ICMPV6, Ip, MALFORMED, Part, array},
};

/// A drop is an error, everything else an action and what it is counted under.
pub type Outcome = Result<(Action, Reason), Reason>;

impl Node {
    /// What a pod sends, on its host link.
    pub fn judge_from_container(&mut self, packet: &Packet, fate: &mut Fate) -> Outcome {
        let (number, pod) = self.endpoint_of_link(packet.ifindex)?;
        if pod.chained {
            return judge_from_chained(packet, &pod);
        }
        let config = self.config.ok_or(Reason::NotReady)?;
        let ethernet = Ethernet::parse(&packet.frame)?;
        if ethernet.from != pod.mac {
            return Err(Reason::SpoofedMac);
        }
        if ethernet.to != pod.host_mac && !ethernet.is_for_many() {
            return Err(Reason::NotForGateway);
        }
        if ethernet.ethertype == Ethertype::Arp {
            answers::arp(&ethernet, &pod, &config, fate)?;
            return Ok((Action::Redirect, Reason::AnsweredArp));
        }
        let ip = Ip::parse(&ethernet, packet).ok_or(Reason::UnsupportedProtocol)??;
        if ip.from.is_ipv6()
            && let Some(outcome) = neighbour_discovery(&ip, packet, &pod, &config, fate)
        {
            return outcome;
        }
        if !pod.owns(ip.from) {
            return Err(Reason::SpoofedAddress);
        }
        if ethernet.to != pod.host_mac || is_for_many(ip.to) {
            return Err(Reason::Multicast);
        }
        if is_link_local(ip.to) {
            return Err(Reason::LinkLocal);
        }
        let segment = self.segment_of(&ip, fate)?;
        let word = self.decide(Way::Sent, number, &ip, segment, fate)?;
        Ok(self.send(&pod, word, &ip, &config, fate))
    }

    /// What a pod sends goes where the word about it says.
    fn send(
        &self,
        pod: &Endpoint,
        word: Word,
        ip: &Ip<'_>,
        config: &Config,
        fate: &mut Fate,
    ) -> (Action, Reason) {
        if pod.through == Through::Stack {
            return (Action::Next, Reason::PassedToLink);
        }
        // Who is outside is reached by the stack anyhow.
        let by_flow = word.by_flow && word.peer.is_some();
        let reason = if by_flow { Reason::ToStackByFlow } else { Reason::ToStack };
        let peer = word.peer.and_then(|peer| self.slots[peer as usize].endpoint);
        match peer.filter(|_| !word.to_stack) {
            None => to_stack(config, reason, fate),
            // Who answers that is a router, which the host stack is.
            Some(_) if ip.hops <= 1 => to_stack(config, Reason::ToStackExpired, fate),
            Some(receiver) => {
                answers::route(&mut fate.frame);
                deliver(&receiver, fate)
            }
        }
    }

    /// What reaches a pod through its host link's queue.
    pub fn judge_to_container(&mut self, packet: &Packet, fate: &mut Fate) -> Outcome {
        let passed = Ok((Action::Next, Reason::Passed));
        if packet.mark == MARK_DECIDED {
            return passed;
        }
        let (number, pod) = self.endpoint_of_link(packet.ifindex)?;
        if pod.chained {
            return passed;
        }
        let ethernet = Ethernet::parse(&packet.frame)?;
        if ethernet.ethertype == Ethertype::Arp {
            return passed;
        }
        let ip = Ip::parse(&ethernet, packet).ok_or(Reason::UnsupportedProtocol)??;
        if is_for_many(ip.to) {
            return Err(Reason::Multicast);
        }
        if !pod.owns(ip.to) {
            return Err(Reason::UnknownDestination);
        }
        if is_discovery(&ip)? {
            return passed;
        }
        let segment = self.segment_of(&ip, fate)?;
        self.decide(Way::Received, number, &ip, segment, fate)?;
        passed
    }

    /// What the host stack sends to pods; it has done a router's work already.
    pub fn judge_from_host(&mut self, packet: &Packet, fate: &mut Fate) -> Outcome {
        let ethernet = Ethernet::parse(&packet.frame)?;
        let ip = Ip::parse(&ethernet, packet).ok_or(Reason::UnsupportedProtocol)??;
        if is_for_many(ip.to) {
            return Err(Reason::Multicast);
        }
        let known = self.addresses.get(&ip.to).and_then(|known| known.slot);
        let (number, generation) = known.ok_or(Reason::UnknownDestination)?;
        let receiver = self.endpoint_in(number, generation, ip.to).ok_or(Reason::StaleEndpoint)?;
        let segment = self.segment_of(&ip, fate)?;
        self.decide(Way::Received, number, &ip, segment, fate)?;
        Ok(deliver(&receiver, fate))
    }

    fn endpoint_of_link(&self, ifindex: u32) -> Result<(u32, Endpoint), Reason> {
        let number = *self.links.get(&ifindex).ok_or(Reason::UnknownLink)?;
        let endpoint = self.slots[number as usize].endpoint.ok_or(Reason::UnknownLink)?;
        Ok((number, endpoint))
    }
}

/// What a pod sends whose gateway is another plugin's: only IP packets say who sent them, and only that
/// is looked at. Who has no address yet says so (RFC 2131, RFC 4862), and link-local addresses lead no
/// further than the link.
fn judge_from_chained(packet: &Packet, pod: &Endpoint) -> Outcome {
    let passed = Ok((Action::Next, Reason::PassedToLink));
    let ethernet = Ethernet::parse(&packet.frame)?;
    let Some(ip) = Ip::parse(&ethernet, packet) else { return passed };
    let from = ip?.from;
    if pod.owns(from) || is_unspecified(from) || is_link_local(from) {
        return passed;
    }
    Err(Reason::SpoofedAddress)
}

/// ICMPv6 that concerns only the link; `None` for everything else. A pod may ask for its gateway, and
/// do what every IPv6 host does when it starts (RFC 4861, RFC 4862, RFC 3810): that leads nowhere.
fn neighbour_discovery(
    ip: &Ip<'_>,
    packet: &Packet,
    pod: &Endpoint,
    config: &Config,
    fate: &mut Fate,
) -> Option<Outcome> {
    if ip.protocol != ICMPV6 || matches!(ip.part, Part::Later(_)) {
        return None;
    }
    let Some(kind) = ip.payload.first() else { return Some(Err(MALFORMED)) };
    let may_speak = pod.owns(ip.from) || is_link_local(ip.from) || is_unspecified(ip.from);
    match kind {
        // Solicitations and listener discovery in another's name.
        130..=133 | 135 | 143 if !may_speak => Some(Err(Reason::SpoofedAddress)),
        130..=133 | 143 => Some(Err(Reason::Multicast)),
        // Router and neighbour advertisements, redirects: only the gateway may.
        134 | 136 | 137 => Some(Err(Reason::ForeignNeighbour)),
        135 => Some(
            neighbour_solicitation(ip, packet, pod, config, fate)
                .map(|()| (Action::Redirect, Reason::AnsweredNeighbour)),
        ),
        _ => None,
    }
}

/// RFC 4861, 7.1.1: hop limit 255, nothing between the headers, not cut short. What else it asks of a
/// solicitation only the one who learns from it needs.
fn neighbour_solicitation(
    ip: &Ip<'_>,
    packet: &Packet,
    pod: &Endpoint,
    config: &Config,
    fate: &mut Fate,
) -> Result<(), Reason> {
    if ip.hops != 255 || ip.is_extended || ip.part != Part::Whole || ip.payload.len() < 24 {
        return Err(MALFORMED);
    }
    let target = Ipv6Addr::from(array(ip.payload, 8));
    if config.router6 != Some(target) {
        // Duplicate address detection: nobody disputes a pod's own addresses.
        let own = pod.v6 == Some(target) || is_link_local(target.into());
        return Err(if own { Reason::Multicast } else { Reason::ForeignNeighbour });
    }
    // A source link-layer address, if it is the first option, must be the pod's own.
    if let Some([1, 1, mac @ ..]) = ip.payload.get(24..32)
        && *mac != pod.mac
    {
        return Err(Reason::ForeignNeighbour);
    }
    let IpAddr::V6(asking) = ip.from else { return Err(MALFORMED) };
    debug_assert!(packet.frame.len() >= 14 + 40 + 24);
    answers::neighbour_advertisement(target, asking, pod, fate);
    Ok(())
}

/// What the host's own stack says to a pod as a neighbour (RFC 4861, 4), which is no conversation.
fn is_discovery(ip: &Ip<'_>) -> Result<bool, Reason> {
    if ip.protocol != ICMPV6 || matches!(ip.part, Part::Later(_)) {
        return Ok(false);
    }
    let kind = ip.payload.first().ok_or(MALFORMED)?;
    Ok((133..=137).contains(kind))
}

fn to_stack(config: &Config, reason: Reason, fate: &mut Fate) -> (Action, Reason) {
    fate.frame[..6].copy_from_slice(&config.host_mac);
    fate.frame[6..12].copy_from_slice(&config.net_mac);
    (Action::Redirect, reason)
}

fn deliver(pod: &Endpoint, fate: &mut Fate) -> (Action, Reason) {
    fate.frame[..6].copy_from_slice(&pod.mac);
    fate.frame[6..12].copy_from_slice(&pod.host_mac);
    if pod.through != Through::Peer {
        // It passes our program at the host link's egress, which is not to judge it again.
        fate.mark = MARK_DECIDED;
        return (Action::Redirect, Reason::DeliveredToEgress);
    }
    (Action::Redirect, Reason::Delivered)
}

fn is_for_many(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_multicast() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_multicast(),
    }
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

fn is_unspecified(address: IpAddr) -> bool {
    address.is_unspecified()
}
