//! Results as 0.3.0, 0.3.1 and 0.4.0 have them: each address says its family.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::v1_0::{Interface, Route};
use super::{Dns, wire};
use crate::json::null_as_default;

/// The result of an ADD.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Success {
    /// Interfaces.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// Addresses.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<Ip>,
    /// Routes.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// What the resolver should be told.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Dns::is_empty")]
    pub dns: Dns,
}

/// An address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ip {
    /// `4` or `6`. Read for completeness; the address itself tells.
    #[serde(default)]
    pub version: String,
    /// The address with its prefix length.
    #[serde(with = "wire::cidr")]
    pub address: IpNetwork,
    /// The gateway of its subnet.
    #[serde(default, with = "wire::ip", skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// The place of its interface in the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<u32>,
}

impl From<super::Success> for Success {
    fn from(new: super::Success) -> Self {
        Self {
            interfaces: new.interfaces.into_iter().map(Into::into).collect(),
            ips: new.ips.into_iter().map(Into::into).collect(),
            routes: new.routes.into_iter().map(Into::into).collect(),
            dns: new.dns,
        }
    }
}

impl From<Success> for super::Success {
    fn from(old: Success) -> Self {
        Self {
            interfaces: old.interfaces.into_iter().map(Into::into).collect(),
            ips: old.ips.into_iter().map(Into::into).collect(),
            routes: old.routes.into_iter().map(Into::into).collect(),
            dns: old.dns,
        }
    }
}

impl From<super::Ip> for Ip {
    fn from(new: super::Ip) -> Self {
        let version = if new.address.is_ipv4() { "4" } else { "6" };
        Self {
            version: version.to_owned(),
            address: new.address,
            gateway: new.gateway,
            interface: new.interface,
        }
    }
}

impl From<Ip> for super::Ip {
    fn from(old: Ip) -> Self {
        Self { address: old.address, gateway: old.gateway, interface: old.interface }
    }
}
