use std::borrow::{Borrow, Cow};
use std::fmt::{self, Write as _};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};

/// A name that breaks the rules of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {name:?}: {rule}")]
pub struct NameError {
    kind: &'static str,
    name: String,
    rule: &'static str,
}

impl NameError {
    pub(crate) fn new(kind: &'static str, name: &str, rule: &'static str) -> Self {
        // An error line should stay a line, whatever a caller sent.
        let name = name.chars().take(80).collect();
        Self { kind, name, rule }
    }
}

macro_rules! validated_string {
    ($type:ident, $check:path) => {
        impl $type {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;

            fn try_from(name: String) -> Result<Self, NameError> {
                $check(&name)?;
                Ok(Self(name.into_boxed_str()))
            }
        }

        impl FromStr for $type {
            type Err = NameError;

            fn from_str(name: &str) -> Result<Self, NameError> {
                $check(name)?;
                Ok(Self(name.into()))
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    };
}

/// A container's id as the CNI specification allows it: starts with a letter or digit, then
/// letters, digits, `_`, `.` and `-`; at most 128 bytes, so that a [`Mark`] fits an interface alias.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerId(Box<str>);

validated_string!(ContainerId, check_container_id);

/// The name of the interface inside the container, by the kernel's rules (`dev_valid_name`): 1 to
/// 15 bytes, neither `.` nor `..`, no slash, colon or white space.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InterfaceName(Box<str>);

validated_string!(InterfaceName, check_interface_name);

/// A node's name: a DNS name of at most 100 bytes, so that a [`Mark`] fits an interface alias.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeName(Box<str>);

validated_string!(NodeName, check_node_name);

/// What names an endpoint: the container and its interface.
///
/// Written `<container id>/<ifname>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EndpointId {
    /// `CNI_CONTAINERID`.
    pub container_id: ContainerId,
    /// `CNI_IFNAME`.
    pub ifname: InterfaceName,
}

impl EndpointId {
    /// Both names, checked.
    ///
    /// # Errors
    ///
    /// Names the part that breaks its rules.
    pub fn new(container_id: &str, ifname: &str) -> Result<Self, NameError> {
        Ok(Self { container_id: container_id.parse()?, ifname: ifname.parse()? })
    }

    /// The name of this endpoint's host link.
    #[must_use]
    pub fn host_link(&self) -> String {
        host_link_name(self.container_id.as_str(), self.ifname.as_str())
    }
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container_id, self.ifname)
    }
}

impl FromStr for EndpointId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (container, ifname) = text
            .split_once('/')
            .ok_or_else(|| NameError::new("endpoint", text, "want CONTAINER_ID/IFNAME"))?;
        Self::new(container, ifname)
    }
}

/// The alias that podwire gives every link it creates, and the only thing that allows it to delete
/// one: `podwire:<node>:<container id>/<ifname>`, or `podwire:<node>:router` for the router pair. A link
/// that was adopted has `podwire:<node>:+<container id>/<ifname>`, which allows no deletion.
///
/// The kernel keeps up to 255 bytes of alias; the limits of [`NodeName`] and [`ContainerId`] make
/// every mark fit.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Mark {
    /// The host link of an endpoint.
    Endpoint {
        /// The node that created it.
        node: NodeName,
        /// The endpoint it belongs to.
        id: EndpointId,
    },
    /// The host's end of an interface that another plugin made and podwire adopted. It allows nothing
    /// but taking the mark off.
    Chained {
        /// The node that adopted it.
        node: NodeName,
        /// The endpoint it belongs to.
        id: EndpointId,
    },
    /// Either end of the router pair.
    Router {
        /// The node that created it.
        node: NodeName,
    },
}

impl Mark {
    /// The node that created the link.
    #[must_use]
    pub fn node(&self) -> &NodeName {
        match self {
            Self::Endpoint { node, .. } | Self::Chained { node, .. } | Self::Router { node } => {
                node
            }
        }
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Endpoint { node, id } => write!(f, "podwire:{node}:{id}"),
            Self::Chained { node, id } => write!(f, "podwire:{node}:+{id}"),
            Self::Router { node } => write!(f, "podwire:{node}:router"),
        }
    }
}

impl FromStr for Mark {
    type Err = NameError;

    fn from_str(alias: &str) -> Result<Self, NameError> {
        let parts = alias.strip_prefix("podwire:").and_then(|rest| rest.split_once(':'));
        let (node, what) = parts.ok_or_else(|| {
            NameError::new("mark", alias, "want podwire:NODE:CONTAINER_ID/IFNAME")
        })?;
        let node = node.parse()?;
        // No endpoint is called so: an endpoint has a slash.
        if what == "router" {
            return Ok(Self::Router { node });
        }
        match what.strip_prefix('+') {
            Some(id) => Ok(Self::Chained { node, id: id.parse()? }),
            None => Ok(Self::Endpoint { node, id: what.parse()? }),
        }
    }
}

/// The host link of an endpoint: `pw` and 13 base32 characters (65 bits) of
/// `sha256("<container id>/<ifname>")`, 15 bytes, the longest name the kernel takes.
///
/// ```
/// assert_eq!(podwire_api::host_link_name("c1", "eth0").len(), 15);
/// ```
#[must_use]
pub fn host_link_name(container_id: &str, ifname: &str) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut hash = Sha256::new();
    hash.update(container_id);
    hash.update(b"/");
    hash.update(ifname);
    let digest = hash.finalize();

    let mut name = String::with_capacity(15);
    name.push_str("pw");
    let (mut bits, mut count) = (0_u32, 0);
    for byte in digest {
        bits = bits << 8 | u32::from(byte);
        count += 8;
        while count >= 5 && name.len() < 15 {
            count -= 5;
            name.push(char::from(ALPHABET[(bits >> count & 31) as usize]));
        }
        bits &= (1 << count) - 1;
        if name.len() == 15 {
            break;
        }
    }
    name
}

