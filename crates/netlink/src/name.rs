//! Names, indexes and hardware addresses of interfaces.

use std::borrow::Cow;
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

/// The name of an interface: 1 to 15 bytes that the kernel accepts.
///
/// The rules are those of `dev_valid_name` (net/core/dev.c): not `.` or `..`, no `/`, no `:`, no
/// white space, where byte 0xa0 counts as white space, which rules out a few letters in UTF-8. A
/// percent sign is refused as well: the kernel would take the name for a template and choose another.
///
/// ```
/// use podwire_netlink::IfName;
/// let name: IfName = "eth0".parse()?;
/// assert_eq!(name.to_string(), "eth0");
/// assert!("a name that is too long".parse::<IfName>().is_err());
/// # Ok::<(), podwire_netlink::InvalidIfName>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IfName {
    bytes: [u8; Self::MAX_LEN],
    length: u8,
}

impl IfName {
    /// The longest name, in bytes.
    pub const MAX_LEN: usize = 15;

    /// Takes a name as the kernel reports it: bytes that need not be UTF-8.
    ///
    /// # Errors
    ///
    /// [`InvalidIfName`] says which rule the name breaks.
    pub fn from_bytes(name: &[u8]) -> Result<Self, InvalidIfName> {
        let refuse = |why| InvalidIfName { name: String::from_utf8_lossy(name).into_owned(), why };
        if name.is_empty() {
            return Err(refuse("it is empty"));
        }
        if name == b"." || name == b".." {
            return Err(refuse("it means a directory"));
        }
        if let Some(byte) = name.iter().find(|byte| forbidden(**byte)) {
            return Err(refuse(match byte {
                b'/' => "it contains a slash",
                b':' => "it contains a colon",
                b'%' => "it contains a percent sign, which makes it a template",
                0 => "it contains a NUL",
                _ => "it contains white space",
            }));
        }
        let length = u8::try_from(name.len()).unwrap_or(u8::MAX);
        let mut bytes = [0; Self::MAX_LEN];
        match bytes.get_mut(..name.len()) {
            Some(place) => place.copy_from_slice(name),
            None => return Err(refuse("it is longer than 15 bytes")),
        }
        Ok(Self { bytes, length })
    }

    /// The name's bytes, without a NUL.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// The name as text, unless another program gave the interface a name that is not UTF-8.
    pub fn to_str(&self) -> Option<&str> {
        std::str::from_utf8(self.as_bytes()).ok()
    }

    /// The name as text, with what is not UTF-8 replaced.
    pub fn to_string_lossy(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.as_bytes())
    }
}

impl FromStr for IfName {
    type Err = InvalidIfName;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::from_bytes(name.as_bytes())
    }
}

impl TryFrom<&str> for IfName {
    type Error = InvalidIfName;

    fn try_from(name: &str) -> Result<Self, Self::Error> {
        name.parse()
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.to_string_lossy())
    }
}

impl fmt::Debug for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string_lossy())
    }
}

/// Why a text is no interface name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is no interface name: {why}")]
pub struct InvalidIfName {
    name: String,
    why: &'static str,
}

/// The number of an interface: positive, unique within its network namespace, and never given to
/// another interface there as long as numbers last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IfIndex(NonZeroU32);

impl IfIndex {
    /// The loopback interface, which has this number in every namespace.
    pub const LOOPBACK: Self = Self(NonZeroU32::MIN);

    /// Takes a number; zero and what does not fit the kernel's `int` are no interface.
    pub const fn new(number: u32) -> Option<Self> {
        match NonZeroU32::new(number) {
            Some(index) if number <= i32::MAX.unsigned_abs() => Some(Self(index)),
            _ => None,
        }
    }

    /// The number.
    pub const fn as_u32(self) -> u32 {
        self.0.get()
    }
}

impl TryFrom<u32> for IfIndex {
    type Error = InvalidIfIndex;

    fn try_from(number: u32) -> Result<Self, Self::Error> {
        Self::new(number).ok_or(InvalidIfIndex(number))
    }
}

impl From<IfIndex> for u32 {
    fn from(index: IfIndex) -> Self {
        index.as_u32()
    }
}

impl fmt::Display for IfIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A number that is no interface index: zero, or beyond `i32::MAX`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no interface index")]
pub struct InvalidIfIndex(u32);

/// An Ethernet address.
///
/// ```
/// use podwire_netlink::MacAddr;
/// let mac: MacAddr = "02:00:5e:10:00:01".parse()?;
/// assert!(mac.is_unicast() && mac.is_local());
/// # Ok::<(), podwire_netlink::InvalidMacAddr>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// `00:00:00:00:00:00`.
    pub const ZERO: Self = Self([0; 6]);
    /// `ff:ff:ff:ff:ff:ff`.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// An address from its six bytes.
    pub const fn new(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// The six bytes, as on the wire.
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }

    /// Whether an interface may have this address (`is_valid_ether_addr`): not a group address, not
    /// zero.
    pub const fn is_unicast(self) -> bool {
        let [a, b, c, d, e, f] = self.0;
        a & 1 == 0 && (a | b | c | d | e | f) != 0
    }

    /// Whether the address is locally administered.
    pub const fn is_local(self) -> bool {
        self.0[0] & 2 != 0
    }

    /// Makes of any six bytes a unicast address that is locally administered.
    pub const fn local_from(mut bytes: [u8; 6]) -> Self {
        bytes[0] = bytes[0] & !1 | 2;
        Self(bytes)
    }
}

