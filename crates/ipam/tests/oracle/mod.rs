//! What several pools with sticky names must do, told with nothing but sets and lists. It learns the
//! answers of the real thing, and says which of them are impossible.

#![expect(clippy::unwrap_used, reason = "functions that tests share panic as tests do")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;
use podwire_ipam::{
    Addresses, Allocator, Error, Family, Lease, LeaseState, Owner, PoolConfig, Release, Request,
    Time, Unreserved,
};

pub(crate) const PENDING_TTL: Duration = Duration::from_secs(30);
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// All CIDRs there can be; those of each pool at first are the ones of its number.
const CIDRS: [&str; 8] = [
    "10.0.0.0/29",
    "fd00::/126",
    "10.1.0.0/31",
    "fd01::/127",
    "10.2.0.0/30",
    "fd02::/126",
    "10.3.0.1/32",
    "fd03::/125",
];
pub(crate) const POOLS: [&str; 3] = ["a", "b", "c"];

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Allocate { owner: u8, wish: Wish, pools: Vec<u8>, name: Option<u8> },
    Confirm(u8),
    Release(u8),
    Expire,
    Reserve(usize),
    Unreserve(usize),
    Forget(u8),
    AddPool(u8),
    RemovePool(u8),
    AddCidr(u8, u8),
    DrainCidr(u8, u8),
    RemoveCidr(u8, u8),
    SetCooldown(u8, u8),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Wish {
    Any,
    Dual,
    Only(Family),
    Explicit(usize),
}

/// What an operation gives when it is not refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Leased(Lease),
    Released(Release),
    Expired(Vec<Lease>),
    Unreserved(Unreserved),
    Forgotten(Addresses),
    Edited,
}

pub(crate) fn owner(number: u8) -> Owner {
    Owner::new(&format!("container-{number}"), "eth0").with_pod(&format!("shop/pod-{number}"))
}

pub(crate) fn name(number: u8) -> String {
    format!("shop/web-{number}")
}

pub(crate) fn pool(number: u8) -> String {
    POOLS[usize::from(number)].to_owned()
}

pub(crate) fn cidr(number: u8) -> IpNetwork {
    CIDRS[usize::from(number) % CIDRS.len()].parse().unwrap()
}

pub(crate) fn config(number: u8) -> PoolConfig {
    let mut config = PoolConfig::new(pool(number), vec![cidr(number * 2), cidr(number * 2 + 1)]);
    config.excluded = vec!["10.0.0.3/32".parse().unwrap()];
    config.cooldown = Duration::from_secs(15 + 10 * u64::from(number));
    config.pending_ttl = PENDING_TTL;
    config
}

/// An address by number: every one of every CIDR, and one of none.
pub(crate) fn numbered(number: usize) -> IpAddr {
    let stray: IpAddr = "192.168.0.1".parse().unwrap();
    let all = CIDRS.iter().flat_map(|cidr| cidr.parse::<IpNetwork>().unwrap().iter());
    let all: Vec<IpAddr> = all.chain([stray]).collect();
    all[number % all.len()]
}

pub(crate) fn request(wish: Wish, pools: &[u8], sticky: Option<u8>) -> Request {
    let request = match wish {
        Wish::Any => Request::default(),
        Wish::Dual => Request::dual_stack(),
        Wish::Only(family) => Request::family(family),
        Wish::Explicit(number) => {
            let address = numbered(number);
            Request::family(Family::of(address)).with_addresses(&[address]).unwrap()
        }
    };
    let pools: Vec<String> = pools.iter().map(|number| pool(*number)).collect();
    let request = request.from_pools(&pools);
    match sticky {
        Some(number) => request.sticky(&name(number)),
        None => request,
    }
}

/// Everything that must survive a restart, in a form that can be compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    leases: BTreeMap<Owner, (Lease, Option<String>)>,
    reserved: BTreeSet<IpAddr>,
    names: BTreeMap<String, Addresses>,
    pools: Vec<PoolConfig>,
    /// Of each pool and family, the oldest release first.
    cooling: Vec<Vec<(IpAddr, Time)>>,
}

