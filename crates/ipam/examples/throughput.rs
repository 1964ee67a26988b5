//! Durable allocations per second from 1, 4 and 16 threads, and how many commits they took.
//! `cargo run --release -p podwire-ipam --features file --example throughput [folder]`

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Instant;
use std::{env, fs, process, thread};

use podwire_ipam::durable::{FileStore, Ipam};
use podwire_ipam::{Owner, PoolConfig, Request, Time};

const ALLOCATIONS: u32 = 20_000;

fn main() -> Result<(), Box<dyn Error>> {
    // A folder on a disk: in memory, as /tmp may be, a sync costs nothing.
    let folder = env::args_os().nth(1).map_or_else(|| PathBuf::from("."), PathBuf::from);
    let file = folder.join(format!("throughput-{}.redb", process::id()));
    let measured = measure(&file);
    fs::remove_file(&file)?;
    measured
}

fn measure(file: &Path) -> Result<(), Box<dyn Error>> {
    let (ipam, _) = Ipam::open(FileStore::open(file)?, "boot")?;
    ipam.add_pool(&PoolConfig::new("default", vec!["10.0.0.0/12".parse()?, "fd00::/64".parse()?]))?;
    for threads in [1, 4, 16] {
        let before = ipam.counts();
        let began = Instant::now();
        let allocate = |thread: u32| {
            for number in 0..ALLOCATIONS / threads {
                let container_id = format!("{threads:032x}{thread:016x}{number:016x}");
                let owner = Owner::new(&container_id, "eth0");
                ipam.allocate(&owner, &Request::default(), Time::from_secs(1))?;
            }
            Ok::<_, podwire_ipam::durable::Error>(())
        };
        thread::scope(|scope| {
            let threads: Vec<_> =
                (0..threads).map(|thread| scope.spawn(move || allocate(thread))).collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
        })?;
        let took = began.elapsed();
        let after = ipam.counts();
        let (requests, commits) =
            (after.requests - before.requests, after.commits - before.commits);
        println!(
            "{threads:2} threads: {:.0} allocations a second, {requests} in {commits} commits, {:?} each",
            f64::from(ALLOCATIONS) / took.as_secs_f64(),
            took / u32::try_from(commits)?,
        );
    }
    Ok(())
}
