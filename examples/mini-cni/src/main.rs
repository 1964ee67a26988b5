//! A whole CNI plugin of somebody else's: a veth pair for each pod, addresses of both families, host
//! routes between pods, and an eBPF program of its own that counts what each pod sends. There is no
//! agent; what must be remembered is in one file for each network.
//!
//! ```json
//! { "cniVersion": "1.1.0", "name": "mini", "type": "mini-cni", "subnets": ["10.9.0.0/24", "fd09::/64"] }
//! ```

use std::error::Error as StdError;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use ipnetwork::IpNetwork;
use podwire_bpf::{ClsactFilter, Direction, FilterSlot, Loader};
use podwire_cni::types::{Interface, Ip, Success};
use podwire_cni::{Add, Attachment, Check, Code, Del, Error, Gc, NetworkConfig, Plugin};
use podwire_ipam::{Addresses, Allocator, Lease, LeaseState, Owner, PoolConfig, Request, Time};
use podwire_netlink::{Address, Family, IfName, Link, MacAddr, Neighbour, Netlink, Route};
use podwire_netns::sysctl::{self, Key};
use podwire_netns::{Netns, UNFINISHED_GROUP, Veth, VethEnd, VethSpec, create_veth};
use serde::{Deserialize, Serialize};

const STATE: &str = "/var/lib/mini-cni";
static OBJECT: &[u8] = include_bytes!("../objects/count.o");

type Result<T, E = Box<dyn StdError>> = std::result::Result<T, E>;

fn main() -> ExitCode {
    podwire_cni::run(&MiniCni)
}

struct MiniCni;

impl Plugin for MiniCni {
    fn add(&self, add: &Add) -> Result<Success, Error> {
        Network::open(&add.config).and_then(|mut network| network.add(add)).map_err(answer)
    }

    fn del(&self, del: &Del) -> Result<(), Error> {
        let owner = owner(&del.attachment());
        Network::open(&del.config).and_then(|mut network| network.remove(&owner)).map_err(answer)
    }

    fn check(&self, check: &Check) -> Result<(), Error> {
        Network::open(&check.config).and_then(|network| network.check(check)).map_err(answer)
    }

    fn gc(&self, gc: &Gc) -> Result<(), Error> {
        let valid: Vec<_> = gc.valid_attachments.iter().map(owner).collect();
        let collect = |mut network: Network| {
            let leases: Vec<_> = network.pool.leases().map(|lease| lease.owner.clone()).collect();
            let mut stale = leases.iter().filter(|owner| !valid.contains(owner));
            stale.try_for_each(|owner| network.remove(owner))
        };
        Network::open(&gc.config).and_then(collect).map_err(answer)
    }
}

/// What the runtime is told: an error of the protocol as it is, any other as one of the plugin's.
fn answer(error: Box<dyn StdError>) -> Error {
    error.downcast().map_or_else(|other| Error::internal(&*other), |error| *error)
}

/// The plugin's own part of the network configuration.
#[derive(Deserialize)]
struct Settings {
    subnets: Vec<IpNetwork>,
}

/// A network's leases. One process at a time has them.
struct Network {
    subnets: Vec<IpNetwork>,
    pool: Allocator,
    file: PathBuf,
    _lock: File,
}

/// A lease as the file has it.
#[derive(Serialize, Deserialize)]
struct Record {
    container_id: String,
    ifname: String,
    addresses: Vec<IpAddr>,
}

impl Network {
    fn open(config: &NetworkConfig) -> Result<Self> {
        let Settings { subnets } = config.settings()?;
        let name = config.name().as_str();
        let mut pool = Allocator::new(&PoolConfig::new(name, subnets.clone()))?;
        for subnet in &subnets {
            pool.reserve(gateway(subnet), "gateway")?;
        }
        fs::create_dir_all(STATE)?;
        let lock = File::create(Path::new(STATE).join(format!("{name}.lock")))?;
        lock.lock()?;
        let file = Path::new(STATE).join(format!("{name}.json"));
        let records: Vec<Record> = match fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        for record in records {
            let owner = Owner::new(&record.container_id, &record.ifname);
            let addresses = Addresses::from_list(&record.addresses)?;
            pool.restore(Lease { owner, addresses, state: LeaseState::Confirmed })?;
        }
        Ok(Self { subnets, pool, file, _lock: lock })
    }

