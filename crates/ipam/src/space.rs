use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use crate::cooling::Cooling;
use crate::ranges::RangeSet;
use crate::{CidrUsage, Error, Family, PoolConfig, Time, Unusable, Usage};

/// The addresses of one family of a pool.
#[derive(Clone, Debug)]
pub(crate) struct Space {
    family: Family,
    /// In the order of the configuration.
    cidrs: Vec<Cidr>,
    /// First address and place in `cidrs`, ascending.
    by_first: Vec<(u128, usize)>,
    excluded: Vec<IpNetwork>,
    cooling: Cooling,
}

#[derive(Clone, Debug)]
struct Cidr {
    net: IpNetwork,
    first: u128,
    last: u128,
    /// Every address that is not free, those that are never granted included.
    taken: RangeSet,
    free: u128,
    /// Whether nothing is granted any more.
    drained: bool,
    /// Where the search for the next free address begins.
    cursor: u128,
    usage: Usage,
}

/// An address that may be granted, and the CIDR it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    value: u128,
    cidr: usize,
}

/// What keeps an address from being granted to anybody.
pub(crate) enum Refusal {
    Outside,
    Unusable(Unusable),
}

/// What an address is counted as.
#[derive(Clone, Copy)]
pub(crate) enum Count {
    Used,
    Pending,
    Reserved,
    Kept,
}

impl Space {
    pub(crate) fn new(family: Family, config: &PoolConfig) -> Result<Self, Error> {
        let of_family = |net: &&IpNetwork| Family::of(net.ip()) == family;
        let mut space = Self {
            family,
            cidrs: Vec::new(),
            by_first: Vec::new(),
            excluded: config.excluded.iter().filter(of_family).copied().collect(),
            cooling: Cooling::default(),
        };
        for net in config.cidrs.iter().filter(of_family) {
            space.add(&config.name, *net)?;
            space.cidrs.last_mut().expect("just added").drained = config.drained.contains(net);
        }
        Ok(space)
    }

    /// Adds a CIDR, behind the others.
    pub(crate) fn add(&mut self, pool: &str, net: IpNetwork) -> Result<(), Error> {
        if let Some(reason) = unfit(net) {
            return Err(Error::InvalidCidr { pool: pool.to_owned(), cidr: net, reason });
        }
        if let Some(other) = self.overlapping(net) {
            let pool = pool.to_owned();
            return Err(Error::Overlap { other: pool.clone(), pool, first: other, second: net });
        }
        self.cidrs.push(Cidr::new(net, &self.excluded));
        self.sort();
        Ok(())
    }

    /// A CIDR that shares addresses with `net`.
    pub(crate) fn overlapping(&self, net: IpNetwork) -> Option<IpNetwork> {
        let (first, last) = bounds(net);
        let meets = |other: &&Cidr| first <= other.last && last >= other.first;
        self.cidrs.iter().find(meets).map(|other| other.net)
    }

    /// Takes a CIDR away, with what was cooling down in it. Nothing else may be held there.
    pub(crate) fn remove(&mut self, net: IpNetwork) {
        self.chill(net);
        self.cidrs.retain(|cidr| cidr.net != net);
        self.sort();
    }

    /// Grants nothing from a CIDR any more, or again.
    pub(crate) fn set_drained(&mut self, net: IpNetwork, drained: bool) {
        if drained {
            self.chill(net);
        }
        for cidr in self.cidrs.iter_mut().filter(|cidr| cidr.net == net) {
            cidr.drained = drained;
        }
    }

    /// Forgets what cools down in a CIDR.
    fn chill(&mut self, net: IpNetwork) {
        let (first, last) = bounds(net);
        let values: Vec<u128> = self.cooling.iter().map(|(value, _)| value).collect();
        for value in values.into_iter().filter(|value| (first..=last).contains(value)) {
            self.cooling.remove(value);
            self.warm(value);
        }
    }

