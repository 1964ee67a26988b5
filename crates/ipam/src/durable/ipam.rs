use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use ipnetwork::IpNetwork;

use super::records::{LEASES, lease_key};
use super::state::{Recovered, State, Touched, remove_pool_record};
use super::{Change, Counts, Entry, Error, Journal, Store, Ticket};
use crate::{
    Addresses, Allocator, Lease, Owner, PoolConfig, PoolUsage, Release, Request, Restored, Time,
    Unreserved,
};

/// An [`Allocator`] whose every change is in a [`Store`] before it is acknowledged. It serves any
/// number of threads.
///
/// A call changes memory and begins the commit of the same change under one lock, so that the store
/// goes through the same states as memory, only later and in larger steps. Whatever moment the
/// process or the machine ends at, the store has what was acknowledged; and never an address with
/// a second owner, since the release by the first is committed before or together with the grant to
/// the second.
///
/// Calls return when their commit is on the disk. Those named `begin_..` return at once, with
/// something to wait for, and take changes of the caller's own tables along into the same commit.
///
/// When a commit fails, so does every call that was waiting for it or for one behind it, and memory
/// is rebuilt from the store before the next call is served. Such a call may have been carried out
/// nevertheless, as one whose answer was lost; repeating it is safe. While the store cannot be read,
/// every call fails with the reason, and the next one tries again.
///
/// Looking shows memory, which is ahead of the disk by what is being committed.
#[derive(Debug)]
pub struct Ipam<S> {
    state: Mutex<State>,
    journal: Journal<S>,
}

impl<S: Store> Ipam<S> {
    /// Restores what the store holds. `boot` stands for the life of the containers, mostly the
    /// kernel's boot id: leases and cool-downs of another one are dropped and reported, pools,
    /// reservations and sticky addresses are kept.
    ///
    /// # Errors
    ///
    /// [`Error::Store`], and [`Error::Record`] if something there cannot be used; nothing is
    /// changed then.
    pub fn open(mut store: S, boot: &str) -> Result<(Self, Recovered), Error> {
        let (state, recovered, changes) = State::load(&mut store, Some(boot))?;
        if !changes.is_empty() {
            store.commit(&changes).map_err(Error::store("write the store"))?;
        }
        let journal = Journal::start(store).map_err(Error::store("start a thread"))?;
        Ok((Self { state: Mutex::new(state), journal }, recovered))
    }

    /// Grants addresses to `owner`: [`Allocator::allocate`].
    ///
    /// # Errors
    ///
    /// As [`Allocator::allocate`]; [`Error::Store`].
    pub fn allocate(&self, owner: &Owner, request: &Request, now: Time) -> Result<Lease, Error> {
        self.begin_allocate(owner, request, now, Vec::new())?.wait()
    }

    /// Begins to grant addresses to `owner`.
    ///
    /// # Errors
    ///
    /// As [`allocate`](Self::allocate); what is `also` to be changed is not then.
    pub fn begin_allocate(
        &self,
        owner: &Owner,
        request: &Request,
        now: Time,
        also: Vec<Change>,
    ) -> Result<Begun<Lease>, Error> {
        let mut state = self.state()?;
        let name = request.sticky.as_deref();
        // The name may get others in their place.
        let former = name.and_then(|name| state.allocator.binding(name));
        let lease = state.allocator.allocate(owner, request, now)?;
        let touched = Touched::default()
            .lease(&lease)
            .names(name.map(ToOwned::to_owned))
            .addresses(former.into_iter().flat_map(|former| former.addresses.iter()));
        Ok(self.begin_with(state, lease, touched, now, also))
    }

    /// Makes the lease of `owner` last until it is released: [`Allocator::confirm`].
    ///
    /// # Errors
    ///
    /// As [`Allocator::confirm`]; [`Error::Store`].
    pub fn confirm(&self, owner: &Owner) -> Result<Lease, Error> {
        self.begin_confirm(owner, Vec::new())?.wait()
    }

