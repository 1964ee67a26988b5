//! Three nodes on the pools of one cluster: blocks are claimed before they are needed, a node that
//! was killed finds its own again, and empty ones are given back.

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::time::Duration;

use podwire_ipam::blocks::{
    Action, BlockUsage, ClusterPool, Demand, MemoryRegistry, NodeBlocks, claims, release_node,
};
use podwire_ipam::{Allocator, Error as IpamError, Family, Owner, Request, Time};

/// What an agent has of addresses. A real one keeps the allocator's state on the disk.
struct Node {
    name: &'static str,
    blocks: NodeBlocks<MemoryRegistry>,
    allocator: Allocator,
}

impl Node {
    fn start(
        registry: &MemoryRegistry,
        name: &'static str,
        pool: &ClusterPool,
    ) -> Result<Self, Box<dyn Error>> {
        let allocator = Allocator::new(&pool.of_node())?;
        let blocks = NodeBlocks::new(registry.clone(), name, vec![pool.clone()])?;
        Ok(Self { name, blocks, allocator })
    }

    /// To be called every few seconds, and at once when a pod waits for an address.
    fn tick(&mut self, now: Time, demand: &[Demand]) -> Result<(), Box<dyn Error>> {
        loop {
            self.allocator.expire(now);
            let in_use: Vec<_> = self.allocator.usage().iter().flat_map(BlockUsage::of).collect();
            let outcome = self.blocks.tick(now, &in_use, demand);
            for action in &outcome.actions {
                println!("{}: {action}", self.name);
                let done = match action {
                    Action::Add(block) => self.allocator.add_cidr(&block.pool, block.cidr),
                    Action::Drain(block) => self.allocator.drain_cidr(&block.pool, block.cidr),
                    Action::Remove(block) => self.allocator.remove_cidr(&block.pool, block.cidr),
                };
                match done {
                    Err(IpamError::CidrInUse { .. } | IpamError::UnknownCidr { .. }) => {}
                    done => done?,
                }
            }
            for block in &outcome.released {
                println!("{}: released {block}", self.name);
            }
            for error in &outcome.errors {
                println!("{}: {error}", self.name);
            }
            if outcome.actions.is_empty() {
                return Ok(());
            }
        }
    }

    fn add_pod(&mut self, name: &str, now: Time) -> Result<(), Box<dyn Error>> {
        let owner = Owner::new(name, "eth0");
        let lease = self.allocator.allocate(&owner, &Request::default(), now)?;
        self.allocator.confirm(&owner)?;
        println!("{}: {owner} has {}", self.name, lease.addresses);
        self.tick(now, &[])
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    // Tiny blocks, so that something happens: four of 14 addresses.
    let mut pool = ClusterPool::new("default", vec!["10.1.0.0/26".parse()?]);
    pool.block_v4 = 28;
    pool.pre_alloc = 4;
    pool.idle = Duration::from_secs(30);
    ClusterPool::check_all(std::slice::from_ref(&pool))?;

    let registry = MemoryRegistry::default();
    let start = Time::from_secs(0);
    let mut first = Node::start(&registry, "node-1", &pool)?;
    first.tick(start, &[])?;
    for pod in 0..12 {
        first.add_pod(&format!("pod-{pod}"), start)?;
    }
    let mut second = Node::start(&registry, "node-2", &pool)?;
    second.tick(start, &[])?;

    println!("node-1 is killed, and its records with it");
    let leases: Vec<_> = first.allocator.leases().cloned().collect();
    drop(first);
    let mut first = Node::start(&registry, "node-1", &pool)?;
    for lease in leases {
        // No CIDR has them yet: they become the block's when it is added.
        first.allocator.restore(lease)?;
    }
    first.tick(start, &[])?;

    println!("twenty pods come at once");
    let demand = Demand { pool: "default".into(), family: Family::V4, addresses: 20 };
    second.tick(start, &[demand])?;
    for claim in claims(&registry)? {
        println!("{} is {}'s", claim.block, claim.node);
    }

    println!("node-1 becomes empty");
    for pod in 0..12 {
        first.allocator.release(&Owner::new(&format!("pod-{pod}"), "eth0"), start);
    }
    for seconds in [60, 90] {
        first.tick(Time::from_secs(seconds), &[])?;
    }

    println!("node-2 is gone for good");
    for block in release_node(&registry, "node-2")? {
        println!("released {block}");
    }
    Ok(())
}
