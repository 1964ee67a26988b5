//! Few addresses, so that everything collides.

use std::net::IpAddr;
use std::sync::LazyLock;

use ipnetwork::IpNetwork;
use podwire_ipam::Family;

pub(crate) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Excluded by every pool.
pub(crate) const EXCLUDED: &str = "10.0.0.4/31";

/// A CIDR that a pool may have, and what may be granted of it.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) cidr: IpNetwork,
    pub(crate) grantable: Vec<IpAddr>,
}

impl Block {
    /// All CIDRs that the steps know; some overlap.
    pub(crate) fn all() -> &'static [Self] {
        static ALL: LazyLock<Vec<Block>> = LazyLock::new(|| {
            let blocks: [(&str, &[&str]); 11] = [
                ("10.0.0.0/29", &["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.6"]),
                ("10.0.1.0/31", &["10.0.1.0", "10.0.1.1"]),
                ("fd00::/126", &["fd00::1", "fd00::2", "fd00::3"]),
                ("10.1.0.0/30", &["10.1.0.1", "10.1.0.2"]),
                ("fd00:1::/126", &["fd00:1::1", "fd00:1::2", "fd00:1::3"]),
                ("fd00:1:1::/127", &["fd00:1:1::", "fd00:1:1::1"]),
                ("10.2.0.0/30", &["10.2.0.1", "10.2.0.2"]),
                ("fd00:2::1/128", &["fd00:2::1"]),
                // Around 10.1.0.0/30, whose broadcast address is an ordinary one here.
                (
                    "10.1.0.0/29",
                    &["10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6"],
                ),
                ("10.2.0.8/32", &["10.2.0.8"]),
                // Within fd00:1::/126.
                ("fd00:1::2/127", &["fd00:1::2", "fd00:1::3"]),
            ];
            let block = |(cidr, grantable): (&str, &[&str])| Block {
                cidr: cidr.parse().unwrap(),
                grantable: grantable.iter().map(|ip| ip.parse().unwrap()).collect(),
            };
            blocks.map(block).into()
        });
        &ALL
    }

    pub(crate) fn numbered(number: usize) -> &'static Self {
        &Self::all()[number % Self::all().len()]
    }

    pub(crate) fn family(&self) -> Family {
        Family::of(self.cidr.ip())
    }

    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.cidr.contains(other.cidr.ip()) || other.cidr.contains(self.cidr.ip())
    }
}

/// Every address that is granted by some CIDR, and some that never are, ascending.
pub(crate) fn every_address() -> &'static [IpAddr] {
    static ALL: LazyLock<Vec<IpAddr>> = LazyLock::new(|| {
        let never = ["10.0.0.0", "10.0.0.7", "10.0.0.4", "10.1.0.7", "fd00::", "192.168.0.1"];
        let never = never.map(|ip| ip.parse().unwrap());
        let grantable = Block::all().iter().flat_map(|block| block.grantable.iter().copied());
        let mut all: Vec<IpAddr> = grantable.chain(never).collect();
        all.sort_unstable();
        all.dedup();
        all
    });
    &ALL
}

/// An address by number.
pub(crate) fn numbered(number: usize) -> IpAddr {
    every_address()[number % every_address().len()]
}
