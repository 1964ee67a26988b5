use std::collections::BTreeMap;

use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::json::{kind, null_as_default, parse_object};
use crate::types::{Dns, Object, Success};
use crate::{Attachment, Code, Error, NetworkName, SpecVersion};

/// The network configuration that a plugin reads from its standard input.
///
/// The keys of the protocol have accessors. A plugin reads its own with
/// [`settings`](Self::settings), into a type of its own. The whole object stays at hand for
/// delegation.
///
/// ```
/// use podwire_cni::NetworkConfig;
/// use serde::Deserialize;
///
/// #[derive(Deserialize)]
/// struct Settings {
///     bridge: String,
/// }
///
/// let config = NetworkConfig::parse(
///     br#"{"cniVersion": "1.0.0", "name": "dbnet", "type": "bridge", "bridge": "cni0"}"#,
/// )?;
/// assert_eq!(config.name().as_str(), "dbnet");
/// assert_eq!(config.settings::<Settings>()?.bridge, "cni0");
/// # Ok::<(), podwire_cni::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkConfig {
    version: SpecVersion,
    name: NetworkName,
    plugin: Option<String>,
    runtime: RuntimeConfig,
    object: Object,
}

/// The keys under which a runtime lists the valid attachments. libcni 1.2.0 to 1.2.2 wrote the
/// second, later ones write both.
pub(crate) const VALID_ATTACHMENTS: [&str; 2] =
    ["cni.dev/valid-attachments", "cni.dev/attachments"];

impl NetworkConfig {
    /// The largest configuration that is read, in bytes.
    pub const MAX_LEN: usize = 1024 * 1024;

    /// Reads and checks a configuration.
    ///
    /// # Errors
    ///
    /// Code 6 if it is not a JSON object in UTF-8 without repeated keys; code 1 if its version is
    /// not known; code 7 if a key of the protocol is missing or malformed, or if it is longer than
    /// [`MAX_LEN`](Self::MAX_LEN).
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        Self::from_object(decode(bytes)?)
    }

    pub(crate) fn from_object(object: Object) -> Result<Self, Error> {
        let version = version_of(&object)?;
        let name = match object.get("name") {
            None | Some(Value::Null) => Err(invalid("name is missing")),
            Some(Value::String(text)) if text.is_empty() => Err(invalid("name is missing")),
            Some(Value::String(text)) => {
                text.parse().map_err(|error| invalid(format!("name {text:?}: {error}")))
            }
            Some(other) => Err(invalid(format!("name is {}, not a string", kind(other)))),
        }?;
        let plugin = match object.get("type") {
            Some(Value::String(text)) if !text.is_empty() => Some(text.clone()),
            None | Some(Value::Null | Value::String(_)) => None,
            Some(other) => return Err(invalid(format!("type is {}, not a string", kind(other)))),
        };
        if plugin.is_none() && object.get("plugins").is_some_and(Value::is_array) {
            return Err(invalid(
                "a list of plugins was given where the configuration of one belongs",
            ));
        }
        let runtime = RuntimeConfig::from_value(object.get("runtimeConfig"))?;
        Ok(Self { version, name, plugin, runtime, object })
    }

    /// The version of the specification that the configuration is written in, and that the plugin
    /// answers in.
    #[must_use]
    pub fn version(&self) -> SpecVersion {
        self.version
    }

    /// The network's name.
    #[must_use]
    pub fn name(&self) -> &NetworkName {
        &self.name
    }

    /// The plugin's name, the key `type`. A runtime always gives it, since it looks the executable
    /// up by it.
    #[must_use]
    pub fn plugin(&self) -> Option<&str> {
        self.plugin.as_deref()
    }

    /// What the runtime adds for the capabilities that the plugin has declared.
    #[must_use]
    pub fn runtime(&self) -> &RuntimeConfig {
        &self.runtime
    }

    /// The name of the plugin that assigns addresses, `ipam.type`.
    #[must_use]
    pub fn ipam_plugin(&self) -> Option<&str> {
        self.object.get("ipam")?.get("type")?.as_str().filter(|name| !name.is_empty())
    }

    /// The key `args`: what the runtime passes on to plugins that understand it.
    #[must_use]
    pub fn args(&self) -> Option<&Object> {
        self.object.get("args")?.as_object()
    }

    /// The key `dns`.
    ///
    /// # Errors
    ///
    /// Code 7 if it is malformed.
    pub fn dns(&self) -> Result<Dns, Error> {
        field(&self.object, "dns").map(Option::unwrap_or_default)
    }

    /// The result of the plugin before this one in the list, or of the ADD that a CHECK or DEL
    /// belongs to.
    ///
    /// # Errors
    ///
    /// Code 6 if it cannot be read.
    pub fn prev_result(&self) -> Result<Option<Success>, Error> {
        match self.object.get("prevResult") {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match Success::from_value(value.clone(), self.version) {
                Ok(success) => Ok(Some(success)),
                Err(error) => Err(Error::new(Code::DECODING_FAILURE, "prevResult cannot be read")
                    .with_details(format!("{}: {}", error.msg(), error.details()))),
            },
        }
    }

    /// The attachments that a GC must leave alone.
    ///
    /// An empty list is meant as such; a missing one is an error, since a GC that took it for
    /// empty would remove everything. Null is empty: that is how Go writes an empty list.
    ///
    /// # Errors
    ///
    /// Code 7 if it is missing or malformed.
    pub fn valid_attachments(&self) -> Result<Vec<Attachment>, Error> {
        let mut stated = false;
        let mut all = Vec::new();
        for key in VALID_ATTACHMENTS {
            stated |= self.object.contains_key(key);
            all.extend(field::<Vec<Attachment>>(&self.object, key)?.unwrap_or_default());
        }
        if !stated {
            return Err(invalid(format!("{} is missing", VALID_ATTACHMENTS[0])));
        }
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    /// The plugin's own settings, read from the whole configuration.
    ///
    /// # Errors
    ///
    /// Code 7, saying what does not fit.
    pub fn settings<T: DeserializeOwned>(&self) -> Result<T, Error> {
        T::deserialize(Value::Object(self.object.clone()))
            .map_err(|error| invalid("the plugin's settings cannot be read").with_source(&error))
    }

    /// The whole configuration as it was given, keys unknown to this crate included.
    #[must_use]
    pub fn object(&self) -> &Object {
        &self.object
    }
}

