//! Who is behind addresses, and which prefix of a policy they are in.

use std::{collections::HashMap, net::IpAddr};

use ipnetwork::IpNetwork;
use podwire_abi::{Address, IpcacheEntry, REMOTES, identity, map};
use podwire_bpf::{Prefix, Removal};

use crate::{
    datapath::Datapath,
    error::{Error, Result},
    policy::{Book, Index, check_identity, restore},
    state::Marks,
    tables::Tables,
};

/// In the place of the generation of an entry without a slot: nobody has told who is behind the prefix. The
/// entry is there since a policy speaks of the prefix, with the identity of the next wider one.
const DERIVED: u32 = 1;

impl Datapath {
    /// Tells who is behind prefixes, effective for the very next packet. Whole addresses are looked
    /// up first, by one hash; what only a wider prefix has is looked up in a trie.
    ///
    /// # Errors
    ///
    /// If a whole address belongs to an endpoint of this node, an identity is none, or a map is
    /// [full](Error::MapFull) or refuses.
    pub fn set_identities(&self, prefixes: &[(IpNetwork, u32)]) -> Result<()> {
        let writer = self.lock();
        let tables = self.tables();
        for &(_, identity) in prefixes {
            check_identity(identity)?;
        }
        let (whole, wider): (Vec<_>, Vec<_>) =
            prefixes.iter().copied().partition(|&(prefix, _)| is_whole(prefix));
        let mut relabel = Relabel::default();
        for (prefix, identity) in whole {
            let last = tables.not_an_endpoint(prefix)?;
            let entry = told(identity, writer.book.cidr_of(prefix));
            relabel.whole.push((prefix.ip().into(), last, Some(entry)));
        }
        let places = relabel.whole.len();
        if !wider.is_empty() {
            let mut new = HashMap::with_capacity(wider.len());
            for (prefix, identity) in wider {
                new.insert(network(&key(prefix)?), Some(told(identity, 0)));
            }
            let read = tables.read_prefixes(&writer.book)?;
            relabel.add(relabelled(&read, new, &writer.book));
        }
        let marks = Marks {
            all: relabel.concerns_prefixes() || places >= REMOTES as usize,
            remotes: relabel.whole_addresses(),
            slots: Vec::new(),
        };
        tables.change(&marks, |_| relabel.write(tables))
    }

    /// Forgets who is behind a prefix, effective for the very next packet.
    ///
    /// # Errors
    ///
    /// If a whole address belongs to an endpoint of this node, or a map refuses.
    pub fn forget_identity(&self, prefix: IpNetwork) -> Result<Removal> {
        let writer = self.lock();
        self.tables().forget(&writer.book, prefix)
    }
}

impl Tables {
    /// Forgets who is behind prefixes; says behind which somebody was. For a node whose agent does not run: one
    /// that does asks its [`Datapath`].
    ///
    /// # Errors
    ///
    /// If a whole address belongs to an endpoint of this node, or a map refuses.
    pub fn flush_identities(&self, prefixes: &[IpNetwork]) -> Result<Vec<IpNetwork>> {
        let (book, _) = restore(self)?;
        let mut gone = Vec::new();
        for &prefix in prefixes {
            if self.forget(&book, prefix)? == Removal::Removed {
                gone.push(prefix);
            }
        }
        Ok(gone)
    }

    fn forget(&self, book: &Book, prefix: IpNetwork) -> Result<Removal> {
        let is_told = |entry: &IpcacheEntry| !is_derived(entry);
        let relabel = if is_whole(prefix) {
            let Some(last) = self.not_an_endpoint(prefix)?.filter(is_told) else {
                return Ok(Removal::Absent);
            };
            let address = Address::from(prefix.ip());
            let left = self.derived(book, prefix.ip())?;
            Relabel { whole: vec![(address, Some(last), left)], ..Relabel::default() }
        } else {
            let read = self.read_prefixes(book)?;
            let network = network(&key(prefix)?);
            if !read.iter().any(|(prefix, entry)| *prefix == network && is_told(entry)) {
                return Ok(Removal::Absent);
            }
            relabelled(&read, HashMap::from([(network, None)]), book)
        };
        let marks = Marks {
            all: relabel.concerns_prefixes(),
            remotes: relabel.whole_addresses(),
            slots: Vec::new(),
        };
        self.change(&marks, |_| relabel.write(self))?;
        Ok(Removal::Removed)
    }