impl Snapshot {
    pub(crate) fn of(allocator: &Allocator, now: Time) -> Self {
        let mut pools: Vec<PoolConfig> = Vec::new();
        let mut cooling = Vec::new();
        for pool in allocator.pools() {
            pools.push(normal(allocator.config(pool).unwrap()));
            for family in FAMILIES {
                let of_it = |(address, until): &(IpAddr, Time)| {
                    allocator.pool_of(*address) == Some(pool)
                        && Family::of(*address) == family
                        && *until > now
                };
                cooling.push(allocator.cooling().filter(of_it).collect());
            }
        }
        let leases = allocator.leases().map(|lease| {
            let pod = lease.owner.pod().map(ToOwned::to_owned);
            (lease.owner.clone(), (lease.clone(), pod))
        });
        Self {
            leases: leases.collect(),
            reserved: allocator.reservations().map(|(address, _)| address).collect(),
            names: allocator.stickies().map(|(name, all)| (name.to_owned(), all)).collect(),
            pools,
            cooling,
        }
    }
}

fn normal(mut config: PoolConfig) -> PoolConfig {
    config.cidrs.sort();
    config.drained.sort();
    config.excluded.sort();
    config
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) now: Time,
    pub(crate) leases: BTreeMap<Owner, Lease>,
    reserved: BTreeSet<IpAddr>,
    /// The addresses of each sticky name, and whether it keeps them.
    names: BTreeMap<String, (Addresses, bool)>,
    pools: Vec<PoolConfig>,
    /// In the order of release; the moment from which the address is free again.
    cooling: Vec<(IpAddr, Time)>,
}

impl Model {
    pub(crate) fn snapshot(&self) -> Snapshot {
        let pools = self.pools.iter().flat_map(|pool| FAMILIES.map(|family| (pool, family)));
        let leases = self.leases.iter().map(|(owner, lease)| {
            (owner.clone(), (lease.clone(), owner.pod().map(ToOwned::to_owned)))
        });
        Snapshot {
            leases: leases.collect(),
            reserved: self.reserved.clone(),
            names: self.names.iter().map(|(name, (all, _))| (name.clone(), *all)).collect(),
            pools: self.pools.iter().cloned().map(normal).collect(),
            cooling: pools.map(|(pool, family)| self.cooling_of(pool, family)).collect(),
        }
    }

    /// What must be true of the allocator at any time. Leaks would show in the numbers.
    pub(crate) fn check(&self, allocator: &Allocator) {
        assert_eq!(Snapshot::of(allocator, self.now), self.snapshot());
        assert_eq!((allocator.stray(), allocator.lease_count()), (0, self.leases.len()));
        for (pool, usage) in self.pools.iter().zip(allocator.usage()) {
            for family in FAMILIES {
                let Some(usage) = usage.family(family) else { continue };
                let here = |address: &IpAddr| {
                    Family::of(*address) == family
                        && pool.cidrs.iter().any(|c| c.contains(*address))
                };
                let count = |confirmed: bool| {
                    let leases = self.leases.values();
                    leases
                        .filter(|lease| (lease.state == LeaseState::Confirmed) == confirmed)
                        .filter(|lease| lease.addresses.iter().any(|address| here(&address)))
                        .count() as u64
                };
                assert_eq!((usage.used, usage.pending), (count(true), count(false)));
                let kept = self.names.values().flat_map(|(all, _)| all.iter()).filter(here);
                let kept = kept.filter(|address| self.holder(*address).is_none()).count();
                assert_eq!(usage.kept, kept as u64);
                let resting = self.free(pool, family).len() + self.cooling_of(pool, family).len();
                assert_eq!(usage.free() + u128::from(usage.cooling), resting as u128);
            }
        }
    }

