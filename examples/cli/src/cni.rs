//! Networks and their plugins, called as a container runtime calls them: for those who write or
//! debug plugins, whoever's they are.

use std::env;
use std::fmt::Write as _;
use std::path::{Path, PathBuf, absolute};
use std::time::Duration;

use clap::{Args, Subcommand};
use podwire_cni::exec::Executable;
use podwire_cni::runtime::{
    Cache, DEFAULT_CACHE, Entry, Extent, Found, Network, Request, Runtime, network, networks,
};
use podwire_cni::types::Object;
use podwire_cni::{Attachment, Code, ContainerId, Error, IfName, Netns};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha512};

use crate::failure::Failure;
use crate::output::Page;
use crate::table::{BAD, Cell, GOOD, Table, printable};

const DEFAULT_CONF_DIR: &str = "/etc/cni/net.d";
const DEFAULT_BIN_DIRS: [&str; 2] = ["/opt/cni/bin", "/usr/lib/cni"];
const BIN_DIR_HELP: &str = "Folder of plugins; may be said several times [default: those of \
                            CNI_PATH, or /opt/cni/bin and /usr/lib/cni]";
const NETNS_FOLDER: &str = "/run/netns";

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    places: Places,
    #[command(subcommand)]
    command: Command,
}

/// Where configurations, plugins and the memory of attachments are.
#[derive(Debug, Args)]
struct Places {
    /// Folder of the network configurations.
    #[arg(long, value_name = "DIR", global = true, default_value = DEFAULT_CONF_DIR)]
    conf_dir: PathBuf,
    #[arg(long, value_name = "DIR", global = true, help = BIN_DIR_HELP)]
    bin_dir: Vec<PathBuf>,
    /// Folder in which attachments are remembered; the default is the one of most runtimes.
    #[arg(long, value_name = "DIR", global = true, default_value = DEFAULT_CACHE)]
    cache_dir: PathBuf,
    /// How long one plugin may take.
    #[arg(long, value_name = "SECONDS", global = true, default_value_t = 60)]
    timeout: u32,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The configured networks, and who is attached to them.
    #[command(visible_alias = "ls")]
    List,
    /// Attaches a network namespace to a network, and prints the result.
    Add(Target),
    /// Detaches a network namespace from a network.
    Del(Target),
    /// Asks the plugins whether an attachment is as it was made.
    Check(Target),
    /// Asks the plugins whether they could attach something.
    Status {
        /// The network's name.
        network: String,
    },
    /// Removes what is left of attachments whose network namespace is gone.
    ///
    /// The plugins are told to keep the attachments that are remembered and whose namespace is
    /// there, or is not known, and to remove everything else of this network: what another runtime
    /// remembers elsewhere, too.
    Gc {
        /// The network's name.
        network: String,
        /// Keep this attachment, too; may be said several times.
        #[arg(long, value_name = "CONTAINER/IFNAME", value_parser = attachment)]
        keep: Vec<Attachment>,
        /// Keep nothing but what --keep names.
        #[arg(long)]
        all: bool,
    },
    /// The plugins of a network, and the versions of the specification that they support.
    Version {
        /// The network's name.
        network: String,
    },
}

/// What is attached to what.
#[derive(Debug, Args)]
struct Target {
    /// The network's name.
    network: String,
    /// The network namespace: a path, or a name under /run/netns.
    netns: String,
    /// The container's id [default: made of the namespace's path, as cnitool does]
    #[arg(long, value_name = "ID")]
    container_id: Option<ContainerId>,
    /// The interface's name in the namespace.
    #[arg(long, value_name = "NAME", default_value = "eth0")]
    ifname: IfName,
    #[arg(
        long,
        value_name = "KEY=VALUE",
        value_parser = pair,
        help = "What to pass on in CNI_ARGS; may be said several times"
    )]
    args: Vec<(String, String)>,
    /// Values of capabilities, such as {"portMappings": [...]}; may be said several times.
    #[arg(long, value_name = "JSON", value_parser = object)]
    capability: Vec<Object>,
}

pub(crate) fn run(options: &Options) -> Result<Page, Failure> {
    let places = &options.places;
    match &options.command {
        Command::List => list(places),
        Command::Add(target) => add(places, target),
        Command::Del(target) => del(places, target),
        Command::Check(target) => check(places, target),
        Command::Status { network } => status(places, network),
        Command::Gc { network, keep, all } => {
            gc(places, network, keep, if *all { Keep::Named } else { Keep::Living })
        }
        Command::Version { network } => version(places, network),
    }
}

