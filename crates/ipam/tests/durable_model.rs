//! Durable leases against a model, over random operations, crashes and failures of the store.
#![expect(clippy::unwrap_used, reason = "functions that tests share panic as tests do")]

mod oracle;

use std::env;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use podwire_ipam::durable::{Begun, Change, Entry, Error, Ipam, MemoryStore, Store};
use podwire_ipam::{Family, Lease, Time};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use oracle::{Model, Op, Outcome, Snapshot, Wish};

/// What happens around operations.
#[derive(Clone, Debug)]
enum Step {
    Do(Op),
    Wait(u8),
    /// The process ends and another one begins.
    Restart,
    /// So does the machine.
    Reboot,
    /// The commit of an operation fails; it may have been made all the same. The store can only be
    /// read again after so many tries.
    Fail {
        kept: bool,
        unreadable: u8,
        op: Op,
    },
    /// Operations begin one after another, and the process dies with the commit after so many; that
    /// one may have been made.
    Die {
        commits: u8,
        kept: bool,
        ops: Vec<Op>,
    },
}

/// A store in memory whose commits fail when they are told to. Clones are the same store.
#[derive(Clone, Debug, Default)]
struct Fragile(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    tables: MemoryStore,
    /// Commits until one fails.
    good: Option<u8>,
    /// Whether that one is made nevertheless.
    kept: bool,
    /// Whether nothing works any more after it.
    fatal: bool,
    unreadable: u8,
    dead: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("on purpose")]
struct OnPurpose;

impl Store for Fragile {
    type Error = OnPurpose;

    fn load(&mut self, table: &str) -> Result<Vec<Entry>, OnPurpose> {
        let mut inner = self.0.lock().unwrap();
        if inner.dead {
            return Err(OnPurpose);
        }
        if let Some(left) = inner.unreadable.checked_sub(1) {
            inner.unreadable = left;
            return Err(OnPurpose);
        }
        Ok(inner.tables.load(table).unwrap())
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), OnPurpose> {
        let mut inner = self.0.lock().unwrap();
        if inner.dead {
            return Err(OnPurpose);
        }
        let fails = inner.good == Some(0);
        inner.good = inner.good.map(|good| good.saturating_sub(1));
        if !fails || inner.kept {
            inner.tables.commit(changes).unwrap();
        }
        inner.dead = fails && inner.fatal;
        if fails { Err(OnPurpose) } else { Ok(()) }
    }
}

type Tested = Ipam<Fragile>;

/// The model and the real thing.
struct Pair {
    store: Fragile,
    boot: u32,
    model: Model,
    ipam: Option<Tested>,
    operations: u64,
}

impl Pair {
    fn new() -> Self {
        let mut pair = Self {
            store: Fragile::default(),
            boot: 0,
            model: Model::default(),
            ipam: None,
            operations: 0,
        };
        pair.open();
        for number in 0..2 {
            pair.operate(&Op::AddPool(number));
        }
        pair
    }

    fn ipam(&self) -> &Tested {
        self.ipam.as_ref().unwrap()
    }

