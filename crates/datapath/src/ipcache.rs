//! Who is behind addresses that no endpoint of the node has.

use std::collections::HashMap;

use ipnetwork::IpNetwork;
use podwire_abi::{Address, IpcacheEntry, REMOTES};
use podwire_bpf::{Prefix, Removal};

use crate::{
    datapath::Datapath,
    error::{Error, Result},
};

impl Datapath {
    /// Tells who is behind prefixes, effective for the very next packet. Whole addresses are looked
    /// up first, by one hash; what only a wider prefix has is looked up in a trie.
    ///
    /// # Errors
    ///
    /// If a whole address belongs to an endpoint of this node, or a map refuses.
    pub fn set_identities(&self, prefixes: &[(IpNetwork, u32)]) -> Result<()> {
        let _writer = self.lock();
        let tables = self.tables();
        let (whole, wider): (Vec<_>, Vec<_>) =
            prefixes.iter().copied().partition(|&(prefix, _)| is_whole(prefix));
        let mut entries = Vec::with_capacity(whole.len());
        for (prefix, identity) in whole {
            let address = prefix.ip();
            let last = self.not_an_endpoint(prefix)?;
            let entry = IpcacheEntry { identity, slot: IpcacheEntry::NO_SLOT, ..last };
            entries.push((Address::from(address), entry));
        }
        self.change_whole(
            &entries.iter().map(|(address, _)| *address).collect::<Vec<_>>(),
            || Ok(tables.ipcache.insert_batch(&entries)?),
        )?;
        if wider.is_empty() {
            return Ok(());
        }
        let known: HashMap<_, _> = tables.prefixes.entries()?.into_iter().collect();
        let mut rows = Vec::with_capacity(wider.len());
        for (prefix, identity) in wider {
            let key = key(prefix)?;
            let last = known.get(&key).copied().unwrap_or_default();
            rows.push((key, IpcacheEntry { identity, slot: IpcacheEntry::NO_SLOT, ..last }));
        }
        tables.change_all(|| Ok(tables.prefixes.insert_batch(&rows)?))
    }

    /// Forgets who is behind a prefix, effective for the very next packet.
    ///
    /// # Errors
    ///
    /// If a whole address belongs to an endpoint of this node, or a map refuses.
    pub fn forget_identity(&self, prefix: IpNetwork) -> Result<Removal> {
        let _writer = self.lock();
        let tables = self.tables();
        let mut removal = Removal::Absent;
        if is_whole(prefix) {
            self.not_an_endpoint(prefix)?;
            let address = Address::from(prefix.ip());
            self.change_whole(&[address], || {
                removal = tables.ipcache.remove(&address)?;
                Ok(())
            })?;
        } else {
            let key = key(prefix)?;
            tables.change_all(|| {
                removal = tables.prefixes.remove(&key)?;
                Ok(())
            })?;
        }
        Ok(removal)
    }

    /// More addresses than there are places concern everybody.
    fn change_whole(
        &self,
        addresses: &[Address],
        write: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        match addresses.len() {
            0 => Ok(()),
            few if few < REMOTES as usize => self.tables().change_remotes(addresses, write),
            _ => self.tables().change_all(write),
        }
    }

    /// What is known of a whole address, if it is no endpoint's.
    fn not_an_endpoint(&self, prefix: IpNetwork) -> Result<IpcacheEntry> {
        match self.tables().ipcache.get(&Address::from(prefix.ip()))? {
            Some(entry) if entry.slot != IpcacheEntry::NO_SLOT => {
                Err(Error::EndpointAddress { address: prefix.ip() })
            }
            entry => Ok(entry.unwrap_or_default()),
        }
    }
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
    let address = std::net::IpAddr::from(*key.data());
    let length = if address.is_ipv4() { key.length().saturating_sub(96) } else { key.length() };
    let length = u8::try_from(length).unwrap_or(u8::MAX);
    IpNetwork::new(address, length).unwrap_or_else(|_| address.into())
}