fn list(places: &Places) -> Result<Page, Failure> {
    let found = networks(&places.conf_dir)?;
    let entries: Vec<Entry> = remembered(places)?;
    let mut table = Table::new()
        .text("NETWORK")
        .text("VERSION")
        .text("PLUGINS")
        .text("CAPABILITIES")
        .number("ATTACHED")
        .text("FILE");
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for Found { file, content, .. } in &found {
        let network = match content {
            Ok(network) => network,
            Err(error) => {
                bad.push((file, error));
                continue;
            }
        };
        let plugins: Vec<&str> = network.plugins().collect();
        let capabilities: Vec<&str> = network.capabilities().into_iter().collect();
        let attached: Vec<&Request> = entries
            .iter()
            .filter(|entry| entry.network == *network.name())
            .map(|entry| &entry.request)
            .collect();
        let some = |text: String| Some(text).filter(|text| !text.is_empty());
        table.row([
            Cell::new(network.name()),
            Cell::new(network.version()),
            Cell::new(plugins.join(",")),
            Cell::optional(some(capabilities.join(","))),
            Cell::new(attached.len()),
            Cell::new(file.display()),
        ]);
        let attachments: Vec<Value> = attached
            .iter()
            .map(|request| {
                json!({
                    "container_id": request.container_id.as_str(),
                    "ifname": request.ifname.as_str(),
                    "netns": request.netns.as_ref().map(Netns::as_str),
                })
            })
            .collect();
        good.push(json!({
            "name": network.name().as_str(), "version": network.version(), "plugins": plugins,
            "capabilities": capabilities, "attachments": attachments, "file": file,
        }));
    }
    let mut text = if good.is_empty() {
        format!("no network is configured in {}\n", places.conf_dir.display())
    } else {
        table.to_string()
    };
    let mut problems = Vec::new();
    for (file, error) in bad {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{BAD}unusable:{BAD:#} {}", printable(&error.to_string()));
        problems.push(json!({"file": file, "message": error.to_string()}));
    }
    Page::new(&json!({"networks": good, "problems": problems}), text)
}

fn add(places: &Places, target: &Target) -> Result<Page, Failure> {
    let network = configured(places, &target.network)?;
    let runtime = runtime(places);
    require_plugins(&runtime, &network)?;
    let request = target.request(Need::Netns)?;
    let attachment = request.attachment();
    // Whatever it holds.
    if !matches!(runtime.cache().entry(network.name(), &attachment), Ok(None)) {
        let Target { network, netns, .. } = target;
        let message = format!("{attachment} is attached to {network} already");
        let hint = format!("podwire cni del {network} {netns}, with the same options, detaches it");
        return Err(Failure::new(message).with_hint(hint));
    }
    let success = runtime.add(&network, &request)?;
    let result = success.to_value(network.version());
    let text = format!("{result:#}\n");
    Page::new(&result, text)
}

fn del(places: &Places, target: &Target) -> Result<Page, Failure> {
    let runtime = runtime(places);
    let request = target.request(Need::Nothing)?;
    let network = match configured(places, &target.network) {
        Ok(network) => network,
        // Taken out of the configuration since: what it was at the ADD is remembered.
        Err(failure) => past(&runtime, target, &request).ok_or(failure)?,
    };
    require_plugins(&runtime, &network)?;
    runtime.del(&network, &request)?;
    let text = format!("{} is not attached to {} any more\n", request.attachment(), network.name());
    Page::new(&about(&network, &request), text)
}

fn check(places: &Places, target: &Target) -> Result<Page, Failure> {
    let network = configured(places, &target.network)?;
    let runtime = runtime(places);
    require_plugins(&runtime, &network)?;
    let request = target.request(Need::Netns)?;
    let attachment = request.attachment();
    if let Ok(None) = runtime.cache().entry(network.name(), &attachment) {
        let message = format!("{attachment} is not attached to {}", target.network);
        let hint = "podwire cni list -o json shows what is; --container-id, --ifname and \
                    --cache-dir must be those of the add";
        return Err(Failure::new(message).with_hint(hint));
    }
    let extent = runtime.check(&network, &request).map_err(|error| {
        Failure::from(error)
            .or_hint("podwire cni del, then podwire cni add make the attachment anew")
    })?;
    let text = match extent {
        Extent::Disabled => format!("{}: disableCheck is set: nothing was asked\n", network.name()),
        _ => format!("{attachment} in {} is {GOOD}as it was made{GOOD:#}\n", network.name()),
    };
    let mut data = about(&network, &request);
    data["extent"] = extent_name(extent).into();
    Page::new(&data, text)
}

fn status(places: &Places, name: &str) -> Result<Page, Failure> {
    let network = configured(places, name)?;
    let runtime = runtime(places);
    require_plugins(&runtime, &network)?;
    let extent = runtime.status(&network)?;
    let text = match extent {
        Extent::Whole => format!("{name} is {GOOD}ready{GOOD:#}\n"),
        _ => format!(
            "{name}: version {} has no STATUS: its plugins are there, and were not asked\n",
            network.version()
        ),
    };
    Page::new(&json!({"network": name, "ready": true, "extent": extent_name(extent)}), text)
}

/// Which attachments a GC keeps, besides those that are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// Those whose network namespace is there, or not known.
    Living,
    /// None.
    Named,
}

