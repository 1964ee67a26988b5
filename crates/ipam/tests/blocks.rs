//! What a node does with blocks of the cluster's pools, situation by situation.

#![expect(clippy::unwrap_used, reason = "functions that tests share panic as tests do")]

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use ipnetwork::IpNetwork;
use podwire_ipam::blocks::{
    Action, Block, BlockState, BlockUsage, ClusterPool, Demand, Error, Expected, MemoryRegistry,
    New, NodeBlocks, Outcome, Registry, Swap, Versioned, claims, forget_pool, release_node,
};
use podwire_ipam::{Family, Time, Usage};

/// A registry that counts calls, and can be cut off.
#[derive(Clone, Debug, Default)]
struct Link {
    registry: MemoryRegistry,
    calls: Arc<AtomicUsize>,
    /// So many calls succeed before none does; 0 is no limit.
    left: Arc<AtomicUsize>,
    /// Swaps take effect, and their answers are lost.
    deaf: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Unreachable;

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("unreachable")
    }
}

impl std::error::Error for Unreachable {}

impl Link {
    fn pass(&self) -> Result<(), Unreachable> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        match self.left.load(Ordering::SeqCst) {
            0 => Ok(()),
            1 => Err(Unreachable),
            left => {
                self.left.store(left - 1, Ordering::SeqCst);
                Ok(())
            }
        }
    }

    fn let_pass(&self, calls: usize) {
        self.left.store(calls + 1, Ordering::SeqCst);
    }

    fn heal(&self) {
        self.left.store(0, Ordering::SeqCst);
    }

    fn calls(&self) -> usize {
        self.calls.swap(0, Ordering::SeqCst)
    }
}

impl Registry for Link {
    type Error = Unreachable;

    fn read(&self, key: &str) -> Result<Option<Versioned>, Unreachable> {
        self.pass().map(|()| self.registry.read(key).unwrap())
    }

    fn list(&self, prefix: &str) -> Result<Vec<(String, Versioned)>, Unreachable> {
        self.pass().map(|()| self.registry.list(prefix).unwrap())
    }

    fn swap(&self, key: &str, expected: &Expected, new: New<'_>) -> Result<Swap, Unreachable> {
        self.pass()?;
        let swap = self.registry.swap(key, expected, new).unwrap();
        if self.deaf.load(Ordering::SeqCst) { Err(Unreachable) } else { Ok(swap) }
    }
}

/// A node: its blocks, and an allocator that is no more than counters.
struct Node {
    blocks: NodeBlocks<Link>,
    allocator: Vec<BlockUsage>,
    now: u64,
}

impl Node {
    fn new(link: &Link, name: &str, pools: &[ClusterPool]) -> Self {
        let blocks = NodeBlocks::new(link.clone(), name, pools.to_vec()).unwrap();
        Self { blocks, allocator: Vec::new(), now: 0 }
    }

    /// As it is after a restart: the allocator's blocks are durable, nothing else is.
    fn restart(self, link: &Link, name: &str, pools: &[ClusterPool]) -> Self {
        Self { allocator: self.allocator, ..Self::new(link, name, pools) }
    }

    fn tick(&mut self, demand: &[Demand]) -> Outcome<Unreachable> {
        let outcome = self.blocks.tick(Time::from_secs(self.now), &self.allocator, demand);
        for action in &outcome.actions {
            let place = |block: &Block| self.allocator.iter().position(|b| b.block == *block);
            match action {
                Action::Add(block) => match place(block) {
                    Some(place) => {
                        let used = self.allocator[place].usage.used;
                        self.allocator[place] = usage(block.clone(), used);
                    }
                    None => self.allocator.push(usage(block.clone(), 0)),
                },
                Action::Drain(block) => {
                    let place = place(block).unwrap();
                    let block = &mut self.allocator[place];
                    block.state = BlockState::Draining;
                    block.usage.size = block.usage.used.into();
                }
                Action::Remove(block) => {
                    if let Some(place) = place(block) {
                        assert_eq!(self.allocator[place].usage.used, 0);
                        self.allocator.remove(place);
                    }
                }
            }
        }
        outcome
    }

