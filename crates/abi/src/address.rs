//! Addresses and numbers as they stand in a packet.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A 16-bit number in network byte order.
#[repr(transparent)]
#[derive(
    Clone, Copy, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Be16(u16);

impl Be16 {
    /// From a number in host byte order.
    #[inline(always)]
    pub const fn new(value: u16) -> Self {
        Self(value.to_be())
    }

    /// From the two bytes as they lie in memory.
    #[inline(always)]
    pub const fn from_raw(raw: u16) -> Self {
        Self(raw)
    }

    /// In host byte order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }

    /// The two bytes as they lie in memory.
    #[inline(always)]
    pub const fn raw(self) -> u16 {
        self.0
    }
}

impl fmt::Debug for Be16 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// A 32-bit number in network byte order.
#[repr(transparent)]
#[derive(
    Clone, Copy, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Be32(u32);

impl Be32 {
    /// From a number in host byte order.
    #[inline(always)]
    pub const fn new(value: u32) -> Self {
        Self(value.to_be())
    }

    /// From the four bytes as they lie in memory.
    #[inline(always)]
    pub const fn from_raw(raw: u32) -> Self {
        Self(raw)
    }

    /// In host byte order.
    #[inline(always)]
    pub const fn get(self) -> u32 {
        u32::from_be(self.0)
    }

    /// The four bytes as they lie in memory.
    #[inline(always)]
    pub const fn raw(self) -> u32 {
        self.0
    }
}

impl fmt::Debug for Be32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// An IPv4 or IPv6 address in 16 bytes; IPv4 as `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2).
#[repr(transparent)]
#[derive(
    Clone, Copy, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Address(pub [Be32; 4]);

/// The third word of an IPv4 address in an [`Address`].
const V4_PREFIX: Be32 = Be32::new(0x0000_ffff);

impl Address {
    /// `::`, which no endpoint has: it stands for "none".
    pub const UNSPECIFIED: Self = Self([Be32::new(0); 4]);

    /// From the four bytes of an IPv4 address.
    #[inline(always)]
    pub const fn from_ipv4(octets: [u8; 4]) -> Self {
        Self::from_ipv4_raw(Be32::from_raw(u32::from_ne_bytes(octets)))
    }

    /// From an IPv4 address as it stands in a packet.
    #[inline(always)]
    pub const fn from_ipv4_raw(address: Be32) -> Self {
        Self([Be32::new(0), Be32::new(0), V4_PREFIX, address])
    }

    /// From the sixteen bytes of an IPv6 address.
    pub const fn from_ipv6(octets: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        Self([
            Be32::from_raw(u32::from_ne_bytes([a, b, c, d])),
            Be32::from_raw(u32::from_ne_bytes([e, f, g, h])),
            Be32::from_raw(u32::from_ne_bytes([i, j, k, l])),
            Be32::from_raw(u32::from_ne_bytes([m, n, o, p])),
        ])
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub const fn is_ipv4(&self) -> bool {
        self.0[0].raw() == 0 && self.0[1].raw() == 0 && self.0[2].raw() == V4_PREFIX.raw()
    }

    /// The IPv4 address as it stands in a packet: the last four bytes.
    #[inline(always)]
    pub const fn ipv4_raw(&self) -> Be32 {
        self.0[3]
    }

    /// Whether this is `::`.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        self.0[0].raw() | self.0[1].raw() | self.0[2].raw() | self.0[3].raw() == 0
    }

    /// Whether packets to this address are meant for many: IPv4 `224.0.0.0/4` and the limited
    /// broadcast, IPv6 `ff00::/8`.
    #[inline(always)]
    pub const fn is_multicast(&self) -> bool {
        if self.is_ipv4() {
            self.0[3].get() >= 0xe000_0000 && self.0[3].get() < 0xf000_0000
                || self.0[3].raw() == u32::MAX
        } else {
            self.0[0].get() >> 24 == 0xff
        }
    }

