//! Nodes with real allocators on one registry: pods come and go, processes are killed, records are
//! lost, and no address is granted on two nodes.

#![expect(clippy::unwrap_used, reason = "functions that tests share panic as tests do")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use podwire_ipam::blocks::{
    Action, BlockUsage, ClusterPool, Demand, MemoryRegistry, NodeBlocks, claims,
};
use podwire_ipam::{Allocator, Error, Family, Lease, Owner, Request, Time};
use proptest::prelude::*;

struct Node {
    blocks: NodeBlocks<MemoryRegistry>,
    allocator: Allocator,
    pods: u32,
}

impl Node {
    fn tick(&mut self, now: Time, demand: &[Demand]) {
        for _ in 0..20 {
            self.allocator.expire(now);
            let in_use: Vec<_> = self.allocator.usage().iter().flat_map(BlockUsage::of).collect();
            let outcome = self.blocks.tick(now, &in_use, demand);
            for action in &outcome.actions {
                let done = match action {
                    Action::Add(block) => self.allocator.add_cidr(&block.pool, block.cidr),
                    Action::Drain(block) => self.allocator.drain_cidr(&block.pool, block.cidr),
                    Action::Remove(block) => self.allocator.remove_cidr(&block.pool, block.cidr),
                };
                match done {
                    Ok(()) | Err(Error::CidrInUse { .. } | Error::UnknownCidr { .. }) => {}
                    Err(error) => panic!("{action}: {error}"),
                }
            }
            assert!(outcome.errors.is_empty(), "{:?}", outcome.errors);
            if outcome.actions.is_empty() {
                return;
            }
        }
        panic!("no end");
    }

    /// Grants a pod its pair of addresses; a pod never waits for more than one tick.
    fn allocate(&mut self, now: Time) -> Lease {
        self.pods += 1;
        let owner = Owner::new(&self.pods.to_string(), "eth0");
        let asked = Request::default();
        if let Ok(lease) = self.allocator.allocate(&owner, &asked, now) {
            self.allocator.confirm(&owner).unwrap();
            return lease;
        }
        let demand = [Family::V4, Family::V6].map(|family| Demand {
            pool: "p".into(),
            family,
            addresses: 1,
        });
        self.tick(now, &demand);
        let lease = self.allocator.allocate(&owner, &asked, now).unwrap();
        self.allocator.confirm(&owner).unwrap();
        lease
    }
}

struct Cluster {
    registry: MemoryRegistry,
    pool: ClusterPool,
    nodes: Vec<Node>,
    now: u64,
}

impl Cluster {
    fn new(nodes: usize, pre_alloc: u64) -> Self {
        let cidrs = ["10.0.0.0/20", "fd00::/96"].map(|cidr| cidr.parse().unwrap());
        let mut pool = ClusterPool::new("p", cidrs.into());
        (pool.block_v4, pool.block_v6) = (28, 125);
        (pool.pre_alloc, pool.idle) = (pre_alloc, Duration::from_secs(30));
        pool.excluded = vec!["10.0.0.0/27".parse().unwrap(), "10.0.0.36/32".parse().unwrap()];
        let mut cluster =
            Self { registry: MemoryRegistry::default(), pool, nodes: Vec::new(), now: 0 };
        for number in 0..nodes {
            let node = cluster.start(number, 0);
            cluster.nodes.push(node);
        }
        cluster
    }

    fn start(&self, number: usize, pods: u32) -> Node {
        let (registry, pools) = (self.registry.clone(), vec![self.pool.clone()]);
        let blocks = NodeBlocks::new(registry, format!("n{number}"), pools).unwrap();
        let allocator = Allocator::new(&self.pool.of_node()).unwrap();
        Node { blocks, allocator, pods }
    }

    fn time(&self) -> Time {
        Time::from_secs(self.now)
    }

    fn run(&mut self, step: &Step) {
        let now = self.time();
        match *step {
            Step::Add(node, pods) => {
                for _ in 0..pods {
                    self.nodes[node].allocate(now);
                }
            }
            Step::Remove(node, pods) => {
                let allocator = &mut self.nodes[node].allocator;
                let owners: Vec<_> =
                    allocator.leases().take(pods).map(|lease| lease.owner.clone()).collect();
                for owner in owners {
                    allocator.release(&owner, now);
                }
            }
            Step::Tick(node) => self.nodes[node].tick(now, &[]),
            Step::Wait(seconds) => self.now += seconds,
            Step::Restart(node) => {
                let pools = vec![self.pool.clone()];
                let registry = self.registry.clone();
                self.nodes[node].blocks =
                    NodeBlocks::new(registry, format!("n{node}"), pools).unwrap();
            }
            Step::LoseRecords(node) => {
                let mut new = self.start(node, self.nodes[node].pods);
                for lease in self.nodes[node].allocator.leases() {
                    new.allocator.restore(lease.clone()).unwrap();
                }
                new.tick(now, &[]);
                assert_eq!(new.allocator.stray(), 0, "every lease is in a block of the node's");
                self.nodes[node] = new;
            }
        }
        self.check();
    }

    fn check(&self) {
        let mut holders = BTreeMap::<IpAddr, usize>::new();
        for (number, node) in self.nodes.iter().enumerate() {
            for address in node.allocator.leases().flat_map(|lease| lease.addresses.iter()) {
                assert_eq!(holders.insert(address, number), None, "{address}");
                assert!(!self.pool.excluded.iter().any(|range| range.contains(address)));
            }
        }
    }

    fn end(mut self) {
        for node in &mut self.nodes {
            let owners: Vec<_> = node.allocator.leases().map(|lease| lease.owner.clone()).collect();
            for owner in owners {
                node.allocator.release(&owner, Time::from_secs(self.now));
            }
            node.blocks.set_pools(Vec::new()).unwrap();
            node.tick(Time::from_secs(self.now + 100), &[]);
            assert_eq!(node.allocator.usage()[0].cidrs, []);
        }
        assert_eq!(claims(&self.registry).unwrap(), []);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Add(usize, usize),
    Remove(usize, usize),
    Tick(usize),
    Wait(u64),
    Restart(usize),
    LoseRecords(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let node = 0..3usize;
    prop_oneof![
        6 => (node.clone(), 1..30usize).prop_map(|(node, pods)| Step::Add(node, pods)),
        6 => (node.clone(), 1..40usize).prop_map(|(node, pods)| Step::Remove(node, pods)),
        6 => node.clone().prop_map(Step::Tick),
        4 => (1..70u64).prop_map(Step::Wait),
        1 => node.clone().prop_map(Step::Restart),
        1 => node.prop_map(Step::LoseRecords),
    ]
}

proptest! {
    #[test]
    fn no_address_is_on_two_nodes(
        pre_alloc in 0..40u64,
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut cluster = Cluster::new(3, pre_alloc);
        for step in &steps {
            cluster.run(step);
        }
        cluster.end();
    }
}
