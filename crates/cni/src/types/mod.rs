//! What ADD results in, in every version of the specification.
//!
//! The types of this module are those of the newest version, and what plugins work with.
//! [`Success::to_value`] and [`Success::from_value`] convert to and from the JSON of any version;
//! the shapes on the wire are in [`v0_2`], [`v0_4`] and [`v1_0`].
//!
//! Reading an older result loses nothing. Writing one drops what its version has no place for:
//!
//! | to | is dropped |
//! |---|---|
//! | 1.0.0 | `mtu`, `socketPath`, `pciID` of interfaces; all of a route but `dst` and `gw` |
//! | 0.3.0 to 0.4.0 | the same |
//! | 0.1.0, 0.2.0 | the same; `interfaces`; all but one address of each family; routes of a family without address |

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::json::{kind, null_as_default};
use crate::{Code, Error, SpecVersion};

mod wire;

pub mod v0_2;
pub mod v0_4;
pub mod v1_0;

/// The result of an ADD, or of a delegated one, which may leave parts out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Success {
    /// The interfaces that the attachment consists of, those on the host included.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// The addresses assigned.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<Ip>,
    /// The routes created.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// What the container's resolver should be told.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Dns::is_empty")]
    pub dns: Dns,
}

impl Success {
    /// The result as JSON of the given version, `cniVersion` included.
    #[must_use]
    pub fn to_value(&self, version: SpecVersion) -> Value {
        let body = match version {
            SpecVersion::V0_1_0 | SpecVersion::V0_2_0 => {
                serde_json::to_value(v0_2::Success::from(self.clone()))
            }
            SpecVersion::V0_3_0 | SpecVersion::V0_3_1 | SpecVersion::V0_4_0 => {
                serde_json::to_value(v0_4::Success::from(self.clone()))
            }
            SpecVersion::V1_0_0 => serde_json::to_value(v1_0::Success::from(self.clone())),
            SpecVersion::V1_1_0 => serde_json::to_value(self),
        };
        let Ok(Value::Object(mut object)) = body else {
            unreachable!("structs of strings, numbers and lists are objects in JSON")
        };
        object.insert("cniVersion".into(), version.as_str().into());
        Value::Object(object)
    }

    /// Reads a result.
    ///
    /// Its own `cniVersion` tells how; without one it is read as `version`, the configuration's.
    /// Fields that the version does not define are ignored.
    ///
    /// # Errors
    ///
    /// Code 6 if it cannot be read, code 1 if its version is not known.
    pub fn from_value(value: Value, version: SpecVersion) -> Result<Self, Error> {
        // serde reads a struct from an array, too.
        if !value.is_object() {
            let msg = format!("a result is {}, not an object", kind(&value));
            return Err(Error::new(Code::DECODING_FAILURE, msg));
        }
        let stated = match value.get("cniVersion") {
            None | Some(Value::Null) => version,
            Some(Value::String(text)) if text.is_empty() => version,
            Some(Value::String(text)) => text.parse().map_err(|_| {
                Error::new(Code::INCOMPATIBLE_CNI_VERSION, format!("result of version {text:?}"))
            })?,
            Some(other) => {
                let msg = format!("cniVersion of a result is {}, not a string", kind(other));
                return Err(Error::new(Code::DECODING_FAILURE, msg));
            }
        };
        let read = match stated {
            SpecVersion::V0_1_0 | SpecVersion::V0_2_0 => {
                v0_2::Success::deserialize(value).map(Self::from)
            }
            SpecVersion::V0_3_0 | SpecVersion::V0_3_1 | SpecVersion::V0_4_0 => {
                v0_4::Success::deserialize(value).map(Self::from)
            }
            SpecVersion::V1_0_0 => v1_0::Success::deserialize(value).map(Self::from),
            SpecVersion::V1_1_0 => Self::deserialize(value),
        };
        read.map_err(|error| {
            Error::new(Code::DECODING_FAILURE, format!("cannot read a result of version {stated}"))
                .with_source(&error)
        })
    }

    /// The interface that an address is assigned to, if the result says so.
    #[must_use]
    pub fn interface_of(&self, ip: &Ip) -> Option<&Interface> {
        self.interfaces.get(usize::try_from(ip.interface?).ok()?)
    }
}

/// An interface that an attachment consists of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address, if link-layer addresses mean anything there.
    #[serde(default, with = "wire::text", skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Its MTU in bytes; since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The isolation domain it is in, what `CNI_NETNS` was; `None` for interfaces of the host.
    #[serde(default, with = "wire::text", skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// The absolute path of a socket file that belongs to it; since 1.1.0.
    #[serde(default, with = "wire::text", skip_serializing_if = "Option::is_none")]
    pub socket_path: Option<String>,
    /// The PCI device behind it; since 1.1.0.
    #[serde(
        default,
        rename = "pciID",
        with = "wire::text",
        skip_serializing_if = "Option::is_none"
    )]
    pub pci_id: Option<String>,
}

impl Interface {
    /// An interface of the host; the other attributes are set in its fields.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// An interface in a container.
    pub fn in_sandbox(name: impl Into<String>, sandbox: impl Into<String>) -> Self {
        Self { name: name.into(), sandbox: Some(sandbox.into()), ..Self::default() }
    }
}

/// An assigned address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Ip {
    /// The address with the length of its subnet's prefix, as in `10.1.0.5/16`.
    #[serde(with = "wire::cidr")]
    pub address: IpNetwork,
    /// The default gateway of the subnet, if there is one.
    #[serde(default, with = "wire::ip", skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// The place in [`Success::interfaces`] of the interface that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<u32>,
}

impl Ip {
    /// An address; gateway and interface are set in its fields.
    #[must_use]
    pub fn new(address: IpNetwork) -> Self {
        Self { address, gateway: None, interface: None }
    }
}

/// A created route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Route {
    /// The destination.
    #[serde(with = "wire::cidr")]
    pub dst: IpNetwork,
    /// The next hop. Without one, the gateway of an address may serve.
    #[serde(default, with = "wire::ip", skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// The MTU in bytes; since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The maximum segment size to announce in TCP, in bytes; since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// The priority, lower values win; since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// The routing table; since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// The scope as the kernel numbers it: 0 universe, 253 link; since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl Route {
    /// A route; the other attributes are set in its fields.
    #[must_use]
    pub fn new(dst: IpNetwork) -> Self {
        Self { dst, gw: None, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }
}

/// What a resolver should be told. All versions have it in this form.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Dns {
    /// Name servers, the preferred first.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain for short host names.
    #[serde(default, with = "wire::text", skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Search domains for short host names, the preferred first.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options of the resolver.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    /// Whether it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Whatever a plugin wants to keep of JSON objects it does not interpret.
pub type Object = Map<String, Value>;