    /// What is known of a whole address, if it is no endpoint's.
    fn not_an_endpoint(&self, prefix: IpNetwork) -> Result<Option<IpcacheEntry>> {
        match self.ipcache.get(&Address::from(prefix.ip()))? {
            Some(entry) if entry.slot != IpcacheEntry::NO_SLOT => {
                Err(Error::EndpointAddress { address: prefix.ip() })
            }
            entry => Ok(entry),
        }
    }

    /// What is to be there for an address that nobody has told anything of: an entry, if a policy speaks of
    /// just this address.
    pub(crate) fn derived(&self, book: &Book, address: IpAddr) -> Result<Option<IpcacheEntry>> {
        let Some(number) = book.number_of(&address.into()) else { return Ok(None) };
        let wider = self.prefixes.longest_match(address.into())?;
        let identity = wider.map_or(identity::WORLD, |entry| entry.identity);
        Ok(Some(IpcacheEntry { generation: DERIVED, ..told(identity, number) }))
    }

    /// Prefixes, and of whole addresses those that policies speak of: others do not depend on prefixes.
    fn read_prefixes(&self, book: &Book) -> Result<Vec<(IpNetwork, IpcacheEntry)>> {
        let prefixes = self.prefixes.entries()?.into_iter();
        let mut read: Vec<_> = prefixes.map(|(key, entry)| (network(&key), entry)).collect();
        for prefix in book.prefixes().filter(|&&prefix| is_whole(prefix)) {
            if let Some(entry) = self.ipcache.get(&prefix.ip().into())? {
                read.push((*prefix, entry));
            }
        }
        Ok(read)
    }
}

/// What is to be changed in the two maps of addresses: what is there, and what should be.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Relabel {
    whole: Vec<(Address, Option<IpcacheEntry>, Option<IpcacheEntry>)>,
    prefixes: Vec<(Prefix<Address>, Option<IpcacheEntry>, Option<IpcacheEntry>)>,
}

impl Relabel {
    /// For prefixes that policies speak of now, or no longer.
    pub(crate) fn plan(tables: &Tables, book: &Book, prefixes: &[IpNetwork]) -> Result<Self> {
        if !prefixes.iter().all(|&prefix| is_whole(prefix)) {
            return Self::all(tables, book);
        }
        let mut relabel = Self::default();
        for prefix in prefixes {
            let address = Address::from(prefix.ip());
            let last = tables.ipcache.get(&address)?;
            let entry = match last.filter(|entry| !is_derived(entry)) {
                Some(entry) => Some(IpcacheEntry { cidr: book.cidr_of(*prefix), ..entry }),
                None => tables.derived(book, prefix.ip())?,
            };
            if last != entry {
                relabel.whole.push((address, last, entry));
            }
        }
        Ok(relabel)
    }

    /// For all that there is.
    pub(crate) fn all(tables: &Tables, book: &Book) -> Result<Self> {
        let whole = tables.ipcache.entries()?.into_iter();
        let whole = whole.map(|(address, entry)| (IpAddr::from(address).into(), entry));
        let prefixes = tables.prefixes.entries()?.into_iter();
        let all = whole.chain(prefixes.map(|(key, entry)| (network(&key), entry)));
        Ok(relabelled(&all.collect::<Vec<_>>(), HashMap::new(), book))
    }

    fn push(&mut self, prefix: IpNetwork, last: Option<IpcacheEntry>, entry: Option<IpcacheEntry>) {
        if last == entry {
            return;
        }
        if is_whole(prefix) {
            self.whole.push((prefix.ip().into(), last, entry));
        } else if let Ok(key) = key(prefix) {
            self.prefixes.push((key, last, entry));
        }
    }

    fn add(&mut self, other: Self) {
        self.whole.extend(other.whole);
        self.prefixes.extend(other.prefixes);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.whole.is_empty() && self.prefixes.is_empty()
    }

