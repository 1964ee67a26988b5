//! The runtime's side: what containerd and podman do, and the reference library (libcni) for them.
//!
//! [`networks`] and [`network`] read the administrator's configuration, a [`Runtime`] runs it for
//! an attachment: ADD forward with each plugin's result handed to the next, DEL backward, CHECK,
//! STATUS and GC, with what ADD resulted in remembered in a [`Cache`] that other runtimes read as
//! well.
//!
//! ```no_run
//! use podwire_cni::runtime::{Cache, Request, Runtime, network};
//!
//! let network = network("/etc/cni/net.d".as_ref(), "dbnet")?;
//! let runtime = Runtime::new(["/opt/cni/bin".into()], Cache::new("/var/lib/example/cni"));
//! let mut request = Request::new("c1".parse()?, "eth0".parse()?);
//! request.netns = Some("/run/netns/c1".parse()?);
//!
//! let success = runtime.add(&network, &request)?;
//! println!("{:?}", success.ips);
//! runtime.check(&network, &request)?;
//! runtime.del(&network, &request)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What it does not
//!
//! It makes no network namespace, and knows no containers. It keeps no locks: as the specification
//! has it, there must be one operation at a time for a container; for different ones there may be
//! any number.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::exec::{DEFAULT_TIMEOUT, Executable, Invocation};
use crate::json::parse_object;
use crate::types::{Object, Success};
use crate::{Args, Attachment, Code, Command, ContainerId, Error, IfName, Netns, SpecVersion};

mod cache;
mod folder;
mod network;

pub use cache::{Cache, DEFAULT_CACHE, Entry};
pub use folder::{Found, network, networks};
pub use network::Network;
use network::PluginConfig;

/// The parameters of an attachment.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Request {
    /// The container's id.
    pub container_id: ContainerId,
    /// The container's network namespace. ADD and CHECK need it; DEL works without when the
    /// namespace is gone. What libcni before 1.2 has remembered has none.
    pub netns: Option<Netns>,
    /// The name that the interface has in the container.
    pub ifname: IfName,
    /// What is passed on to all plugins in `CNI_ARGS`.
    pub args: Args,
    /// Values by capability, such as `portMappings`. A plugin gets those that it declares.
    pub capabilities: Object,
}

impl Request {
    /// An attachment without anything special; the rest is set in its fields.
    #[must_use]
    pub fn new(container_id: ContainerId, ifname: IfName) -> Self {
        let (args, capabilities) = (Args::default(), Object::new());
        Self { container_id, netns: None, ifname, args, capabilities }
    }

    /// What identifies it.
    #[must_use]
    pub fn attachment(&self) -> Attachment {
        Attachment { container_id: self.container_id.clone(), ifname: self.ifname.clone() }
    }

    fn require_netns(&self, command: Command) -> Result<(), Error> {
        if self.netns.is_some() {
            return Ok(());
        }
        let msg = format!("{command} needs a network namespace (CNI_NETNS)");
        Err(Error::new(Code::INVALID_ENVIRONMENT_VARIABLES, msg))
    }

    fn invocation(&self, command: Command, path: &[PathBuf]) -> Invocation {
        let mut invocation = Invocation::new(command, path);
        invocation.container_id = Some(self.container_id.clone());
        invocation.netns.clone_from(&self.netns);
        invocation.ifname = Some(self.ifname.clone());
        invocation.args = self.args.clone();
        invocation
    }

    /// The same, with what was said at the ADD and is not said again: CHECK and DEL must have the
    /// parameters that it had.
    fn completed(&self, entry: Option<&Entry>) -> Self {
        let mut request = self.clone();
        if let Some(Entry { request: past, .. }) = entry {
            if request.args == Args::default() {
                request.args = past.args.clone();
            }
            if request.capabilities.is_empty() {
                request.capabilities = past.capabilities.clone();
            }
        }
        request
    }
}

/// How far an operation went that not every network has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Extent {
    /// Every plugin was called.
    Whole,
    /// None: the network's version does not have the command. GC has removed the attachments that
    /// are in the cache all the same.
    NotInVersion,
    /// None: the network's configuration disables it.
    Disabled,
}

