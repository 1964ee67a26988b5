use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::Addresses;

/// Which addresses belong to which name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stickies {
    by_name: BTreeMap<Arc<str>, Binding>,
    names: HashMap<IpAddr, Arc<str>>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Binding {
    pub(crate) addresses: Addresses,
    /// Whether a lease of it was ever confirmed. Until then it goes with its lease.
    pub(crate) firm: bool,
}

impl Stickies {
    /// The addresses of a name.
    pub(crate) fn addresses(&self, name: &str) -> Addresses {
        self.by_name.get(name).map(|binding| binding.addresses).unwrap_or_default()
    }

    pub(crate) fn binding(&self, name: &str) -> Option<Binding> {
        self.by_name.get(name).copied()
    }

    /// The name that an address belongs to.
    pub(crate) fn name(&self, address: IpAddr) -> Option<&Arc<str>> {
        self.names.get(&address)
    }

    /// Binds an address to a name, in place of the one of its family that it had, which is given.
    pub(crate) fn bind(&mut self, name: &str, address: IpAddr) -> Option<IpAddr> {
        let (name, mut binding) =
            self.by_name.remove_entry(name).unwrap_or_else(|| (name.into(), Binding::default()));
        let former = binding.addresses.replace(address).filter(|former| *former != address);
        if let Some(former) = former {
            self.names.remove(&former);
        }
        self.names.insert(address, name.clone());
        self.by_name.insert(name, binding);
        former
    }

    /// Keeps the name that an address belongs to beyond its first lease.
    pub(crate) fn make_firm(&mut self, address: IpAddr) {
        if let Some(name) = self.names.get(&address)
            && let Some(binding) = self.by_name.get_mut(name)
        {
            binding.firm = true;
        }
    }

    /// Whether an address stays with its name when its lease ends.
    pub(crate) fn is_firm(&self, address: IpAddr) -> bool {
        let name = self.names.get(&address);
        name.and_then(|name| self.by_name.get(name)).is_some_and(|binding| binding.firm)
    }

    /// Takes an address from its name, which goes when it has none left.
    pub(crate) fn unbind(&mut self, address: IpAddr) {
        let Some(name) = self.names.remove(&address) else { return };
        let Some(binding) = self.by_name.get_mut(&name) else { return };
        binding.addresses.clear(address);
        if binding.addresses.is_empty() {
            self.by_name.remove(&name);
        }
    }

    /// The names and their addresses, sorted by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, Addresses)> {
        self.by_name.iter().map(|(name, binding)| (&**name, binding.addresses))
    }
}