    /// Whether it concerns addresses that cannot be told one by one.
    pub(crate) fn concerns_prefixes(&self) -> bool {
        !self.prefixes.is_empty()
    }

    pub(crate) fn whole_addresses(&self) -> Vec<Address> {
        self.whole.iter().map(|(address, ..)| *address).collect()
    }

    /// Writes it, or nothing. What a policy's prefix itself leads to comes first and goes last: so whoever
    /// finds it by half can tell what the numbers stand for.
    pub(crate) fn write(&self, tables: &Tables) -> Result<()> {
        let written = self.write_all(tables);
        if written.is_err() {
            self.undo(tables);
        }
        written
    }

    fn write_all(&self, tables: &Tables) -> Result<()> {
        for stage in [Stage::New, Stage::Changed, Stage::Gone] {
            let now = |one: &(Option<IpcacheEntry>, Option<IpcacheEntry>)| stage == Stage::of(*one);
            let mut rows = Vec::new();
            for &(key, last, entry) in &self.prefixes {
                match entry.filter(|_| now(&(last, entry))) {
                    Some(entry) => rows.push((key, entry)),
                    None if stage == Stage::Gone && entry.is_none() => {
                        tables.prefixes.remove(&key)?;
                    }
                    None => {}
                }
            }
            let size = tables.prefixes.max_entries();
            tables.prefixes.insert_batch(&rows).map_err(full(map::PREFIXES, size))?;
            let mut rows = Vec::new();
            for &(address, last, entry) in &self.whole {
                match entry.filter(|_| now(&(last, entry))) {
                    Some(entry) => rows.push((address, entry)),
                    None if stage == Stage::Gone && entry.is_none() => {
                        tables.ipcache.remove(&address)?;
                    }
                    None => {}
                }
            }
            let size = tables.ipcache.max_entries();
            tables.ipcache.insert_batch(&rows).map_err(full(map::IPCACHE, size))?;
        }
        Ok(())
    }

    /// As well as it can be: what is missing then is put right at the next start.
    pub(crate) fn undo(&self, tables: &Tables) {
        for (key, last, _) in &self.prefixes {
            let _ = match last {
                Some(entry) => tables.prefixes.insert(key, entry),
                None => tables.prefixes.remove(key).map(drop),
            };
        }
        for (address, last, _) in &self.whole {
            let _ = match last {
                Some(entry) => tables.ipcache.insert(address, entry),
                None => tables.ipcache.remove(address).map(drop),
            };
        }
    }
}

/// When an entry is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    New,
    Changed,
    Gone,
}

impl Stage {
    fn of(change: (Option<IpcacheEntry>, Option<IpcacheEntry>)) -> Self {
        match change {
            (None, _) => Self::New,
            (Some(_), Some(_)) => Self::Changed,
            (Some(_), None) => Self::Gone,
        }
    }
}

/// What must be changed of what was read, so that every address leads to the narrowest prefix that a policy
/// speaks of, and to the identity that was told of the narrowest prefix. `told` says what is told anew, or no
/// longer.
fn relabelled(
    read: &[(IpNetwork, IpcacheEntry)],
    mut told: HashMap<IpNetwork, Option<IpcacheEntry>>,
    book: &Book,
) -> Relabel {
    // Prefixes that must be there even if nobody tells who is behind them, and what is there.
    let mut needed: HashMap<IpNetwork, Option<IpcacheEntry>> =
        book.prefixes().map(|prefix| (*prefix, None)).collect();
    let known = read.iter().filter(|(_, entry)| !is_derived(entry)).map(|(prefix, _)| prefix);
    let added = told.iter().filter(|(_, entry)| entry.is_some()).map(|(prefix, _)| prefix);
    if known.chain(added).chain(book.prefixes()).any(covers_ipv4) {
        needed.extend(ALL_IPV4.map(|prefix| (prefix, None)));
    }
    let mut relabel = Relabel::default();
    let mut identities = Index::default();
    let labelled = |prefix, entry| IpcacheEntry { cidr: book.cidr_of(prefix), ..entry };
    for &(prefix, last) in read {
        let entry = match told.remove(&prefix) {
            Some(entry) => entry,
            None => Some(last).filter(|entry| !is_derived(entry)),
        };
        if let Some(entry) = entry {
            needed.remove(&prefix);
            if !is_whole(prefix) {
                identities.insert(prefix, entry.identity);
            }
            relabel.push(prefix, Some(last), Some(labelled(prefix, entry)));
        } else if let Some(there) = needed.get_mut(&prefix) {
            *there = Some(last);
        } else {
            relabel.push(prefix, Some(last), None);
        }
    }
    for (prefix, entry) in told {
        let Some(entry) = entry else { continue };
        needed.remove(&prefix);
        identities.insert(prefix, entry.identity);
        relabel.push(prefix, None, Some(labelled(prefix, entry)));
    }
    for (prefix, last) in needed {
        let identity = identities.covering(prefix).map_or(identity::WORLD, |(_, one)| *one);
        let entry = IpcacheEntry { generation: DERIVED, ..self::told(identity, 0) };
        relabel.push(prefix, last, Some(labelled(prefix, entry)));
    }
    relabel
}

