//! The CNI plugin: a translation between the protocol and `podwire-endpoint`.

#![forbid(unsafe_code)]

mod error;
mod wishes;

use std::{net::IpAddr, path::PathBuf, process::ExitCode, time::Duration};

use ipnetwork::IpNetwork;
use podwire_api::{
    Client, DEFAULT_RUN_DIR, Disciplines, Effect, EndpointId, OtherFamilies, PodRef, Pool,
    Timeouts, socket_path,
};
use podwire_cni::{
    Add, Args, Attachment as CniAttachment, Check, Code, Del, Error, Gc, NetworkConfig, Plugin,
    Status,
    delegate::Delegate,
    types::{Dns, Interface, Ip, Route, Success},
};
use podwire_endpoint::{
    Adopted, Adoption, Attached, Attachment, Expected, MacAddr, Netns, adopt, attach, check,
    check_adopted, remove, remove_others,
};
use serde::Deserialize;

fn main() -> ExitCode {
    podwire_cni::run(&Podwire)
}

/// First in its list it makes the interface, with addresses of the agent's or of another IPAM plugin's;
/// after another plugin it adopts that one's.
struct Podwire;

/// The plugin's own keys of the network configuration.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Settings {
    /// Where the agent's socket is, and where notes for it are left.
    #[serde(default = "default_run_dir")]
    run_dir: PathBuf,
    /// `others` if a plugin after this one needs the host link's queueing disciplines.
    #[serde(default)]
    disciplines: Disciplines,
    /// Whether this plugin stands after the one that makes the interface. An ADD sees that; a DEL may
    /// have lost the result that says so.
    #[serde(default)]
    chained: bool,
}

fn default_run_dir() -> PathBuf {
    DEFAULT_RUN_DIR.into()
}

impl Plugin for Podwire {
    fn add(&self, add: &Add) -> Result<Success, Error> {
        let settings: Settings = add.config.settings()?;
        let id = endpoint_id(&add.attachment())?;
        if let Some(result) = &add.prev_result {
            return add_chained(add, &settings, id, result);
        }
        if settings.chained {
            let msg = "chained is true, but there is no prevResult";
            return Err(Error::new(Code::INVALID_NETWORK_CONFIG, msg)
                .with_details("podwire-cni must stand after a plugin that makes the interface"));
        }
        let attachment = Attachment {
            network: Some(add.config.name().as_str().to_owned()),
            pod: pod(&add.args),
            mac: wanted_mac(&add.config, &add.args)?,
            disciplines: disciplines(&settings, &add.config),
            annotations: wishes::annotations(&add.config),
            ..Attachment::new(id)
        };
        let netns = open_netns(add.netns.as_str())?;
        let make = |attachment: &Attachment, dns: Dns| {
            let attached = attach(&agent(&settings), &netns, attachment)
                .map_err(|error| error::of_endpoint("ADD", &error))?;
            Ok(success(add, &attached, dns))
        };
        match Delegate::ipam(&add.config, &add.path)? {
            // The IPAM plugin reads the wishes for addresses itself.
            Some(ipam) => ipam.add_then(add, |given| {
                let addresses = given.ips.iter().map(|ip| ip.address.ip()).collect();
                let others = OtherFamilies::Omit;
                let dns = dns(&add.config, given.dns)?;
                make(&Attachment { addresses, others, ..attachment }, dns)
            }),
            None => {
                let addresses = wishes::addresses(&add.config, &add.args)?;
                let dns = dns(&add.config, Dns::default())?;
                make(&Attachment { addresses, ..attachment }, dns)
            }
        }
    }