    fn sort(&mut self) {
        let firsts = self.cidrs.iter().enumerate().map(|(index, cidr)| (cidr.first, index));
        self.by_first = firsts.collect();
        self.by_first.sort_unstable();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.cidrs.is_empty()
    }

    pub(crate) fn cidrs(&self) -> impl Iterator<Item = IpNetwork> {
        self.cidrs.iter().map(|cidr| cidr.net)
    }

    pub(crate) fn usage_of(&self, net: IpNetwork) -> Option<Usage> {
        self.cidrs.iter().find(|cidr| cidr.net == net).map(Cidr::usage)
    }

    pub(crate) fn excluded(&self) -> &[IpNetwork] {
        &self.excluded
    }

    /// The next free address.
    pub(crate) fn next_free(&self) -> Option<Place> {
        for (index, cidr) in self.cidrs.iter().enumerate() {
            if cidr.free == 0 || cidr.drained {
                continue;
            }
            let in_cidr = |value: &u128| *value <= cidr.last;
            let value = cidr
                .taken
                .next_gap(cidr.cursor)
                .filter(in_cidr)
                .or_else(|| cidr.taken.next_gap(cidr.first).filter(in_cidr));
            if let Some(value) = value {
                return Some(Place { value, cidr: index });
            }
        }
        None
    }

    /// The address released longest ago of those that cool down.
    pub(crate) fn oldest(&self) -> Option<Place> {
        let value = self.cooling.oldest()?;
        self.cidr_of(value).map(|cidr| Place { value, cidr })
    }

    /// The place of `address` if it may be granted at all.
    pub(crate) fn locate(&self, address: IpAddr) -> Result<Place, Refusal> {
        let value = to_value(address);
        let cidr = self.cidr_of(value).ok_or(Refusal::Outside)?;
        let excluded = self.excluded.iter().find(|range| range.contains(address));
        let unusable = excluded
            .map(|range| Unusable::Excluded(*range))
            .or_else(|| set_aside(self.cidrs[cidr].net, value));
        unusable.map_or(Ok(Place { value, cidr }), |reason| Err(Refusal::Unusable(reason)))
    }

    /// Takes an address that is free or in its cool-down.
    pub(crate) fn take(&mut self, place: Place, count: Count) {
        let cidr = &mut self.cidrs[place.cidr];
        if self.cooling.remove(place.value) {
            cidr.usage.cooling -= 1;
        } else if cidr.taken.insert(place.value) {
            cidr.free -= 1;
        }
        *cidr.counter(count) += 1;
    }

    /// Lets the search for the next free address go on behind `place`.
    pub(crate) fn advance(&mut self, place: Place) {
        let cidr = &mut self.cidrs[place.cidr];
        cidr.cursor = place.value.saturating_add(1);
    }

    /// Lets the search go on behind `place` unless it is further already.
    pub(crate) fn advance_at_least(&mut self, place: Place) {
        if self.cidrs[place.cidr].cursor <= place.value {
            self.advance(place);
        }
    }

    pub(crate) fn recount(&mut self, place: Place, from: Count, to: Count) {
        let cidr = &mut self.cidrs[place.cidr];
        *cidr.counter(from) -= 1;
        *cidr.counter(to) += 1;
    }

    /// Lets a taken address cool down; in a drained CIDR there is nothing to wait for.
    pub(crate) fn cool(&mut self, place: Place, count: Count, until: Time) {
        let cidr = &mut self.cidrs[place.cidr];
        if cidr.drained {
            return self.free(place, count);
        }
        *cidr.counter(count) -= 1;
        cidr.usage.cooling += 1;
        self.cooling.push(place.value, until);
    }

    /// Lets a free address cool down, as it did before a restart. Tells whether it was free.
    pub(crate) fn cool_again(&mut self, place: Place, until: Time) -> bool {
        let cidr = &mut self.cidrs[place.cidr];
        let free = !cidr.drained && cidr.taken.insert(place.value);
        if free {
            cidr.free -= 1;
            cidr.usage.cooling += 1;
            self.cooling.push(place.value, until);
        }
        free
    }

