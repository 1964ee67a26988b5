//! Clients that take and give back addresses, and a witness of what they were told.

#![expect(clippy::unwrap_used, reason = "functions that tests share panic as tests do")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use podwire_ipam::durable::{Error, Ipam, Store};
use podwire_ipam::{Addresses, LeaseState, Owner, PoolConfig, Request, Time};

use crate::random::Rng;

/// Owners of each client.
const OWNERS: usize = 8;

/// The boot of all tests that do not restart the machine.
pub(crate) const BOOT: &str = "boot-1";

/// The pool has fewer addresses than there are owners, and they are used again all the time.
pub(crate) fn pool() -> PoolConfig {
    let cidrs = ["10.0.0.0/26", "fd00::/122"].map(|cidr| cidr.parse().unwrap());
    PoolConfig::new("default", cidrs.to_vec())
}

/// What a client is about to do or was told, as a line of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) client: usize,
    pub(crate) owner: usize,
    pub(crate) what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Grants,
    Granted(Addresses),
    Confirms,
    Confirmed,
    Releases,
    Released,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, owner, what } = self;
        match what {
            What::Granted(addresses) => {
                write!(f, "{client} {owner} Granted")?;
                addresses.iter().try_for_each(|address| write!(f, " {address}"))
            }
            what => write!(f, "{client} {owner} {what:?}"),
        }
    }
}

impl FromStr for Event {
    type Err = std::convert::Infallible;

    fn from_str(line: &str) -> Result<Self, Self::Err> {
        let words: Vec<&str> = line.split(' ').collect();
        let what = match words[2] {
            "Grants" => What::Grants,
            "Confirms" => What::Confirms,
            "Confirmed" => What::Confirmed,
            "Releases" => What::Releases,
            "Released" => What::Released,
            _ => {
                let addresses: Vec<_> =
                    words[3..].iter().map(|word| word.parse().unwrap()).collect();
                What::Granted(Addresses::from_list(&addresses).unwrap())
            }
        };
        Ok(Self { client: words[0].parse().unwrap(), owner: words[1].parse().unwrap(), what })
    }
}

fn owner(client: usize, number: usize) -> Owner {
    Owner::new(&format!("{client}-{number}"), "eth0")
}

/// Works until the store fails.
pub(crate) fn work<S: Store>(ipam: &Ipam<S>, client: usize, seed: u64, tell: impl Fn(Event)) {
    let mut rng = Rng::new(seed);
    loop {
        let number = rng.below(OWNERS);
        match step(ipam, client, number, &mut rng, &tell) {
            Ok(()) | Err(Error::Refused(podwire_ipam::Error::Exhausted { .. })) => {}
            Err(Error::Store { .. }) => return,
            Err(error) => panic!("{error}: {error:?}"),
        }
    }
}

fn step<S: Store>(
    ipam: &Ipam<S>,
    client: usize,
    number: usize,
    rng: &mut Rng,
    tell: &impl Fn(Event),
) -> Result<(), Error> {
    let owner = owner(client, number);
    let tell = |what| tell(Event { client, owner: number, what });
    let now = Time::from_secs(1);
    match ipam.lease(&owner)?.map(|lease| lease.state) {
        None => {
            tell(What::Grants);
            let lease = ipam.allocate(&owner, &Request::default(), now)?;
            tell(What::Granted(lease.addresses));
        }
        Some(LeaseState::Pending { .. }) if rng.below(2) == 0 => {
            tell(What::Confirms);
            ipam.confirm(&owner)?;
            tell(What::Confirmed);
        }
        Some(_) => {
            tell(What::Releases);
            ipam.release(&owner, now)?;
            tell(What::Released);
        }
    }
    Ok(())
}

/// What is known of the owners from outside.
#[derive(Debug, Default)]
pub(crate) struct Witness {
    owners: BTreeMap<(usize, usize), Seen>,
    /// How many operations were acknowledged.
    pub(crate) acknowledged: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    held: Option<Addresses>,
    confirmed: bool,
    /// What was begun and is not acknowledged.
    begun: Option<What>,
}

impl Witness {
    pub(crate) fn hear(&mut self, event: Event) {
        let key = (event.client, event.owner);
        let mut seen = self.owners.get(&key).copied().unwrap_or_default();
        match event.what {
            What::Grants | What::Confirms | What::Releases => seen.begun = Some(event.what),
            What::Granted(addresses) => {
                for (other, seen) in &self.owners {
                    let shared = seen.held.filter(|held| share(*held, addresses));
                    let given_back = seen.begun == Some(What::Releases);
                    assert!(shared.is_none() || given_back, "{addresses}: {key:?} and {other:?}");
                }
                seen = Seen { held: Some(addresses), ..Seen::default() };
            }
            What::Confirmed => seen = Seen { confirmed: true, begun: None, ..seen },
            What::Released => seen = Seen::default(),
        }
        if seen.begun.is_none() {
            self.acknowledged += 1;
        }
        self.owners.insert(key, seen);
    }

    /// Compares with what was found after a crash, and goes on from there.
    pub(crate) fn compare<S: Store>(&mut self, ipam: &Ipam<S>) {
        let leases = ipam.leases().unwrap();
        let mut addresses = BTreeSet::new();
        for lease in &leases {
            for address in lease.addresses.iter() {
                assert!(addresses.insert(address), "{address} has two owners");
            }
        }
        let mut known = 0;
        for ((client, number), seen) in &mut self.owners {
            let lease = ipam.lease(&owner(*client, *number)).unwrap();
            let held = lease.as_ref().map(|lease| lease.addresses);
            let confirmed = lease.is_some_and(|lease| lease.state == LeaseState::Confirmed);
            let fits = match seen.begun {
                Some(What::Grants) => true,
                Some(What::Releases) => held.is_none() || held == seen.held,
                _ => held == seen.held,
            };
            let confirmed_fits = held.is_none()
                || confirmed == seen.confirmed
                || (confirmed && seen.begun == Some(What::Confirms));
            assert!(fits && confirmed_fits, "{client}-{number}: {seen:?}, found {held:?}");
            *seen = Seen { held, confirmed, begun: None };
            known += usize::from(held.is_some());
        }
        assert_eq!(known, leases.len());
    }
}

fn share(a: Addresses, b: Addresses) -> bool {
    a.iter().any(|address| b.iter().any(|other| other == address))
}