/// IPv4 addresses are part of the IPv6 ones in the trie: what is said of so wide an IPv6 prefix must not be
/// taken to be said of them.
fn covers_ipv4(prefix: &IpNetwork) -> bool {
    prefix.is_ipv6() && prefix.contains(IpAddr::from([0, 0, 0, 0, 0, 0xffff, 0, 0]))
}

const ALL_IPV4: Option<IpNetwork> =
    match ipnetwork::Ipv4Network::new_checked(std::net::Ipv4Addr::UNSPECIFIED, 0) {
        Some(all) => Some(IpNetwork::V4(all)),
        None => None,
    };

fn told(identity: u32, cidr: u32) -> IpcacheEntry {
    IpcacheEntry { identity, slot: IpcacheEntry::NO_SLOT, generation: 0, cidr }
}

/// Whether nobody has told it.
pub(crate) fn is_derived(entry: &IpcacheEntry) -> bool {
    entry.slot == IpcacheEntry::NO_SLOT && entry.generation == DERIVED
}

fn full(map: &'static str, size: u32) -> impl Fn(podwire_bpf::Error) -> Error {
    move |error| if error.is_full() { Error::MapFull { map, size } } else { error.into() }
}

pub(crate) fn is_whole(prefix: IpNetwork) -> bool {
    match prefix {
        IpNetwork::V4(v4) => v4.prefix() == 32,
        IpNetwork::V6(v6) => v6.prefix() == 128,
    }
}

pub(crate) fn key(prefix: IpNetwork) -> Result<Prefix<Address>> {
    let longer = if prefix.is_ipv4() { 96 } else { 0 };
    Ok(Prefix::new(prefix.network().into(), u32::from(prefix.prefix()) + longer)?)
}

/// The prefix that a key stands for.
pub(crate) fn network(key: &Prefix<Address>) -> IpNetwork {
    let address = IpAddr::from(*key.data());
    let length = if address.is_ipv4() { key.length().saturating_sub(96) } else { key.length() };
    let length = u8::try_from(length).unwrap_or(u8::MAX);
    IpNetwork::new(address, length).unwrap_or_else(|_| address.into())
}

#[cfg(test)]
mod tests {
    use podwire_policy::{Action, Direction, Peer, Ports, Protocol, Rows, Rule};

    use super::*;

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    /// A book whose only policy speaks of these prefixes.
    fn book(prefixes: &[&str]) -> Book {
        // No two alike, so that no row is left out.
        let rule = |(prefix, protocol): (&&str, u8)| Rule {
            action: Action::Deny,
            peer: Peer::Cidr(net(prefix)),
            protocol: Protocol::Number(protocol),
            ports: Ports::ANY,
        };
        let rules = prefixes.iter().zip(1..).map(rule).collect();
        let direction = Direction { rules, ..Direction::default() };
        Book::of(&Rows::compile(&direction).unwrap())
    }

    type Entries = HashMap<IpNetwork, IpcacheEntry>;

