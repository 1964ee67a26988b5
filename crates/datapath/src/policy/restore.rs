//! The policies of an earlier agent, and what one that was killed has left of them by half.

use std::collections::HashMap;

use ipnetwork::IpNetwork;
use podwire_abi::{PolicyKey, Slot};

use super::book::{Book, Found, Full, Sizes};
use crate::{
    error::{Error, Result},
    ipcache::{Relabel, network},
    state::Marks,
    tables::Tables,
};

/// The book, from the maps; tells whether something was put right.
pub(crate) fn restore(tables: &Tables) -> Result<(Book, bool)> {
    let sizes = Sizes { rows: tables.policy.max_entries(), rules: tables.policy_rules.len() };
    let slots = tables.slots.values()?;
    let taken = || slots.iter().filter(|slot| slot.is_taken());
    let found = Found {
        references: taken().flat_map(|Slot { ingress, egress, .. }| [*ingress, *egress]).collect(),
        rows: tables.policy.entries()?,
        rules: tables.policy_rules.values()?,
        cidrs: numbers(tables)?,
    };
    let (book, mend) =
        Book::restored(sizes, &found).map_err(|Full { map, size }| Error::MapFull { map, size })?;
    tables.write_rows(&mend.writes)?;
    let relabel = Relabel::all(tables, &book)?;
    if !relabel.is_empty() {
        let marks = Marks { all: true, ..Marks::default() };
        tables.change(&marks, |_| relabel.write(tables))?;
    }
    let surplus: Vec<PolicyKey> = mend.surplus;
    tables.policy.remove_batch(&surplus)?;
    let is_mended = !surplus.is_empty() || !relabel.is_empty() || !mend.writes.rows.is_empty();
    Ok((book, is_mended))
}

/// What the numbers of prefixes stand for: everything that has a number lies in its prefix, and the prefix
/// itself has it too.
pub(super) fn numbers(tables: &Tables) -> Result<HashMap<u32, IpNetwork>> {
    let mut widest: HashMap<u32, IpNetwork> = HashMap::new();
    let whole = tables.ipcache.entries()?.into_iter();
    let whole = whole.map(|(address, entry)| (std::net::IpAddr::from(address).into(), entry.cidr));
    let wider = tables.prefixes.entries()?.into_iter();
    let wider = wider.map(|(key, entry)| (network(&key), entry.cidr));
    for (prefix, number) in
        whole.chain(wider).filter(|(_, number)| (1..PolicyKey::CIDR).contains(number))
    {
        let prefix: IpNetwork = prefix;
        let known = widest.entry(number).or_insert(prefix);
        if prefix.prefix() < known.prefix() {
            *known = prefix;
        }
    }
    Ok(widest)
}