    /// Begins to confirm.
    ///
    /// # Errors
    ///
    /// As [`confirm`](Self::confirm); what is `also` to be changed is not then.
    pub fn begin_confirm(&self, owner: &Owner, also: Vec<Change>) -> Result<Begun<Lease>, Error> {
        let mut state = self.state()?;
        let lease = state.allocator.confirm(owner)?;
        let names = state.names_of(lease.addresses.iter());
        let touched = Touched::default().lease(&lease).names(names);
        Ok(self.begin_with(state, lease, touched, Time::default(), also))
    }

    /// Takes the lease of `owner` back: [`Allocator::release`].
    ///
    /// # Errors
    ///
    /// [`Error::Store`].
    pub fn release(&self, owner: &Owner, now: Time) -> Result<Release, Error> {
        self.begin_release(owner, now, Vec::new())?.wait()
    }

    /// Begins to take a lease back. What is `also` to be changed is, whether there is one or not.
    ///
    /// # Errors
    ///
    /// [`Error::Store`].
    pub fn begin_release(
        &self,
        owner: &Owner,
        now: Time,
        also: Vec<Change>,
    ) -> Result<Begun<Release>, Error> {
        let mut state = self.state()?;
        let held = state.allocator.lease(owner).map(|lease| lease.addresses).unwrap_or_default();
        let names = state.names_of(held.iter());
        let released = state.allocator.release(owner, now);
        let mut touched = Touched::default().names(names);
        if let Release::Released(lease) = &released {
            touched = touched.lease(lease);
        }
        Ok(self.begin_with(state, released, touched, now, also))
    }

    /// Begins to take a lease out of the store that memory still holds: nobody else is granted its
    /// addresses before [`begin_release`](Self::begin_release), and whoever is killed in between has
    /// released it.
    ///
    /// # Errors
    ///
    /// [`Error::Store`].
    pub fn begin_withdraw(&self, owner: &Owner, also: Vec<Change>) -> Result<Ticket, Error> {
        let _in_order = self.state()?;
        let mut changes = vec![Change::remove(LEASES, lease_key(owner))];
        changes.extend(also);
        Ok(self.journal.begin(changes))
    }

    /// Takes back the leases that nobody confirmed in time: [`Allocator::expire`].
    ///
    /// # Errors
    ///
    /// [`Error::Store`].
    pub fn expire(&self, now: Time) -> Result<Vec<Lease>, Error> {
        let mut state = self.state()?;
        let due = state.allocator.due(now).flat_map(|lease| lease.addresses.iter());
        let names = state.names_of(due);
        let expired = state.allocator.expire(now);
        let touched = expired.iter().fold(Touched::default(), Touched::lease).names(names);
        self.begin_with(state, expired, touched, now, Vec::new()).wait()
    }

    /// Holds a lease again that the store does not know, when the store is rebuilt from what is
    /// found elsewhere: [`Allocator::restore`].
    ///
    /// # Errors
    ///
    /// As [`Allocator::restore`]; [`Error::Store`].
    pub fn restore(&self, lease: &Lease) -> Result<Restored, Error> {
        self.begin_restore(lease, Vec::new())?.wait()
    }

    /// Begins to hold a lease again.
    ///
    /// # Errors
    ///
    /// As [`restore`](Self::restore); what is `also` to be changed is not then.
    pub fn begin_restore(
        &self,
        lease: &Lease,
        also: Vec<Change>,
    ) -> Result<Begun<Restored>, Error> {
        let mut state = self.state()?;
        let restored = state.allocator.restore(lease.clone())?;
        let names = state.names_of(lease.addresses.iter());
        let touched = Touched::default().lease(lease).names(names);
        Ok(self.begin_with(state, restored, touched, Time::default(), also))
    }

    /// Sets an address aside: [`Allocator::reserve`].
    ///
    /// # Errors
    ///
    /// As [`Allocator::reserve`]; [`Error::Store`].
    pub fn reserve(&self, address: IpAddr, why: &str) -> Result<(), Error> {
        let mut state = self.state()?;
        state.allocator.reserve(address, why)?;
        let record = vec![state.reservation_record(address)];
        let touched = Touched::default().addresses([address]);
        self.begin_with(state, (), touched, Time::default(), record).wait()
    }