    /// Learns what came of an operation.
    pub(crate) fn learn(&mut self, op: &Op, answer: &Result<Outcome, Error>) {
        match (op, answer) {
            (Op::Allocate { owner: number, wish, pools, name: named }, answer) => {
                let named = named.map(name);
                self.learn_grant(&owner(*number), *wish, pools, named.as_deref(), answer);
            }
            (Op::Confirm(number), answer) => {
                let Some(lease) = self.leases.get_mut(&owner(*number)) else {
                    return assert!(answer.as_ref().unwrap_err().is_not_found());
                };
                lease.state = LeaseState::Confirmed;
                assert_eq!(*answer, Ok(Outcome::Leased(lease.clone())));
                let addresses = lease.addresses;
                for (all, firm) in self.names.values_mut() {
                    *firm |= all.iter().any(|bound| addresses.iter().any(|held| held == bound));
                }
            }
            (Op::Release(number), answer) => {
                let lease = self.leases.remove(&owner(*number));
                if let Some(lease) = &lease {
                    self.give_back(lease);
                }
                let released = lease.map_or(Release::Absent, Release::Released);
                assert_eq!(*answer, Ok(Outcome::Released(released)));
            }
            (Op::Expire, Ok(Outcome::Expired(expired))) => {
                assert_eq!(
                    expired.iter().map(|lease| &lease.owner).collect::<BTreeSet<_>>(),
                    self.due().iter().map(|lease| &lease.owner).collect()
                );
                for lease in expired {
                    assert_eq!(self.leases.remove(&lease.owner).as_ref(), Some(lease));
                    self.give_back(lease);
                }
                let now = self.now;
                self.cooling.retain(|(_, until)| *until > now);
            }
            (Op::Reserve(number), answer) => {
                let address = numbered(*number);
                let refused = self.holder(address).is_some()
                    || self.bound_to(address).is_some()
                    || self.pool_of(address).is_none();
                assert_eq!(answer.is_err(), refused, "{answer:?}");
                if !refused {
                    self.cooling.retain(|(cooling, _)| *cooling != address);
                    self.reserved.insert(address);
                }
            }
            (Op::Unreserve(number), Ok(Outcome::Unreserved(outcome))) => {
                let was = self.reserved.remove(&numbered(*number));
                assert_eq!(*outcome != Unreserved::Absent, was);
            }
            (Op::Forget(number), Ok(Outcome::Forgotten(forgotten))) => {
                let (addresses, _) = self.names.remove(&name(*number)).unwrap_or_default();
                assert_eq!(*forgotten, addresses);
                let unheld = addresses.iter().filter(|address| self.holder(*address).is_none());
                for address in unheld.collect::<Vec<_>>() {
                    self.cool(address);
                }
            }
            (edit, answer) => self.learn_edit(edit, answer),
        }
    }

    fn learn_edit(&mut self, edit: &Op, answer: &Result<Outcome, Error>) {
        let find = |number: u8| self.pools.iter().position(|config| config.name == pool(number));
        let known =
            |number: u8, cidr| find(number).filter(|at| self.pools[*at].cidrs.contains(&cidr));
        let mut pools = self.pools.clone();
        let possible = match *edit {
            Op::AddPool(number) => {
                let config = config(number);
                let taken = |cidr: &IpNetwork| pools.iter().any(|pool| pool.cidrs.contains(cidr));
                let possible = find(number).is_none() && !config.cidrs.iter().any(taken);
                pools.push(config);
                possible
            }
            Op::RemovePool(number) => find(number)
                .is_some_and(|at| pools.remove(at).cidrs.iter().all(|cidr| self.is_unused(*cidr))),
            Op::AddCidr(number, of) => find(number).is_some_and(|at| {
                let cidr = cidr(of);
                let owned = known(number, cidr).is_some();
                let taken = pools.iter().any(|pool| pool.cidrs.contains(&cidr));
                pools[at].drained.retain(|drained| *drained != cidr);
                if !owned {
                    pools[at].cidrs.push(cidr);
                }
                owned || !taken
            }),
            Op::DrainCidr(number, of) => known(number, cidr(of)).is_some_and(|at| {
                if !pools[at].drained.contains(&cidr(of)) {
                    pools[at].drained.push(cidr(of));
                }
                true
            }),
            Op::RemoveCidr(number, of) => known(number, cidr(of)).is_some_and(|at| {
                pools[at].cidrs.retain(|known| *known != cidr(of));
                pools[at].drained.retain(|known| *known != cidr(of));
                self.is_unused(cidr(of))
            }),
            Op::SetCooldown(number, seconds) => find(number).is_some_and(|at| {
                pools[at].cooldown = Duration::from_secs(seconds.into());
                true
            }),
            _ => panic!("{edit:?} gave {answer:?}"),
        };
        assert_eq!(answer.is_ok(), possible, "{edit:?}: {answer:?}");
        if possible {
            self.pools = pools;
            let mut cooling = std::mem::take(&mut self.cooling);
            cooling.retain(|(address, _)| self.grantable().contains(address));
            self.cooling = cooling;
        }
    }