    fn tell(entries: &mut Entries, told: HashMap<IpNetwork, Option<IpcacheEntry>>, book: &Book) {
        let relabel = relabelled(&listed(entries), told, book);
        let whole = relabel.whole.iter().map(|(one, a, b)| (IpAddr::from(*one).into(), a, b));
        let wider = relabel.prefixes.iter().map(|(one, a, b)| (network(one), a, b));
        for (prefix, last, entry) in whole.chain(wider) {
            let was = match entry {
                Some(entry) => entries.insert(prefix, *entry),
                None => entries.remove(&prefix),
            };
            assert_eq!(was, *last, "{prefix}");
        }
    }

    fn listed(entries: &Entries) -> Vec<(IpNetwork, IpcacheEntry)> {
        entries.iter().map(|(prefix, entry)| (*prefix, *entry)).collect()
    }

    /// What an address leads to: identity and prefix of a policy.
    fn found(entries: &Entries, address: &str) -> (u32, u32) {
        let mut index = Index::default();
        for (prefix, entry) in entries {
            index.insert(*prefix, (entry.identity, entry.cidr));
        }
        index.covering(net(address)).map_or((identity::WORLD, 0), |(_, found)| *found)
    }

    #[test]
    fn addresses_lead_to_who_was_told_and_to_the_narrowest_prefix_of_a_policy() {
        let mut entries = Entries::new();
        let none = book(&[]);
        let new = [("10.0.0.0/8", 100), ("10.1.2.3/32", 200), ("10.1.3.0/24", 300)];
        let new = new.map(|(prefix, identity)| (net(prefix), Some(told(identity, 0))));
        tell(&mut entries, new.into(), &none);
        assert_eq!(found(&entries, "10.1.0.1"), (100, 0));

        let some = book(&["10.1.0.0/16", "10.1.2.3/32", "10.2.0.1/32", "fd00::/8"]);
        tell(&mut entries, HashMap::new(), &some);
        let wide = some.number_of(&net("10.1.0.0/16")).unwrap();
        let whole = some.number_of(&net("10.1.2.3/32")).unwrap();
        let lone = some.number_of(&net("10.2.0.1/32")).unwrap();
        assert_eq!(found(&entries, "10.1.0.1"), (100, wide));
        assert_eq!(found(&entries, "10.1.3.1"), (300, wide));
        assert_eq!(found(&entries, "10.1.2.3"), (200, whole));
        assert_eq!(found(&entries, "10.2.0.1"), (100, lone));
        assert_eq!(found(&entries, "10.2.0.2"), (100, 0));
        assert_eq!(found(&entries, "fd00::1").0, identity::WORLD);
        assert!(!entries.contains_key(&net("0.0.0.0/0")));

        // Who is behind the wide prefix changes: what was derived follows.
        let new = HashMap::from([(net("10.0.0.0/8"), Some(told(101, 0)))]);
        tell(&mut entries, new, &some);
        assert_eq!(found(&entries, "10.1.0.1"), (101, wide));
        assert_eq!(found(&entries, "10.2.0.1"), (101, lone));
        let gone = HashMap::from([(net("10.0.0.0/8"), None), (net("10.1.2.3/32"), None)]);
        tell(&mut entries, gone, &some);
        assert_eq!(found(&entries, "10.1.2.3"), (identity::WORLD, whole));

        // No policy any more: what was told stays, and nothing else.
        tell(&mut entries, HashMap::new(), &none);
        assert_eq!(listed(&entries), [(net("10.1.3.0/24"), told(300, 0))]);
    }

    #[test]
    fn what_is_said_of_all_ipv6_is_not_said_of_ipv4() {
        let mut entries = Entries::new();
        let all = book(&["::/0"]);
        tell(&mut entries, HashMap::new(), &all);
        assert_eq!(found(&entries, "fe00::1").1, all.number_of(&net("::/0")).unwrap());
        assert_eq!(entries[&net("0.0.0.0/0")].cidr, 0);
        tell(&mut entries, HashMap::new(), &book(&[]));
        assert_eq!(entries, Entries::new());
    }
}