    fn del(&self, del: &Del) -> Result<(), Error> {
        let settings: Settings = del.config.settings()?;
        let id = endpoint_id(&del.attachment())?;
        // A namespace that is gone took its interfaces along.
        let netns = del.netns.as_ref().and_then(|path| Netns::open(path.as_str()).ok());
        let interface = match &del.prev_result {
            _ if settings.chained => Adopted::In(netns.as_ref()),
            Some(result) if is_others(result, &id) => Adopted::In(netns.as_ref()),
            _ => Adopted::No,
        };
        remove(&agent(&settings), &settings.run_dir, &id, interface)
            .map_err(|error| error::of_endpoint("DEL", &error))?;
        // Last: its addresses may be somebody else's from now on.
        match own_ipam(&settings, &del.config, &del.path)? {
            Some(ipam) => ipam.del(del),
            None => Ok(()),
        }
    }

    fn check(&self, arguments: &Check) -> Result<(), Error> {
        let settings: Settings = arguments.config.settings()?;
        let id = endpoint_id(&arguments.attachment())?;
        let netns = open_netns(arguments.netns.as_str())?;
        let expected = expected(arguments, &id)?;
        let (agent, chained) = (agent(&settings), is_others(&arguments.prev_result, &id));
        let differences = if chained {
            check_adopted(&agent, &netns, &id, &expected)
        } else {
            check(&agent, &netns, &id, &expected)
        };
        let differences = differences.map_err(|error| error::of_endpoint("CHECK", &error))?;
        if !differences.is_empty() {
            let details: Vec<_> = differences.iter().map(ToString::to_string).collect();
            return Err(Error::new(
                Code::plugin(error::DIFFERENT),
                format!("{id} is not as it was made"),
            )
            .with_details(details.join("; ")));
        }
        match own_ipam(&settings, &arguments.config, &arguments.path)? {
            Some(ipam) if !chained => ipam.check(arguments),
            _ => Ok(()),
        }
    }

    fn status(&self, status: &Status) -> Result<(), Error> {
        let settings: Settings = status.config.settings()?;
        // A runtime asks often, and waits.
        let timeouts =
            Timeouts { connect: Duration::from_millis(50), total: Duration::from_millis(90) };
        let agent = Client::with_timeouts(socket_path(&settings.run_dir), timeouts);
        let node = agent.status().map_err(|error| {
            let msg = "the agent does not answer";
            let details = error::details(msg, &error, error.hint());
            Error::new(Code::PLUGIN_NOT_AVAILABLE, msg).with_details(details)
        })?;
        if let Some(problem) = node.problems.iter().find(|one| one.effect == Effect::Certain) {
            let details = format!("{}; {}", problem.why, problem.fix);
            let error = Error::new(Code::LIMITED_CONNECTIVITY, problem.what.clone());
            return Err(error.with_details(details));
        }
        if node.endpoints >= u64::from(node.slots) {
            let msg = format!("all {} places for endpoints are taken", node.slots);
            return Err(Error::new(Code::PLUGIN_NOT_AVAILABLE, msg)
                .with_details("start podwired with more --slots"));
        }
        match own_ipam(&settings, &status.config, &status.path)? {
            Some(ipam) => ipam.status(status),
            None if settings.chained => Ok(()),
            None => exhausted(&node.pools, &node.default_pools).map_or(Ok(()), Err),
        }
    }

    fn gc(&self, gc: &Gc) -> Result<(), Error> {
        let settings: Settings = gc.config.settings()?;
        let valid = gc.valid_attachments.iter().map(endpoint_id).collect::<Result<Vec<_>, _>>()?;
        let removed = remove_others(&agent(&settings), gc.config.name().as_str(), valid)
            .map(drop)
            .map_err(|error| error::of_endpoint("GC", &error));
        // Both are tried, whatever became of the other.
        let released = match own_ipam(&settings, &gc.config, &gc.path)? {
            Some(ipam) => ipam.gc(gc),
            None => Ok(()),
        };
        removed.and(released)
    }
}