impl From<[u8; 6]> for MacAddr {
    fn from(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }
}

impl FromStr for MacAddr {
    type Err = InvalidMacAddr;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || InvalidMacAddr(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(refuse)?;
            // `from_str_radix` would take a sign, and one digit.
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(refuse());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| refuse())?;
        }
        if parts.next().is_some() { Err(refuse()) } else { Ok(Self(bytes)) }
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        f.pad(&format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}"))
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no MAC address of the form `02:00:5e:10:00:01`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no MAC address of the form 02:00:5e:10:00:01")]
pub struct InvalidMacAddr(String);

#[cfg(feature = "serde")]
mod with_serde {
    use super::{IfIndex, IfName, MacAddr};
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    impl Serialize for IfName {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_str(&self.to_string_lossy())
        }
    }

    impl<'de> Deserialize<'de> for IfName {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
        }
    }

    impl Serialize for IfIndex {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_u32(self.as_u32())
        }
    }

    impl<'de> Deserialize<'de> for IfIndex {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            u32::deserialize(deserializer)?.try_into().map_err(D::Error::custom)
        }
    }

    impl Serialize for MacAddr {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_str(self)
        }
    }

    impl<'de> Deserialize<'de> for MacAddr {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
        }
    }
}

fn forbidden(byte: u8) -> bool {
    // The kernel's `isspace` (lib/ctype.c): tab to carriage return, space, and Latin-1's
    // non-breaking space.
    matches!(byte, 0 | b'/' | b':' | b'%' | 9..=13 | b' ' | 0xa0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_the_kernel_takes() {
        for name in ["lo", "eth0", "pw0123456789abc", "...", "a.b", "é", "eth0@x", "ａ"] {
            assert_eq!(name.parse::<IfName>().unwrap().to_string(), name);
        }
        assert_eq!("eth0".parse::<IfName>().unwrap().to_str(), Some("eth0"));
        let odd = IfName::from_bytes(&[b'e', 0xff]).unwrap();
        assert_eq!((odd.to_str(), odd.to_string().as_str()), (None, "e\u{fffd}"));
    }

    #[test]
    fn names_the_kernel_refuses() {
        for (name, why) in [
            ("", "empty"),
            (".", "directory"),
            ("..", "directory"),
            ("a/b", "slash"),
            ("a:b", "colon"),
            ("a b", "white space"),
            ("a\tb", "white space"),
            ("a\u{b}b", "white space"),
            ("pw%d", "template"),
            ("à", "white space"),
            ("a\0", "NUL"),
            ("0123456789abcdef", "longer"),
        ] {
            let error = name.parse::<IfName>().unwrap_err().to_string();
            assert!(error.contains(why), "{name:?}: {error}");
        }
    }

    #[test]
    fn mac_addresses() {
        let mac: MacAddr = "02:00:5e:Aa:00:01".parse().unwrap();
        assert_eq!(mac.octets(), [2, 0, 0x5e, 0xaa, 0, 1]);
        assert_eq!(mac.to_string(), "02:00:5e:aa:00:01");
        assert!(!MacAddr::ZERO.is_unicast() && !MacAddr::BROADCAST.is_unicast());
        assert!(!MacAddr([1, 0, 0, 0, 0, 0]).is_unicast());
        assert_eq!(MacAddr::local_from([0xff; 6]).octets()[0], 0xfe);
        for bad in
            ["", "02:00:5e:aa:00", "02:00:5e:aa:00:01:02", "2:0:5e:aa:0:1", "+2:00:5e:aa:00:01"]
        {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn indexes_are_positive_ints() {
        assert_eq!(IfIndex::new(0), None);
        assert_eq!(IfIndex::new(0x8000_0000), None);
        assert_eq!(IfIndex::new(1), Some(IfIndex::LOOPBACK));
        assert_eq!(u32::from(IfIndex::new(0x7fff_ffff).unwrap()), 0x7fff_ffff);
    }

    #[cfg(feature = "serde")]
    #[test]
    fn serde_validates() {
        let name: IfName = serde_json::from_str("\"eth0\"").unwrap();
        assert_eq!(serde_json::to_string(&name).unwrap(), "\"eth0\"");
        assert!(serde_json::from_str::<IfName>("\"a/b\"").is_err());
        assert!(serde_json::from_str::<IfIndex>("0").is_err());
        assert_eq!(serde_json::to_string(&IfIndex::LOOPBACK).unwrap(), "1");
        let mac: MacAddr = serde_json::from_str("\"02:00:00:00:00:01\"").unwrap();
        assert_eq!(serde_json::to_string(&mac).unwrap(), "\"02:00:00:00:00:01\"");
    }

    proptest! {
        #[test]
        fn mac_addresses_round_trip(bytes in any::<[u8; 6]>()) {
            let mac = MacAddr(bytes);
            prop_assert_eq!(mac.to_string().parse::<MacAddr>().unwrap(), mac);
            prop_assert!(MacAddr::local_from(bytes).is_unicast());
        }

        #[test]
        fn a_name_that_is_taken_comes_back(text in "\\PC{0,17}") {
            if let Ok(name) = text.parse::<IfName>() {
                prop_assert_eq!(name.to_str(), Some(text.as_str()));
            }
        }
    }
}
