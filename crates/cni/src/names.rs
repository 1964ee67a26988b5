use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};

/// Why a name was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidName {
    /// It is empty.
    Empty,
    /// It is longer than the kernel takes: 15 bytes.
    TooLong,
    /// It is `.` or `..`.
    Dots,
    /// It does not begin with an ASCII letter or digit.
    Start,
    /// It contains this character, which has no place in such a name.
    Character(char),
}

impl fmt::Display for InvalidName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("it is empty"),
            Self::TooLong => f.write_str("it is longer than 15 bytes"),
            Self::Dots => f.write_str("\".\" and \"..\" are not possible"),
            Self::Start => f.write_str("it does not begin with a letter or digit"),
            Self::Character(character) => write!(f, "it contains {character:?}"),
        }
    }
}

impl std::error::Error for InvalidName {}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $check:path) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(name: &str) -> Result<Self, InvalidName> {
                $check(name)?;
                Ok(Self(name.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(|error| de::Error::custom(format_args!("{text:?}: {error}")))
            }
        }
    };
}

name! {
    /// A container's id: an ASCII letter or digit, then letters, digits, `_`, `.` and `-`.
    ContainerId, identifier
}

name! {
    /// A network's name, of the same form as a [`ContainerId`].
    NetworkName, identifier
}

name! {
    /// The name of the interface inside the container, as the kernel takes it: 1 to 15 bytes, not
    /// `.` or `..`, without `/`, `:`, `%` and white space.
    ///
    /// The kernel reads `%d` as "the next free number", so a name with `%` would not be the one
    /// that was asked for (`dev_valid_name` and `dev_prep_valid_name` in net/core/dev.c).
    IfName, ifname
}

name! {
    /// What `CNI_NETNS` refers to, the container's isolation domain: mostly the path of a network
    /// namespace. Not empty; whether it exists is for the plugin to see.
    Netns, not_empty
}

impl AsRef<Path> for Netns {
    fn as_ref(&self) -> &Path {
        Path::new(&self.0)
    }
}

/// What identifies an attachment: an interface of a container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
pub struct Attachment {
    /// The container's id.
    #[serde(rename = "containerID")]
    pub container_id: ContainerId,
    /// The interface's name inside the container.
    pub ifname: IfName,
}

/// `<container id>/<ifname>`.
impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container_id, self.ifname)
    }
}

fn identifier(name: &str) -> Result<(), InvalidName> {
    let first = name.chars().next().ok_or(InvalidName::Empty)?;
    if !first.is_ascii_alphanumeric() {
        return Err(InvalidName::Start);
    }
    match name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))) {
        Some(character) => Err(InvalidName::Character(character)),
        None => Ok(()),
    }
}

fn ifname(name: &str) -> Result<(), InvalidName> {
    match name {
        "" => return Err(InvalidName::Empty),
        "." | ".." => return Err(InvalidName::Dots),
        _ if name.len() > 15 => return Err(InvalidName::TooLong),
        _ => {}
    }
    // The kernel looks at bytes, and 0xa0 is a blank to it wherever it stands.
    let unfit = |character: &char| {
        matches!(character, '/' | ':' | '%' | '\0' | ' ' | '\t'..='\r')
            || character.encode_utf8(&mut [0; 4]).bytes().any(|byte| byte == 0xa0)
    };
    match name.chars().find(unfit) {
        Some(character) => Err(InvalidName::Character(character)),
        None => Ok(()),
    }
}

fn not_empty(name: &str) -> Result<(), InvalidName> {
    if name.is_empty() { Err(InvalidName::Empty) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_ids() {
        for good in ["a", "7", "0123456789abcdef", "A_b.c-d", "9-"] {
            assert!(good.parse::<ContainerId>().is_ok(), "{good}");
        }
        for (bad, why) in [
            ("", InvalidName::Empty),
            ("-a", InvalidName::Start),
            ("_a", InvalidName::Start),
            (".", InvalidName::Start),
            ("../x", InvalidName::Start),
            ("a/b", InvalidName::Character('/')),
            ("a b", InvalidName::Character(' ')),
            ("a\n", InvalidName::Character('\n')),
            ("é", InvalidName::Start),
            ("aé", InvalidName::Character('é')),
        ] {
            assert_eq!(bad.parse::<ContainerId>(), Err(why), "{bad:?}");
        }
    }

    #[test]
    fn interface_names() {
        for good in ["eth0", "a", "...", "net-1", "123456789012345", "eth0.100", "ü"] {
            assert!(good.parse::<IfName>().is_ok(), "{good}");
        }
        for (bad, why) in [
            ("", InvalidName::Empty),
            (".", InvalidName::Dots),
            ("..", InvalidName::Dots),
            ("1234567890123456", InvalidName::TooLong),
            ("eth%d", InvalidName::Character('%')),
            ("a/b", InvalidName::Character('/')),
            ("a:b", InvalidName::Character(':')),
            ("a b", InvalidName::Character(' ')),
            ("a\u{b}b", InvalidName::Character('\u{b}')),
            // U+00A0 and U+0120 both have a byte 0xa0 in UTF-8.
            ("a\u{a0}", InvalidName::Character('\u{a0}')),
            ("\u{120}", InvalidName::Character('\u{120}')),
        ] {
            assert_eq!(bad.parse::<IfName>(), Err(why), "{bad:?}");
        }
    }
}