/// Adopts the interface that plugins before this one have made.
fn add_chained(
    add: &Add,
    settings: &Settings,
    id: EndpointId,
    result: &Success,
) -> Result<Success, Error> {
    if let Some(mac) = wanted_mac(&add.config, &add.args)? {
        let msg = format!("MAC {mac}: the interface is made already");
        return Err(Error::new(Code::UNSUPPORTED_FIELD, msg)
            .with_details("the plugin that makes the interface chooses its MAC"));
    }
    if let Some(ipam) = add.config.ipam_plugin() {
        let msg = format!("ipam.type {ipam:?}: the interface has its addresses already");
        return Err(Error::new(Code::UNSUPPORTED_FIELD, msg)
            .with_details("the plugin that makes the interface has the ipam section"));
    }
    let adoption = Adoption {
        network: Some(add.config.name().as_str().to_owned()),
        pod: pod(&add.args),
        addresses: addresses_of(result, &id).map(|ip| ip.address.ip()).collect(),
        id,
    };
    if adoption.addresses.is_empty() {
        let msg = format!("prevResult has no address of {}", add.ifname.as_str());
        return Err(Error::new(Code::INVALID_NETWORK_CONFIG, msg));
    }
    let netns = open_netns(add.netns.as_str())?;
    adopt(&agent(settings), &netns, &adoption)
        .map_err(|error| error::of_endpoint("ADD", &error))?;
    Ok(result.clone())
}

fn success(add: &Add, attached: &Attached, dns: Dns) -> Success {
    let mut success = Success::default();
    let endpoint = &attached.endpoint;
    let mut host = Interface::new(&endpoint.host_link);
    host.mac = Some(endpoint.host_mac.to_string());
    host.mtu = Some(attached.lease.node.mtu);
    let mut container = Interface::in_sandbox(add.ifname.as_str(), add.netns.as_str());
    container.mac = Some(endpoint.mac.to_string());
    container.mtu = Some(attached.lease.node.mtu);
    success.interfaces = vec![host, container];
    for &address in &attached.lease.addresses {
        let router = attached.lease.node.router;
        let gateway = match address {
            IpNetwork::V4(_) => router.v4.map(IpAddr::from),
            IpNetwork::V6(_) => router.v6.map(IpAddr::from),
        };
        let mut ip = Ip::new(address);
        ip.gateway = gateway;
        ip.interface = Some(1);
        success.ips.push(ip);
        let mut route = Route::new(everything(address.ip()));
        route.gw = gateway;
        success.routes.push(route);
    }
    success.dns = dns;
    success
}

/// What the result of the ADD says of the interface.
fn expected(check: &Check, id: &EndpointId) -> Result<Expected, Error> {
    let result = &check.prev_result;
    let is_own = |one: &&Interface| one.name == id.ifname.as_str() && one.sandbox.is_some();
    let own = result.interfaces.iter().find(is_own).ok_or_else(|| {
        let msg = format!("prevResult has no interface {}", id.ifname);
        Error::new(Code::INVALID_NETWORK_CONFIG, msg)
    })?;
    Ok(Expected {
        addresses: addresses_of(result, id).map(|ip| ip.address).collect(),
        mac: own.mac.as_deref().and_then(|mac| mac.parse().ok()),
    })
}

/// The addresses that a result gives to an interface of the container.
fn addresses_of<'r>(result: &'r Success, id: &EndpointId) -> impl Iterator<Item = &'r Ip> {
    let is_own = |one: &Interface| one.name == id.ifname.as_str() && one.sandbox.is_some();
    let own = result.interfaces.iter().position(is_own);
    // Before 0.3.0 results had no interfaces, and what they had was the container's.
    let known = !result.interfaces.is_empty();
    result.ips.iter().filter(move |ip| match ip.interface {
        Some(place) => own == Some(place as usize),
        None => !known,
    })
}

/// Whether the interface of a result is another plugin's.
fn is_others(result: &Success, id: &EndpointId) -> bool {
    let ours = id.host_link();
    !result.interfaces.is_empty() && !result.interfaces.iter().any(|one| one.name == ours)
}

/// The IPAM plugin that the addresses come from, if it is not the agent and not another plugin's.
fn own_ipam(
    settings: &Settings,
    config: &NetworkConfig,
    path: &[PathBuf],
) -> Result<Option<Delegate>, Error> {
    if settings.chained { Ok(None) } else { Delegate::ipam(config, path) }
}