/// What a GC did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Collected {
    /// The attachments that were in the cache and not valid; DEL was called for them.
    pub removed: Vec<Attachment>,
    /// Whether the plugins were asked to look for more.
    pub extent: Extent,
}

/// Runs networks. Everything it looks at is given to it: where plugins are, where it remembers.
#[derive(Clone, Debug)]
pub struct Runtime {
    path: Vec<PathBuf>,
    cache: Cache,
    timeout: Duration,
}

impl Runtime {
    /// A runtime that looks for plugins in the folders of `path`, in this order.
    pub fn new(path: impl IntoIterator<Item = PathBuf>, cache: Cache) -> Self {
        Self { path: path.into_iter().collect(), cache, timeout: DEFAULT_TIMEOUT }
    }

    /// Gives a plugin another time per call than [`DEFAULT_TIMEOUT`].
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// What is remembered of attachments.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Attaches a container to a network: calls its plugins with ADD, one after another, and
    /// remembers the result.
    ///
    /// If a plugin fails, all are called with DEL, in reverse order, before this returns. A missing
    /// plugin is noticed before any is called.
    ///
    /// # Errors
    ///
    /// The plugin's; code 7 if a plugin is missing, or if the attachment is remembered, and so must
    /// be removed first; code 4 without a namespace; code 6 if a result cannot be read. DELs that
    /// failed as well are told in the details.
    pub fn add(&self, network: &Network, request: &Request) -> Result<Success, Error> {
        request.require_netns(Command::Add)?;
        let attachment = request.attachment();
        if self.cache.entry(network.name(), &attachment)?.is_some() {
            let msg = format!("{attachment} is attached to {} already", network.name());
            let hint = "a DEL must come between two ADDs";
            return Err(Error::new(Code::INVALID_NETWORK_CONFIG, msg).with_details(hint));
        }
        let mut plugins = Vec::with_capacity(network.configs().len());
        for config in network.configs() {
            plugins.push((Executable::find(&config.plugin, &self.path)?, config));
        }
        self.add_each(network, request, &plugins)
            .and_then(|(success, result)| {
                self.cache.store(&Entry::new(network, request, result))?;
                Ok(success)
            })
            .map_err(|error| self.undo(network, request, error))
    }

    fn add_each(
        &self,
        network: &Network,
        request: &Request,
        plugins: &[(Executable, &PluginConfig)],
    ) -> Result<(Success, Value), Error> {
        let invocation = request.invocation(Command::Add, &self.path);
        let mut last = None;
        for (executable, config) in plugins {
            let prev_result = last.as_ref().map(|(_, result)| result);
            let object = network.execution(config, prev_result, &request.capabilities);
            let stdout = executable.call(&invocation, &object, self.timeout)?;
            let result = parse_object(&stdout)
                .map_err(|error| executable.unreadable(&error))
                .map(Value::Object)?;
            let read = in_version(result, network.version());
            last = Some(read.map_err(|error| executable.unreadable(&error))?);
        }
        last.ok_or_else(|| Error::new(Code::INVALID_NETWORK_CONFIG, "there are no plugins"))
    }

    /// Calls every plugin with DEL, whatever the others say, and gives the error with what became
    /// of that.
    fn undo(&self, network: &Network, request: &Request, error: Error) -> Error {
        let mut error = error;
        for config in network.configs().iter().rev() {
            if let Err(second) = self.call(network, config, Command::Del, request, None) {
                error = error.with_more(&format!("undoing the ADD failed as well: {second}"));
            }
        }
        error
    }

    /// Detaches a container from a network: calls its plugins with DEL, in reverse order, with the
    /// remembered result from version 0.4.0 on, and forgets it.
    ///
    /// One that is not attached, or not remembered, is no error. Arguments and capabilities that
    /// the request does not have are those of the ADD.
    ///
    /// # Errors
    ///
    /// That of the first plugin that fails; the rest is not called then, and the attachment stays
    /// remembered: DEL again.
    pub fn del(&self, network: &Network, request: &Request) -> Result<(), Error> {
        let attachment = request.attachment();
        // What cannot be read must not keep anything from being released.
        let entry = self.cache.entry(network.name(), &attachment).ok().flatten();
        let request = request.completed(entry.as_ref());
        let prev_result = entry
            .filter(|_| network.version().has(Command::Check))
            .and_then(|entry| in_version(entry.result?, network.version()).ok())
            .map(|(_, result)| result);
        for config in network.configs().iter().rev() {
            self.call(network, config, Command::Del, &request, prev_result.as_ref())?;
        }
        self.cache.remove(network.name(), &attachment)
    }