    fn save(&self) -> Result<()> {
        let record = |lease: &Lease| Record {
            container_id: lease.owner.container_id().to_owned(),
            ifname: lease.owner.ifname().to_owned(),
            addresses: lease.addresses.iter().collect(),
        };
        let records: Vec<_> = self.pool.leases().map(record).collect();
        let new = self.file.with_added_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec(&records)?)?;
        file.sync_all()?;
        Ok(fs::rename(new, &self.file)?)
    }

    fn add(&mut self, add: &Add) -> Result<Success> {
        let owner = owner(&add.attachment());
        if let Some(lease) = self.pool.lease(&owner) {
            return Err(format!("{owner} is attached already, as {}", lease.addresses).into());
        }
        let netns = Netns::open(&add.netns)?;
        self.pool.allocate(&owner, &Request::default(), Time::default())?;
        let lease = self.pool.confirm(&owner)?;
        // Remembered before there is anything, so that a DEL finds whatever a killed ADD has left.
        self.save()?;
        match self.connect(&lease, &netns, add.ifname.as_str().parse()?) {
            Ok(veth) => Ok(self.success(add, &lease, &veth)),
            Err(error) => {
                // The first error is the one to tell; what could not be undone, DEL tries again.
                let _ = self.remove(&owner);
                Err(error)
            }
        }
    }

    fn success(&self, add: &Add, lease: &Lease, veth: &Veth) -> Success {
        let mut success = add.prev_result.clone().unwrap_or_default();
        let own = u32::try_from(success.interfaces.len() + 1).ok();
        success.interfaces.push(Interface::new(veth.host.name.to_string()));
        success.interfaces.push(Interface::in_sandbox(add.ifname.as_str(), add.netns.as_str()));
        for address in lease.addresses.iter() {
            let mut ip = Ip::new(address.into());
            ip.gateway = self.gateway_of(address);
            ip.interface = own;
            success.ips.push(ip);
        }
        success
    }

    /// Makes everything that a pod has: here, in the pod, and between the two.
    fn connect(&self, lease: &Lease, netns: &Netns, ifname: IfName) -> Result<Veth> {
        let (mut here, mut there) = (Netlink::open()?, netns.netlink()?);
        let [host_mac, pod_mac] = macs(lease);
        let veth = create_veth(
            &mut here,
            &VethSpec {
                host: VethEnd { name: host_link(lease)?, mac: host_mac },
                peer: VethEnd { name: ifname, mac: pod_mac },
                mtu: 1500,
                netns,
                alias: &mark(&lease.owner),
            },
        )?;
        let (host, pod) = (veth.host.index, veth.peer_index);
        for address in lease.addresses.iter() {
            let gateway = self.gateway_of(address).ok_or("the address is of no subnet")?;
            there.add(&Address::new(pod, address.into()))?;
            there.add(&Neighbour::permanent(pod, gateway, host_mac))?;
            there.add(&Route::new(gateway.into()).dev(pod))?;
            there.add(&Route::default_of(Family::of(gateway)).via(gateway).dev(pod))?;
            here.add(&Address::new(host, gateway.into()))?;
            here.add(&Neighbour::permanent(host, address, pod_mac))?;
            here.add(&Route::new(address.into()).dev(host))?;
            sysctl::ensure(&Key::forwarding(Family::of(address)), "1")?;
        }
        // The filter keeps the program, and goes with its interface; the pin is for whoever reads.
        let object = Loader::new(OBJECT).pin_maps(pins(lease)?).load()?;
        let program = object.program("count")?;
        ClsactFilter::attach(program, host, Direction::Ingress, FilterSlot::default())?;
        veth.wait_until_usable(&mut here, &mut there, Duration::from_secs(5))?;
        Ok(veth)
    }

    /// Takes back everything of an owner, whatever of it there is.
    fn remove(&mut self, owner: &Owner) -> Result<()> {
        let Some(lease) = self.pool.lease(owner).cloned() else { return Ok(()) };
        let mut netlink = Netlink::open()?;
        let is_ours = |link: &Link| match &link.alias {
            // Not by its name alone: somebody else's link may have it.
            Some(alias) => *alias == mark(owner),
            None => link.group == UNFINISHED_GROUP,
        };
        if let Some(link) = netlink.find_link(host_link(&lease)?)?.filter(is_ours) {
            netlink.remove_link(link.index)?;
        }
        absent_is_fine(fs::remove_dir_all(pins(&lease)?))?;
        self.pool.release(owner, Time::default());
        self.save()
    }

    fn check(&self, check: &Check) -> Result<()> {
        let owner = owner(&check.attachment());
        let different = |what: &str| Error::new(Code::plugin(100), format!("{owner}: {what}"));
        let lease = self.pool.lease(&owner).ok_or_else(|| different("there is no lease"))?;
        let mut there = Netns::open(&check.netns)?.netlink()?;
        let pod = there.link(check.ifname.as_str().parse::<IfName>()?)?;
        let found: Vec<_> = there.addresses(pod.index)?.iter().map(|a| a.network.ip()).collect();
        let stated: Vec<_> = check.prev_result.ips.iter().map(|ip| ip.address.ip()).collect();
        for address in lease.addresses.iter() {
            if !found.contains(&address) || !stated.contains(&address) {
                return Err(different(&format!("{address} is missing")).into());
            }
        }
        let host = Netlink::open()?.link(host_link(lease)?)?;
        ClsactFilter::open(host.index, Direction::Ingress, FilterSlot::default())?
            .ok_or_else(|| different("the program is not attached"))?;
        Ok(())
    }

    /// The gateway of the subnet that an address is of.
    fn gateway_of(&self, address: IpAddr) -> Option<IpAddr> {
        self.subnets.iter().find(|subnet| subnet.contains(address)).map(gateway)
    }
}

