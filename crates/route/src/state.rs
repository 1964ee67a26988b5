use std::collections::BTreeSet;

use podwire_netlink::{
    AddrGenMode, Address, AdminState, IfIndex, Link, LinkChange, LinkFlags, Neighbour, Netlink,
    Route, RouteFilter, RouteProtocol, Rule, Switch,
};

use crate::Error;

/// What is to be. Empty lists mean that nothing of the kind is to be; what belongs to whom is said by
/// [`Owner`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Desired {
    /// Settings of links, which must exist.
    pub links: Vec<LinkState>,
    /// Addresses.
    pub addresses: Vec<Address>,
    /// Routes. Whatever their protocol says, they get the owner's.
    pub routes: Vec<Route>,
    /// Rules. Whatever their protocol says, they get the owner's.
    pub rules: Vec<Rule>,
    /// Neighbour entries.
    pub neighbours: Vec<Neighbour>,
}

/// What a link is to be like. What is `None` is left as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LinkState {
    /// The link.
    pub index: IfIndex,
    /// Whether it is up.
    pub admin: Option<AdminState>,
    /// Its MTU, in bytes.
    pub mtu: Option<u32>,
    /// The text attached to it.
    pub alias: Option<String>,
    /// How it makes IPv6 addresses of its own.
    pub addr_gen_mode: Option<AddrGenMode>,
    /// Whether it does without ARP and neighbour discovery.
    pub noarp: Option<Switch>,
}

impl LinkState {
    /// A link of which nothing is said.
    pub fn of(index: IfIndex) -> Self {
        Self { index, admin: None, mtu: None, alias: None, addr_gen_mode: None, noarp: None }
    }

    /// It is up.
    #[must_use]
    pub fn up(mut self) -> Self {
        self.admin = Some(AdminState::Up);
        self
    }

    /// It has this MTU.
    #[must_use]
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = Some(mtu);
        self
    }

    /// It has this alias.
    #[must_use]
    pub fn alias(mut self, alias: impl Into<String>) -> Self {
        self.alias = Some(alias.into());
        self
    }

    /// It makes IPv6 addresses this way.
    #[must_use]
    pub fn addr_gen_mode(mut self, mode: AddrGenMode) -> Self {
        self.addr_gen_mode = Some(mode);
        self
    }

    /// It does without ARP and neighbour discovery, or not.
    #[must_use]
    pub fn noarp(mut self, switch: Switch) -> Self {
        self.noarp = Some(switch);
        self
    }

    /// What must change for a link to be like this; `None` when it is.
    pub fn change(&self, link: &Link) -> Option<LinkChange> {
        let mut change = LinkChange::of(self.index);
        match self.admin {
            Some(AdminState::Up) if !link.is_up() => change = change.up(),
            Some(AdminState::Down) if link.is_up() => change = change.down(),
            _ => {}
        }
        if let Some(mtu) = self.mtu.filter(|mtu| *mtu != link.mtu) {
            change = change.mtu(mtu);
        }
        if let Some(alias) = &self.alias
            && *alias != *link.alias.as_deref().unwrap_or_default()
        {
            change = change.alias(alias.clone());
        }
        // A link without IPv6 has no mode, and cannot be given one.
        if let (Some(wanted), Some(mode)) = (self.addr_gen_mode, link.addr_gen_mode)
            && wanted != mode
        {
            change = change.addr_gen_mode(wanted);
        }
        if let Some(switch) = self.noarp
            && (switch == Switch::On) != link.flags.contains(LinkFlags::NOARP)
        {
            change = change.flag(LinkFlags::NOARP, switch);
        }
        Some(change).filter(|change| !change.is_empty())
    }
}

/// Who wants it, which is also what may be changed and removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Routes and rules with this number belong to the owner.
    pub protocol: RouteProtocol,
    /// Addresses and set neighbour entries on these links belong to the owner. Link-local addresses
    /// and those that the kernel made from advertisements do not, and neither do neighbours that the
    /// kernel found by itself.
    pub links: BTreeSet<IfIndex>,
}

impl Owner {
    /// An owner of routes and rules, and of no link.
    pub fn new(protocol: RouteProtocol) -> Self {
        Self { protocol, links: BTreeSet::new() }
    }

    /// Adds a link.
    #[must_use]
    pub fn with_link(mut self, index: IfIndex) -> Self {
        self.links.insert(index);
        self
    }
}

/// What is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// Links.
    pub links: Vec<Link>,
    /// Addresses.
    pub addresses: Vec<Address>,
    /// Routes.
    pub routes: Vec<Route>,
    /// Rules.
    pub rules: Vec<Rule>,
    /// Neighbour entries.
    pub neighbours: Vec<Neighbour>,
}

impl Observed {
    /// Reads what [`plan`](crate::plan) needs to know about an owner's wishes. What cannot matter is
    /// not read: addresses and neighbours of links that are neither the owner's nor wished for.
    ///
    /// # Errors
    ///
    /// When the kernel cannot be asked.
    pub fn read(netlink: &mut Netlink, owner: &Owner, desired: &Desired) -> Result<Self, Error> {
        let mut observed = Self {
            links: if desired.links.is_empty() { Vec::new() } else { netlink.links()? },
            routes: netlink.routes(&RouteFilter::ALL)?,
            rules: netlink.rules(None)?,
            ..Self::default()
        };
        let wished = desired.addresses.iter().map(|address| address.index);
        let links: BTreeSet<_> = wished.chain(owner.links.iter().copied()).collect();
        for index in links {
            observed.addresses.append(&mut netlink.addresses(index)?);
        }
        let wished = desired.neighbours.iter().map(|neighbour| neighbour.index);
        let links: BTreeSet<_> = wished.chain(owner.links.iter().copied()).collect();
        for index in links {
            observed.neighbours.append(&mut netlink.neighbours(index)?);
        }
        Ok(observed)
    }
}