fn gc(places: &Places, name: &str, named: &[Attachment], keep: Keep) -> Result<Page, Failure> {
    let network = configured(places, name)?;
    let runtime = runtime(places);
    require_plugins(&runtime, &network)?;
    let mut valid = named.to_vec();
    if keep == Keep::Living {
        // Where libcni before 1.2 has attached something is not remembered: it may live.
        let living = |request: &Request| {
            request.netns.as_ref().is_none_or(|netns| Path::new(netns.as_str()).exists())
        };
        let entries = remembered(places)?.into_iter();
        let entries = entries.filter(|entry| entry.network == *network.name());
        valid.extend(
            entries.filter(|entry| living(&entry.request)).map(|entry| entry.request.attachment()),
        );
    }
    let collected = runtime.gc(&network, &valid)?;
    let mut text = String::new();
    for attachment in &collected.removed {
        let _ = writeln!(text, "removed {attachment}");
    }
    text.push_str(match collected.extent {
        Extent::Whole => "the plugins removed everything else that is not kept\n",
        Extent::Disabled => "disableGC is set: nothing was done\n",
        _ => "this version has no GC: only remembered attachments were looked at\n",
    });
    let names = |list: &[Attachment]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    let data = json!({
        "network": name, "removed": names(&collected.removed), "kept": names(&valid),
        "extent": extent_name(collected.extent),
    });
    Page::new(&data, text)
}

fn version(places: &Places, name: &str) -> Result<Page, Failure> {
    let network = configured(places, name)?;
    let runtime = runtime(places);
    let mut table = Table::new().text("PLUGIN").text("SUPPORTED").text("VERSIONS").text("FILE");
    let mut plugins = Vec::new();
    for plugin in network.plugins() {
        let (executable, asked) = match runtime.find(plugin) {
            Ok(executable) => (Some(executable.clone()), runtime.versions(&executable)),
            Err(error) => (None, Err(error)),
        };
        let file = executable.as_ref().map(|one| one.file().display());
        let (fits, versions) = match &asked {
            Ok(versions) => {
                let list: Vec<&str> = versions.iter().map(|one| one.as_str()).collect();
                (versions.contains(&network.version()), list.join(","))
            }
            Err(error) => (false, error.to_string()),
        };
        let answer = if fits { Cell::new("yes").styled(GOOD) } else { Cell::new("no").styled(BAD) };
        table.row([Cell::new(plugin), answer, Cell::new(&versions), Cell::optional(file)]);
        plugins.push(json!({
            "plugin": plugin, "supported": fits, "versions": asked.as_ref().ok(),
            "problem": asked.as_ref().err().map(ToString::to_string),
            "file": executable.as_ref().map(Executable::file),
        }));
    }
    let text = format!("{name} is of version {}\n\n{table}", network.version());
    Page::new(&json!({"network": name, "version": network.version(), "plugins": plugins}), text)
}

impl Target {
    fn request(&self, need: Need) -> Result<Request, Failure> {
        let path = if self.netns.contains('/') {
            absolute(&self.netns)?
        } else {
            Path::new(NETNS_FOLDER).join(&self.netns)
        };
        let path = path
            .to_str()
            .ok_or_else(|| Failure::new(format!("the path {} is not UTF-8", path.display())))?;
        let there = Path::new(path).exists();
        if need == Need::Netns && !there {
            return Err(Failure::new(format!("there is no network namespace at {path}"))
                .with_hint("ip netns add makes one; ip netns list shows those with a name"));
        }
        let container_id = match &self.container_id {
            Some(id) => id.clone(),
            None => derived_id(path)?,
        };
        let mut request = Request::new(container_id, self.ifname.clone());
        if there {
            request.netns = path.parse().ok();
        }
        request.args = podwire_cni::Args::from_pairs(self.args.clone())?;
        request.capabilities = self
            .capability
            .iter()
            .flatten()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        Ok(request)
    }
}

