use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::ranges::RangeSet;
use crate::space::{bounds, set_aside, set_aside_ranges, to_address, to_value};
use crate::{Error, Family, Unusable};

/// What a range is to be made of.
///
/// ```
/// use podwire_ipam::RangeSpec;
///
/// let mut spec = RangeSpec::new("10.1.0.0/24".parse()?);
/// spec.first = Some("10.1.0.20".parse()?);
/// let range = spec.build()?;
/// assert_eq!(range.to_string(), "10.1.0.20-10.1.0.254");
/// assert_eq!(range.gateway().to_string(), "10.1.0.1");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RangeSpec {
    /// The subnet that the addresses belong to.
    pub subnet: IpNetwork,
    /// The first address; otherwise the one behind the subnet's own.
    pub first: Option<IpAddr>,
    /// The last address; otherwise the subnet's last, without the broadcast address of IPv4.
    pub last: Option<IpAddr>,
    /// The gateway; otherwise the address behind the subnet's own.
    pub gateway: Option<IpAddr>,
}

impl RangeSpec {
    /// All of a subnet.
    #[must_use]
    pub fn new(subnet: IpNetwork) -> Self {
        Self { subnet, first: None, last: None, gateway: None }
    }

    /// Checks what was given, and fills in what was not.
    ///
    /// # Errors
    ///
    /// [`Error::TooSmall`], [`Error::HostBits`], [`Error::OutsideSubnet`], [`Error::Reversed`].
    pub fn build(&self) -> Result<AddressRange, Error> {
        let subnet = self.subnet;
        let width = if subnet.is_ipv4() { 32 } else { 128 };
        if subnet.prefix() > width - 2 {
            return Err(Error::TooSmall { subnet });
        }
        if subnet.ip() != subnet.network() {
            let network = IpNetwork::new(subnet.network(), subnet.prefix()).unwrap_or(subnet);
            return Err(Error::HostBits { subnet, network });
        }
        let inside = |bound, address: Option<IpAddr>| match address {
            Some(address) if !subnet.contains(address) => {
                Err(Error::OutsideSubnet { bound, address, subnet })
            }
            other => Ok(other),
        };
        let (lowest, highest) = bounds(subnet);
        let family = Family::of(subnet.ip());
        let next = to_address(family, lowest + 1);
        let end = if subnet.is_ipv4() { highest - 1 } else { highest };
        let range = AddressRange {
            subnet,
            gateway: inside(Bound::Gateway, self.gateway)?.unwrap_or(next),
            first: inside(Bound::First, self.first)?.unwrap_or(next),
            last: inside(Bound::Last, self.last)?.unwrap_or_else(|| to_address(family, end)),
        };
        if range.first > range.last {
            return Err(Error::Reversed { subnet, first: range.first, last: range.last });
        }
        Ok(range)
    }
}

/// Which address of a range is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// The first one.
    First,
    /// The last one.
    Last,
    /// The gateway.
    Gateway,
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::First => "the first address",
            Self::Last => "the last address",
            Self::Gateway => "the gateway",
        })
    }
}

/// Consecutive addresses of a subnet. Made by [`RangeSpec::build`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressRange {
    subnet: IpNetwork,
    first: IpAddr,
    last: IpAddr,
    gateway: IpAddr,
}

impl AddressRange {
    /// The subnet.
    #[must_use]
    pub const fn subnet(&self) -> IpNetwork {
        self.subnet
    }

    /// The first address.
    #[must_use]
    pub const fn first(&self) -> IpAddr {
        self.first
    }

    /// The last address.
    #[must_use]
    pub const fn last(&self) -> IpAddr {
        self.last
    }

    /// The gateway; it may lie outside the range.
    #[must_use]
    pub const fn gateway(&self) -> IpAddr {
        self.gateway
    }

    /// The family.
    #[must_use]
    pub const fn family(&self) -> Family {
        Family::of(self.first)
    }

