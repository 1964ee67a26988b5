//! The set of taken addresses as maximal runs, as [`crate::ranges`] has it in memory.

use std::net::IpAddr;

use super::entries::{Kind, address_bytes, read_address};
use super::ledger::{StoreError, corrupt};
use super::{Entry, Table};
use crate::Family;
use crate::space::{to_address, to_value};

/// Adds `address` and tells whether it was new.
pub(super) fn insert<T: Table>(
    table: &mut T,
    address: IpAddr,
) -> Result<bool, StoreError<T::Error>> {
    let value = to_value(address);
    let (mut first, mut last) = (address, address);
    if let Some((start, end)) = run_to(table, address)? {
        if to_value(end) >= value {
            return Ok(false);
        }
        if to_value(end) + 1 == value {
            first = start;
        }
    }
    if let Some(next) = behind(address) {
        let key = Kind::Run.address_key(next);
        if let Some(end) = table.value(&key).map_err(StoreError::Table)? {
            last = read_address(&end).ok_or_else(|| corrupt("a run"))?;
            table.remove(&key).map_err(StoreError::Table)?;
        }
    }
    write(table, first, last)?;
    Ok(true)
}

/// Takes `address` out and tells whether it was there.
pub(super) fn remove<T: Table>(
    table: &mut T,
    address: IpAddr,
) -> Result<bool, StoreError<T::Error>> {
    let Some((first, last)) = run_to(table, address)?.filter(|(_, last)| *last >= address) else {
        return Ok(false);
    };
    let value = to_value(address);
    let family = Family::of(address);
    if first == address {
        table.remove(&Kind::Run.address_key(first)).map_err(StoreError::Table)?;
    } else {
        write(table, first, to_address(family, value - 1))?;
    }
    if last > address {
        write(table, to_address(family, value + 1), last)?;
    }
    Ok(true)
}

/// The smallest address from `from` on that is not taken; `None` behind the family's last one.
pub(super) fn next_gap<T: Table>(
    table: &T,
    from: IpAddr,
) -> Result<Option<IpAddr>, StoreError<T::Error>> {
    Ok(match run_to(table, from)? {
        Some((_, last)) if last >= from => behind(last),
        _ => Some(from),
    })
}

/// The run that begins with `address` or, of those before it, last.
fn run_to<T: Table>(
    table: &T,
    address: IpAddr,
) -> Result<Option<(IpAddr, IpAddr)>, StoreError<T::Error>> {
    let found = table.last_to(&Kind::Run.address_key(address)).map_err(StoreError::Table)?;
    let Some((key, value)): Option<Entry> = found else { return Ok(None) };
    let Some(first) = Kind::Run.rest(&key) else { return Ok(None) };
    let run = read_address(first).zip(read_address(&value)).ok_or_else(|| corrupt("a run"))?;
    Ok((Family::of(run.0) == Family::of(address)).then_some(run))
}

fn write<T: Table>(table: &mut T, first: IpAddr, last: IpAddr) -> Result<(), StoreError<T::Error>> {
    table.insert(&Kind::Run.address_key(first), &address_bytes(last)).map_err(StoreError::Table)
}

fn behind(address: IpAddr) -> Option<IpAddr> {
    let next = to_value(address).checked_add(1)?;
    let family = Family::of(address);
    (family == Family::V6 || next <= u32::MAX.into()).then(|| to_address(family, next))
}