    fn open(&mut self) {
        self.ipam = None;
        let (ipam, recovered) = Ipam::open(self.store.clone(), &self.boot.to_string()).unwrap();
        assert_eq!((recovered.leases, recovered.stray), (ipam.leases().unwrap().len(), vec![]));
        self.ipam = Some(ipam);
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Do(op) => self.operate(op),
            Step::Wait(seconds) => {
                self.model.now = self.model.now + Duration::from_secs((*seconds).into());
            }
            Step::Restart => self.open(),
            Step::Reboot => self.reboot(),
            Step::Fail { kept, unreadable, op } => self.fail(*kept, *unreadable, op),
            Step::Die { commits, kept, ops } => self.die(*commits, *kept, ops),
        }
        self.ipam().read(|allocator| self.model.check(allocator)).unwrap();
    }

    fn operate(&mut self, op: &Op) {
        self.operations += 1;
        let answer = carry_out(self.ipam(), op, self.model.now);
        self.model.learn(op, &refusal(answer).unwrap());
    }

    fn reboot(&mut self) {
        self.boot += 1;
        self.ipam = None;
        let (ipam, recovered) = Ipam::open(self.store.clone(), &self.boot.to_string()).unwrap();
        let mut dropped = recovered.dropped;
        dropped.sort_by(|a, b| a.owner.cmp(&b.owner));
        assert_eq!(dropped, self.model.leases.values().cloned().collect::<Vec<Lease>>());
        assert_eq!(recovered.leases, 0);
        self.model.reboot();
        self.ipam = Some(ipam);
        // Dropped once and for all.
        self.open();
    }

    fn fail(&mut self, kept: bool, unreadable: u8, op: &Op) {
        // In which order they cool down afterwards would not be known.
        let kept = kept && !(matches!(op, Op::Expire) && self.model.due().len() > 1);
        {
            let mut store = self.store.0.lock().unwrap();
            (store.good, store.kept, store.unreadable) = (Some(0), kept, unreadable);
        }
        self.operations += 1;
        let answer = carry_out(self.ipam(), op, self.model.now);
        let failed = matches!(answer, Err(Error::Store { .. }));
        if failed {
            for _ in 0..unreadable {
                assert!(matches!(self.ipam().leases(), Err(Error::Store { .. })));
            }
        }
        {
            let mut store = self.store.0.lock().unwrap();
            (store.good, store.unreadable) = (None, 0);
        }
        let answer = match refusal(answer) {
            Ok(answer) => answer,
            Err(_) if !kept => return,
            Err(_) => Ok(match op {
                Op::Allocate { owner, .. } => {
                    let owner = oracle::owner(*owner);
                    Outcome::Leased(self.ipam().lease(&owner).unwrap().unwrap())
                }
                op => self.model.unheard(op),
            }),
        };
        self.model.learn(op, &answer);
    }

    fn die(&mut self, commits: u8, kept: bool, ops: &[Op]) {
        {
            let mut store = self.store.0.lock().unwrap();
            (store.good, store.kept, store.fatal) = (Some(commits), kept, true);
        }
        // The model after each operation.
        let mut models = vec![self.model.clone()];
        let mut begun = Vec::new();
        for op in ops {
            let now = self.model.now;
            let Ok((answer, waiting)) = begin(self.ipam(), op, now) else { break };
            self.operations += 1;
            let mut model = models.last().unwrap().clone();
            model.learn(op, &answer);
            models.push(model);
            begun.push(waiting);
        }
        // A refusal needs no commit, and says nothing about those before it.
        let told: Vec<bool> =
            begun.into_iter().map(|waiting| waiting.is_some_and(Waiting::succeeds)).collect();
        let acknowledged = told.iter().rposition(|told| *told).map_or(0, |last| last + 1);
        {
            let mut store = self.store.0.lock().unwrap();
            store.dead = true;
        }
        self.ipam = None;
        {
            let mut store = self.store.0.lock().unwrap();
            (store.good, store.fatal, store.dead) = (None, false, false);
        }
        self.open();
        let now = self.model.now;
        let found = self.ipam().read(|allocator| Snapshot::of(allocator, now)).unwrap();
        let model = models[acknowledged..].iter().find(|model| model.snapshot() == found);
        self.model = model
            .unwrap_or_else(|| panic!("not as after any of the operations: {found:#?}"))
            .clone();
    }
}

/// A commit to wait for, whatever it is about.
enum Waiting {
    Leased(Begun<Lease>),
    Released(Begun<podwire_ipam::Release>),
}

impl Waiting {
    fn succeeds(self) -> bool {
        match self {
            Self::Leased(begun) => begun.wait().is_ok(),
            Self::Released(begun) => begun.wait().is_ok(),
        }
    }
}

/// An operation's answer before it is certain, and what to wait for, if it changes anything.
type Answer = (Result<Outcome, podwire_ipam::Error>, Option<Waiting>);

fn begin(ipam: &Tested, op: &Op, now: Time) -> Result<Answer, Error> {
    let owner = |number: &u8| oracle::owner(*number);
    let leased = |begun: Result<Begun<Lease>, Error>| match begun {
        Ok(begun) => Ok((Ok(Outcome::Leased(begun.peek().clone())), Some(Waiting::Leased(begun)))),
        Err(Error::Refused(refusal)) => Ok((Err(refusal), None)),
        Err(error) => Err(error),
    };
    match op {
        Op::Allocate { owner: number, wish, pools, name } => {
            let request = oracle::request(*wish, pools, *name);
            leased(ipam.begin_allocate(&owner(number), &request, now, Vec::new()))
        }
        Op::Confirm(number) => leased(ipam.begin_confirm(&owner(number), Vec::new())),
        Op::Release(number) => {
            let begun = ipam.begin_release(&owner(number), now, Vec::new())?;
            let released = Outcome::Released(begun.peek().clone());
            Ok((Ok(released), Some(Waiting::Released(begun))))
        }
        op => panic!("{op:?} cannot be begun"),
    }
}