    /// Lifts a reservation: [`Allocator::unreserve`].
    ///
    /// # Errors
    ///
    /// [`Error::Store`].
    pub fn unreserve(&self, address: IpAddr) -> Result<Unreserved, Error> {
        let mut state = self.state()?;
        let outcome = state.allocator.unreserve(address);
        let record = match outcome {
            Unreserved::Removed(_) => vec![state.reservation_record(address)],
            Unreserved::Absent => Vec::new(),
        };
        self.begin_with(state, outcome, Touched::default(), Time::default(), record).wait()
    }

    /// Lets the addresses of a sticky name go: [`Allocator::forget`].
    ///
    /// # Errors
    ///
    /// [`Error::Store`].
    pub fn forget(&self, name: &str, now: Time) -> Result<Addresses, Error> {
        let mut state = self.state()?;
        let addresses = state.allocator.forget(name, now);
        let mut touched = Touched::default();
        if !addresses.is_empty() {
            touched = touched.names([name.to_owned()]).addresses(addresses.iter());
        }
        self.begin_with(state, addresses, touched, now, Vec::new()).wait()
    }

    /// Adds a pool: [`Allocator::add_pool`].
    ///
    /// # Errors
    ///
    /// As [`Allocator::add_pool`]; [`Error::Store`].
    pub fn add_pool(&self, pool: &PoolConfig) -> Result<(), Error> {
        self.edit(|allocator| allocator.add_pool(pool), Vec::new())
    }

    /// Changes how long addresses of a pool rest, and leases wait: [`Allocator::set_times`].
    ///
    /// # Errors
    ///
    /// As [`Allocator::set_times`]; [`Error::Store`].
    pub fn set_times(
        &self,
        pool: &str,
        cooldown: Duration,
        pending_ttl: Duration,
    ) -> Result<(), Error> {
        self.edit(|allocator| allocator.set_times(pool, cooldown, pending_ttl), Vec::new())
    }

    /// Takes a pool away: [`Allocator::remove_pool`].
    ///
    /// # Errors
    ///
    /// As [`Allocator::remove_pool`]; [`Error::Store`].
    pub fn remove_pool(&self, pool: &str) -> Result<(), Error> {
        self.edit(|allocator| allocator.remove_pool(pool), vec![remove_pool_record(pool)])
    }

    /// Grants from a CIDR as well: [`Allocator::add_cidr`].
    ///
    /// # Errors
    ///
    /// As [`Allocator::add_cidr`]; [`Error::Store`].
    pub fn add_cidr(&self, pool: &str, cidr: IpNetwork) -> Result<(), Error> {
        self.edit(|allocator| allocator.add_cidr(pool, cidr), Vec::new())
    }

    /// Grants nothing from a CIDR any more: [`Allocator::drain_cidr`].
    ///
    /// # Errors
    ///
    /// As [`Allocator::drain_cidr`]; [`Error::Store`].
    pub fn drain_cidr(&self, pool: &str, cidr: IpNetwork) -> Result<(), Error> {
        self.edit(|allocator| allocator.drain_cidr(pool, cidr), Vec::new())
    }

    /// Takes a CIDR away: [`Allocator::remove_cidr`].
    ///
    /// # Errors
    ///
    /// As [`Allocator::remove_cidr`]; [`Error::Store`].
    pub fn remove_cidr(&self, pool: &str, cidr: IpNetwork) -> Result<(), Error> {
        self.edit(|allocator| allocator.remove_cidr(pool, cidr), Vec::new())
    }

    /// Begins to commit changes of the caller's own tables, in order with everything else.
    ///
    /// # Errors
    ///
    /// [`Error::Store`].
    pub fn begin(&self, changes: Vec<Change>) -> Result<Ticket, Error> {
        let _in_order = self.state()?;
        Ok(self.journal.begin(changes))
    }

