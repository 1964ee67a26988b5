//! Several nodes on one registry: whatever happens between them, to their requests and to them,
//! no block has two users, and in the end none is left over.

#![expect(clippy::unwrap_used, reason = "functions that tests share panic as tests do")]

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use podwire_ipam::blocks::{
    Action, Block, BlockState, BlockUsage, ClusterPool, Demand, Error, Expected, MemoryRegistry,
    New, NodeBlocks, Outcome, Registry, Swap, Versioned, claims,
};
use podwire_ipam::{Family, Time, Usage};
use proptest::prelude::*;

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Fine,
    /// It never arrives.
    Lost,
    /// It takes effect, and the answer never arrives.
    Unanswered,
    /// It times out, and takes effect later.
    Late,
    /// A stranger is quicker: it does to the key what it can, before the request arrives.
    Stranger,
    /// Another node has its turn before the request arrives.
    Other(usize),
}

#[derive(Debug)]
struct NoAnswer;

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no answer")
    }
}

impl std::error::Error for NoAnswer {}

/// The key, what is expected and what it is to be.
type Request = (String, Expected, Option<Vec<u8>>);

/// Everything outside the nodes.
#[derive(Default)]
struct World {
    registry: MemoryRegistry,
    fates: Mutex<VecDeque<Fate>>,
    late: Mutex<Vec<Request>>,
    nodes: Vec<Mutex<Node>>,
}

impl World {
    fn new(nodes: usize) -> Arc<Self> {
        let nodes = (0..nodes).map(|number| Mutex::new(Node::new(format!("n{number}")))).collect();
        Arc::new(Self { nodes, ..Self::default() })
    }

    fn deliver(&self) {
        for (key, expected, value) in std::mem::take(&mut *self.late.lock().unwrap()) {
            let new = value.as_deref().map_or(New::Delete, New::Put);
            let Ok(_) = self.registry.swap(&key, &expected, new);
        }
    }

    fn meet_stranger(&self, key: &str) {
        if key.starts_with("blocks/") {
            let value = New::Put(br#"{"node":"stranger"}"#);
            let Ok(_) = self.registry.swap(key, &Expected::Absent, value);
        }
    }

    fn expel_strangers(&self) {
        podwire_ipam::blocks::release_node(&self.registry, "stranger").unwrap();
    }

    /// No two nodes have one block, and who has one has claimed it. `away` has its turn now.
    fn check(&self) {
        let claims: BTreeMap<_, _> =
            claims(&self.registry).unwrap().into_iter().map(|c| (c.block, c.node)).collect();
        let mut users = BTreeMap::new();
        for node in &self.nodes {
            // A node whose turn it is does not change its allocator before the end of it.
            let Ok(node) = node.try_lock() else { continue };
            for block in node.allocator.iter().map(|usage| &usage.block) {
                assert_eq!(claims.get(block), Some(&node.name), "{block} is used");
                let other = users.insert(block.clone(), node.name.clone());
                assert_eq!(other, None, "{block} has two users, one is {}", node.name);
            }
        }
    }
}

/// The registry as nodes reach it.
#[derive(Clone)]
struct Link(Arc<World>);

impl Link {
    fn fate(&self) -> Fate {
        self.0.fates.lock().unwrap().pop_front().unwrap_or(Fate::Fine)
    }

    fn read_with<T>(&self, read: impl FnOnce(&MemoryRegistry) -> T) -> Result<T, NoAnswer> {
        match self.fate() {
            Fate::Lost | Fate::Unanswered | Fate::Late => Err(NoAnswer),
            Fate::Other(node) => {
                turn(&self.0, node, Applied::All);
                Ok(read(&self.0.registry))
            }
            Fate::Fine | Fate::Stranger => Ok(read(&self.0.registry)),
        }
    }
}

impl Registry for Link {
    type Error = NoAnswer;

    fn read(&self, key: &str) -> Result<Option<Versioned>, NoAnswer> {
        let Ok(found) = self.read_with(|registry| registry.read(key))?;
        Ok(found)
    }

    fn list(&self, prefix: &str) -> Result<Vec<(String, Versioned)>, NoAnswer> {
        let Ok(listed) = self.read_with(|registry| registry.list(prefix))?;
        Ok(listed)
    }