    pub(crate) fn cooling(&self) -> impl Iterator<Item = (IpAddr, Time)> {
        self.cooling.iter().map(|(value, until)| (to_address(self.family, value), until))
    }

    /// Makes a taken address free at once.
    pub(crate) fn free(&mut self, place: Place, count: Count) {
        let cidr = &mut self.cidrs[place.cidr];
        *cidr.counter(count) -= 1;
        if cidr.taken.remove(place.value) {
            cidr.free += 1;
        }
    }

    /// Makes addresses free whose cool-down is over, at most `limit` of them.
    pub(crate) fn forget(&mut self, now: Time, limit: usize) {
        for _ in 0..limit {
            let Some(value) = self.cooling.pop_due(now) else { return };
            self.warm(value);
        }
    }

    /// Makes an address free that is no longer among the cooling ones.
    fn warm(&mut self, value: u128) {
        let Some(index) = self.cidr_of(value) else { return };
        let cidr = &mut self.cidrs[index];
        cidr.usage.cooling -= 1;
        if cidr.taken.remove(value) {
            cidr.free += 1;
        }
    }

    pub(crate) fn is_cooling(&self, place: Place) -> bool {
        self.cooling.contains(place.value)
    }

    pub(crate) fn cooling_until(&self, place: Place) -> Option<Time> {
        self.cooling.until(place.value)
    }

    pub(crate) fn is_drained(&self, place: Place) -> bool {
        self.cidrs[place.cidr].drained
    }

    pub(crate) fn cidr(&self, place: Place) -> IpNetwork {
        self.cidrs[place.cidr].net
    }

    pub(crate) fn address(&self, place: Place) -> IpAddr {
        to_address(self.family, place.value)
    }

    pub(crate) fn usage(&self) -> impl Iterator<Item = CidrUsage> {
        self.cidrs.iter().map(|cidr| CidrUsage {
            cidr: cidr.net,
            usage: cidr.usage(),
            drained: cidr.drained,
        })
    }

    pub(crate) fn total(&self) -> Usage {
        let mut sum = Usage::default();
        for cidr in &self.cidrs {
            sum.add(&cidr.usage());
        }
        sum
    }

    fn cidr_of(&self, value: u128) -> Option<usize> {
        let after = self.by_first.partition_point(|(first, _)| *first <= value);
        let (_, index) = *self.by_first.get(after.checked_sub(1)?)?;
        (value <= self.cidrs[index].last).then_some(index)
    }
}

impl Cidr {
    fn new(net: IpNetwork, excluded: &[IpNetwork]) -> Self {
        let (first, last) = bounds(net);
        let mut taken = RangeSet::default();
        let (aside, anycast) = set_aside_ranges(net);
        let mut withhold = |from: u128, to: u128| {
            if from <= last && to >= first {
                taken.insert_run(from.max(first), to.min(last));
            }
        };
        for value in aside.into_iter().flatten() {
            withhold(value, value);
        }
        if let Some((from, to)) = anycast {
            withhold(from, to);
        }
        for range in excluded {
            let (from, to) = bounds(*range);
            withhold(from, to);
        }
        // No CIDR is the whole of IPv6 (see `unfit`), so this cannot overflow.
        let size = last - first + 1 - taken.len();
        let usage = Usage { size, ..Usage::default() };
        Self { net, first, last, taken, free: size, drained: false, cursor: first, usage }
    }

    fn usage(&self) -> Usage {
        let size = if self.drained { self.usage.taken() } else { self.usage.size };
        Usage { size, ..self.usage }
    }

    fn counter(&mut self, count: Count) -> &mut u64 {
        match count {
            Count::Used => &mut self.usage.used,
            Count::Pending => &mut self.usage.pending,
            Count::Reserved => &mut self.usage.reserved,
            Count::Kept => &mut self.usage.kept,
        }
    }
}