    fn learn_grant(
        &mut self,
        owner: &Owner,
        wish: Wish,
        pools: &[u8],
        name: Option<&str>,
        answer: &Result<Outcome, Error>,
    ) {
        let explicit = match wish {
            Wish::Explicit(number) => Some(numbered(number)),
            _ => None,
        };
        let wanted = |family| match wish {
            Wish::Any => None,
            Wish::Dual => Some(true),
            Wish::Only(only) => Some(only == family),
            Wish::Explicit(_) => Some(explicit.is_some_and(|ip| Family::of(ip) == family)),
        };
        let expires = self.now + PENDING_TTL;

        if let Some(held) = self.leases.get_mut(owner) {
            let fits = FAMILIES.into_iter().all(|family| {
                let has = held.addresses.of(family);
                match explicit.filter(|ip| Family::of(*ip) == family) {
                    Some(ip) => has == Some(ip),
                    None => wanted(family).is_none_or(|wanted| has.is_some() == wanted),
                }
            });
            if !fits {
                return assert!(matches!(answer, Err(Error::OwnerMismatch { .. })), "{answer:?}");
            }
            if held.state != LeaseState::Confirmed {
                held.state = LeaseState::Pending { expires };
            }
            return assert_eq!(*answer, Ok(Outcome::Leased(held.clone())), "not the same again");
        }

        let bound = name.and_then(|name| self.names.get(name)).map(|(all, _)| *all);
        if bound.is_some_and(|all| all.iter().any(|ip| self.holder(ip).is_some())) {
            // A name has one owner at a time.
            return assert!(matches!(answer, Err(Error::Held { .. })), "{answer:?}");
        }
        let find = |number: &u8| self.pools.iter().find(|config| config.name == pool(*number));
        let listed: Option<Vec<&PoolConfig>> = match pools {
            [] => Some(self.pools.iter().take(1).collect()),
            named => named.iter().map(find).collect(),
        };
        let Some(listed) = listed else {
            return assert!(matches!(answer, Err(Error::UnknownPool { .. })), "{answer:?}");
        };
        let lease = match answer {
            Ok(Outcome::Leased(lease)) => lease,
            Ok(other) => panic!("a grant gave {other:?}"),
            Err(error) => return self.check_refusal(&listed, explicit, &wanted, error),
        };

        assert_eq!((&lease.owner, lease.state), (owner, LeaseState::Pending { expires }));
        for family in FAMILIES {
            let granted = lease.addresses.of(family);
            assert!(wanted(family).is_none_or(|wanted| wanted == granted.is_some()));
            let Some(ip) = granted else { continue };
            assert_eq!(self.holder(ip), None, "double grant of {ip}");
            assert!(!self.reserved.contains(&ip), "{ip} is reserved");
            let pool = self.pool_of(ip).unwrap();
            assert!(self.grantable().contains(&ip) && listed.contains(&pool), "{ip} of {listed:?}");
            let named = self.bound_to(ip);
            assert!(named.is_none() || named == name, "{ip} is kept for {named:?}");
            if let Some(explicit) = explicit {
                assert_eq!(ip, explicit);
            } else if named.is_none() {
                let again = bound.and_then(|bound| bound.of(family));
                assert!(
                    !again.is_some_and(|again| self.is_listed(again, &listed)),
                    "not {again:?}"
                );
                self.check_choice(pool, ip);
            }
        }
        let lease = lease.clone();
        for ip in lease.addresses.iter() {
            self.cooling.retain(|(cooling, _)| *cooling != ip);
            if let Some(name) = name {
                self.bind(name, ip);
            }
        }
        self.leases.insert(owner.clone(), lease);
    }