/// What an operation cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Netns,
    Nothing,
}

/// As cnitool derives it, so that each can detach what the other has attached.
fn derived_id(netns: &str) -> Result<ContainerId, Failure> {
    let digest = Sha512::digest(netns);
    let hex = digest.iter().take(10).fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    format!("cnitool-{hex}").parse().map_err(|error: podwire_cni::InvalidName| Failure::of(&error))
}

fn runtime(places: &Places) -> Runtime {
    let said = !places.bin_dir.is_empty();
    let variable = env::var_os("CNI_PATH").filter(|path| !said && !path.is_empty());
    let path: Vec<PathBuf> = match variable {
        _ if said => places.bin_dir.clone(),
        Some(path) => env::split_paths(&path).collect(),
        None => DEFAULT_BIN_DIRS.map(PathBuf::from).to_vec(),
    };
    Runtime::new(path, Cache::new(&places.cache_dir))
        .with_timeout(Duration::from_secs(places.timeout.into()))
}

fn configured(places: &Places, name: &str) -> Result<Network, Failure> {
    network(&places.conf_dir, name).map_err(|error| {
        Failure::from(error)
            .with_hint("podwire cni list shows what is configured; --conf-dir looks elsewhere")
    })
}

fn past(runtime: &Runtime, target: &Target, request: &Request) -> Option<Network> {
    let name = target.network.parse().ok()?;
    let entry = runtime.cache().entry(&name, &request.attachment()).ok()??;
    Network::parse(&entry.config).ok()
}

fn remembered(places: &Places) -> Result<Vec<Entry>, Failure> {
    let found = Cache::new(&places.cache_dir).entries()?;
    Ok(found.into_iter().filter_map(|found| found.content.ok()).collect())
}

fn require_plugins(runtime: &Runtime, network: &Network) -> Result<(), Failure> {
    for plugin in network.plugins() {
        runtime.find(plugin).map_err(|error| {
            Failure::from(error).with_hint("install it, or name the folder it is in with --bin-dir")
        })?;
    }
    Ok(())
}

fn about(network: &Network, request: &Request) -> Value {
    json!({
        "network": network.name().as_str(), "container_id": request.container_id.as_str(),
        "ifname": request.ifname.as_str(),
    })
}

fn extent_name(extent: Extent) -> &'static str {
    match extent {
        Extent::Whole => "whole",
        Extent::NotInVersion => "not_in_version",
        Extent::Disabled => "disabled",
        _ => "other",
    }
}

/// What went wrong, and what its code says to do.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let failure = Self::new(printable(&error.to_string()));
        match error.code() {
            Code::INCOMPATIBLE_CNI_VERSION => {
                failure.with_hint("podwire cni version NETWORK shows what its plugins support")
            }
            Code::TRY_AGAIN_LATER => failure.with_hint("it may pass: try again later"),
            Code::UNSUPPORTED_FIELD | Code::INVALID_NETWORK_CONFIG => failure
                .with_hint("see to the network's configuration; podwire cni list shows its file"),
            _ => failure,
        }
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("it is not KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn object(text: &str) -> Result<Object, String> {
    serde_json::from_str(text).map_err(|error| format!("it is no JSON object: {error}"))
}

fn attachment(text: &str) -> Result<Attachment, String> {
    let (container, ifname) = text.split_once('/').ok_or("it is not CONTAINER/IFNAME")?;
    Ok(Attachment {
        container_id: container.parse().map_err(|error| format!("container: {error}"))?,
        ifname: ifname.parse().map_err(|error| format!("interface: {error}"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_cnitools() {
        // echo -n /var/run/netns/testing | sha512sum | head -c 20
        let id = derived_id("/var/run/netns/testing").unwrap();
        assert_eq!(id.as_str(), "cnitool-77383ca0a0715733ca6f");
    }

    #[test]
    fn values_of_options() {
        assert_eq!(pair("A=b=c"), Ok(("A".into(), "b=c".into())));
        pair("A").unwrap_err();
        assert_eq!(object(r#"{"mac": "x"}"#).unwrap()["mac"], "x");
        object("[]").unwrap_err();
        assert_eq!(attachment("c1/eth0").unwrap().to_string(), "c1/eth0");
        attachment("c1").unwrap_err();
        attachment("c1/a/b").unwrap_err();
    }
}