/// One path segment of a URL, with everything escaped that is not plainly allowed in it (RFC 3986,
/// unreserved characters).
pub(crate) fn push_segment(url: &mut String, segment: &str) {
    url.push('/');
    for byte in segment.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            url.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(url, "%{byte:02X}");
        }
    }
}

fn check_container_id(name: &str) -> Result<(), NameError> {
    check_identifier("container id", name, 128, "must have at most 128 bytes")
}

fn check_node_name(name: &str) -> Result<(), NameError> {
    check_identifier("node name", name, 100, "must have at most 100 bytes")
}

/// A letter or digit, then letters, digits, `_`, `.` and `-`.
fn check_identifier(
    kind: &'static str,
    name: &str,
    longest: usize,
    too_long: &'static str,
) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::new(kind, name, "must not be empty"));
    }
    if name.len() > longest {
        return Err(NameError::new(kind, name, too_long));
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    if !name.as_bytes()[0].is_ascii_alphanumeric() || !name.bytes().all(allowed) {
        let rule =
            "must start with a letter or digit and hold only letters, digits, '_', '.' and '-'";
        return Err(NameError::new(kind, name, rule));
    }
    Ok(())
}

fn check_interface_name(name: &str) -> Result<(), NameError> {
    let kind = "interface name";
    if name.is_empty() {
        return Err(NameError::new(kind, name, "must not be empty"));
    }
    if name.len() > 15 {
        return Err(NameError::new(kind, name, "must have at most 15 bytes"));
    }
    if name == "." || name == ".." {
        return Err(NameError::new(kind, name, "must not be '.' or '..'"));
    }
    // isspace() of the kernel's Latin-1 table, which has 0xa0 as well.
    let space = |b: u8| b.is_ascii_whitespace() || b == 0x0b || b == 0xa0;
    if name.bytes().any(|b| b == b'/' || b == b':' || b == 0 || space(b)) {
        return Err(NameError::new(kind, name, "must not hold '/', ':' or white space"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn host_link_is_the_hash() {
        // printf %s c1/eth0 | sha256sum | xxd -r -p | base32 | tr A-Z a-z | cut -c1-13
        assert_eq!(host_link_name("c1", "eth0"), "pw24xagl7n3fgbn");
    }

    #[test]
    fn marks_survive_the_alias() {
        let node: NodeName = "node-1.example".parse().unwrap();
        let endpoint =
            Mark::Endpoint { node: node.clone(), id: EndpointId::new("c1", "eth0").unwrap() };
        assert_eq!(endpoint.to_string(), "podwire:node-1.example:c1/eth0");
        assert_eq!(endpoint.to_string().parse(), Ok(endpoint));
        let router = Mark::Router { node };
        assert_eq!(router.to_string(), "podwire:node-1.example:router");
        assert_eq!(router.to_string().parse(), Ok(router));
    }

    #[test]
    fn longest_mark_fits_the_alias() {
        let mark = Mark::Endpoint {
            node: "n".repeat(100).parse().unwrap(),
            id: EndpointId::new(&"c".repeat(128), &"e".repeat(15)).unwrap(),
        };
        assert!(mark.to_string().len() < 256);
    }

    #[test]
    fn foreign_aliases_are_no_marks() {
        for alias in [
            "",
            "podwire",
            "podwire:",
            "podwire:n",
            "podwire:n:",
            "podwire:n:c1",
            "podwire::c1/eth0",
            "Podwire:n:c1/eth0",
            "podwire:n:c1/eth0/x",
            "podwire:n:-c/eth0",
            "uplink",
        ] {
            assert!(alias.parse::<Mark>().is_err(), "{alias:?} was accepted");
        }
    }

    #[test]
    fn names_are_checked() {
        for id in ["", "-a", ".a", "a/b", "a:b", "a b", "ä", &"c".repeat(129)] {
            assert!(id.parse::<ContainerId>().is_err(), "{id:?} was accepted");
        }
        for name in ["", ".", "..", "a/b", "a:b", "a b", "a\tb", "sixteen-bytes-xx", "\u{a0}"] {
            assert!(name.parse::<InterfaceName>().is_err(), "{name:?} was accepted");
        }
        assert!("eth0".parse::<InterfaceName>().is_ok());
        assert!("a_B.9-".parse::<ContainerId>().is_ok());
        assert!(serde_json::from_str::<ContainerId>("\"a/b\"").is_err());
    }

    #[test]
    fn segments_are_escaped() {
        let mut url = String::new();
        push_segment(&mut url, "eth0%?#é");
        assert_eq!(url, "/eth0%25%3F%23%C3%A9");
    }

    proptest! {
        #[test]
        fn host_links_are_valid_names(container in "[a-z0-9]{1,64}", ifname in "[a-z0-9]{1,15}") {
            let name = host_link_name(&container, &ifname);
            prop_assert_eq!(name.len(), 15);
            prop_assert!(name.parse::<InterfaceName>().is_ok());
        }

        #[test]
        fn parsing_marks_never_panics(alias in ".{0,300}") {
            if let Ok(mark) = alias.parse::<Mark>() {
                prop_assert_eq!(mark.to_string(), alias);
            }
        }
    }
}
