//! Gives a namespace what a pod has: a veth, an address of each family, a gateway with its permanent
//! neighbour entry, default routes. Both namespaces are fresh, and gone when the program ends.
//!
//! ```text
//! sudo cargo run -p podwire-netns --example pod
//! ```

use std::error::Error;
use std::io::Write as _;
use std::time::Instant;

use podwire_netlink::{
    Add, Address, Batch, Family, MacAddr, Neighbour, Replace, Route, RouteFilter,
};
use podwire_netns::{Netns, VethEnd, VethSpec, create_veth};

fn main() -> Result<(), Box<dyn Error>> {
    let (host, pod) = (Netns::create()?, Netns::create()?);
    let start = Instant::now();

    let mut outside = host.netlink()?;
    let host_mac = MacAddr::new([2, 0, 0, 0, 0, 1]);
    let veth = create_veth(
        &mut outside,
        &VethSpec {
            host: VethEnd { name: "pod0".parse()?, mac: host_mac },
            peer: VethEnd { name: "eth0".parse()?, mac: MacAddr::new([2, 0, 0, 0, 0, 2]) },
            mtu: 1500,
            netns: &pod,
            alias: "made by an example",
        },
    )?;

    let mut inside = pod.netlink()?;
    let eth0 = veth.peer_index;
    let mut batch = Batch::new();
    for (address, gateway, family) in
        [("10.7.0.2/32", "10.7.0.1", Family::V4), ("fd07::2/128", "fd07::1", Family::V6)]
    {
        let gateway = gateway.parse()?;
        batch.push(&Add(&Address::new(eth0, address.parse()?)));
        batch.push(&Replace(&Neighbour::permanent(eth0, gateway, host_mac)));
        batch.push(&Add(&Route::new(gateway.into()).dev(eth0)));
        batch.push(&Add(&Route::default_of(family).via(gateway).dev(eth0).mtu(1450)));
    }
    inside.send(&mut batch)?.all_ok()?;
    let elapsed = start.elapsed();

    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{} <-> {} in {elapsed:?}",
        outside.link(veth.host.index)?.name,
        inside.link(eth0)?.name
    )?;
    for address in inside.addresses(eth0)? {
        writeln!(out, "address {}", address.network)?;
    }
    for route in inside.routes(&RouteFilter::output(eth0))? {
        let gateway = route.gateway.map_or_else(String::new, |gateway| format!(" via {gateway}"));
        writeln!(out, "route {}{gateway} table {}", route.destination, route.table)?;
    }
    Ok(())
}
