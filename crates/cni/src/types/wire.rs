//! How single values stand in JSON.

/// An address with prefix length. The length is mandatory, and a netmask in its place, which
/// `IpNetwork` would read, is refused, as the reference library does.
pub(super) mod cidr {
    use ipnetwork::IpNetwork;
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    pub(in crate::types) fn serialize<S: Serializer>(
        cidr: &IpNetwork,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(cidr)
    }

    pub(in crate::types) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<IpNetwork, D::Error> {
        let text = String::deserialize(deserializer)?;
        let read = || {
            let (address, length) = text.split_once('/')?;
            if length.is_empty() || !length.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            IpNetwork::new(address.parse().ok()?, length.parse().ok()?).ok()
        };
        read().ok_or_else(|| D::Error::custom(format_args!("{text:?} is not ADDRESS/LENGTH")))
    }
}

/// An address that may be absent, null or empty; Go writes an unset one as an empty string.
pub(super) mod ip {
    use std::net::IpAddr;

    use serde::de::{Deserializer, Error};
    use serde::ser::Serializer;

    #[expect(clippy::ref_option, reason = "serde passes a reference to the field")]
    pub(in crate::types) fn serialize<S: Serializer>(
        ip: &Option<IpAddr>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match ip {
            Some(ip) => serializer.collect_str(ip),
            None => serializer.serialize_none(),
        }
    }

    pub(in crate::types) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<IpAddr>, D::Error> {
        match super::text::deserialize(deserializer)? {
            None => Ok(None),
            Some(text) => match text.parse() {
                Ok(ip) => Ok(Some(ip)),
                Err(_) => Err(D::Error::custom(format_args!("{text:?} is not an address"))),
            },
        }
    }
}

/// Text that may be absent, null or empty.
pub(super) mod text {
    use serde::de::{Deserialize, Deserializer};
    use serde::ser::{Serialize, Serializer};

    #[expect(clippy::ref_option, reason = "serde passes a reference to the field")]
    pub(in crate::types) fn serialize<S: Serializer>(
        text: &Option<String>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        text.serialize(serializer)
    }

    pub(in crate::types) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<String>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        Ok(text.filter(|text| !text.is_empty()))
    }
}
