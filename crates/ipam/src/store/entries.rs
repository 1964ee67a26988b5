//! What stands in the table, and how it is written.
//!
//! | key | value | |
//! |---|---|---|
//! | `l` address | owner | who holds an address |
//! | `o` owner | addresses | what an owner holds |
//! | `r` address | address | first and last of a run of addresses that are held or rest |
//! | `q` family number | address | addresses that rest, in the order of their release |
//! | `n` address | number | the same, by address |
//! | `s` family | number | the last release |
//! | `c` address | address | of the set that begins there, the address granted last |
//!
//! An address is written as its family, 4 or 6, and 16 bytes with the most significant first, so
//! that keys are in the order of the addresses. An owner is the length of its container id in two
//! bytes, the id, and the interface.

use std::net::IpAddr;

use crate::space::{to_address, to_value};
use crate::{Family, Owner};

/// What an entry is about, the first byte of its key.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Lease,
    Owner,
    Run,
    Resting,
    Number,
    LastNumber,
    Cursor,
}

impl Kind {
    const fn byte(self) -> u8 {
        match self {
            Self::Lease => b'l',
            Self::Owner => b'o',
            Self::Run => b'r',
            Self::Resting => b'q',
            Self::Number => b'n',
            Self::LastNumber => b's',
            Self::Cursor => b'c',
        }
    }

    pub(super) fn key(self, rest: &[u8]) -> Vec<u8> {
        let mut key = Vec::with_capacity(1 + rest.len());
        key.push(self.byte());
        key.extend_from_slice(rest);
        key
    }

    pub(super) fn address_key(self, address: IpAddr) -> Vec<u8> {
        self.key(&address_bytes(address))
    }

    pub(super) fn family_key(self, family: Family) -> Vec<u8> {
        self.key(&[family_byte(family)])
    }

    pub(super) fn numbered_key(self, family: Family, number: u64) -> Vec<u8> {
        let mut key = self.family_key(family);
        key.extend_from_slice(&number.to_be_bytes());
        key
    }

    /// What follows the kind, if the key is of this one.
    pub(super) fn rest(self, key: &[u8]) -> Option<&[u8]> {
        key.strip_prefix(&[self.byte()])
    }
}

const ADDRESS_LEN: usize = 17;

pub(super) const fn family_byte(family: Family) -> u8 {
    match family {
        Family::V4 => 4,
        Family::V6 => 6,
    }
}

pub(super) fn address_bytes(address: IpAddr) -> [u8; ADDRESS_LEN] {
    let mut bytes = [0; ADDRESS_LEN];
    bytes[0] = family_byte(Family::of(address));
    bytes[1..].copy_from_slice(&to_value(address).to_be_bytes());
    bytes
}

pub(super) fn read_address(bytes: &[u8]) -> Option<IpAddr> {
    let (&family, value) = bytes.split_first()?;
    let value = u128::from_be_bytes(value.try_into().ok()?);
    match family {
        4 if value <= u32::MAX.into() => Some(to_address(Family::V4, value)),
        6 => Some(to_address(Family::V6, value)),
        _ => None,
    }
}

pub(super) fn addresses_bytes(addresses: &[IpAddr]) -> Vec<u8> {
    addresses.iter().flat_map(|address| address_bytes(*address)).collect()
}

pub(super) fn read_addresses(bytes: &[u8]) -> Option<Vec<IpAddr>> {
    bytes.chunks(ADDRESS_LEN).map(read_address).collect()
}

/// `None`: the container id is longer than can be written.
pub(super) fn owner_bytes(owner: &Owner) -> Option<Vec<u8>> {
    let length = u16::try_from(owner.container_id().len()).ok()?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(owner.container_id().as_bytes());
    bytes.extend_from_slice(owner.ifname().as_bytes());
    Some(bytes)
}

pub(super) fn read_owner(bytes: &[u8]) -> Option<Owner> {
    let (length, names) = bytes.split_first_chunk()?;
    let (id, ifname) = names.split_at_checked(u16::from_be_bytes(*length).into())?;
    Some(Owner::new(str::from_utf8(id).ok()?, str::from_utf8(ifname).ok()?))
}

pub(super) fn read_number(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_and_addresses_are_read_as_written() {
        for (id, ifname) in [("a", "eth0"), ("", ""), ("8c2d", ""), ("é", "x/y")] {
            let owner = Owner::new(id, ifname);
            assert_eq!(read_owner(&owner_bytes(&owner).unwrap()), Some(owner));
        }
        assert!(owner_bytes(&Owner::new(&"x".repeat(70_000), "")).is_none());
        let list: Vec<IpAddr> = ["0.0.0.0", "255.255.255.255", "::", "ffff::1"]
            .map(|text| text.parse().unwrap())
            .to_vec();
        assert_eq!(read_addresses(&addresses_bytes(&list)), Some(list));
    }

    #[test]
    fn what_is_no_entry_of_ours_is_refused() {
        assert_eq!(read_address(&[]), None);
        assert_eq!(read_address(&[5; 17]), None);
        assert_eq!(read_address(&[[4].as_slice(), &[1; 16]].concat()), None);
        assert_eq!(read_addresses(&[4; 18]), None);
        assert_eq!(read_owner(&[0]), None);
        assert_eq!(read_owner(&[0, 2, b'a']), None);
        assert_eq!(read_number(&[0; 7]), None);
    }
}