/// A subnet's first address after its own.
fn gateway(subnet: &IpNetwork) -> IpAddr {
    match subnet.network() {
        IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() + 1).into()),
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() + 1).into()),
    }
}

fn owner(attachment: &Attachment) -> Owner {
    Owner::new(attachment.container_id.as_str(), attachment.ifname.as_str())
}

/// Four bytes that no other lease of this node has at the same time.
fn number(lease: &Lease) -> [u8; 4] {
    match (lease.addresses.v4, lease.addresses.v6) {
        (Some(v4), _) => v4.octets(),
        (None, v6) => v6.map_or([0; 4], |v6| [12, 13, 14, 15].map(|place| v6.octets()[place])),
    }
}

/// The name of a pod's interface on the host.
fn host_link(lease: &Lease) -> Result<IfName> {
    Ok(format!("mini{:08x}", u32::from_be_bytes(number(lease))).parse()?)
}

/// The addresses of both ends, the host's first.
fn macs(lease: &Lease) -> [MacAddr; 2] {
    let [a, b, c, d] = number(lease);
    [1, 2].map(|end| MacAddr::local_from([2, end, a, b, c, d]))
}

fn mark(owner: &Owner) -> String {
    format!("mini-cni:{owner}")
}

/// Where the maps of a pod are pinned.
fn pins(lease: &Lease) -> Result<PathBuf> {
    Ok(Path::new("/sys/fs/bpf").join(host_link(lease)?.to_string()))
}

fn absent_is_fine(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