fn carry_out(ipam: &Tested, op: &Op, now: Time) -> Result<Outcome, Error> {
    use oracle::{cidr, config, name, numbered, owner, pool, request};
    let edited = |()| Outcome::Edited;
    match op {
        Op::Allocate { owner: number, wish, pools, name } => {
            ipam.allocate(&owner(*number), &request(*wish, pools, *name), now).map(Outcome::Leased)
        }
        Op::Confirm(number) => ipam.confirm(&owner(*number)).map(Outcome::Leased),
        Op::Release(number) => ipam.release(&owner(*number), now).map(Outcome::Released),
        Op::Expire => ipam.expire(now).map(Outcome::Expired),
        Op::Reserve(number) => ipam.reserve(numbered(*number), "test").map(edited),
        Op::Unreserve(number) => ipam.unreserve(numbered(*number)).map(Outcome::Unreserved),
        Op::Forget(number) => ipam.forget(&name(*number), now).map(Outcome::Forgotten),
        Op::AddPool(number) => ipam.add_pool(&config(*number)).map(edited),
        Op::RemovePool(number) => ipam.remove_pool(&pool(*number)).map(edited),
        Op::AddCidr(number, of) => ipam.add_cidr(&pool(*number), cidr(*of)).map(edited),
        Op::DrainCidr(number, of) => ipam.drain_cidr(&pool(*number), cidr(*of)).map(edited),
        Op::SetCooldown(number, seconds) => {
            let cooldown = Duration::from_secs((*seconds).into());
            ipam.set_times(&pool(*number), cooldown, oracle::PENDING_TTL).map(edited)
        }
        Op::RemoveCidr(number, of) => ipam.remove_cidr(&pool(*number), cidr(*of)).map(edited),
    }
}

/// Tells the allocator's refusals from the store's failures.
fn refusal(answer: Result<Outcome, Error>) -> Result<Result<Outcome, podwire_ipam::Error>, Error> {
    match answer {
        Ok(outcome) => Ok(Ok(outcome)),
        Err(Error::Refused(refusal)) => Ok(Err(refusal)),
        Err(error) => Err(error),
    }
}

fn begun_op() -> impl Strategy<Value = Op> {
    let wish = prop_oneof![
        4 => Just(Wish::Any),
        1 => Just(Wish::Dual),
        2 => Just(Wish::Only(Family::V4)),
        1 => Just(Wish::Only(Family::V6)),
        2 => (0usize..40).prop_map(Wish::Explicit),
    ];
    let pools = prop_oneof![
        2 => Just(vec![]),
        3 => Just(vec![0, 1]),
        1 => Just(vec![1]),
        1 => Just(vec![2, 1, 0]),
    ];
    let name = prop_oneof![3 => Just(None), 2 => (0u8..3).prop_map(Some)];
    prop_oneof![
        12 => (0u8..12, wish, pools, name)
            .prop_map(|(owner, wish, pools, name)| Op::Allocate { owner, wish, pools, name }),
        5 => (0u8..12).prop_map(Op::Confirm),
        8 => (0u8..12).prop_map(Op::Release),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        25 => begun_op(),
        4 => Just(Op::Expire),
        2 => (0usize..40).prop_map(Op::Reserve),
        2 => (0usize..40).prop_map(Op::Unreserve),
        1 => (0u8..3).prop_map(Op::Forget),
        1 => (0u8..3).prop_map(Op::AddPool),
        1 => (0u8..3).prop_map(Op::RemovePool),
        2 => (0u8..3, 0u8..8).prop_map(|(pool, cidr)| Op::AddCidr(pool, cidr)),
        1 => (0u8..3, 0u8..8).prop_map(|(pool, cidr)| Op::DrainCidr(pool, cidr)),
        1 => (0u8..3, 0u8..8).prop_map(|(pool, cidr)| Op::RemoveCidr(pool, cidr)),
        1 => (0u8..3, 5u8..50).prop_map(|(pool, seconds)| Op::SetCooldown(pool, seconds)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let ops = prop::collection::vec(begun_op(), 1..12);
    prop_oneof![
        40 => op().prop_map(Step::Do),
        6 => (0u8..15).prop_map(Step::Wait),
        2 => Just(Step::Restart),
        1 => Just(Step::Reboot),
        2 => (any::<bool>(), 0u8..3, op())
            .prop_map(|(kept, unreadable, op)| Step::Fail { kept, unreadable, op }),
        2 => (0u8..5, any::<bool>(), ops)
            .prop_map(|(commits, kept, ops)| Step::Die { commits, kept, ops }),
    ]
}

/// How many operations a long run makes.
const OPERATIONS: &str = "PODWIRE_MODEL_OPERATIONS";

#[test]
fn survives_everything_as_a_model_does() {
    let wanted: Option<u64> = env::var(OPERATIONS).ok().map(|number| number.parse().unwrap());
    let wanted_now = wanted.unwrap_or(20_000);
    let done = std::cell::Cell::new(0);
    while done.get() < wanted_now {
        let config = Config { cases: 100, failure_persistence: None, ..Config::default() };
        let mut runner = TestRunner::new(config);
        let outcome = runner.run(&prop::collection::vec(step(), 1..150), |steps| {
            let mut pair = Pair::new();
            for step in &steps {
                pair.run(step);
            }
            done.set(done.get() + pair.operations);
            Ok(())
        });
        if let Err(failure) = outcome {
            panic!("{failure}");
        }
        if wanted.is_some() {
            eprintln!("{} of {wanted_now} operations", done.get());
        }
    }
}