    /// Ticks until nothing is to do, and returns everything that was done.
    fn settle(&mut self) -> (Vec<Action>, Vec<String>) {
        let (mut actions, mut errors) = (Vec::new(), Vec::new());
        loop {
            let outcome = self.tick(&[]);
            errors.extend(outcome.errors.iter().map(ToString::to_string));
            if outcome.actions.is_empty() {
                return (actions, errors);
            }
            actions.extend(outcome.actions);
            assert!(actions.len() < 100, "no end: {actions:?}");
        }
    }

    fn quiet(&mut self) -> Vec<Action> {
        let (actions, errors) = self.settle();
        assert_eq!(errors, Vec::<String>::new());
        actions
    }

    fn set_used(&mut self, place: usize, used: u64) {
        let block = &mut self.allocator[place];
        block.usage.used = used;
        if block.state == BlockState::Draining {
            block.usage.size = used.into();
        }
    }

    fn have(&self) -> Vec<String> {
        self.allocator.iter().map(|block| block.block.cidr.to_string()).collect()
    }
}

fn usage(block: Block, used: u64) -> BlockUsage {
    let mut usage = Usage::default();
    let prefix = block.cidr.prefix();
    usage.size = match block.cidr {
        IpNetwork::V4(_) if prefix > 30 => 1 << (32 - prefix),
        IpNetwork::V4(_) => (1 << (32 - prefix)) - 2,
        IpNetwork::V6(_) => (1 << (128 - prefix)) - 1,
    };
    usage.used = used;
    BlockUsage { block, state: BlockState::Active, usage }
}

/// 10.0.0.0/24 in four blocks of 62; the low-water mark is 16.
fn pool() -> ClusterPool {
    let mut pool = ClusterPool::new("p", vec!["10.0.0.0/24".parse().unwrap()]);
    pool.idle = Duration::ZERO;
    pool
}

fn demand(addresses: u64) -> Demand {
    Demand { pool: "p".into(), family: Family::V4, addresses }
}

fn claimed(link: &Link) -> BTreeMap<String, String> {
    let all = claims(&link.registry).unwrap();
    all.into_iter().map(|claim| (claim.block.cidr.to_string(), claim.node)).collect()
}

#[test]
fn the_next_block_is_there_before_the_last_is_full() {
    let link = Link::default();
    let mut node = Node::new(&link, "n1", &[pool()]);
    let actions = node.quiet();
    assert!(matches!(&actions[..], [Action::Add(_)]), "{actions:?}");
    link.calls();
    for used in 0..=46 {
        node.set_used(0, used);
        assert_eq!(node.quiet(), []);
    }
    assert_eq!(link.calls(), 0, "the registry is left alone while nothing is to do");
    node.set_used(0, 47);
    assert_eq!(node.quiet().len(), 1);
    assert_eq!(node.allocator.len(), 2);

    // Some come and go, and no block with them.
    for used in [62, 47, 40, 31, 62] {
        node.set_used(0, used);
        assert_eq!(node.quiet(), [], "{used}");
    }
    node.set_used(0, 30);
    let spare = node.allocator[1].block.clone();
    let removal = [Action::Drain(spare.clone()), Action::Remove(spare.clone())];
    assert_eq!(node.quiet(), removal);
    assert_eq!(claimed(&link).len(), 1);
    assert_eq!(node.blocks.blocks().count(), 1);

    // The last block stays, also when it is empty.
    node.set_used(0, 0);
    assert_eq!(node.quiet(), []);
}

#[test]
fn an_empty_block_is_kept_for_a_while() {
    let link = Link::default();
    let mut pool = pool();
    pool.idle = Duration::from_secs(100);
    let mut node = Node::new(&link, "n1", &[pool]);
    node.quiet();
    node.set_used(0, 60);
    node.quiet();
    node.set_used(0, 10);
    assert_eq!(node.quiet(), []);
    node.now = 99;
    assert_eq!(node.quiet(), []);
    // Used in between: the time begins again.
    node.set_used(1, 1);
    assert_eq!(node.quiet(), []);
    node.set_used(1, 0);
    node.now = 100;
    assert_eq!(node.quiet(), []);
    node.now = 199;
    assert_eq!(node.quiet(), []);
    node.now = 200;
    assert_eq!(node.quiet().len(), 2);
}

