//! Addresses of a /16, granted and taken back, by how full it is.
//!
//! What is held lies scattered, as after a long life: the pool is filled, then random leases are
//! taken back. Batches keep the fill: each grants a few addresses and takes the same ones back, and
//! only one of both is on the clock.
//!
//! `overflow`: the same addresses in several pools, of which a request lists all; all but the last are
//! full.

use std::{
    collections::HashSet,
    hint::black_box,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use criterion::{Criterion, criterion_group, criterion_main};
use ipnetwork::Ipv4Network;
use podwire_ipam::{Allocator, Lease, Owner, PoolConfig, Release, Request, Time};

/// Percent of the addresses that are held, times ten.
const FILLS: [(&str, usize); 6] =
    [("0", 0), ("10", 100), ("50", 500), ("90", 900), ("99", 990), ("99.9", 999)];

/// Numbers of pools, powers of two.
const POOLS: [u32; 2] = [1, 8];

const FIRST: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 0);

/// Fewer than are free at 99.9 percent.
const BATCH: usize = 32;

#[derive(Clone, Copy)]
enum Timed {
    Allocate,
    Release,
}

struct Filled {
    pool: Allocator,
    held: usize,
    owners: Vec<Owner>,
    request: Request,
}

impl Filled {
    /// The last of so many pools is filled to so many thousandths, the others wholly.
    fn new(pools: u32, per_mille: usize) -> Self {
        let size = (1 << 16) / pools;
        let config = |number: u32| {
            let first = Ipv4Addr::from(u32::from(FIRST) + number * size);
            let length = 16 + u8::try_from(pools.ilog2()).expect("few pools");
            let cidr = Ipv4Network::new(first, length).expect("a length").into();
            let mut config = PoolConfig::new(format!("bench-{number}"), vec![cidr]);
            // What is taken back is free for the next batch.
            config.cooldown = Duration::ZERO;
            config
        };
        let configs: Vec<_> = (0..pools).map(config).collect();
        let names: Vec<_> = configs.iter().map(|config| config.name.as_str()).collect();
        let request = match pools {
            1 => Request::default(),
            _ => Request::default().from_pools(&names),
        };
        let mut pool = Allocator::with_pools(&configs).expect("pools");
        // All but the network and the broadcast address.
        let (each, pools) = (size as usize - 2, pools as usize);
        let mut fillers: Vec<_> = (0..pools * each)
            .map(|number| Owner::new(&format!("filler-{number}"), "eth0"))
            .collect();
        for owner in &fillers {
            pool.allocate(owner, &request, now()).expect("an address for each");
            pool.confirm(owner).expect("a lease to confirm");
        }
        let held = pools * each - each + each * per_mille / 1000;
        let mut fillers = fillers.split_off((pools - 1) * each);
        let mut state = 1_u64;
        while pool.lease_count() > held {
            // Knuth's MMIX generator; its high bits are the good ones.
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let victim = usize::try_from(state >> 33).expect("31 bits") % fillers.len();
            pool.release(&fillers.swap_remove(victim), now());
        }
        pool.expire(now());
        let owners =
            (0..BATCH).map(|number| Owner::new(&format!("pod-{number}"), "eth0")).collect();
        Self { pool, held, owners, request }
    }

    fn run(&mut self, iterations: u64, timed: Timed) -> Duration {
        let mut elapsed = Duration::ZERO;
        let mut left = usize::try_from(iterations).expect("a count");
        while left > 0 {
            let owners = &self.owners[..left.min(BATCH)];
            left -= owners.len();
            let begin = Instant::now();
            let leases: Vec<Lease> = owners
                .iter()
                .map(|owner| {
                    black_box(self.pool.allocate(owner, &self.request, now()))
                        .unwrap_or_else(|error| panic!("an address is free, but: {error}"))
                })
                .collect();
            let granted = begin.elapsed();
            let addresses: HashSet<_> =
                leases.iter().map(|lease| lease.addresses.to_string()).collect();
            assert_eq!(addresses.len(), owners.len(), "each is granted an address of its own");
            assert_eq!(
                self.pool.lease_count(),
                self.held + owners.len(),
                "leases are added to those held"
            );
            let begin = Instant::now();
            let released: Vec<Release> =
                owners.iter().map(|owner| black_box(self.pool.release(owner, now()))).collect();
            let taken_back = begin.elapsed();
            for (release, lease) in released.iter().zip(&leases) {
                assert_eq!(*release, Release::Released(lease.clone()), "what was granted goes");
            }
            assert_eq!(self.pool.lease_count(), self.held, "the fill is as before");
            elapsed += match timed {
                Timed::Allocate => granted,
                Timed::Release => taken_back,
            };
        }
        elapsed
    }
}

fn now() -> Time {
    Time::from_secs(1)
}

fn ipam(criterion: &mut Criterion) {
    for (work, timed) in [("allocate", Timed::Allocate), ("release", Timed::Release)] {
        for (name, per_mille) in FILLS {
            let mut filled = None;
            criterion.bench_function(&format!("ipam/{work}/{name}"), |bencher| {
                let filled = filled.get_or_insert_with(|| Filled::new(1, per_mille));
                bencher.iter_custom(|iterations| filled.run(iterations, timed));
            });
        }
    }
    for pools in POOLS {
        let mut filled = None;
        criterion.bench_function(&format!("ipam/overflow/{pools}"), |bencher| {
            let filled = filled.get_or_insert_with(|| Filled::new(pools, 500));
            bencher.iter_custom(|iterations| filled.run(iterations, Timed::Allocate));
        });
    }
}

criterion_group! {
    name = benches;
    config = podwire_benches::criterion();
    targets = ipam
}
criterion_main!(benches);
