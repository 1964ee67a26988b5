//! What a writer that was killed between two writes has left in the maps.

use std::collections::{HashMap, HashSet};

use podwire_abi::{Address, CHANGING, IpcacheEntry, Slot};

use crate::{error::Result, slots::empty_generation, tables::Tables};

/// What is there by half, and goes, and what of an endpoint is missing.
#[derive(Debug, Default, PartialEq, Eq)]
struct Halves {
    /// Slots that no link leads to.
    slots: Vec<u32>,
    /// Links that lead to no endpoint of theirs.
    links: Vec<u32>,
    /// Addresses that lead to no endpoint of theirs.
    addresses: Vec<Address>,
    /// Addresses of endpoints that do not lead to them.
    missing: Vec<(Address, IpcacheEntry)>,
}

/// Has slots, links and addresses agree again; tells whether they did not.
pub(crate) fn mend(tables: &Tables) -> Result<bool> {
    let slots = tables.slots.values()?;
    let found = find(&slots, &tables.links.entries()?, &tables.ipcache.entries()?);
    for address in &found.addresses {
        tables.ipcache.remove(address)?;
    }
    for (address, entry) in &found.missing {
        tables.ipcache.insert(address, entry)?;
    }
    for ifindex in &found.links {
        tables.links.remove(ifindex)?;
    }
    for &number in &found.slots {
        let generation = empty_generation(tables.slots.get(number)?.generation);
        tables.slots.set(number, &Slot { generation, changed: CHANGING, ..Slot::default() })?;
    }
    // Whatever the writer was at: of a slot that it was changing, nothing is believed until it is marked anew.
    for (number, slot) in (0..).zip(&slots) {
        if slot.is_taken() && slot.changed == CHANGING && !found.slots.contains(&number) {
            tables.change_slot(number, Ok)?;
        }
    }
    let unmarked: Vec<(u32, u64)> = (0..)
        .zip(tables.remotes.values()?)
        .filter(|(_, ticket)| *ticket == CHANGING)
        .map(|(place, _)| (place, 0))
        .collect();
    let is_whole = found == Halves::default();
    if tables.state.get(0)?.changed == CHANGING || !is_whole || !unmarked.is_empty() {
        tables.change_all(|| Ok(tables.remotes.set_batch(&unmarked)?))?;
    }
    Ok(!is_whole)
}

fn find(slots: &[Slot], links: &[(u32, u32)], ipcache: &[(Address, IpcacheEntry)]) -> Halves {
    let by_link: HashMap<u32, u32> = links.iter().copied().collect();
    let taken = || (0_u32..).zip(slots).filter(|(_, slot)| slot.is_taken());
    let is_whole = |number: u32, slot: &Slot| by_link.get(&slot.ifindex) == Some(&number);
    let whole = || taken().filter(|(number, slot)| is_whole(*number, slot));
    let known: HashSet<u32> = whole().map(|(_, slot)| slot.ifindex).collect();
    let expected: HashMap<Address, IpcacheEntry> = whole()
        .flat_map(|(number, slot)| {
            let entry = IpcacheEntry {
                identity: slot.identity,
                slot: number,
                generation: slot.generation,
                cidr: 0,
            };
            addresses(slot).map(move |address| (address, entry))
        })
        .collect();
    let found: HashMap<Address, IpcacheEntry> = ipcache.iter().copied().collect();
    let mut halves = Halves {
        slots: taken().filter(|(n, slot)| !is_whole(*n, slot)).map(|(n, _)| n).collect(),
        links: by_link.keys().filter(|ifindex| !known.contains(ifindex)).copied().collect(),
        addresses: found
            .iter()
            .filter(|(address, entry)| {
                entry.slot != IpcacheEntry::NO_SLOT && !expected.contains_key(address)
            })
            .map(|(address, _)| *address)
            .collect(),
        missing: expected
            .into_iter()
            .filter(|(address, entry)| {
                // Which prefix of a policy has the address is the policy's affair.
                found.get(address)
                    != Some(&IpcacheEntry { cidr: found_cidr(&found, address), ..*entry })
            })
            .collect(),
    };
    halves.links.sort_unstable();
    halves
}

fn found_cidr(found: &HashMap<Address, IpcacheEntry>, address: &Address) -> u32 {
    found.get(address).map_or(0, |entry| entry.cidr)
}

/// The addresses that a slot has.
fn addresses(slot: &Slot) -> impl Iterator<Item = Address> {
    let v4 = (slot.ipv4.raw() != 0).then(|| Address::from_ipv4_raw(slot.ipv4));
    let v6 = (!slot.ipv6.is_unspecified()).then_some(slot.ipv6);
    v4.into_iter().chain(v6)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn address(text: &str) -> Address {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn slot(ifindex: u32, generation: u32) -> Slot {
        let ipv6 = address(&format!("fd00::{ifindex}"));
        Slot { ifindex, generation, identity: 3, ipv6, ..Slot::default() }
    }

    fn entry(slot: u32, generation: u32) -> IpcacheEntry {
        IpcacheEntry { identity: 3, slot, generation, cidr: 0 }
    }

    #[test]
    fn what_is_whole_stays() {
        let router = IpcacheEntry { slot: IpcacheEntry::NO_SLOT, ..entry(0, 0) };
        let ipcache = [(address("fd00::7"), entry(1, 5)), (address("fd00::1"), router)];
        let found = find(&[Slot::default(), slot(7, 5)], &[(7, 1)], &ipcache);
        assert_eq!(found, Halves::default());
    }

    #[test]
    fn halves_go_and_gaps_are_filled() {
        // In the order of writing: a slot alone; with its link; and of removal: a link alone; an
        // address whose slot has changed hands.
        let slots = [slot(7, 5), slot(8, 3), slot(9, 4), slot(10, 9)];
        let links = [(8, 1), (9, 2), (10, 3)];
        let ipcache = [
            (address("fd00::7"), entry(0, 5)),
            (address("fd00::9"), entry(2, 3)),
            (address("fd00::10"), entry(3, 7)),
        ];
        let mut found = find(&slots, &links, &ipcache);
        found.addresses.sort_by_key(|address| IpAddr::from(*address));
        found.missing.sort_by_key(|(address, _)| IpAddr::from(*address));
        let expected = Halves {
            slots: vec![0],
            links: vec![9],
            addresses: vec![address("fd00::7"), address("fd00::9")],
            missing: vec![(address("fd00::8"), entry(1, 3)), (address("fd00::10"), entry(3, 9))],
        };
        assert_eq!(found, expected);
    }
}