    fn swap(&self, key: &str, expected: &Expected, new: New<'_>) -> Result<Swap, NoAnswer> {
        let fate = self.fate();
        match fate {
            Fate::Lost => return Err(NoAnswer),
            Fate::Late => {
                let value = match new {
                    New::Put(value) => Some(value.to_vec()),
                    New::Delete => None,
                };
                let request = (key.to_owned(), expected.clone(), value);
                self.0.late.lock().unwrap().push(request);
                return Err(NoAnswer);
            }
            Fate::Stranger => self.0.meet_stranger(key),
            Fate::Other(node) => turn(&self.0, node, Applied::All),
            Fate::Fine | Fate::Unanswered => {}
        }
        let Ok(swap) = self.0.registry.swap(key, expected, new);
        self.0.check();
        if fate == Fate::Unanswered { Err(NoAnswer) } else { Ok(swap) }
    }
}

struct Node {
    name: String,
    /// `None` while the node is down.
    blocks: Option<NodeBlocks<Link>>,
    pools: Vec<ClusterPool>,
    /// What survives: its blocks and how many addresses are used.
    allocator: Vec<BlockUsage>,
    waiting: u64,
    now: u64,
}

impl Node {
    fn new(name: String) -> Self {
        let (allocator, pools) = (Vec::new(), vec![pool(SMALL)]);
        Self { name, blocks: None, pools, allocator, waiting: 0, now: 0 }
    }

    fn apply(&mut self, action: &Action) {
        let place = |block: &Block| self.allocator.iter().position(|b| b.block == *block);
        match action {
            Action::Add(block) => match place(block) {
                Some(place) => self.allocator[place].state = BlockState::Active,
                None => {
                    let mut usage = Usage::default();
                    usage.size = 2;
                    let (block, state) = (block.clone(), BlockState::Active);
                    self.allocator.push(BlockUsage { block, state, usage });
                }
            },
            Action::Drain(block) => {
                if let Some(place) = place(block) {
                    self.allocator[place].state = BlockState::Draining;
                }
            }
            // Refused while it is used, as the allocator does.
            Action::Remove(block) => {
                self.allocator.retain(|one| one.block != *block || one.usage.used > 0);
            }
        }
    }

    fn allocate(&mut self, mut addresses: u64) {
        for one in self.allocator.iter_mut().filter(|one| one.state == BlockState::Active) {
            while addresses > 0 && one.usage.used < 2 {
                one.usage.used += 1;
                addresses -= 1;
            }
        }
        self.waiting += addresses;
    }

    fn free(&mut self, from: usize, mut addresses: u64) {
        let blocks = self.allocator.len();
        for place in 0..blocks {
            let used = &mut self.allocator[(from + place) % blocks].usage.used;
            let freed = addresses.min(*used);
            *used -= freed;
            addresses -= freed;
        }
        self.waiting = self.waiting.saturating_sub(addresses);
    }
}

const SMALL: &[&str] = &["10.0.0.0/28"];
const GROWN: &[&str] = &["10.0.0.0/28", "10.0.9.0/29"];
const MOVED: &[&str] = &["10.0.9.0/29"];

/// /31 blocks: eight of them in a /28, two addresses in each.
fn pool(cidrs: &[&str]) -> ClusterPool {
    let cidrs = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
    let mut pool = ClusterPool::new("p", cidrs);
    (pool.block_v4, pool.pre_alloc, pool.idle) = (31, 1, Duration::from_secs(2));
    pool
}

/// How much a node does of what a tick told it, before it dies or has its next turn.
#[derive(Clone, Copy, Debug)]
enum Applied {
    All,
    /// So many actions; then the node is killed.
    Killed(usize),
}

fn turn(world: &Arc<World>, number: usize, applied: Applied) {
    // Its turn is now already: it is further up in the stack.
    let Ok(mut node) = world.nodes[number % world.nodes.len()].try_lock() else { return };
    let node = &mut *node;
    let outcome = tick(world, node);
    let actions = match applied {
        Applied::All => outcome.actions.len(),
        Applied::Killed(actions) => actions,
    };
    for action in outcome.actions.iter().take(actions) {
        node.apply(action);
    }
    for error in &outcome.errors {
        assert!(!matches!(error, Error::Lost { .. } | Error::Unreadable { .. }), "{error}");
    }
    match applied {
        Applied::All => {
            let waiting = std::mem::take(&mut node.waiting);
            node.allocate(waiting);
        }
        Applied::Killed(_) => node.blocks = None,
    }
}

fn tick(world: &Arc<World>, node: &mut Node) -> Outcome<NoAnswer> {
    let blocks = node.blocks.get_or_insert_with(|| {
        NodeBlocks::new(Link(world.clone()), node.name.as_str(), node.pools.clone()).unwrap()
    });
    let addresses = node.waiting;
    let demand = Demand { pool: "p".into(), family: Family::V4, addresses };
    blocks.tick(Time::from_secs(node.now), &node.allocator, &[demand])
}

#[derive(Clone, Debug)]
enum Step {
    Turn(usize, Applied),
    Allocate(usize, u64),
    Free(usize, usize, u64),
    Kill(usize),
    Wait(u64),
    Fates(Vec<Fate>),
    Deliver,
    Resync(usize),
    ExpelStrangers,
    Pool(usize, &'static [&'static str]),
}

