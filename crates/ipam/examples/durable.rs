//! An agent's addresses in a file: pools, grants from sixteen threads, the agent killed and started
//! again, the machine too. `cargo run -p podwire-ipam --features file --example durable`

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::time::{SystemTime, UNIX_EPOCH};
use std::{env, fs, process, thread};

use podwire_ipam::durable::{Change, FileStore, Ipam};
use podwire_ipam::{Owner, PoolConfig, Request, Time};

/// An agent's own table, which goes into the same transactions.
const ENDPOINTS: &str = "endpoints";

fn main() -> Result<(), Box<dyn Error>> {
    let folder = env::temp_dir().join(format!("podwire-durable-{}", process::id()));
    fs::create_dir(&folder)?;
    let file = folder.join("ipam.redb");
    // An agent takes CLOCK_BOOTTIME and /proc/sys/kernel/random/boot_id.
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map(Time::new).unwrap_or_default();

    let (ipam, _) = Ipam::open(FileStore::open(&file)?, "boot-1")?;
    ipam.add_pool(&PoolConfig::new("blue", vec!["10.1.0.0/28".parse()?, "fd00:1::/64".parse()?]))?;
    ipam.add_pool(&PoolConfig::new("green", vec!["10.2.0.0/24".parse()?, "fd00:2::/64".parse()?]))?;
    ipam.reserve("10.1.0.1".parse()?, "router")?;

    // Sixteen pods at once: what the threads do at the same time is one commit, one sync. When blue
    // is full, green is next.
    let request = Request::default().from_pools(&["blue", "green"]);
    let add = |number: u32| {
        let owner = Owner::new(&format!("pod-{number}"), "eth0");
        let lease = ipam.allocate(&owner, &request, now())?;
        // ... the interface is created here; if that fails, the lease expires by itself ...
        let endpoint = Change::put(ENDPOINTS, owner.to_string(), lease.addresses.to_string());
        ipam.begin_confirm(&owner, vec![endpoint])?.wait()
    };
    thread::scope(|scope| {
        let pods: Vec<_> = (0..16).map(|number| scope.spawn(move || add(number))).collect();
        pods.into_iter().try_for_each(|pod| pod.join().expect("no panic").map(|_| ()))
    })?;
    let counts = ipam.counts();
    println!("{} requests in {} commits", counts.requests, counts.commits);

    // The same addresses whenever this pod of a StatefulSet comes back.
    let web = Request::default().from_pools(&["green"]).sticky("shop/web-0");
    let lease = ipam.allocate(&Owner::new("web-first", "eth0"), &web, now())?;
    ipam.confirm(&lease.owner)?;
    ipam.release(&lease.owner, now())?;
    println!("shop/web-0 had {}", lease.addresses);

    // A CIDR that is to go: nothing is granted from it any more.
    ipam.drain_cidr("blue", "10.1.0.0/28".parse()?)?;

    // The agent ends, here in an orderly way; a kill is the same to the file.
    drop(ipam);
    let (ipam, recovered) = Ipam::open(FileStore::open(&file)?, "boot-1")?;
    let endpoints = ipam.load(ENDPOINTS)?.len();
    println!("{} leases and {endpoints} endpoints after a restart", recovered.leases);
    let again = ipam.allocate(&Owner::new("web-second", "eth0"), &web, now())?;
    println!("shop/web-0 has {} again", again.addresses);

    // The machine starts again: its pods are gone, reservations and sticky addresses are not.
    drop(ipam);
    let (ipam, recovered) = Ipam::open(FileStore::open(&file)?, "boot-2")?;
    println!("{} leases dropped after a reboot", recovered.dropped.len());
    for usage in ipam.usage()?.iter().flat_map(|pool| &pool.cidrs) {
        let drained = if usage.drained { ", drained" } else { "" };
        let of = usage.usage;
        println!("{}: {} reserved, {} kept{drained}", usage.cidr, of.reserved, of.kept);
    }

    // Another process that opens the file is told so; a damaged one is told apart.
    let refused = FileStore::open(&file).err().is_some_and(|error| error.is_locked());
    println!("a second agent is refused: {refused}");
    drop(ipam);
    fs::remove_dir_all(&folder)?;
    Ok(())
}