    /// Asks every plugin whether an attachment is as its ADD left it.
    ///
    /// # Errors
    ///
    /// That of the first plugin that finds something; code 1 if the network's version has no CHECK;
    /// code 7 if no ADD is remembered; code 4 without a namespace.
    pub fn check(&self, network: &Network, request: &Request) -> Result<Extent, Error> {
        let version = network.version();
        if !version.has(Command::Check) {
            let msg = format!("network {}: version {version} has no CHECK", network.name());
            return Err(Error::new(Code::INCOMPATIBLE_CNI_VERSION, msg));
        }
        if network.is_check_disabled() {
            return Ok(Extent::Disabled);
        }
        request.require_netns(Command::Check)?;
        let attachment = request.attachment();
        let entry = self.cache.entry(network.name(), &attachment)?;
        let request = request.completed(entry.as_ref());
        let result = entry.and_then(|entry| entry.result).ok_or_else(|| {
            let msg = format!("no ADD of {attachment} to {} is remembered", network.name());
            Error::new(Code::INVALID_NETWORK_CONFIG, msg)
        })?;
        let (_, prev_result) = in_version(result, version)?;
        for config in network.configs() {
            self.call(network, config, Command::Check, &request, Some(&prev_result))?;
        }
        Ok(Extent::Whole)
    }

    /// Asks every plugin whether it could service an ADD; networks of versions before 1.1.0 cannot
    /// be asked.
    ///
    /// # Errors
    ///
    /// That of the first plugin that could not.
    pub fn status(&self, network: &Network) -> Result<Extent, Error> {
        if !network.version().has(Command::Status) {
            return Ok(Extent::NotInVersion);
        }
        let invocation = Invocation::new(Command::Status, &self.path);
        for config in network.configs() {
            let object = network.execution(config, None, &Object::new());
            Executable::find(&config.plugin, &self.path)?.call(
                &invocation,
                &object,
                self.timeout,
            )?;
        }
        Ok(Extent::Whole)
    }

    /// Removes every attachment to a network that is not `valid`: calls DEL for those that are
    /// remembered, in any version, then has every plugin look for what nobody remembers, from
    /// version 1.1.0 on.
    ///
    /// `valid` must name the attachments of everyone who uses the network. Those of another runtime
    /// are lost otherwise, for which `disableGC` is in the configuration.
    ///
    /// # Errors
    ///
    /// Everything that failed, after everything was tried, with the code of the first.
    pub fn gc(&self, network: &Network, valid: &[Attachment]) -> Result<Collected, Error> {
        let mut collected = Collected { removed: Vec::new(), extent: Extent::Disabled };
        if network.is_gc_disabled() {
            return Ok(collected);
        }
        let mut failures = Vec::new();
        for found in self.cache.entries()? {
            let Ok(entry) = found.content else { continue };
            let attachment = entry.request.attachment();
            if entry.network != *network.name() || valid.contains(&attachment) {
                continue;
            }
            match self.del(network, &entry.request) {
                Ok(()) => collected.removed.push(attachment),
                Err(error) => failures.push(error),
            }
        }
        collected.extent = Extent::NotInVersion;
        if network.version().has(Command::Gc) {
            collected.extent = Extent::Whole;
            failures.extend(self.gc_each(network, valid));
        }
        let Some(first) = failures.first() else { return Ok(collected) };
        let more = failures.iter().skip(1).map(ToString::to_string);
        Err(more.fold(first.clone(), |error, one| error.with_more(&one)))
    }