    /// Whether this is an IPv6 link-local address, `fe80::/10`.
    #[inline(always)]
    pub const fn is_ipv6_link_local(&self) -> bool {
        self.0[0].get() >> 22 == 0xfe80 >> 6
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::from_ipv4(v4.octets()),
            IpAddr::V6(v6) => Self::from_ipv6(v6.octets()),
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        let [a, b, c, d] = address.0.map(|word| u128::from(word.get()));
        let v6 = Ipv6Addr::from(a << 96 | b << 64 | c << 32 | d);
        if address.is_ipv4() { Ipv4Addr::from(address.0[3].get()).into() } else { v6.into() }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

/// An Ethernet address.
pub type Mac = [u8; 6];

/// The first twelve bytes of an Ethernet frame: destination, then source. Kept as words, since the
/// kernel programs compare and copy it so.
#[repr(transparent)]
#[derive(
    Clone, Copy, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct EthernetPair(pub [u32; 3]);

impl EthernetPair {
    /// A frame's addresses.
    pub const fn new(destination: Mac, source: Mac) -> Self {
        let [a, b, c, d, e, f] = destination;
        let [g, h, i, j, k, l] = source;
        Self([
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
            u32::from_ne_bytes([i, j, k, l]),
        ])
    }

    /// Where the frame goes.
    pub const fn destination(&self) -> Mac {
        let [a, b, c, d] = self.0[0].to_ne_bytes();
        let [e, f, ..] = self.0[1].to_ne_bytes();
        [a, b, c, d, e, f]
    }

    /// Where it comes from.
    pub const fn source(&self) -> Mac {
        let [.., a, b] = self.0[1].to_ne_bytes();
        let [c, d, e, f] = self.0[2].to_ne_bytes();
        [a, b, c, d, e, f]
    }
}

impl fmt::Debug for EthernetPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EthernetPair")
            .field("destination", &format_args!("{:02x?}", self.destination()))
            .field("source", &format_args!("{:02x?}", self.source()))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_lie_in_memory_as_on_the_wire() {
        assert_eq!(Be16::new(0x1234).as_bytes(), [0x12, 0x34]);
        assert_eq!(Be32::new(0x1234_5678).as_bytes(), [0x12, 0x34, 0x56, 0x78]);
        assert_eq!(Be16::from_raw(Be16::new(80).raw()).get(), 80);
        assert_eq!(Be32::from_raw(Be32::new(80).raw()).get(), 80);
    }

    #[test]
    fn addresses_keep_their_family() {
        for text in ["10.1.2.3", "0.0.0.0", "255.255.255.255", "::", "fd00::1", "::1", "ff02::1"] {
            let address: IpAddr = text.parse().unwrap();
            let ours = Address::from(address);
            assert_eq!(IpAddr::from(ours), address, "{text}");
            assert_eq!(ours.is_ipv4(), address.is_ipv4(), "{text}");
        }
        assert_eq!(
            Address::from_ipv4([10, 0, 0, 1]).as_bytes(),
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1]
        );
    }

    #[test]
    fn kinds_of_addresses() {
        let is = |text: &str| {
            let a = Address::from(text.parse::<IpAddr>().unwrap());
            (a.is_multicast(), a.is_ipv6_link_local(), a.is_unspecified())
        };
        assert_eq!(is("224.0.0.1"), (true, false, false));
        assert_eq!(is("239.255.255.255"), (true, false, false));
        assert_eq!(is("255.255.255.255"), (true, false, false));
        assert_eq!(is("240.0.0.1"), (false, false, false));
        assert_eq!(is("10.0.0.1"), (false, false, false));
        assert_eq!(is("ff02::1"), (true, false, false));
        assert_eq!(is("fe80::1"), (false, true, false));
        assert_eq!(is("febf::1"), (false, true, false));
        assert_eq!(is("fec0::1"), (false, false, false));
        assert_eq!(is("::"), (false, false, true));
    }

    #[test]
    fn a_pair_is_the_start_of_a_frame() {
        let pair = EthernetPair::new([1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]);
        assert_eq!(pair.as_bytes(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        assert_eq!(pair.destination(), [1, 2, 3, 4, 5, 6]);
        assert_eq!(pair.source(), [7, 8, 9, 10, 11, 12]);
    }
}
