//! The store of leases, in memory and in a file, against a simple model: lists, searched through.

#![expect(clippy::unwrap_used, reason = "functions that tests share panic as tests do")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::IpAddr;

use podwire_ipam::store::{Ledger, Memory, StoreError};
use podwire_ipam::{Error, Owner, Plan, RangeSpec};
use proptest::prelude::*;

type Refused = StoreError<Infallible>;

#[derive(Clone, Debug)]
enum Step {
    /// The plan that an operator has changed to meanwhile may be another.
    Allocate {
        owner: u8,
        plan: usize,
        asked: Vec<IpAddr>,
    },
    Release {
        owner: u8,
    },
    Retain {
        owners: Vec<u8>,
    },
    Available {
        plan: usize,
    },
}

/// What the ledger should do, in the plainest way.
#[derive(Debug)]
struct Model {
    plans: Vec<ModelPlan>,
    /// By the first address of a set, the one granted last.
    cursors: BTreeMap<IpAddr, IpAddr>,
    held: BTreeMap<Owner, Vec<IpAddr>>,
    /// The oldest release first.
    resting: Vec<IpAddr>,
}

#[derive(Debug)]
struct ModelPlan {
    /// The addresses of each set in their order.
    sets: Vec<Vec<IpAddr>>,
    withheld: Vec<IpAddr>,
}

impl Model {
    fn is_held(&self, address: IpAddr) -> bool {
        self.held.values().flatten().any(|held| *held == address)
    }

    /// The address of the set that is granted next, and whether it does not rest.
    fn next(&self, plan: &ModelPlan, set: &[IpAddr]) -> Option<(IpAddr, bool)> {
        let cursor = self.cursors.get(&set[0]);
        let cursor = cursor.and_then(|cursor| set.iter().position(|address| address == cursor));
        let start = cursor.map_or(0, |cursor| cursor + 1);
        let usable = |address: &IpAddr| !plan.withheld.contains(address);
        let fresh = (0..set.len())
            .map(|step| set[(start + step) % set.len()])
            .filter(usable)
            .find(|address| !self.is_held(*address) && !self.resting.contains(address));
        let rested =
            || self.resting.iter().copied().filter(usable).find(|rested| set.contains(rested));
        fresh.map(|address| (address, true)).or_else(|| rested().map(|address| (address, false)))
    }

    fn available(&self, plan: usize) -> bool {
        let plan = &self.plans[plan];
        plan.sets.iter().all(|set| self.next(plan, set).is_some())
    }

    /// The addresses, or `None` for a refusal.
    fn allocate(&mut self, owner: &Owner, plan: usize, asked: &[IpAddr]) -> Option<Vec<IpAddr>> {
        let plan = &self.plans[plan];
        if let Some(held) = self.held.get(owner) {
            let fits = plan.sets.iter().zip(held).all(|(set, address)| set.contains(address));
            let asked = asked.iter().all(|address| held.contains(address));
            return (fits && asked).then(|| held.clone());
        }
        let mut asked = asked.to_vec();
        let mut granted = Vec::new();
        let mut cursors = Vec::new();
        for set in &plan.sets {
            let wanted = asked.iter().position(|address| set.contains(address));
            granted.push(match wanted.map(|place| asked.remove(place)) {
                Some(address) if self.is_held(address) => return None,
                Some(address) if plan.withheld.contains(&address) => return None,
                Some(address) => address,
                None => {
                    let (address, fresh) = self.next(plan, set)?;
                    cursors.extend(fresh.then_some((set[0], address)));
                    address
                }
            });
        }
        if !asked.is_empty() {
            return None;
        }
        self.cursors.extend(cursors);
        self.resting.retain(|address| !granted.contains(address));
        self.held.insert(owner.clone(), granted.clone());
        Some(granted)
    }

    fn release(&mut self, owner: &Owner) -> Vec<IpAddr> {
        let released = self.held.remove(owner).unwrap_or_default();
        self.resting.extend(&released);
        released
    }
}