/// Single addresses at the ends of `net`, and a range within, that its family sets aside.
pub(crate) fn set_aside_ranges(net: IpNetwork) -> ([Option<u128>; 2], Option<(u128, u128)>) {
    let (first, last) = bounds(net);
    match (net, net.prefix()) {
        // RFC 3021: both addresses of a /31 are hosts.
        (IpNetwork::V4(_), 0..=30) => ([Some(first), Some(last)], None),
        // RFC 5453 lists what RFC 2526 reserves among 64-bit interface identifiers.
        (IpNetwork::V6(_), 64) => {
            let anycast = 0xfdff_ffff_ffff_ff80_u128;
            ([Some(first), None], Some((first + anycast, first + anycast + 0x7f)))
        }
        // RFC 6164: both addresses of a /127 are hosts.
        (IpNetwork::V6(_), 0..=126) => ([Some(first), None], None),
        _ => ([None, None], None),
    }
}

pub(crate) fn set_aside(net: IpNetwork, value: u128) -> Option<Unusable> {
    let ([first, last], anycast) = set_aside_ranges(net);
    if first == Some(value) {
        return Some(match net {
            IpNetwork::V4(_) => Unusable::NetworkAddress,
            IpNetwork::V6(_) => Unusable::SubnetRouterAnycast,
        });
    }
    if last == Some(value) {
        return Some(Unusable::BroadcastAddress);
    }
    anycast
        .is_some_and(|(from, to)| (from..=to).contains(&value))
        .then_some(Unusable::ReservedAnycast)
}

/// Why `net` cannot be a source of addresses for pods.
fn unfit(net: IpNetwork) -> Option<&'static str> {
    if net.ip() != net.network() {
        return Some("bits are set behind the prefix");
    }
    let (first, last) = bounds(net);
    let unfit: &[(&str, &str)] = match net {
        IpNetwork::V4(_) => &[
            ("0.0.0.0/8", "it holds addresses of \"this network\""),
            ("127.0.0.0/8", "it holds loopback addresses"),
            ("224.0.0.0/4", "it holds multicast addresses"),
            ("255.255.255.255/32", "it holds the limited broadcast address"),
        ],
        IpNetwork::V6(_) => &[
            ("::/128", "it holds the unspecified address"),
            ("::1/128", "it holds the loopback address"),
            ("::ffff:0:0/96", "it holds IPv4-mapped addresses"),
            ("fe80::/10", "it holds link-local addresses"),
            ("ff00::/8", "it holds multicast addresses"),
        ],
    };
    unfit.iter().find_map(|(range, reason)| {
        let (from, to) = bounds(range.parse().ok()?);
        (first <= to && last >= from).then_some(*reason)
    })
}

pub(crate) fn bounds(net: IpNetwork) -> (u128, u128) {
    match net {
        IpNetwork::V4(v4) => (u32::from(v4.network()).into(), u32::from(v4.broadcast()).into()),
        IpNetwork::V6(v6) => (v6.network().into(), v6.broadcast().into()),
    }
}