fn step() -> impl Strategy<Value = Step> {
    let node = 0..3usize;
    let fate = prop_oneof![
        4 => Just(Fate::Fine),
        2 => Just(Fate::Lost),
        2 => Just(Fate::Unanswered),
        3 => Just(Fate::Late),
        2 => Just(Fate::Stranger),
        4 => node.clone().prop_map(Fate::Other),
    ];
    let applied = prop_oneof![8 => Just(Applied::All), 1 => (0..3usize).prop_map(Applied::Killed)];
    let pool = prop_oneof![Just(SMALL), Just(GROWN), Just(MOVED)];
    prop_oneof![
        24 => (node.clone(), applied).prop_map(|(node, applied)| Step::Turn(node, applied)),
        8 => (node.clone(), 1..5u64).prop_map(|(node, n)| Step::Allocate(node, n)),
        8 => (node.clone(), 0..4usize, 1..6u64).prop_map(|(node, at, n)| Step::Free(node, at, n)),
        1 => node.clone().prop_map(Step::Kill),
        4 => (1..4u64).prop_map(Step::Wait),
        8 => prop::collection::vec(fate, 1..6).prop_map(Step::Fates),
        3 => Just(Step::Deliver),
        2 => node.clone().prop_map(Step::Resync),
        2 => Just(Step::ExpelStrangers),
        1 => (node, pool).prop_map(|(node, pool)| Step::Pool(node, pool)),
    ]
}

fn run(steps: &[Step]) {
    let world = World::new(3);
    for step in steps {
        match step {
            Step::Turn(node, applied) => turn(&world, *node, *applied),
            Step::Allocate(node, addresses) => {
                world.nodes[*node].lock().unwrap().allocate(*addresses);
            }
            Step::Free(node, from, addresses) => {
                world.nodes[*node].lock().unwrap().free(*from, *addresses);
            }
            Step::Kill(node) => world.nodes[*node].lock().unwrap().blocks = None,
            Step::Wait(seconds) => {
                for node in &world.nodes {
                    node.lock().unwrap().now += seconds;
                }
            }
            Step::Fates(fates) => world.fates.lock().unwrap().extend(fates),
            Step::Deliver => world.deliver(),
            Step::Resync(node) => {
                if let Some(blocks) = &mut world.nodes[*node].lock().unwrap().blocks {
                    blocks.resync();
                }
            }
            Step::ExpelStrangers => world.expel_strangers(),
            Step::Pool(node, cidrs) => set_pools(&world, *node, vec![pool(cidrs)]),
        }
        world.check();
    }
    end(&world);
}

fn set_pools(world: &World, node: usize, pools: Vec<ClusterPool>) {
    let mut node = world.nodes[node].lock().unwrap();
    if let Some(blocks) = &mut node.blocks {
        blocks.set_pools(pools.clone()).unwrap();
    }
    node.pools = pools;
}