/// Small plans of two sets, that share addresses and the beginning of a set.
fn plans() -> (Vec<Plan>, Model) {
    let range = |subnet: &str, first: &str, last: &str, gateway: &str| {
        let mut spec = RangeSpec::new(subnet.parse().unwrap());
        (spec.first, spec.last) = (first.parse().ok(), last.parse().ok());
        spec.gateway = gateway.parse().ok();
        spec.build().unwrap()
    };
    let list = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect::<Vec<_>>();
    let numbers = |start: &str, of: std::ops::RangeInclusive<u8>| {
        of.map(|number| format!("{start}{number:x}").parse().unwrap()).collect::<Vec<IpAddr>>()
    };
    let v4 = numbers("10.0.0.", 1..=6);
    let plans = vec![
        Plan::new(vec![
            vec![
                range("10.0.0.0/29", "", "", ""),
                range("10.0.9.0/24", "10.0.9.254", "10.0.9.255", ""),
            ],
            vec![range("fd00::/64", "fd00::", "fd00::6", "")],
        ]),
        Plan::new(vec![
            vec![range("10.0.0.0/28", "", "10.0.0.9", "10.0.0.4")],
            vec![range("fd00::/64", "fd00::4", "fd00::9", "")],
        ]),
    ];
    let model = Model {
        plans: vec![
            ModelPlan {
                sets: vec![
                    [v4, list(&["10.0.9.254", "10.0.9.255"])].concat(),
                    numbers("fd00::", 0..=6),
                ],
                withheld: list(&["10.0.0.1", "10.0.9.255", "fd00::", "fd00::1"]),
            },
            ModelPlan {
                sets: vec![numbers("10.0.0.", 1..=9), numbers("fd00::", 4..=9)],
                withheld: list(&["10.0.0.4"]),
            },
        ],
        cursors: BTreeMap::new(),
        held: BTreeMap::new(),
        resting: Vec::new(),
    };
    (plans.into_iter().map(Result::unwrap).collect(), model)
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let names =
        ["10.0.0.3", "10.0.0.6", "10.0.9.254", "10.0.0.4", "fd00::2", "fd00::5", "10.0.8.1"];
    let address = prop::sample::select(names.to_vec());
    let address = address.prop_map(|name| name.parse::<IpAddr>().unwrap());
    let asked = prop_oneof![
        4 => Just(Vec::new()),
        1 => prop::collection::vec(address, 1..3),
    ];
    let owner = 0..9_u8;
    let plan = prop_oneof![3 => Just(0_usize), 1 => Just(1)];
    let step = prop_oneof![
        6 => (owner.clone(), plan.clone(), asked)
            .prop_map(|(owner, plan, asked)| Step::Allocate { owner, plan, asked }),
        4 => owner.clone().prop_map(|owner| Step::Release { owner }),
        1 => prop::collection::vec(owner, 0..9).prop_map(|owners| Step::Retain { owners }),
        1 => plan.prop_map(|plan| Step::Available { plan }),
    ];
    prop::collection::vec(step, 1..120)
}

fn owner(number: u8) -> Owner {
    Owner::new(&format!("pod{number}"), "eth0")
}