pub(crate) fn to_value(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

pub(crate) fn to_address(family: Family, value: u128) -> IpAddr {
    match family {
        Family::V4 => {
            let value = u32::try_from(value).expect("values of IPv4 addresses have 32 bits");
            Ipv4Addr::from(value).into()
        }
        Family::V6 => Ipv6Addr::from(value).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(cidrs: &[&str], excluded: &[&str]) -> Result<Space, Error> {
        let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect::<Vec<_>>();
        let mut config = PoolConfig::new("p", nets(cidrs));
        config.excluded = nets(excluded);
        let family = config.cidrs.first().map_or(Family::V4, |net| Family::of(net.ip()));
        Space::new(family, &config)
    }

    #[test]
    fn sizes_and_first_addresses() {
        for (cidr, size, first) in [
            ("10.0.0.0/24", 254, "10.0.0.1"),
            ("10.0.0.0/30", 2, "10.0.0.1"),
            ("10.0.0.0/31", 2, "10.0.0.0"),
            ("10.0.0.7/32", 1, "10.0.0.7"),
            ("10.0.0.0/8", (1 << 24) - 2, "10.0.0.1"),
            ("fd00::/64", (1 << 64) - 129, "fd00::1"),
            ("fd00::/48", (1 << 80) - 1, "fd00::1"),
            ("fd00::/120", 255, "fd00::1"),
            ("fd00::/126", 3, "fd00::1"),
            ("fd00::/127", 2, "fd00::"),
            ("fd00::5/128", 1, "fd00::5"),
            ("2000::/3", (1 << 125) - 1, "2000::1"),
        ] {
            let space = space(&[cidr], &[]).unwrap();
            assert_eq!(space.total().size, size, "{cidr}");
            let next = space.next_free().unwrap();
            assert_eq!(space.address(next).to_string(), first, "{cidr}");
        }
    }

    #[test]
    fn refuses_what_cannot_be_a_source() {
        for (cidr, why) in [
            ("10.0.0.1/24", "behind the prefix"),
            ("0.0.0.0/0", "this network"),
            ("127.1.0.0/16", "loopback"),
            ("239.0.0.0/8", "multicast"),
            ("255.255.255.255/32", "limited broadcast"),
            ("::/0", "unspecified"),
            ("::1/128", "loopback"),
            ("::ffff:10.0.0.0/120", "mapped"),
            ("fe80::/64", "link-local"),
            ("ff02::/16", "multicast"),
        ] {
            let error = space(&[cidr], &[]).unwrap_err();
            assert!(matches!(error, Error::InvalidCidr { .. }), "{error}");
            assert!(error.to_string().contains(why), "{error}");
        }
    }

    #[test]
    fn refuses_overlap_and_names_both() {
        let error = space(&["10.0.0.0/16", "10.1.0.0/16", "10.0.9.0/24"], &[]).unwrap_err();
        assert_eq!(error.to_string(), "pool p: 10.0.9.0/24 overlaps 10.0.0.0/16 of pool p");
    }

    #[test]
    fn exclusions_are_clipped_and_merged() {
        let space =
            space(&["10.0.1.0/24"], &["10.0.0.0/23", "10.0.1.0/28", "192.168.0.0/16"]).unwrap();
        assert_eq!(space.total().size, 0);
        assert!(space.next_free().is_none());
    }

    #[test]
    fn tells_why_an_address_is_withheld() {
        let v4 = space(&["10.0.0.0/24"], &["10.0.0.16/28"]).unwrap();
        let v6 = space(&["fd00::/64"], &[]).unwrap();
        let reason = |space: &Space, address: &str| match space.locate(address.parse().unwrap()) {
            Ok(_) => "granted".to_owned(),
            Err(Refusal::Outside) => "outside".to_owned(),
            Err(Refusal::Unusable(reason)) => reason.to_string(),
        };
        assert_eq!(reason(&v4, "10.0.0.0"), "it is the network address");
        assert_eq!(reason(&v4, "10.0.0.255"), "it is the broadcast address");
        assert_eq!(reason(&v4, "10.0.0.17"), "the configuration excludes 10.0.0.16/28");
        assert_eq!(reason(&v4, "10.0.1.0"), "outside");
        assert_eq!(reason(&v4, "9.255.255.255"), "outside");
        assert_eq!(reason(&v4, "10.0.0.32"), "granted");
        assert_eq!(reason(&v6, "fd00::"), "it is the subnet-router anycast address");
        assert_eq!(
            reason(&v6, "fd00::fdff:ffff:ffff:ffa0"),
            "it is a reserved subnet anycast address"
        );
        assert_eq!(reason(&v6, "fd00::ffff:ffff:ffff:ffff"), "granted");
    }
}
