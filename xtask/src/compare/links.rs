//! Veth pairs of our own: the limit that nodes are held against, and the way out of a node.

use std::{
    net::IpAddr,
    os::fd::BorrowedFd,
    thread,
    time::{Duration, Instant},
};

use podwire_lab::{Host, Pod, probe::Ping};
use podwire_netlink::{Address, IfName, MacAddr, Netlink};
use podwire_netns::{Netns, VethEnd, VethSpec, create_veth};

use super::nodes::MTU;
use crate::Result;

/// How long the kernel may take to clean up after nodes.
const PATIENCE: Duration = Duration::from_secs(120);

/// Connects two namespaces by a veth pair with these names.
pub fn wire(here: (BorrowedFd<'_>, &str), there: (BorrowedFd<'_>, &str), mtu: u32) -> Result<()> {
    let netns = Netns::from_fd(there.0.try_clone_to_owned()?)?;
    let spec = VethSpec {
        host: VethEnd { name: here.1.parse()?, mac: MacAddr::new([2, 0, 0, 0, 0, 1]) },
        peer: VethEnd { name: there.1.parse()?, mac: MacAddr::new([2, 0, 0, 0, 0, 2]) },
        mtu,
        netns: &netns,
        alias: "cargo xtask compare",
    };
    create_veth(&mut Netlink::open_in(here.0)?, &spec)?;
    Ok(())
}

/// Gives a link an address, with its prefix length.
pub fn give(netns: BorrowedFd<'_>, link: &str, address: &str) -> Result<()> {
    let mut netlink = Netlink::open_in(netns)?;
    let index = netlink.link(link.parse::<IfName>()?)?.index;
    Ok(netlink.add(&Address::new(index, address.parse()?))?)
}

/// The MTU of a link.
pub fn mtu(netns: BorrowedFd<'_>, link: &str) -> Result<u32> {
    Ok(Netlink::open_in(netns)?.link(link.parse::<IfName>()?)?.mtu)
}

/// Waits until the kernel has taken down all namespaces that were dropped so far. It does so
/// behind our back, in the order in which they were dropped, and holds the lock that every change
/// of a link needs meanwhile.
pub fn settle() -> Result<()> {
    let host = Host::new()?;
    let last = host.add_pod("last")?;
    wire((host.netns(), "sentinel"), (last.netns(), "eth0"), MTU)?;
    host.remove_pod_netns(last.name())?;
    drop(last);
    let mut netlink = Netlink::open_in(host.netns())?;
    let start = Instant::now();
    // It goes with its other end's namespace.
    while netlink.find_link("sentinel".parse::<IfName>()?)?.is_some() {
        if start.elapsed() > PATIENCE {
            return Err(format!("the kernel still removes namespaces after {PATIENCE:?}").into());
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Two namespaces and a veth pair between them, and nothing else: no node can be much faster.
#[derive(Debug)]
pub struct BareVeth {
    pub pods: [Pod; 2],
    /// Those of the second, by family.
    pub addresses: [IpAddr; 2],
}

impl BareVeth {
    pub fn new() -> Result<Self> {
        let host = Host::new()?;
        let pods = [host.add_pod("a")?, host.add_pod("b")?];
        let [a, b] = pods.each_ref().map(Pod::netns);
        wire((a, "eth0"), (b, "eth0"), MTU)?;
        for (netns, last) in [(a, 1), (b, 2)] {
            give(netns, "eth0", &format!("10.245.0.{last}/24"))?;
            give(netns, "eth0", &format!("fd00:10:245::{last}/64"))?;
        }
        let addresses = ["10.245.0.2".parse()?, "fd00:10:245::2".parse()?];
        for address in addresses {
            let report = pods[0].run(|| Ping::new(address).count(20).run())?;
            if !report.is_complete() {
                return Err(format!("ping over a bare veth pair to {address}: {report}").into());
            }
        }
        Ok(Self { pods, addresses })
    }
}