#[test]
fn both_families_go_their_own_way() {
    let link = Link::default();
    let mut pool = pool();
    pool.cidrs.push("fd00::/48".parse().unwrap());
    pool.block_v6 = 80;
    let mut node = Node::new(&link, "n1", &[pool]);
    assert_eq!(node.quiet().len(), 2);
    node.set_used(0, 60);
    assert_eq!(node.quiet().len(), 1);
    let families: Vec<_> =
        node.allocator.iter().map(|one| Family::of(one.block.cidr.ip())).collect();
    assert_eq!(families, [Family::V4, Family::V6, Family::V4]);
}

#[test]
fn pre_allocation_may_take_several_blocks_and_demand_too() {
    let link = Link::default();
    let mut pool = pool();
    pool.pre_alloc = 100;
    let mut node = Node::new(&link, "n1", &[pool.clone()]);
    node.tick(&[]);
    assert_eq!(node.allocator.len(), 2);
    node.tick(&[demand(25)]);
    assert_eq!(node.allocator.len(), 3);

    // With nothing allocated beforehand there is no block before one is asked for.
    pool.pre_alloc = 0;
    let link = Link::default();
    let mut node = Node::new(&link, "n1", &[pool]);
    assert_eq!(node.quiet(), []);
    node.tick(&[demand(1)]);
    assert_eq!(node.allocator.len(), 1);
    node.set_used(0, 1);
    assert_eq!(node.quiet(), []);
    node.set_used(0, 0);
    assert_eq!(node.quiet().len(), 2);
    assert_eq!(claimed(&link), BTreeMap::new());
}

#[test]
fn a_drained_block_is_taken_back_before_another_is_claimed() {
    let link = Link::default();
    let mut node = Node::new(&link, "n1", &[pool()]);
    node.quiet();
    node.set_used(0, 60);
    node.quiet();
    node.set_used(0, 10);
    let outcome = node.tick(&[]);
    let spare = node.allocator[1].block.clone();
    assert_eq!(outcome.actions, [Action::Drain(spare.clone())]);
    node.set_used(0, 60);
    assert_eq!(node.quiet(), [Action::Add(spare.clone())]);

    // Also when it was removed already, and not yet released.
    node.set_used(0, 10);
    node.tick(&[]);
    assert_eq!(node.tick(&[]).actions, [Action::Remove(spare.clone())]);
    node.set_used(0, 60);
    assert_eq!(node.quiet(), [Action::Add(spare)]);
    assert_eq!(claimed(&link).len(), 2);
}

#[test]
fn a_full_pool_says_who_has_it() {
    let link = Link::default();
    let mut greedy = Node::new(&link, "greedy", &[pool()]);
    greedy.tick(&[demand(170)]);
    assert_eq!(greedy.allocator.len(), 3);
    let mut modest = Node::new(&link, "modest", &[pool()]);
    assert_eq!(modest.quiet().len(), 1);
    modest.set_used(0, 62);
    let full = "pool p has no free IPv4 block: 4 of 4 claimed (greedy has 3, modest has 1)";
    assert_eq!(modest.settle(), (Vec::new(), vec![full.to_owned()]));
    // As soon as somebody gives one back, it is had.
    greedy.quiet();
    assert_eq!(modest.quiet().len(), 1);
    assert_eq!(claimed(&link).values().filter(|node| *node == "modest").count(), 2);
}

