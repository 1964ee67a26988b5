//! The CNI plugin: a translation between the protocol and `podwire-endpoint`.

#![forbid(unsafe_code)]

mod error;

use std::{net::IpAddr, path::PathBuf, process::ExitCode, time::Duration};

use ipnetwork::IpNetwork;
use podwire_api::{Client, DEFAULT_RUN_DIR, EndpointId, PodRef, Timeouts, socket_path};
use podwire_cni::{
    Add, Args, Attachment as CniAttachment, Check, Code, Del, Error, Gc, NetworkConfig, Plugin,
    Status,
    types::{Interface, Ip, Route, Success},
};
use podwire_endpoint::{Attachment, Expected, Netns, attach, check, remove, remove_others};
use serde::Deserialize;

fn main() -> ExitCode {
    podwire_cni::run(&Podwire)
}

struct Podwire;

/// The plugin's own keys of the network configuration.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Settings {
    /// Where the agent's socket is, and where notes for it are left.
    #[serde(default = "default_run_dir")]
    run_dir: PathBuf,
}

fn default_run_dir() -> PathBuf {
    DEFAULT_RUN_DIR.into()
}

impl Plugin for Podwire {
    fn add(&self, add: &Add) -> Result<Success, Error> {
        let settings: Settings = add.config.settings()?;
        refuse_unsupported(&add.config, &add.args)?;
        if add.prev_result.is_some() {
            return Err(Error::new(Code::INVALID_NETWORK_CONFIG, "prevResult in an ADD")
                .with_details("podwire-cni creates the interface: it must be first in its list"));
        }
        let attachment = Attachment {
            id: endpoint_id(&add.attachment())?,
            network: Some(add.config.name().as_str().to_owned()),
            pod: pod(&add.args),
            addresses: wanted_addresses(add)?,
        };
        let netns = open_netns(add.netns.as_str())?;
        let attached = attach(&agent(&settings), &netns, &attachment)
            .map_err(|error| error::of_endpoint("ADD", &error))?;

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
        success.dns = add.config.dns()?;
        Ok(success)
    }

    fn del(&self, del: &Del) -> Result<(), Error> {
        let settings: Settings = del.config.settings()?;
        let id = endpoint_id(&del.attachment())?;
        remove(&agent(&settings), &settings.run_dir, &id)
            .map(drop)
            .map_err(|error| error::of_endpoint("DEL", &error))
    }

    fn check(&self, arguments: &Check) -> Result<(), Error> {
        let settings: Settings = arguments.config.settings()?;
        let id = endpoint_id(&arguments.attachment())?;
        let netns = open_netns(arguments.netns.as_str())?;
        let result = &arguments.prev_result;
        let own = result
            .interfaces
            .iter()
            .position(|interface| {
                interface.name == arguments.ifname.as_str() && interface.sandbox.is_some()
            })
            .ok_or_else(|| {
                let msg = format!("prevResult has no interface {}", arguments.ifname.as_str());
                Error::new(Code::INVALID_NETWORK_CONFIG, msg)
            })?;
        let is_own = |ip: &&Ip| ip.interface.is_some_and(|place| place as usize == own);
        let expected = Expected {
            addresses: result.ips.iter().filter(is_own).map(|ip| ip.address).collect(),
            mac: result.interfaces[own].mac.as_deref().and_then(|mac| mac.parse().ok()),
        };
        let differences = check(&agent(&settings), &netns, &id, &expected)
            .map_err(|error| error::of_endpoint("CHECK", &error))?;
        if differences.is_empty() {
            return Ok(());
        }
        let details: Vec<_> = differences.iter().map(ToString::to_string).collect();
        Err(Error::new(Code::plugin(error::DIFFERENT), format!("{id} is not as it was made"))
            .with_details(details.join("; ")))
    }

    fn status(&self, status: &Status) -> Result<(), Error> {
        let settings: Settings = status.config.settings()?;
        // A runtime asks often, and waits.
        let timeouts =
            Timeouts { connect: Duration::from_millis(50), total: Duration::from_millis(90) };
        let agent = Client::with_timeouts(socket_path(&settings.run_dir), timeouts);
        match agent.status() {
            Ok(_) => Ok(()),
            Err(error) => {
                let msg = "the agent does not answer";
                Err(Error::new(Code::PLUGIN_NOT_AVAILABLE, msg).with_details(error::details(
                    msg,
                    &error,
                    error.hint(),
                )))
            }
        }
    }

    fn gc(&self, gc: &Gc) -> Result<(), Error> {
        let settings: Settings = gc.config.settings()?;
        let valid = gc.valid_attachments.iter().map(endpoint_id).collect::<Result<Vec<_>, _>>()?;
        remove_others(&agent(&settings), &settings.run_dir, gc.config.name().as_str(), &valid)
            .map(drop)
            .map_err(|error| error::of_endpoint("GC", &error))
    }
}

fn agent(settings: &Settings) -> Client {
    Client::new(socket_path(&settings.run_dir))
}

/// What a configuration may ask for and does not get must be refused, not passed over.
fn refuse_unsupported(config: &NetworkConfig, args: &Args) -> Result<(), Error> {
    let refuse =
        |what: &str| Err(Error::new(Code::UNSUPPORTED_FIELD, format!("{what} is not supported")));
    if config.ipam_plugin().is_some() {
        return refuse("ipam (the agent gives out the addresses)");
    }
    if config.runtime().mac.is_some() {
        return refuse("runtimeConfig.mac");
    }
    // So podman passes on --mac-address, whatever the configuration's capabilities.
    if let Some(mac) = args.value("MAC") {
        let msg = format!("CNI_ARGS: MAC={mac} is not supported");
        return Err(Error::new(Code::INVALID_ENVIRONMENT_VARIABLES, msg));
    }
    Ok(())
}

fn wanted_addresses(add: &Add) -> Result<Vec<IpAddr>, Error> {
    let mut addresses: Vec<_> = add.config.runtime().ips.iter().map(IpNetwork::ip).collect();
    if let Some(text) = add.args.value("IP") {
        let address = text.parse().map_err(|_| {
            let msg = format!("CNI_ARGS: IP={text} is no address");
            Error::new(Code::INVALID_ENVIRONMENT_VARIABLES, msg)
        })?;
        addresses.push(address);
    }
    Ok(addresses)
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