/// The weather clears up. Every node gets what it needs, and gives it back.
fn end(world: &Arc<World>) {
    world.fates.lock().unwrap().clear();
    world.deliver();
    world.expel_strangers();
    // Everybody at home again, with what it needs at least; the rest goes back.
    for (number, node) in world.nodes.iter().enumerate() {
        set_pools(world, number, vec![pool(SMALL)]);
        node.lock().unwrap().free(0, u64::MAX);
    }
    settle(world);
    for node in &world.nodes {
        let node = node.lock().unwrap();
        // One address kept free is one block, and two empty ones are one too many.
        assert_eq!(node.allocator.len(), 1, "{}", node.name);
    }
    assert_eq!(claims(&world.registry).unwrap().len(), world.nodes.len());
    world.nodes[0].lock().unwrap().allocate(8);
    settle(world);
    let used: u64 = world.nodes[0].lock().unwrap().allocator.iter().map(|one| one.usage.used).sum();
    assert_eq!(used, 8);

    for (number, node) in world.nodes.iter().enumerate() {
        set_pools(world, number, Vec::new());
        node.lock().unwrap().free(0, u64::MAX);
    }
    settle(world);
    assert!(world.nodes.iter().all(|node| node.lock().unwrap().allocator.is_empty()));
    assert_eq!(claims(&world.registry).unwrap(), []);
}

fn settle(world: &Arc<World>) {
    for round in 0..24 {
        for (number, node) in world.nodes.iter().enumerate() {
            let mut locked = node.lock().unwrap();
            locked.now += 1;
            if let Some(blocks) = locked.blocks.as_mut().filter(|_| round == 0) {
                blocks.resync();
            }
            drop(locked);
            turn(world, number, Applied::All);
            world.check();
        }
    }
}

proptest! {
    #[test]
    fn no_block_has_two_users_and_none_is_lost(steps in prop::collection::vec(step(), 1..120)) {
        run(&steps);
    }
}

/// Threads that know nothing of each other, on more nodes than there are blocks for.
fn race<R: Registry + Clone + 'static>(registry: &R, ticks: u32) {
    let users = Arc::new(Mutex::new(BTreeMap::<Block, u64>::new()));
    let threads: Vec<_> = (0..6u64)
        .map(|number| {
            let (registry, users) = (registry.clone(), users.clone());
            thread::spawn(move || {
                let mut node = Node::new(format!("n{number}"));
                node.pools[0].idle = Duration::ZERO;
                let name = node.name.as_str();
                let mut blocks = NodeBlocks::new(registry, name, node.pools.clone()).unwrap();
                let mut dice = number + 1;
                let mut claimed = 0;
                for tick in 0..=ticks {
                    dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
                    if tick + 4 > ticks {
                        blocks.set_pools(Vec::new()).unwrap();
                        node.free(0, u64::MAX);
                    } else if dice >> 63 == 0 {
                        node.allocate((dice >> 40) % 4);
                    } else {
                        node.free(0, (dice >> 40) % 8);
                    }
                    let outcome = blocks.tick(Time::default(), &node.allocator, &[]);
                    claimed += outcome.claimed.len();
                    for action in outcome.actions {
                        let mut users = users.lock().unwrap();
                        match &action {
                            Action::Add(block) => {
                                let user = *users.entry(block.clone()).or_insert(number);
                                assert_eq!(user, number, "{block} has two users");
                            }
                            Action::Remove(block) => drop(users.remove(block)),
                            Action::Drain(_) => {}
                        }
                        drop(users);
                        node.apply(&action);
                    }
                    for error in outcome.errors {
                        let expected =
                            matches!(error, Error::Full { .. } | Error::Contended { .. });
                        assert!(expected, "{error}");
                    }
                }
                assert!(node.allocator.is_empty());
                claimed
            })
        })
        .collect();
    let claimed: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    assert!(claimed > 6, "only {claimed} claims");
    assert!(users.lock().unwrap().is_empty());
    assert_eq!(claims(registry).unwrap(), []);
}

#[test]
fn threads_race_for_blocks() {
    race(&MemoryRegistry::default(), 3000);
}

#[cfg(feature = "file")]
#[test]
fn threads_race_for_blocks_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("registry.redb");
    race(&Arc::new(podwire_ipam::blocks::FileRegistry::open(path).unwrap()), 60);
}
