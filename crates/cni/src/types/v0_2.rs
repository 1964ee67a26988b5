//! Results as 0.1.0 and 0.2.0 have them: one address of each family, which has the routes.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::v1_0::Route;
use super::{Dns, wire};
use crate::json::null_as_default;

/// The result of an ADD.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Success {
    /// The IPv4 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip4: Option<Ip>,
    /// The IPv6 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip6: Option<Ip>,
    /// What the resolver should be told.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Dns::is_empty")]
    pub dns: Dns,
}

/// An address and the routes of its family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ip {
    /// The address with its prefix length.
    #[serde(with = "wire::cidr")]
    pub ip: IpNetwork,
    /// The gateway of its subnet.
    #[serde(default, with = "wire::ip", skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Routes.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
}

impl From<super::Success> for Success {
    fn from(new: super::Success) -> Self {
        // Of several addresses the container's own: one on the host says nothing to a runtime
        // that knows a single address.
        let in_sandbox =
            |ip: &&super::Ip| new.interface_of(ip).is_some_and(|on| on.sandbox.is_some());
        let first = |v4: bool| {
            let of_family = || new.ips.iter().filter(move |ip| ip.address.is_ipv4() == v4);
            let ip = of_family().find(in_sandbox).or_else(|| of_family().next())?;
            let routes = new.routes.iter().filter(|route| route.dst.is_ipv4() == v4);
            Some(Ip {
                ip: ip.address,
                gateway: ip.gateway,
                routes: routes.cloned().map(Into::into).collect(),
            })
        };
        Self { ip4: first(true), ip6: first(false), dns: new.dns.clone() }
    }
}

impl From<Success> for super::Success {
    fn from(old: Success) -> Self {
        let mut new = Self { dns: old.dns, ..Self::default() };
        for ip in [old.ip4, old.ip6].into_iter().flatten() {
            new.ips.push(super::Ip { gateway: ip.gateway, ..super::Ip::new(ip.ip) });
            new.routes.extend(ip.routes.into_iter().map(super::Route::from));
        }
        new
    }
}