    /// An address that nobody asked for by name is a free one, or the one released longest ago.
    fn check_choice(&self, pool: &PoolConfig, ip: IpAddr) {
        let family = Family::of(ip);
        let free = self.free(pool, family);
        if free.is_empty() {
            let oldest = self.cooling_of(pool, family).first().map(|(oldest, _)| *oldest);
            assert_eq!(Some(ip), oldest, "not the oldest release");
        } else {
            assert!(free.contains(&ip), "{ip} granted while {free:?} were free");
        }
    }

    fn check_refusal(
        &self,
        listed: &[&PoolConfig],
        explicit: Option<IpAddr>,
        wanted: &dyn Fn(Family) -> Option<bool>,
        error: &Error,
    ) {
        let left = |family| {
            listed.iter().any(|pool| {
                !self.free(pool, family).is_empty() || !self.cooling_of(pool, family).is_empty()
            })
        };
        let there_is = |family| {
            let mut cidrs = listed.iter().flat_map(|pool| &pool.cidrs);
            cidrs.any(|cidr| Family::of(cidr.ip()) == family)
        };
        let justified = match error {
            Error::Exhausted { family, .. } => !left(*family),
            Error::NoFamily { .. } => {
                let lacking = |family| wanted(family) == Some(true) && !there_is(family);
                FAMILIES.into_iter().any(lacking) || !FAMILIES.into_iter().any(there_is)
            }
            Error::Held { address, holder } => {
                explicit == Some(*address) && self.holder(*address) == Some(holder)
            }
            Error::Reserved { address, .. } => {
                explicit == Some(*address) && self.reserved.contains(address)
            }
            Error::Kept { address, name } => {
                explicit == Some(*address) && self.bound_to(*address) == Some(name)
            }
            Error::OutsidePool { address, .. } => {
                explicit == Some(*address)
                    && self.pool_of(*address).is_none_or(|pool| !listed.contains(&pool))
            }
            Error::Unusable { address, .. } => {
                explicit == Some(*address) && !self.grantable().contains(address)
            }
            _ => false,
        };
        assert!(justified, "{error}");
    }

    /// The leases that nobody confirmed in time.
    pub(crate) fn due(&self) -> Vec<&Lease> {
        let due = |lease: &&Lease| matches!(lease.state, LeaseState::Pending { expires } if expires <= self.now);
        self.leases.values().filter(due).collect()
    }

    /// What an operation gives that will be carried out, though nobody hears of it.
    pub(crate) fn unheard(&self, op: &Op) -> Outcome {
        match op {
            Op::Confirm(number) => {
                let lease = self.leases[&owner(*number)].clone();
                Outcome::Leased(Lease { state: LeaseState::Confirmed, ..lease })
            }
            Op::Release(number) => {
                let lease = self.leases.get(&owner(*number)).cloned();
                Outcome::Released(lease.map_or(Release::Absent, Release::Released))
            }
            Op::Expire => Outcome::Expired(self.due().into_iter().cloned().collect()),
            Op::Unreserve(number) => {
                let was = self.reserved.contains(&numbered(*number));
                let removed = || Unreserved::Removed("test".into());
                Outcome::Unreserved(if was { removed() } else { Unreserved::Absent })
            }
            Op::Forget(number) => Outcome::Forgotten(
                self.names.get(&name(*number)).map(|(all, _)| *all).unwrap_or_default(),
            ),
            _ => Outcome::Edited,
        }
    }

    /// The machine starts again.
    pub(crate) fn reboot(&mut self) {
        self.now = Time::default();
        self.leases.clear();
        self.cooling.clear();
        self.names.retain(|_, (_, firm)| *firm);
    }

    fn bind(&mut self, name: &str, ip: IpAddr) {
        let mut bound = self.names.remove(name).unwrap_or_default();
        let slot = bound.0;
        let mut list: Vec<IpAddr> =
            slot.iter().filter(|old| Family::of(*old) != Family::of(ip)).collect();
        list.push(ip);
        bound.0 = Addresses::from_list(&list).unwrap();
        self.names.insert(name.to_owned(), bound);
        let former = slot.of(Family::of(ip)).filter(|former| *former != ip);
        if let Some(former) = former.filter(|former| self.holder(*former).is_none()) {
            self.cool(former);
        }
    }