#[test]
fn without_the_registry_the_node_works_on() {
    let link = Link::default();
    link.let_pass(0);
    let mut node = Node::new(&link, "n1", &[pool()]);
    let unreachable = "cannot list blocks/ in the registry";
    assert_eq!(node.settle(), (Vec::new(), vec![unreachable.to_owned()]));
    link.heal();
    node.quiet();
    node.set_used(0, 60);
    node.quiet();
    node.set_used(0, 10);
    node.tick(&[]);
    assert_eq!(node.allocator[1].state, BlockState::Draining);

    link.let_pass(0);
    node.blocks.resync();
    node.set_used(0, 60);
    link.calls();
    let outcome = node.tick(&[demand(500)]);
    assert!(matches!(outcome.errors[..], [Error::Registry { operation: "list", .. }]));
    assert_eq!(outcome.actions.len(), 1, "the drained block serves");
    assert_eq!(link.calls(), 1, "a registry that fails is asked once per tick");
    link.heal();
    node.tick(&[demand(150)]);
    assert_eq!(node.allocator.len(), 4);
}

/// The next tick finds out what has become of a claim or release whose answer was lost.
#[test]
fn an_answer_that_is_lost_is_asked_for() {
    let link = Link::default();
    let mut node = Node::new(&link, "n1", &[pool()]);
    node.quiet();
    node.set_used(0, 60);
    link.deaf.store(true, Ordering::SeqCst);
    let outcome = node.tick(&[]);
    assert!(matches!(outcome.errors[..], [Error::Registry { operation: "create", .. }]));
    assert_eq!((node.allocator.len(), claimed(&link).len()), (1, 2));
    link.deaf.store(false, Ordering::SeqCst);
    node.tick(&[]);
    assert_eq!((node.allocator.len(), claimed(&link).len()), (2, 2));

    node.set_used(0, 10);
    node.tick(&[]);
    node.tick(&[]);
    link.deaf.store(true, Ordering::SeqCst);
    let outcome = node.tick(&[]);
    assert!(matches!(outcome.errors[..], [Error::Registry { operation: "delete", .. }]));
    assert_eq!((node.allocator.len(), claimed(&link).len()), (1, 1));
    link.deaf.store(false, Ordering::SeqCst);
    assert_eq!(node.quiet(), []);
    assert_eq!(node.blocks.blocks().count(), 1);
}

/// The node is killed after each of the calls in turn, before its allocator has done anything.
#[test]
fn what_a_killed_process_claimed_is_found() {
    for calls in 0..8 {
        let link = Link::default();
        let mut node = Node::new(&link, "n1", &[pool()]);
        link.let_pass(calls);
        let now = Time::from_secs(0);
        node.blocks.tick(now, &node.allocator, &[demand(100)]);
        link.heal();
        let before = claimed(&link).len();
        let mut node = node.restart(&link, "n1", &[pool()]);
        node.tick(&[demand(100)]);
        node.tick(&[demand(100)]);
        assert_eq!(node.allocator.len(), 2, "{calls} calls, {before} claims");
        assert_eq!(claimed(&link).len(), 2, "{calls} calls, {before} claims");
    }
}

/// Killed after each step of giving a block back, it goes on, or begins again.
#[test]
fn a_block_that_was_being_given_back_is_not_forgotten() {
    for steps in 0..4 {
        let link = Link::default();
        let mut node = Node::new(&link, "n1", &[pool()]);
        node.quiet();
        node.set_used(0, 60);
        node.quiet();
        node.set_used(0, 10);
        for _ in 0..steps {
            node.tick(&[]);
        }
        let mut node = node.restart(&link, "n1", &[pool()]);
        node.quiet();
        assert_eq!(node.allocator.len(), 1, "{steps}");
        assert_eq!(claimed(&link).len(), 1, "{steps}");
    }
}

/// The allocator's own records are lost: leases may be restored in any block of the node's, so
/// none is released before it was there and empty.
#[test]
fn blocks_that_the_allocator_has_forgotten_are_added_first() {
    let link = Link::default();
    let mut node = Node::new(&link, "n1", &[pool()]);
    node.tick(&[demand(170)]);
    let mut had = node.have();
    had.sort();
    let mut node = Node::new(&link, "n1", &[pool()]);
    let outcome = node.tick(&[]);
    assert!(outcome.actions.iter().all(|action| matches!(action, Action::Add(_))));
    let mut have = node.have();
    have.sort();
    assert_eq!((have, outcome.released), (had, Vec::new()));
    node.set_used(1, 3);
    node.quiet();
    assert_eq!(node.allocator.len(), 1);
    assert_eq!(node.allocator[0].usage.used, 3);
}

