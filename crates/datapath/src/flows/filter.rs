//! Which flows are meant.

use ipnetwork::IpNetwork;
use podwire_abi::Protocol;

use super::{FlowRow, state::FlowState};

/// Who began a flow, as an endpoint sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FlowDirection {
    /// The endpoint.
    Egress,
    /// The other side.
    Ingress,
}

/// Which flows are meant: those that fit everything that is said. One that says nothing means all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FlowFilter {
    /// With the endpoint in this slot at one end.
    pub endpoint: Option<u32>,
    /// Begun by the endpoint, or towards it: the one named, or else any of the node's.
    pub direction: Option<FlowDirection>,
    /// With an address of this prefix at one end.
    pub prefix: Option<IpNetwork>,
    /// With this port at one end.
    pub port: Option<u16>,
    /// Of this protocol; both ICMPs are one.
    pub protocol: Option<Protocol>,
    /// In this state.
    pub state: Option<FlowState>,
}

impl FlowFilter {
    /// Whether it means all flows.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it means this one.
    #[must_use]
    pub fn fits(&self, row: &FlowRow) -> bool {
        let is_end = |end: Option<u32>| match self.endpoint {
            Some(slot) => end == Some(slot),
            None => end.is_some(),
        };
        let (began, met) = (is_end(row.source_endpoint), is_end(row.destination_endpoint));
        let direction = match self.direction {
            Some(FlowDirection::Egress) => began,
            Some(FlowDirection::Ingress) => met,
            None => began || met || self.endpoint.is_none(),
        };
        let within =
            |prefix: IpNetwork| prefix.contains(row.source) || prefix.contains(row.destination);
        direction
            && self.prefix.is_none_or(within)
            && self.port.is_none_or(|port| [row.source_port, row.destination_port].contains(&port))
            && self.protocol.is_none_or(|wanted| is_same(wanted, row.protocol))
            && self.state.is_none_or(|state| state == row.state)
    }
}

fn is_same(wanted: Protocol, found: Protocol) -> bool {
    let plain = |protocol| if protocol == Protocol::ICMPV6 { Protocol::ICMP } else { protocol };
    plain(wanted) == plain(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::FlowPath;

    fn row() -> FlowRow {
        FlowRow {
            endpoint: 3,
            source_endpoint: Some(3),
            destination_endpoint: None,
            source: [10, 1, 0, 2].into(),
            destination: [192, 0, 2, 1].into(),
            source_port: 40000,
            destination_port: 443,
            protocol: Protocol::TCP,
            state: FlowState::Established,
            path: FlowPath::Stack,
            idle: 1,
            age: 2,
            packets: 3,
            bytes: 4,
            reply_packets: 5,
            reply_bytes: 6,
        }
    }

    #[test]
    fn a_filter_means_what_it_says() {
        let row = row();
        let all = FlowFilter::default();
        assert!(all.is_everything() && all.fits(&row));
        let fits = |change: fn(&mut FlowFilter)| {
            let mut filter = FlowFilter::default();
            change(&mut filter);
            assert!(!filter.is_everything());
            filter.fits(&row)
        };
        assert!(fits(|f| f.endpoint = Some(3)) && !fits(|f| f.endpoint = Some(4)));
        assert!(fits(|f| f.direction = Some(FlowDirection::Egress)));
        assert!(!fits(|f| f.direction = Some(FlowDirection::Ingress)));
        assert!(!fits(|f| (f.endpoint, f.direction) = (Some(3), Some(FlowDirection::Ingress))));
        assert!(fits(|f| f.prefix = Some("192.0.2.0/24".parse().unwrap())));
        assert!(fits(|f| f.prefix = Some("10.1.0.2".parse().unwrap())));
        assert!(!fits(|f| f.prefix = Some("fd00::/8".parse().unwrap())));
        assert!(fits(|f| f.port = Some(443)) && fits(|f| f.port = Some(40000)));
        assert!(!fits(|f| f.port = Some(80)));
        assert!(fits(|f| f.protocol = Some(Protocol::TCP)));
        assert!(!fits(|f| f.protocol = Some(Protocol::UDP)));
        assert!(fits(|f| f.state = Some(FlowState::Established)));
        assert!(!fits(|f| f.state = Some(FlowState::Closing)));
        assert!(is_same(Protocol::ICMP, Protocol::ICMPV6));
    }
}