/// What a runtime adds to a configuration for the capabilities that the plugin has declared, the
/// key `runtimeConfig`.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct RuntimeConfig {
    /// `mac`: the hardware address that the interface shall have.
    pub mac: Option<String>,
    /// `ips`: the addresses that the interface shall have. One without prefix length gets the full
    /// length of its family.
    pub ips: Vec<IpNetwork>,
    /// `dns`: what the container's resolver shall be told, in place of what the configuration says.
    pub dns: Option<Dns>,
    /// `io.kubernetes.cri.pod-annotations`: the annotations of the pod.
    pub pod_annotations: BTreeMap<String, String>,
    /// The whole object, for the capabilities that this crate does not interpret: `portMappings`,
    /// `bandwidth` and the like.
    pub object: Object,
}

/// The capability names its fields otherwise than results do
/// (CONVENTIONS.md of the specification's repository).
#[derive(Default, Deserialize)]
#[serde(default)]
struct RuntimeDns {
    #[serde(deserialize_with = "null_as_default")]
    servers: Vec<String>,
    #[serde(deserialize_with = "null_as_default")]
    searches: Vec<String>,
    #[serde(deserialize_with = "null_as_default")]
    options: Vec<String>,
}

impl From<RuntimeDns> for Dns {
    fn from(dns: RuntimeDns) -> Self {
        let mut to = Self::default();
        (to.nameservers, to.search, to.options) = (dns.servers, dns.searches, dns.options);
        to
    }
}

impl RuntimeConfig {
    fn from_value(value: Option<&Value>) -> Result<Self, Error> {
        let object = match value {
            None | Some(Value::Null) => return Ok(Self::default()),
            Some(Value::Object(object)) => object.clone(),
            Some(other) => {
                return Err(invalid(format!("runtimeConfig is {}, not an object", kind(other))));
            }
        };
        let in_runtime = |error: Error| {
            invalid(format!("runtimeConfig: {}", error.msg())).with_details(error.details())
        };
        let mac = field::<String>(&object, "mac").map_err(in_runtime)?;
        let ips: Option<Vec<String>> = field(&object, "ips").map_err(in_runtime)?;
        let ips = ips
            .unwrap_or_default()
            .iter()
            .map(|text| {
                text.parse().map_err(|error: ipnetwork::IpNetworkError| {
                    invalid(format!("runtimeConfig: ips: {text:?}: {error}"))
                })
            })
            .collect::<Result<_, _>>()?;
        let dns: Option<RuntimeDns> = field(&object, "dns").map_err(in_runtime)?;
        let pod_annotations: Option<BTreeMap<String, String>> =
            field(&object, "io.kubernetes.cri.pod-annotations").map_err(in_runtime)?;
        Ok(Self {
            mac: mac.filter(|mac| !mac.is_empty()),
            ips,
            dns: dns.map(Dns::from),
            pod_annotations: pod_annotations.unwrap_or_default(),
            object,
        })
    }
}

/// Reads the object without looking into it.
pub(crate) fn decode(bytes: &[u8]) -> Result<Object, Error> {
    if bytes.len() > NetworkConfig::MAX_LEN {
        return Err(invalid(format!(
            "the network configuration is longer than {} bytes",
            NetworkConfig::MAX_LEN
        )));
    }
    parse_object(bytes).map_err(|error| {
        Error::new(Code::DECODING_FAILURE, "the network configuration is no usable JSON")
            .with_source(&error)
    })
}

/// What stands under `cniVersion`, known or not. Missing, null and empty are [`None`].
pub(crate) fn stated_version(object: &Object) -> Option<&str> {
    object.get("cniVersion")?.as_str().filter(|text| !text.is_empty())
}

pub(crate) fn version_of(object: &Object) -> Result<SpecVersion, Error> {
    if let Some(other) = object.get("cniVersion")
        && !(other.is_null() || other.is_string())
    {
        let msg = format!("cniVersion is {}, not a string", kind(other));
        return Err(Error::new(Code::DECODING_FAILURE, msg));
    }
    let Some(text) = stated_version(object) else { return Ok(SpecVersion::UNSTATED) };
    text.parse().map_err(|error| {
        let msg = format!("cniVersion {text:?} is not supported: {error}");
        Error::new(Code::INCOMPATIBLE_CNI_VERSION, msg)
    })
}

/// A key that may be missing or null.
fn field<T: DeserializeOwned>(object: &Object, key: &str) -> Result<Option<T>, Error> {
    let Some(value) = object.get(key) else { return Ok(None) };
    Option::<T>::deserialize(value).map_err(|error| invalid(format!("{key} {value}: {error}")))
}

pub(crate) fn invalid(msg: impl Into<String>) -> Error {
    Error::new(Code::INVALID_NETWORK_CONFIG, msg)
}
