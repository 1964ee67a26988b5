use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::folder::{self, read};
use crate::config::{decode, invalid, stated_version, version_of};
use crate::exec::require_file_name;
use crate::json::kind;
use crate::types::Object;
use crate::{Code, Error, NetworkName, SpecVersion};

/// A network as the administrator configures it: a list of plugins, checked.
///
/// ```
/// use podwire_cni::runtime::Network;
///
/// let network = Network::parse(
///     br#"{
///         "cniVersion": "1.0.0", "name": "dbnet",
///         "plugins": [
///             {"type": "ptp", "ipam": {"type": "host-local", "subnet": "10.1.0.0/16"}},
///             {"type": "portmap", "capabilities": {"portMappings": true}}
///         ]
///     }"#,
/// )?;
/// assert_eq!(network.plugins().collect::<Vec<_>>(), ["ptp", "portmap"]);
/// # Ok::<(), podwire_cni::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    name: NetworkName,
    version: SpecVersion,
    check_disabled: bool,
    gc_disabled: bool,
    plugins: Vec<PluginConfig>,
    text: Vec<u8>,
}

/// One plugin of a list.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PluginConfig {
    pub(super) plugin: String,
    capabilities: BTreeSet<String>,
    object: Object,
}

impl Network {
    /// Reads a list, what a `.conflist` file holds, whose plugins are all in it.
    ///
    /// Of `cniVersion` and `cniVersions` together, the newest that this crate knows is chosen.
    ///
    /// # Errors
    ///
    /// Code 6 if it is no JSON object without repeated keys; code 1 if no stated version is known;
    /// code 7 if a key of the protocol is missing or malformed, or there is no plugin.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        Self::of_list(decode(bytes)?, bytes, |_| Ok(Vec::new()))
    }

    /// Reads the configuration of a single plugin, what a `.conf` file holds, as a list of one.
    ///
    /// # Errors
    ///
    /// As [`parse`](Self::parse).
    pub fn parse_single(bytes: &[u8]) -> Result<Self, Error> {
        let object = decode(bytes)?;
        if object.contains_key("plugins") && !object.contains_key("type") {
            return Err(invalid("this is a list of plugins: its file must be named *.conflist"));
        }
        // Checks name and version.
        let config = crate::NetworkConfig::from_object(object.clone())?;
        let list = json!({
            "cniVersion": config.version(), "name": config.name().as_str(), "plugins": [object],
        });
        let text = serde_json::to_vec(&list).map_err(|error| Error::internal(&error))?;
        Ok(Self {
            name: config.name().clone(),
            version: config.version(),
            check_disabled: false,
            gc_disabled: false,
            plugins: vec![PluginConfig::of(object)?],
            text,
        })
    }

    /// Reads a file: `.conflist` as a list, `.conf` and `.json` as one plugin.
    ///
    /// Unless a list says `loadOnlyInlinedPlugins`, the plugins in `<network>/*.conf` beside the
    /// file follow its own, in the order of their files' names.
    ///
    /// # Errors
    ///
    /// As [`parse`](Self::parse), and code 5 if a file cannot be read. The message names the file.
    pub fn from_file(file: &Path) -> Result<Self, Error> {
        let bytes = read(file)?;
        let network = if file.extension().is_some_and(|extension| extension == "conflist") {
            let beside = |name: &NetworkName| {
                folder_plugins(&file.parent().unwrap_or(Path::new("")).join(name.as_str()))
            };
            decode(&bytes).and_then(|object| Self::of_list(object, &bytes, beside))
        } else {
            Self::parse_single(&bytes)
        };
        network.map_err(|error| in_file(file, &error))
    }

    fn of_list(
        object: Object,
        bytes: &[u8],
        beside: impl FnOnce(&NetworkName) -> Result<Vec<PluginConfig>, Error>,
    ) -> Result<Self, Error> {
        let name: NetworkName = match object.get("name") {
            None | Some(Value::Null) => return Err(invalid("name is missing")),
            Some(Value::String(text)) => {
                text.parse().map_err(|error| invalid(format!("name {text:?}: {error}")))?
            }
            Some(other) => {
                return Err(invalid(format!("name is {}, not a string", kind(other))));
            }
        };
        let version = list_version(&object)?;
        let check_disabled = truth(&object, "disableCheck")?;
        let gc_disabled = truth(&object, "disableGC")?;
        let only_inlined = truth(&object, "loadOnlyInlinedPlugins")?;
        let mut plugins = match object.get("plugins") {
            None | Some(Value::Null) if only_inlined => {
                return Err(invalid("loadOnlyInlinedPlugins is true, and plugins is missing"));
            }
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(list)) if list.is_empty() => {
                return Err(invalid("plugins is empty"));
            }
            Some(Value::Array(list)) => list
                .iter()
                .enumerate()
                .map(|(place, value)| inlined(place, value))
                .collect::<Result<_, _>>()?,
            Some(other) => {
                return Err(invalid(format!("plugins is {}, not an array", kind(other))));
            }
        };
        let mut text = bytes.to_vec();
        if !only_inlined {
            let more = beside(&name)?;
            if !more.is_empty() {
                plugins.extend(more);
                text = whole(object, &plugins)?;
            }
        }
        if plugins.is_empty() {
            return Err(invalid("plugins is missing"));
        }
        Ok(Self { name, version, check_disabled, gc_disabled, plugins, text })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &NetworkName {
        &self.name
    }

    /// The version of the specification that its plugins are called in.
    #[must_use]
    pub fn version(&self) -> SpecVersion {
        self.version
    }

    /// The names of its plugins, in the order of ADD.
    pub fn plugins(&self) -> impl Iterator<Item = &str> {
        self.plugins.iter().map(|plugin| plugin.plugin.as_str())
    }

    /// The capabilities that some plugin of it declares: what [`Request::capabilities`] may be
    /// about.
    ///
    /// [`Request::capabilities`]: super::Request::capabilities
    #[must_use]
    pub fn capabilities(&self) -> BTreeSet<&str> {
        self.plugins.iter().flat_map(|plugin| &plugin.capabilities).map(String::as_str).collect()
    }

    /// `disableCheck`: CHECK succeeds without calling a plugin.
    #[must_use]
    pub fn is_check_disabled(&self) -> bool {
        self.check_disabled
    }

    /// `disableGC`: GC does nothing, because another runtime has attachments in this network.
    #[must_use]
    pub fn is_gc_disabled(&self) -> bool {
        self.gc_disabled
    }

    /// The list as text, with the plugins that came from its folder: [`parse`](Self::parse) reads
    /// the same network from it.
    #[must_use]
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// What each plugin gets to read, in the order of ADD: with its name the configuration that is
    /// derived from the list, from the result that it is given, if any, and from the values of
    /// [`Request::capabilities`].
    ///
    /// [`Request::capabilities`]: super::Request::capabilities
    pub fn executions(
        &self,
        prev_result: Option<&Value>,
        capabilities: &Object,
    ) -> impl Iterator<Item = (&str, Object)> {
        self.plugins.iter().map(move |plugin| {
            (plugin.plugin.as_str(), self.execution(plugin, prev_result, capabilities))
        })
    }

    pub(super) fn configs(&self) -> &[PluginConfig] {
        &self.plugins
    }

    /// What one plugin gets to read: section 3 of the specification, "Deriving execution
    /// configuration from plugin configuration".
    pub(super) fn execution(
        &self,
        plugin: &PluginConfig,
        prev_result: Option<&Value>,
        capabilities: &Object,
    ) -> Object {
        let mut object = plugin.object.clone();
        object.remove("capabilities");
        // Not for an administrator to say.
        object.remove("prevResult");
        object.insert("cniVersion".into(), self.version.as_str().into());
        object.insert("name".into(), self.name.as_str().into());
        let wanted: Object = capabilities
            .iter()
            .filter(|(name, _)| plugin.capabilities.contains(*name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        if !wanted.is_empty() {
            object.insert("runtimeConfig".into(), wanted.into());
        }
        if let Some(result) = prev_result {
            object.insert("prevResult".into(), result.clone());
        }
        object
    }
}

impl PluginConfig {
    fn of(object: Object) -> Result<Self, Error> {
        let plugin = match object.get("type") {
            None | Some(Value::Null) => return Err(invalid("type is missing")),
            Some(Value::String(name)) => name.clone(),
            Some(other) => {
                return Err(invalid(format!("type is {}, not a string", kind(other))));
            }
        };
        require_file_name(&plugin)?;
        let mut capabilities = BTreeSet::new();
        match object.get("capabilities") {
            None | Some(Value::Null) => {}
            Some(Value::Object(stated)) => {
                for (name, value) in stated {
                    match value {
                        Value::Bool(true) => {
                            capabilities.insert(name.clone());
                        }
                        Value::Bool(false) => {}
                        other => {
                            let what = kind(other);
                            return Err(invalid(format!(
                                "capabilities: {name} is {what}, not a truth value"
                            )));
                        }
                    }
                }
            }
            Some(other) => {
                return Err(invalid(format!("capabilities is {}, not an object", kind(other))));
            }
        }
        Ok(Self { plugin, capabilities, object })
    }
}

fn inlined(place: usize, value: &Value) -> Result<PluginConfig, Error> {
    let at = |error: &Error| {
        let msg = format!("plugins[{place}]: {}", error.msg());
        Error::new(error.code(), msg).with_details(error.details())
    };
    let Value::Object(object) = value else {
        return Err(at(&invalid(format!("it is {}, not an object", kind(value)))));
    };
    PluginConfig::of(object.clone()).map_err(|error| at(&error))
}

fn folder_plugins(folder: &Path) -> Result<Vec<PluginConfig>, Error> {
    let files = folder::files(folder, &["conf"])?;
    let plugin = |file: &PathBuf| {
        let config = decode(&read(file)?).and_then(PluginConfig::of);
        config.map_err(|error| in_file(file, &error))
    };
    files.iter().map(plugin).collect()
}

/// The list with all its plugins, so that it can be read without its folder.
fn whole(mut object: Object, plugins: &[PluginConfig]) -> Result<Vec<u8>, Error> {
    let objects = plugins.iter().map(|plugin| Value::Object(plugin.object.clone())).collect();
    object.insert("plugins".into(), objects);
    object.insert("loadOnlyInlinedPlugins".into(), true.into());
    serde_json::to_vec(&object).map_err(|error| Error::internal(&error))
}

/// The newest known version of those that a list states.
fn list_version(object: &Object) -> Result<SpecVersion, Error> {
    let listed = match object.get("cniVersions") {
        None | Some(Value::Null) => return version_of(object),
        Some(Value::Array(listed)) => listed,
        Some(other) => {
            return Err(invalid(format!("cniVersions is {}, not an array", kind(other))));
        }
    };
    let mut stated: Vec<&str> = Vec::with_capacity(listed.len() + 1);
    for value in listed {
        match value {
            Value::String(text) if is_version(text) => stated.push(text),
            other => return Err(invalid(format!("cniVersions: {other} is not a version"))),
        }
    }
    if stated_version(object).is_none() && stated.is_empty() {
        return version_of(object);
    }
    stated.extend(stated_version(object));
    let newest = stated.iter().filter_map(|text| text.parse::<SpecVersion>().ok()).max();
    newest.ok_or_else(|| {
        let msg = format!("none of the versions {} is supported", stated.join(", "));
        let known: Vec<&str> = SpecVersion::ALL.iter().map(|version| version.as_str()).collect();
        Error::new(Code::INCOMPATIBLE_CNI_VERSION, msg)
            .with_details(format!("supported are {}", known.join(", ")))
    })
}

fn is_version(text: &str) -> bool {
    let core = text.split(['-', '+']).next().unwrap_or_default();
    let parts: Vec<&str> = core.split('.').collect();
    let number = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    parts.len() == 3 && parts.iter().all(number)
}

/// The specification had these as strings before it had them as truth values.
fn truth(object: &Object, key: &str) -> Result<bool, Error> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => Err(invalid(format!("{key} is {other}, not true or false"))),
    }
}

fn in_file(file: &Path, error: &Error) -> Error {
    Error::new(error.code(), format!("{}: {}", file.display(), error.msg()))
        .with_details(error.details())
}