fn agent(settings: &Settings) -> Client {
    Client::new(socket_path(&settings.run_dir))
}

/// A limit for the `bandwidth` plugin announces that it comes after this one.
fn disciplines(settings: &Settings, config: &NetworkConfig) -> Disciplines {
    match config.runtime().object.get("bandwidth") {
        Some(limits) if !limits.is_null() => Disciplines::Others,
        _ => settings.disciplines,
    }
}

/// The `mac` capability; podman passes `--mac-address` on in `CNI_ARGS` as well.
fn wanted_mac(config: &NetworkConfig, args: &Args) -> Result<Option<MacAddr>, Error> {
    let (place, code, text) = match (config.runtime().mac.as_deref(), args.value("MAC")) {
        (Some(text), _) => ("runtimeConfig.mac", Code::INVALID_NETWORK_CONFIG, text),
        (None, Some(text)) => ("CNI_ARGS: MAC", Code::INVALID_ENVIRONMENT_VARIABLES, text),
        (None, None) => return Ok(None),
    };
    let mac: MacAddr = text
        .parse()
        .map_err(|_| Error::new(code, format!("{place} {text:?} is no Ethernet address")))?;
    if mac.octets()[0] & 1 != 0 || mac.octets() == [0; 6] {
        let msg = format!("{place} {text:?} is no address of one interface");
        return Err(Error::new(code, msg));
    }
    Ok(Some(mac))
}

/// What the runtime wants, else what the IPAM plugin gave, else what the configuration says.
fn dns(config: &NetworkConfig, given: Dns) -> Result<Dns, Error> {
    match config.runtime().dns.clone() {
        Some(wanted) => Ok(wanted),
        None if given != Dns::default() => Ok(given),
        None => config.dns(),
    }
}

/// What a STATUS says when no address of a family is left in the pools that pods without a wish get
/// theirs from. Those that rest after their release are given out when nothing else is.
fn exhausted(pools: &[Pool], default: &[String]) -> Option<Error> {
    for is_v4 in [true, false] {
        let pools = pools.iter().filter(|pool| default.contains(&pool.name));
        let of_family: Vec<_> = pools
            .flat_map(|pool| pool.cidrs.iter().map(move |cidr| (&pool.name, cidr)))
            .filter(|(_, one)| one.cidr.is_ipv4() == is_v4)
            .collect();
        if of_family.is_empty() || of_family.iter().any(|(_, one)| one.available() > 0) {
            continue;
        }
        let cidrs: Vec<_> =
            of_family.iter().map(|(pool, one)| format!("{} of pool {pool}", one.cidr)).collect();
        let msg = format!("no address is left in {}", cidrs.join(", "));
        return Some(
            Error::new(Code::PLUGIN_NOT_AVAILABLE, msg)
                .with_details("remove pods, or add a CIDR: podwire ipam pool add-cidr"),
        );
    }
    None
}

fn pod(args: &Args) -> Option<PodRef> {
    Some(PodRef {
        namespace: args.value("K8S_POD_NAMESPACE")?.to_owned(),
        name: args.value("K8S_POD_NAME")?.to_owned(),
        uid: args.value("K8S_POD_UID").map(str::to_owned),
    })
}

fn endpoint_id(attachment: &CniAttachment) -> Result<EndpointId, Error> {
    EndpointId::new(attachment.container_id.as_str(), attachment.ifname.as_str())
        .map_err(|error| Error::new(Code::INVALID_ENVIRONMENT_VARIABLES, error.to_string()))
}

fn open_netns(path: &str) -> Result<Netns, Error> {
    Netns::open(path).map_err(|error| error::of_netns(&error))
}

/// The destination of a default route, in the family of `address`.
fn everything(address: IpAddr) -> IpNetwork {
    let prefix = if address.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
    prefix.parse().expect("a prefix of length zero")
}