    /// Whether `address` is one of the range.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        // Addresses of two families compare, too, the IPv4 ones first.
        self.family() == Family::of(address) && (self.first..=self.last).contains(&address)
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.family() == other.family() && self.first <= other.last && other.first <= self.last
    }
}

/// The subnet where the range is all of it, else `<first>-<last>`.
impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = RangeSpec::new(self.subnet).build();
        match whole.is_ok_and(|whole| whole.first == self.first && whole.last == self.last) {
            true => self.subnet.fmt(f),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

/// Where the addresses of an owner come from: one address out of each set of ranges.
///
/// The ranges of a set are alternatives; they are of one family. No two ranges overlap. Gateways
/// are never granted, nor what [the crate](crate) withholds of any subnet.
#[derive(Clone, Debug)]
pub struct Plan {
    sets: Vec<Vec<AddressRange>>,
    withheld_v4: RangeSet,
    withheld_v6: RangeSet,
}

impl Plan {
    /// Checks the sets.
    ///
    /// # Errors
    ///
    /// [`Error::NoRange`], [`Error::MixedFamilies`], [`Error::RangesOverlap`].
    pub fn new(sets: Vec<Vec<AddressRange>>) -> Result<Self, Error> {
        if sets.is_empty() {
            return Err(Error::NoRange { set: 0 });
        }
        for (place, set) in sets.iter().enumerate() {
            let first = set.first().ok_or(Error::NoRange { set: place })?;
            if let Some(other) = set.iter().find(|range| range.family() != first.family()) {
                let (first, second) = (Box::new(first.clone()), Box::new(other.clone()));
                return Err(Error::MixedFamilies { first, second });
            }
        }
        let (mut withheld_v4, mut withheld_v6) = (RangeSet::default(), RangeSet::default());
        let all: Vec<&AddressRange> = sets.iter().flatten().collect();
        for (place, &range) in all.iter().enumerate() {
            if let Some(&earlier) = all[..place].iter().find(|earlier| earlier.overlaps(range)) {
                let (first, second) = (Box::new(earlier.clone()), Box::new(range.clone()));
                return Err(Error::RangesOverlap { first, second });
            }
            let withheld = match range.family() {
                Family::V4 => &mut withheld_v4,
                Family::V6 => &mut withheld_v6,
            };
            withheld.insert(to_value(range.gateway));
            let (single, run) = set_aside_ranges(range.subnet);
            for value in single.into_iter().flatten() {
                withheld.insert(value);
            }
            if let Some((from, to)) = run {
                withheld.insert_run(from, to);
            }
        }
        Ok(Self { sets, withheld_v4, withheld_v6 })
    }

    /// The sets.
    pub fn sets(&self) -> impl Iterator<Item = &[AddressRange]> {
        self.sets.iter().map(Vec::as_slice)
    }

    /// The range that `address` is in.
    #[must_use]
    pub fn range_of(&self, address: IpAddr) -> Option<&AddressRange> {
        self.sets.iter().flatten().find(|range| range.contains(address))
    }

    /// What keeps an address of the plan from being granted to anybody.
    #[must_use]
    pub fn unusable(&self, address: IpAddr) -> Option<Unusable> {
        if self.sets.iter().flatten().any(|range| range.gateway == address) {
            return Some(Unusable::Gateway);
        }
        let mut subnets = self.sets.iter().flatten().map(|range| range.subnet);
        subnets.find(|net| net.contains(address)).and_then(|net| set_aside(net, to_value(address)))
    }

    /// The addresses of a family that are never granted.
    pub(crate) fn withheld(&self, family: Family) -> &RangeSet {
        match family {
            Family::V4 => &self.withheld_v4,
            Family::V6 => &self.withheld_v6,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(subnet: &str, first: &str, last: &str, gateway: &str) -> Result<AddressRange, Error> {
        let address = |text: &str| (!text.is_empty()).then(|| text.parse().unwrap());
        let mut spec = RangeSpec::new(subnet.parse().unwrap());
        (spec.first, spec.last, spec.gateway) = (address(first), address(last), address(gateway));
        spec.build()
    }

    fn plan(sets: &[&[&str]]) -> Result<Plan, Error> {
        let range = |net: &&str| spec(net, "", "", "").unwrap();
        Plan::new(sets.iter().map(|set| set.iter().map(range).collect()).collect())
    }

    #[test]
    fn defaults_are_filled_in() {
        for (subnet, first, last, gateway) in [
            ("10.0.0.0/24", "10.0.0.1", "10.0.0.254", "10.0.0.1"),
            ("10.0.0.0/30", "10.0.0.1", "10.0.0.2", "10.0.0.1"),
            ("fd00::/64", "fd00::1", "fd00::ffff:ffff:ffff:ffff", "fd00::1"),
            ("fd00::/126", "fd00::1", "fd00::3", "fd00::1"),
        ] {
            let range = spec(subnet, "", "", "").unwrap();
            assert_eq!(range.first().to_string(), first);
            assert_eq!(range.last().to_string(), last);
            assert_eq!(range.gateway().to_string(), gateway);
            assert_eq!(range.to_string(), subnet);
        }
    }

    #[test]
    fn refusals_name_what_does_not_fit() {
        let cases = [
            (["10.0.0.0/31", "", "", ""], "10.0.0.0/31 is too small"),
            (["fd00::/127", "", "", ""], "fd00::/127 is too small"),
            (["10.0.0.1/24", "", "", ""], "the subnet is 10.0.0.0/24"),
            (["10.0.0.0/24", "10.0.1.1", "", ""], "the first address 10.0.1.1 is not in"),
            (["10.0.0.0/24", "", "10.0.1.1", ""], "the last address 10.0.1.1 is not in"),
            (["10.0.0.0/24", "", "", "fd00::1"], "the gateway fd00::1 is not in 10.0.0.0/24"),
            (["10.0.0.0/24", "10.0.0.9", "10.0.0.8", ""], "10.0.0.8, before it begins with"),
            (["10.0.0.0/24", "10.0.0.255", "", ""], "before it begins with 10.0.0.255"),
        ];
        for ([subnet, first, last, gateway], why) in cases {
            let error = spec(subnet, first, last, gateway).unwrap_err();
            assert!(error.is_invalid() && error.to_string().contains(why), "{error}");
        }
    }

    #[test]
    fn sets_are_checked_and_both_ranges_named() {
        let error = plan(&[&["10.0.0.0/24"], &["10.1.0.0/24", "10.0.0.0/16"]]).unwrap_err();
        assert_eq!(error.to_string(), "10.0.0.0/24 and 10.0.0.0/16 overlap");
        let error = plan(&[&["10.0.0.0/24", "fd00::/64"]]).unwrap_err();
        assert!(error.to_string().starts_with("10.0.0.0/24 and fd00::/64 are of two families"));
        assert_eq!(plan(&[&["10.0.0.0/24"], &[]]).unwrap_err(), Error::NoRange { set: 1 });
        assert_eq!(plan(&[]).unwrap_err(), Error::NoRange { set: 0 });
    }

    #[test]
    fn two_ranges_of_one_subnet_are_possible() {
        let low = spec("10.0.0.0/24", "10.0.0.10", "10.0.0.19", "").unwrap();
        let high = spec("10.0.0.0/24", "10.0.0.20", "10.0.0.29", "").unwrap();
        let plan = Plan::new(vec![vec![low], vec![high.clone()]]).unwrap();
        assert_eq!(plan.range_of("10.0.0.20".parse().unwrap()), Some(&high));
        assert_eq!(plan.range_of("10.0.0.1".parse().unwrap()), None);
        assert_eq!(plan.unusable("10.0.0.1".parse().unwrap()), Some(Unusable::Gateway));
        assert_eq!(plan.unusable("10.0.0.255".parse().unwrap()), Some(Unusable::BroadcastAddress));
        assert_eq!(plan.unusable("10.0.0.20".parse().unwrap()), None);
    }
}
