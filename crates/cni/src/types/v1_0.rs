//! Results as 1.0.0 has them: `version` of an address is gone.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

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

/// An interface; 0.3.0 to 1.0.0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address.
    #[serde(default, with = "wire::text", skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The isolation domain it is in.
    #[serde(default, with = "wire::text", skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
}

/// An address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ip {
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

/// A route; 0.1.0 to 1.0.0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The destination.
    #[serde(with = "wire::cidr")]
    pub dst: IpNetwork,
    /// The next hop.
    #[serde(default, with = "wire::ip", skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
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

impl From<super::Interface> for Interface {
    fn from(new: super::Interface) -> Self {
        Self { name: new.name, mac: new.mac, sandbox: new.sandbox }
    }
}

impl From<Interface> for super::Interface {
    fn from(old: Interface) -> Self {
        Self { name: old.name, mac: old.mac, sandbox: old.sandbox, ..Self::default() }
    }
}

impl From<super::Ip> for Ip {
    fn from(new: super::Ip) -> Self {
        Self { address: new.address, gateway: new.gateway, interface: new.interface }
    }
}

impl From<Ip> for super::Ip {
    fn from(old: Ip) -> Self {
        Self { address: old.address, gateway: old.gateway, interface: old.interface }
    }
}

impl From<super::Route> for Route {
    fn from(new: super::Route) -> Self {
        Self { dst: new.dst, gw: new.gw }
    }
}

impl From<Route> for super::Route {
    fn from(old: Route) -> Self {
        Self { gw: old.gw, ..Self::new(old.dst) }
    }
}