    fn give_back(&mut self, lease: &Lease) {
        for ip in lease.addresses.iter() {
            let name = self.bound_to(ip).map(ToOwned::to_owned);
            if let Some(name) = name {
                let (all, firm) = self.names[&name];
                if firm {
                    continue;
                }
                let rest: Vec<IpAddr> = all.iter().filter(|other| *other != ip).collect();
                self.names.remove(&name);
                if !rest.is_empty() {
                    self.names.insert(name, (Addresses::from_list(&rest).unwrap(), false));
                }
            }
            self.cool(ip);
        }
    }

    fn cool(&mut self, ip: IpAddr) {
        if self.grantable().contains(&ip) {
            let until = self.now + self.pool_of(ip).unwrap().cooldown;
            self.cooling.retain(|(cooling, _)| *cooling != ip);
            self.cooling.push((ip, until));
        }
    }

    fn holder(&self, address: IpAddr) -> Option<&Owner> {
        let holds = |lease: &&Lease| lease.addresses.iter().any(|held| held == address);
        self.leases.values().find(holds).map(|lease| &lease.owner)
    }

    fn bound_to(&self, address: IpAddr) -> Option<&str> {
        let mut names = self.names.iter();
        let has = |all: &Addresses| all.iter().any(|bound| bound == address);
        names.find(|(_, (all, _))| has(all)).map(|(name, _)| name.as_str())
    }

    fn pool_of(&self, address: IpAddr) -> Option<&PoolConfig> {
        self.pools.iter().find(|pool| pool.cidrs.iter().any(|cidr| cidr.contains(address)))
    }

    fn is_listed(&self, address: IpAddr, listed: &[&PoolConfig]) -> bool {
        self.grantable().contains(&address)
            && self.pool_of(address).is_some_and(|pool| listed.contains(&pool))
    }

    fn is_unused(&self, cidr: IpNetwork) -> bool {
        let held = self.leases.values().flat_map(|lease| lease.addresses.iter());
        let kept = self.names.values().flat_map(|(all, _)| all.iter());
        let mut taken = held.chain(kept).chain(self.reserved.iter().copied());
        !taken.any(|address| cidr.contains(address))
    }

    /// Addresses that some pool may grant now, as far as nobody has them.
    fn grantable(&self) -> BTreeSet<IpAddr> {
        let of_pool = |pool: &PoolConfig| {
            let cidrs = pool.cidrs.iter().filter(|cidr| !pool.drained.contains(cidr));
            cidrs.flat_map(|cidr| usable(*cidr)).collect::<Vec<_>>()
        };
        self.pools.iter().flat_map(of_pool).collect()
    }

    fn free(&self, pool: &PoolConfig, family: Family) -> Vec<IpAddr> {
        let mut free: Vec<IpAddr> = self.grantable().into_iter().collect();
        free.retain(|ip| {
            Family::of(*ip) == family
                && self.pool_of(*ip) == Some(pool)
                && self.holder(*ip).is_none()
                && self.bound_to(*ip).is_none()
                && !self.reserved.contains(ip)
                && !self.cooling.iter().any(|(cooling, until)| cooling == ip && *until > self.now)
        });
        free
    }

    /// The oldest release first.
    fn cooling_of(&self, pool: &PoolConfig, family: Family) -> Vec<(IpAddr, Time)> {
        let mut cooling = self.cooling.clone();
        cooling.retain(|(ip, until)| {
            Family::of(*ip) == family && *until > self.now && self.pool_of(*ip) == Some(pool)
        });
        cooling
    }
}

/// The addresses of a CIDR without those that are never granted.
fn usable(cidr: IpNetwork) -> Vec<IpAddr> {
    let excluded: IpAddr = "10.0.0.3".parse().unwrap();
    let all: Vec<IpAddr> = cidr.iter().collect();
    let never: &[IpAddr] = match cidr {
        IpNetwork::V4(v4) if v4.prefix() < 31 => &[all[0], all[all.len() - 1]],
        IpNetwork::V6(v6) if v6.prefix() < 127 => &all[..1],
        _ => &[],
    };
    all.iter().copied().filter(|ip| !never.contains(ip) && *ip != excluded).collect()
}