/// Takes one step in the ledger and in the model, and compares.
fn take<T: podwire_ipam::store::Table>(
    ledger: &mut Ledger<T>,
    model: &mut Model,
    plans: &[Plan],
    step: &Step,
) -> Result<(), StoreError<T::Error>> {
    match step {
        Step::Allocate { owner: number, plan, asked } => {
            let mut asked = asked.clone();
            asked.dedup();
            let expected = model.allocate(&owner(*number), *plan, &asked);
            let got = match ledger.allocate(&owner(*number), &plans[*plan], &asked) {
                Ok(grants) => Some(grants.iter().map(|grant| grant.address.ip()).collect()),
                Err(StoreError::Refused(_)) => None,
                Err(error) => return Err(error),
            };
            assert_eq!(got, expected, "{step:?}");
        }
        Step::Release { owner: number } => {
            let expected = model.release(&owner(*number));
            assert_eq!(ledger.release(&owner(*number))?, expected);
        }
        Step::Retain { owners } => {
            let keep = |held: &Owner| owners.iter().any(|number| owner(*number) == *held);
            let gone: Vec<Owner> = model.held.keys().filter(|held| !keep(held)).cloned().collect();
            for owner in &gone {
                model.release(owner);
            }
            let names: Vec<Owner> =
                ledger.retain(keep)?.into_iter().map(|(owner, _)| owner).collect();
            assert_eq!(names, gone);
        }
        Step::Available { plan } => {
            assert_eq!(ledger.available(&plans[*plan]).is_ok(), model.available(*plan));
        }
    }
    let leases: BTreeMap<Owner, Vec<IpAddr>> = ledger.leases()?.into_iter().collect();
    assert_eq!(leases, model.held);
    for (owner, addresses) in &model.held {
        for address in addresses {
            assert_eq!(ledger.holder(*address)?.as_ref(), Some(owner));
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_ledger_does_what_the_model_does(steps in steps()) {
        let (plans, mut model) = plans();
        let mut ledger = Ledger::new(Memory::default(), "net");
        for step in &steps {
            take(&mut ledger, &mut model, &plans, step).unwrap();
        }
    }
}

#[cfg(feature = "file")]
proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Each step opens the file again, and what fails leaves it as it was.
    #[test]
    fn the_file_does_what_the_model_does(steps in steps()) {
        use podwire_ipam::store::File;
        use std::time::Duration;

        let folder = tempfile::tempdir().unwrap();
        let (plans, mut model) = plans();
        for step in &steps {
            let (file, _) =
                File::open(folder.path(), "net", "life", Duration::from_secs(10)).unwrap();
            file.write(|ledger| take(ledger, &mut model, &plans, step)).unwrap();
        }
    }
}

fn ledger_of(subnet: &str) -> (Ledger<Memory>, Plan) {
    let range = RangeSpec::new(subnet.parse().unwrap()).build().unwrap();
    (Ledger::new(Memory::default(), "net"), Plan::new(vec![vec![range]]).unwrap())
}

#[test]
fn refusals_say_why() {
    let (mut ledger, plan) = ledger_of("10.0.0.0/29");
    let ask = |ledger: &mut Ledger<Memory>, number, address: &str| {
        let asked = [address.parse().unwrap()];
        let Err(Refused::Refused(error)) = ledger.allocate(&owner(number), &plan, &asked) else {
            panic!("{address} was granted")
        };
        error.to_string()
    };
    ledger.allocate(&owner(0), &plan, &["10.0.0.3".parse().unwrap()]).unwrap();
    assert_eq!(ask(&mut ledger, 1, "10.0.0.3"), "10.0.0.3 is held by pod0/eth0");
    assert_eq!(
        ask(&mut ledger, 1, "10.0.0.1"),
        "10.0.0.1 of pool net is never granted: it is the gateway"
    );
    assert_eq!(ask(&mut ledger, 1, "10.0.1.1"), "10.0.1.1 is in no CIDR of pool net");
    assert_eq!(
        ask(&mut ledger, 0, "10.0.0.4"),
        "pod0/eth0 already holds 10.0.0.3, which is not what it asks for now"
    );
    for number in 1..5 {
        ledger.allocate(&owner(number), &plan, &[]).unwrap();
    }
    let error = ledger.allocate(&owner(5), &plan, &[]).unwrap_err();
    let expected = Error::RangesExhausted { pool: "net".into(), ranges: "10.0.0.0/29".into() };
    assert_eq!(error, StoreError::Refused(expected));
}

#[test]
fn restored_leases_are_held() {
    let (mut ledger, plan) = ledger_of("10.0.0.0/29");
    let list = ["10.0.0.2", "10.9.9.9"].map(|name| name.parse().unwrap());
    ledger.restore(&owner(0), &list).unwrap();
    ledger.restore(&owner(0), &list).unwrap();
    assert!(ledger.restore(&owner(0), &list[..1]).is_err());
    assert!(ledger.restore(&owner(1), &list[1..]).is_err());
    let grants = ledger.allocate(&owner(1), &plan, &[]).unwrap();
    assert_eq!(grants[0].address.to_string(), "10.0.0.3/29");
    assert_eq!(ledger.release(&owner(0)).unwrap(), list);
}

/// 4,096 releases later an address is free like any other; until then it rests, and the table does
/// not grow further.
#[test]
fn rest_ends_after_many_other_releases() {
    let (mut ledger, plan) = ledger_of("10.0.0.0/16");
    let next = |ledger: &mut Ledger<Memory>| {
        let grants = ledger.allocate(&owner(0), &plan, &[]).unwrap();
        ledger.release(&owner(0)).unwrap();
        grants[0].address.ip()
    };
    let size = 65_533;
    for _ in 0..size {
        next(&mut ledger);
    }
    // All of the subnet was granted once; what was released first is free again.
    assert_eq!(next(&mut ledger).to_string(), "10.0.0.2");
    assert_eq!(next(&mut ledger).to_string(), "10.0.0.3");
}

/// The number of entries that one grant looks at does not depend on the number of leases.
#[test]
fn a_grant_costs_the_same_however_many_leases_there_are() {
    use std::cell::Cell;

    use podwire_ipam::store::{Entry, Table};

    struct Counting<'a>(Memory, &'a Cell<u32>);

    impl Counting<'_> {
        fn count(&self) {
            self.1.set(self.1.get() + 1);
        }
    }

    impl Table for Counting<'_> {
        type Error = Infallible;

        fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Infallible> {
            self.count();
            self.0.value(key)
        }

        fn first_from(&self, key: &[u8]) -> Result<Option<Entry>, Infallible> {
            self.count();
            self.0.first_from(key)
        }

        fn last_to(&self, key: &[u8]) -> Result<Option<Entry>, Infallible> {
            self.count();
            self.0.last_to(key)
        }

        fn insert(&mut self, key: &[u8], value: &[u8]) -> Result<(), Infallible> {
            self.count();
            self.0.insert(key, value)
        }

        fn remove(&mut self, key: &[u8]) -> Result<(), Infallible> {
            self.count();
            self.0.remove(key)
        }
    }

    let operations = Cell::new(0);
    let (_, plan) = ledger_of("10.0.0.0/16");
    let mut ledger = Ledger::new(Counting(Memory::default(), &operations), "net");
    for number in 0..10_000 {
        operations.set(0);
        let owner = Owner::new(&number.to_string(), "eth0");
        ledger.allocate(&owner, &plan, &[]).unwrap();
        assert!(operations.get() <= 12, "{} for lease {number}", operations.get());
    }
    for number in 0..10_000 {
        operations.set(0);
        ledger.release(&Owner::new(&number.to_string(), "eth0")).unwrap();
        assert!(operations.get() <= 20, "{} for release {number}", operations.get());
    }
}