/// The only moment at which a block could be used by two: a deletion that was thought to have
/// failed arrives after the block was taken back.
#[test]
fn a_late_deletion_meets_another_revision() {
    for restart in [false, true] {
        let link = Link::default();
        let mut node = Node::new(&link, "n1", &[pool()]);
        node.quiet();
        node.set_used(0, 60);
        node.quiet();
        let spare = node.allocator[1].block.clone();
        node.set_used(0, 10);
        node.tick(&[]);
        node.tick(&[]);
        assert_eq!(node.allocator.len(), 1);
        let sent = claims(&link.registry).unwrap();
        let sent = sent.into_iter().find(|claim| claim.block == spare).unwrap().revision;
        link.let_pass(0);
        let outcome = node.tick(&[]);
        assert!(matches!(outcome.errors[..], [Error::Registry { operation: "delete", .. }]));
        link.heal();
        if restart {
            node = node.restart(&link, "n1", &[pool()]);
        }
        node.set_used(0, 60);
        assert_eq!(node.quiet(), [Action::Add(spare.clone())]);
        let key = format!("blocks/p/{}", spare.cidr);
        let late = link.registry.swap(&key, &Expected::Revision(sent), New::Delete).unwrap();
        assert!(matches!(late, Swap::Conflict(Some(_))));
    }
}

#[test]
fn a_claim_that_somebody_deleted_is_made_again() {
    let link = Link::default();
    let mut node = Node::new(&link, "n1", &[pool()]);
    node.quiet();
    node.set_used(0, 5);
    assert_eq!(release_node(&link.registry, "n1").unwrap(), [node.allocator[0].block.clone()]);
    assert_eq!(node.quiet(), [], "nobody has told it");
    node.blocks.resync();
    let outcome = node.tick(&[]);
    assert_eq!((outcome.claimed.len(), outcome.actions.len()), (1, 0));
    assert_eq!(claimed(&link).len(), 1);
}