    fn gc_each(&self, network: &Network, valid: &[Attachment]) -> Vec<Error> {
        let invocation = Invocation::new(Command::Gc, &self.path);
        let valid: Value = valid
            .iter()
            .map(|one| {
                json!({"containerID": one.container_id.as_str(), "ifname": one.ifname.as_str()})
            })
            .collect();
        let call = |config: &PluginConfig| {
            let mut object = network.execution(config, None, &Object::new());
            for key in crate::config::VALID_ATTACHMENTS {
                object.insert(key.into(), valid.clone());
            }
            Executable::find(&config.plugin, &self.path)?.call(&invocation, &object, self.timeout)
        };
        network.configs().iter().filter_map(|config| call(config).err()).collect()
    }

    /// Sees whether all plugins of a network are there and support its version.
    ///
    /// # Errors
    ///
    /// Everything that is wrong, with the code of the first: 7 if a plugin is missing, 1 if it does
    /// not support the version.
    pub fn validate(&self, network: &Network) -> Result<(), Error> {
        let version = network.version();
        let mut problem: Option<Error> = None;
        for config in network.configs() {
            let outcome = Executable::find(&config.plugin, &self.path).and_then(|plugin| {
                let supported = self.versions(&plugin)?;
                if supported.contains(&version) {
                    return Ok(());
                }
                let list: Vec<&str> = supported.iter().map(|one| one.as_str()).collect();
                let msg = format!("plugin {} does not support version {version}", config.plugin);
                Err(Error::new(Code::INCOMPATIBLE_CNI_VERSION, msg)
                    .with_details(format!("it supports {}", list.join(", "))))
            });
            if let Err(error) = outcome {
                problem = Some(match problem {
                    None => error,
                    Some(first) => first.with_more(&error.to_string()),
                });
            }
        }
        problem.map_or(Ok(()), Err)
    }

    /// Looks up a plugin.
    ///
    /// # Errors
    ///
    /// Code 7 if it is in none of the folders.
    pub fn find(&self, plugin: &str) -> Result<Executable, Error> {
        Executable::find(plugin, &self.path)
    }

    /// The versions of the specification that a plugin supports, of those that this crate knows.
    ///
    /// # Errors
    ///
    /// The plugin's; code 6 if its answer cannot be read.
    pub fn versions(&self, plugin: &Executable) -> Result<Vec<SpecVersion>, Error> {
        let mut invocation = Invocation::new(Command::Version, &["dummy".into()]);
        // Plugins built with the reference library before 0.3 insist on these, for VERSION too.
        invocation.netns = "dummy".parse().ok();
        invocation.ifname = "dummy".parse().ok();
        let newest = SpecVersion::ALL.iter().max().map(|version| version.as_str());
        let input = Object::from_iter([("cniVersion".to_owned(), json!(newest))]);
        let stdout = match plugin.call(&invocation, &input, self.timeout) {
            Ok(stdout) => stdout,
            // What plugins of 0.1.0 say, which has no VERSION.
            Err(error) if error.msg().contains("unknown CNI_COMMAND") => {
                return Ok(vec![SpecVersion::V0_1_0]);
            }
            Err(error) => return Err(error),
        };
        let object = parse_object(&stdout).map_err(|error| plugin.unreadable(&error))?;
        let supported = object.get("supportedVersions").and_then(Value::as_array);
        let supported = supported.ok_or_else(|| {
            let msg = format!("plugin {}: VERSION says no supportedVersions", plugin.name());
            Error::new(Code::DECODING_FAILURE, msg)
        })?;
        Ok(supported.iter().filter_map(|one| one.as_str()?.parse().ok()).collect())
    }

    fn call(
        &self,
        network: &Network,
        config: &PluginConfig,
        command: Command,
        request: &Request,
        prev_result: Option<&Value>,
    ) -> Result<(), Error> {
        let object = network.execution(config, prev_result, &request.capabilities);
        Executable::find(&config.plugin, &self.path)?
            .call(&request.invocation(command, &self.path), &object, self.timeout)
            .map(drop)
    }
}

/// A result as it is read, and as it stands in the given version: untouched if it is in that one,
/// since it may say more than this crate knows of.
fn in_version(result: Value, version: SpecVersion) -> Result<(Success, Value), Error> {
    let success = Success::from_value(result.clone(), version)?;
    let stated = result.get("cniVersion").and_then(Value::as_str).unwrap_or_default();
    if stated.is_empty() || stated == version.as_str() {
        return Ok((success, result));
    }
    let converted = success.to_value(version);
    Ok((success, converted))
}