    /// The entries of one of the caller's own tables, as far as they are committed.
    ///
    /// # Errors
    ///
    /// [`Error::Store`].
    pub fn load(&self, table: &str) -> Result<Vec<Entry>, Error> {
        let _recovered = self.state()?;
        self.journal.load(table)
    }

    /// Looks at anything there is in memory. Everybody else waits meanwhile.
    ///
    /// # Errors
    ///
    /// [`Error::Store`], as long as nothing is known after a failure.
    pub fn read<T>(&self, look: impl FnOnce(&Allocator) -> T) -> Result<T, Error> {
        Ok(look(&self.state()?.allocator))
    }

    /// The lease of `owner`.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn lease(&self, owner: &Owner) -> Result<Option<Lease>, Error> {
        self.read(|allocator| allocator.lease(owner).cloned())
    }

    /// All leases, in no particular order.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn leases(&self) -> Result<Vec<Lease>, Error> {
        self.read(|allocator| allocator.leases().cloned().collect())
    }

    /// Who holds `address`.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn holder(&self, address: IpAddr) -> Result<Option<Owner>, Error> {
        self.read(|allocator| allocator.holder(address).cloned())
    }

    /// How full the pools are.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn usage(&self) -> Result<Vec<PoolUsage>, Error> {
        self.read(Allocator::usage)
    }

    /// The reserved addresses and why they are.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn reservations(&self) -> Result<Vec<(IpAddr, String)>, Error> {
        self.read(|allocator| {
            allocator.reservations().map(|(address, why)| (address, why.to_owned())).collect()
        })
    }

    /// The sticky names and their addresses.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn stickies(&self) -> Result<Vec<(String, Addresses)>, Error> {
        self.read(|allocator| {
            allocator.stickies().map(|(name, addresses)| (name.to_owned(), addresses)).collect()
        })
    }

    /// How much has been committed, and in how many commits.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.journal.counts()
    }

    /// Memory, as it may be believed.
    fn state(&self) -> Result<MutexGuard<'_, State>, Error> {
        let (mut state, is_whole) = match self.state.lock() {
            Ok(state) => (state, true),
            Err(poisoned) => (poisoned.into_inner(), false),
        };
        if is_whole && self.journal.failure().is_none() {
            return Ok(state);
        }
        // What is under way ends first; if it fails, that is what the store is asked about.
        let _ = self.journal.begin(Vec::new()).wait();
        *state = self.journal.recover(|store| Ok(State::load(store, None)?.0))?;
        self.state.clear_poison();
        Ok(state)
    }

    /// Begins the commit of what an operation has done, before another one can do anything.
    fn begin_with<T>(
        &self,
        mut state: MutexGuard<'_, State>,
        value: T,
        touched: Touched,
        now: Time,
        also: Vec<Change>,
    ) -> Begun<T> {
        let mut changes = state.records(touched, now);
        changes.extend(also);
        Begun { value, ticket: self.journal.begin(changes) }
    }

    /// Edits the pools.
    fn edit(
        &self,
        edit: impl FnOnce(&mut Allocator) -> Result<(), crate::Error>,
        mut changes: Vec<Change>,
    ) -> Result<(), Error> {
        let mut state = self.state()?;
        edit(&mut state.allocator)?;
        changes.extend(state.pool_records());
        self.begin_with(state, (), Touched::default(), Time::default(), changes).wait()
    }
}

/// What an operation did, on its way to the disk.
#[derive(Debug)]
#[must_use = "nothing is certain before it was waited for"]
pub struct Begun<T> {
    value: T,
    ticket: Ticket,
}

impl<T> Begun<T> {
    /// What it did, which is not certain yet.
    pub const fn peek(&self) -> &T {
        &self.value
    }

    /// The same, saying something else.
    pub fn map<U>(self, say: impl FnOnce(T) -> U) -> Begun<U> {
        Begun { value: say(self.value), ticket: self.ticket }
    }

    /// Waits until it is on the disk.
    ///
    /// # Errors
    ///
    /// It is not, or that is not known: [`Error::Store`].
    pub fn wait(self) -> Result<T, Error> {
        self.ticket.wait()?;
        Ok(self.value)
    }
}