#[test]
fn a_block_that_somebody_else_has_is_reported_and_left() {
    let link = Link::default();
    let mut node = Node::new(&link, "n1", &[pool()]);
    node.quiet();
    node.set_used(0, 5);
    release_node(&link.registry, "n1").unwrap();
    let block = node.allocator[0].block.clone();
    let key = format!("blocks/p/{}", block.cidr);
    link.registry.swap(&key, &Expected::Absent, New::Put(br#"{"node":"n2"}"#)).unwrap();
    node.blocks.resync();
    let outcome = node.tick(&[]);
    let error = format!("{} of pool p is used here, but claimed by n2", block.cidr);
    assert_eq!(outcome.errors[0].to_string(), error);
    assert_eq!(outcome.actions[0], Action::Drain(block.clone()));
    assert_eq!(node.allocator.len(), 2, "it goes on with another one");
    node.set_used(0, 0);
    node.tick(&[]);
    assert_eq!(node.allocator.len(), 1);
    assert_eq!(node.quiet(), []);
    assert_eq!(claimed(&link)[&block.cidr.to_string()], "n2");
}

#[test]
fn a_pool_has_blocks_of_one_size_in_the_whole_cluster() {
    let link = Link::default();
    let mut node = Node::new(&link, "n1", &[pool()]);
    node.quiet();
    let mut other = pool();
    other.block_v4 = 28;
    let mut odd = Node::new(&link, "n2", &[other.clone()]);
    let error = "pool p has /26 IPv4 blocks in this cluster, and /28 is configured";
    assert_eq!(odd.settle(), (Vec::new(), vec![error.to_owned()]));

    let error = forget_pool(&link.registry, "p").unwrap_err().to_string();
    assert_eq!(error, "pool p is in use: 1 blocks claimed (n1 has 1)");
    node.blocks.set_pools(Vec::new()).unwrap();
    assert_eq!(node.quiet().len(), 2);
    assert_eq!(claimed(&link), BTreeMap::new());
    forget_pool(&link.registry, "p").unwrap();
    assert_eq!(odd.quiet().len(), 1);
    assert_eq!(odd.allocator[0].block.cidr.prefix(), 28);
}

#[test]
fn cidrs_are_added_and_taken_away_while_the_node_is_at_work() {
    let link = Link::default();
    let mut small = pool();
    small.cidrs = vec!["10.0.0.0/26".parse().unwrap()];
    let mut node = Node::new(&link, "n1", &[small.clone()]);
    node.quiet();
    node.set_used(0, 50);
    assert_eq!(node.settle().1.len(), 1);
    let mut grown = small.clone();
    grown.cidrs.push("10.9.0.0/25".parse().unwrap());
    node.blocks.set_pools(vec![grown.clone()]).unwrap();
    node.quiet();
    assert_eq!(node.have(), ["10.0.0.0/26", "10.9.0.0/26"]);

    grown.cidrs.remove(0);
    node.blocks.set_pools(vec![grown]).unwrap();
    node.quiet();
    assert_eq!(node.allocator[0].state, BlockState::Draining);
    assert_eq!(node.allocator[0].usage.used, 50);
    node.set_used(0, 0);
    node.quiet();
    assert_eq!(node.have(), ["10.9.0.0/26"]);
    assert_eq!(claimed(&link).len(), 1);
    let overlapping = vec![small.clone(), {
        let mut twin = small;
        twin.name = "q".into();
        twin
    }];
    assert!(node.blocks.set_pools(overlapping).is_err());
    assert_eq!(node.blocks.pools().len(), 1);
}

/// Nodes that are told different things do not take each other's addresses.
#[test]
fn blocks_of_another_pool_in_the_same_place_are_left_alone() {
    let link = Link::default();
    let mut other = pool();
    other.name = "q".into();
    other.block_v4 = 25;
    let mut first = Node::new(&link, "n1", &[other]);
    first.tick(&[]);
    let taken = first.allocator[0].block.cidr;
    let mut second = Node::new(&link, "n2", &[pool()]);
    second.tick(&[demand(100)]);
    assert_eq!(second.allocator.len(), 2);
    assert!(second.allocator.iter().all(|one| !taken.contains(one.block.cidr.ip())));
    assert_eq!(second.tick(&[demand(100)]).errors.len(), 0);
    let full = second.tick(&[demand(200)]).errors.remove(0);
    assert!(matches!(full, Error::Full { blocks: 4, .. }), "{full}");
}

#[test]
fn what_is_no_claim_is_named_and_in_nobodys_way() {
    let link = Link::default();
    for (key, value) in
        [("blocks/p/10.0.0.0/26", "no JSON"), ("blocks/p/10.0.0.77/26", "{}"), ("blocks/junk", "")]
    {
        link.registry.swap(key, &Expected::Absent, New::Put(value.as_bytes())).unwrap();
    }
    let error = claims(&link.registry).unwrap_err();
    assert!(matches!(error, Error::Unreadable { .. }), "{error}");
    let mut node = Node::new(&link, "n1", &[pool()]);
    let (actions, errors) = node.settle();
    assert_eq!((actions.len(), errors.len()), (1, 2), "{errors:?}");
    node.tick(&[demand(500)]);
    let full = node.tick(&[demand(500)]).errors.pop().unwrap().to_string();
    assert!(full.contains("4 of 4 claimed (n1 has 3, (unreadable) has 1)"), "{full}");
}

#[test]
fn a_huge_pool_costs_a_handful_of_calls() {
    let link = Link::default();
    let mut pool = ClusterPool::new("six", vec!["fd00::/48".parse().unwrap()]);
    pool.block_v6 = 80;
    pool.idle = Duration::ZERO;
    for node in 0..200 {
        let mut node = Node::new(&link, &format!("n{node}"), &[pool.clone()]);
        link.calls();
        assert_eq!(node.quiet().len(), 1);
        assert!(link.calls() <= 4);
    }
    assert_eq!(claims(&link.registry).unwrap().len(), 200);
}

#[test]
fn names_are_parts_of_keys() {
    for name in ["", "a/b", "a b", "\u{e4}"] {
        assert!(NodeBlocks::new(MemoryRegistry::default(), name, Vec::new()).is_err(), "{name}");
    }
}
