//! The life of a dual-stack pool: reserve, allocate, confirm, release, restart.

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::time::{SystemTime, UNIX_EPOCH};

use podwire_ipam::{Allocator, Lease, Owner, PoolConfig, Request, Time};

fn main() -> Result<(), Box<dyn Error>> {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map(Time::new);
    let config = PoolConfig::new("default", vec!["10.1.0.0/24".parse()?, "fd00:1::/64".parse()?]);
    let mut pool = Allocator::new(&config)?;
    pool.reserve("10.1.0.1".parse()?, "router")?;
    pool.reserve("fd00:1::1".parse()?, "router")?;

    for container in ["web", "db", "cache"] {
        let owner = Owner::new(container, "eth0");
        let lease = pool.allocate(&owner, &Request::default(), now()?)?;
        // ... the interface is created here; if that fails, the lease expires by itself ...
        pool.confirm(&owner)?;
        println!("{owner} got {}", lease.addresses);
    }
    let explicit = Request::default().with_addresses(&["10.1.0.77".parse()?])?;
    let lease = pool.allocate(&Owner::new("static", "eth0"), &explicit, now()?)?;
    println!("{} got {}, pending", lease.owner, lease.addresses);
    pool.release(&Owner::new("db", "eth0"), now()?);

    let saved: Vec<Lease> = pool.leases().cloned().collect();
    let mut restarted = Allocator::new(&config)?;
    for lease in saved {
        restarted.restore(lease)?;
    }
    for entry in restarted.usage().remove(0).cidrs {
        let usage = entry.usage;
        println!(
            "{}: {} used, {} pending of {}",
            entry.cidr, usage.used, usage.pending, usage.size
        );
    }
    Ok(())
}
