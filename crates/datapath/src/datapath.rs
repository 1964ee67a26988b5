//! The programs of a node, loaded once, and what its endpoints are to them.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use podwire_abi::{
    Address, Be32, CHANGING, EthernetPair, FLOW_SEED, FLOWS_MASK, IpcacheEntry, Mac, NodeConfig,
    NodeState, PENDING_MASK, PolicyRef, SLOT_MASK, Slot, Verdict, identity, map, slot_flag,
    slot_mask, ways,
};
use podwire_bpf::{Array, AttachMode, Loader, Object, Program, Removal};

use crate::{
    OBJECT,
    attach::{Attach, By},
    error::{Error, Result},
    flows::{FlowTable, sets},
    halves,
    nat::Nat,
    policy::{self, Book, Terms},
    slots::{FreeSlots, empty_generation, taken_generation},
    state::{self, Marks, Shared},
    tables::{Tables, maps_folder},
};

/// Where the pins are and how large the tables are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Folder of the pins, on a bpffs. Made if it is not there.
    pub bpffs: PathBuf,
    /// How many endpoints there is room for.
    pub slots: u32,
    /// How many directions of confirmed flows there is room for at least, two a flow: the next power of two.
    pub flows: u32,
    /// How many flows there is room for at least that only one side has spoken in, or that have ended: the next
    /// power of two.
    pub pending: u32,
    /// How many whole addresses of other nodes, and how many prefixes, there is room for.
    pub remotes: u32,
    /// How many rows of policies there is room for: one for each identity and prefix that a policy speaks of.
    pub policy_rows: u32,
    /// How many ranges of ports there is room for in policies; rows with the same ones share them.
    pub policy_rules: u32,
    /// How many conversations can be masqueraded at a time.
    pub mappings: u32,
    /// How programs are attached.
    pub attach: Attach,
}

impl Options {
    /// The sizes that suit an ordinary node: 4,096 endpoints, 131,072 flows in 262,144 directions, 65,536
    /// that begin or have ended, 524,288 addresses of other nodes,
    /// 65,536 rows of policies, ranges of ports, and mappings.
    pub fn new(bpffs: impl Into<PathBuf>) -> Self {
        Self {
            bpffs: bpffs.into(),
            slots: 4096,
            flows: 1 << 18,
            pending: 1 << 16,
            remotes: 1 << 19,
            policy_rows: 1 << 16,
            policy_rules: 1 << 16,
            mappings: 1 << 16,
            attach: Attach::Auto,
        }
    }
}

/// What all programs of the node share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeSetup {
    /// The pods' IPv4 gateway.
    pub router_ipv4: Option<std::net::Ipv4Addr>,
    /// The pods' IPv6 gateway.
    pub router_ipv6: Option<std::net::Ipv6Addr>,
    /// Interface index of `podwire_host`.
    pub host_ifindex: u32,
    /// MAC of `podwire_host`.
    pub host_mac: Mac,
    /// Interface index of `podwire_net`.
    pub net_ifindex: u32,
    /// MAC of `podwire_net`.
    pub net_mac: Mac,
}

/// An endpoint, as the datapath has to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointConfig {
    /// Name of the host link, which its pins are called by.
    pub host_link: String,
    /// Interface index of the host link.
    pub ifindex: u32,
    /// MAC of the container's interface.
    pub mac: Mac,
    /// MAC of the host link.
    pub host_mac: Mac,
    /// At most one of each family.
    pub addresses: Vec<IpAddr>,
    /// How packets are handed to it.
    pub delivery: Delivery,
    /// Whose interface it is.
    pub interface: Interface,
    /// By what the programs of a new endpoint are attached.
    pub by: By,
}

/// Whose an endpoint's interface is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Interface {
    /// Made by podwire, and routed by it.
    #[default]
    Own,
    /// Made by another plugin, which is its gateway: only the sources of its packets are checked, and
    /// it is always [`Delivery::Stack`].
    Adopted,
}

/// How packets are handed to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Delivery {
    /// Straight to the container's interface.
    #[default]
    Peer,
    /// Through the host link's egress, where foreign queueing disciplines and filters see it.
    Egress,
    /// The same, and what it sends is checked and goes on by its own link, where foreign filters see
    /// it, into the host stack; what other endpoints send to it goes by the stack as well, since a flow
    /// goes by it in both directions or in none.
    Stack,
}

/// The loaded programs, their maps, and the slots.
///
/// Dropping it leaves programs, maps and links in the kernel, held by their pins: traffic goes on.
#[derive(Debug)]
pub struct Datapath {
    tables: Tables,
    object: Object,
    pub(crate) attach: Attach,
    mode: AttachMode,
    bpffs: PathBuf,
    /// One writer at a time; the kernel's programs read meanwhile.
    writing: Mutex<Writer>,
}

#[derive(Debug)]
pub(crate) struct Writer {
    free: FreeSlots,
    pub(crate) book: Book,
    /// How often the book was made of the maps again.
    pub(crate) rereads: u32,
}

impl Datapath {
    /// Opens the pinned maps, or makes them, and loads the programs. What is attached already goes
    /// on with the programs it has until it is attached again. What a writer that was killed has left
    /// there by half is removed.
    ///
    /// # Errors
    ///
    /// If the folder is not on a bpffs, a pinned map has another layout or size than this version
    /// and these options give it (every difference is named), or the kernel refuses a program.
    pub fn open(options: &Options) -> Result<Self> {
        if options.slots > Verdict::SLOTS {
            return Err(Error::TooManySlots { slots: options.slots, most: Verdict::SLOTS });
        }
        let maps = maps_folder(&options.bpffs);
        let addresses = options.slots.saturating_mul(2).saturating_add(options.remotes);
        let (flow_sets, pending_sets) = (sets(options.flows), sets(options.pending));
        let seed = state::seed(&maps)?;
        let object = Loader::new(OBJECT)
            .max_entries(map::SLOTS, options.slots)
            .max_entries(map::LINKS, options.slots)
            .max_entries(map::IPCACHE, addresses)
            .max_entries(map::PREFIXES, options.remotes)
            .max_entries(map::FLOWS, flow_sets)
            .max_entries(map::FLOW_WAYS, flow_sets.div_ceil(ways::SETS))
            .max_entries(map::PENDING, pending_sets)
            .max_entries(map::POLICY, options.policy_rows)
            .max_entries(map::POLICY_RULES, options.policy_rules)
            .max_entries(map::NAT, options.mappings.saturating_mul(2))
            .global(SLOT_MASK, &slot_mask(options.slots))
            .global(FLOWS_MASK, &(flow_sets - 1))
            .global(PENDING_MASK, &(pending_sets - 1))
            .global(FLOW_SEED, &seed)
            .pin_maps(&maps)
            // Of no use to anybody but the programs that it was made with.
            .unpinned(map::SCRATCH)
            .load()?;
        let state: Array<NodeState> = object.map(map::STATE)?;
        state::keep_seed(&state, seed)?;
        let tables = Tables {
            config: object.map(map::CONFIG)?,
            slots: object.map(map::SLOTS)?,
            links: object.map(map::LINKS)?,
            state,
            ipcache: object.map(map::IPCACHE)?,
            prefixes: object.map(map::PREFIXES)?,
            remotes: object.map(map::REMOTES)?,
            shared: Shared { state: object.map(map::STATE)?, slots: object.map(map::SLOTS)? },
            flows: FlowTable::confirmed(object.map(map::FLOWS)?, object.map(map::FLOW_WAYS)?, seed),
            pending: FlowTable::unconfirmed(object.map(map::PENDING)?, seed),
            policy: object.map(map::POLICY)?,
            policy_rules: object.map(map::POLICY_RULES)?,
            fragments: object.map(map::FRAGMENTS)?,
            metrics: object.map(map::METRICS)?,
            flow_events: object.map(map::FLOW_EVENTS)?,
            nat: Nat::open(&options.bpffs)?,
        };
        tables.flows.mend(grace_period)?;
        let is_mended = halves::mend(&tables)?;
        let (book, is_policy_mended) = policy::restore(&tables)?;
        if is_mended || is_policy_mended {
            // Their addresses may be somebody else's from now on.
            grace_period()?;
        }
        let free = FreeSlots::of(&tables.slots.values()?);
        let mode = options.attach.resolve()?;
        let bpffs = options.bpffs.clone();
        let attach = options.attach;
        let writing = Mutex::new(Writer { free, book, rereads: 0 });
        Ok(Self { tables, object, attach, mode, bpffs, writing })
    }

    /// The maps as rows.
    #[must_use]
    pub const fn tables(&self) -> &Tables {
        &self.tables
    }

    /// How programs are attached.
    #[must_use]
    pub const fn attach_mode(&self) -> AttachMode {
        self.mode
    }

    /// Folder of the pins.
    #[must_use]
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// One of the loaded programs, named in [`abi::program`](podwire_abi::program): for test-runs and
    /// benchmarks.
    ///
    /// # Errors
    ///
    /// If there is no such program.
    pub fn program(&self, name: &str) -> Result<&Program> {
        Ok(self.object.program(name)?)
    }

    /// Tells the programs of the node, and attaches `from_host` to `podwire_net`. Until this has
    /// been called once on a node, nothing that a pod sends is forwarded.
    ///
    /// # Errors
    ///
    /// If a map refuses or the program cannot be attached.
    pub fn set_node(&self, node: &NodeSetup) -> Result<()> {
        let mut routers = Vec::new();
        routers.extend(node.router_ipv4.map(IpAddr::from));
        routers.extend(node.router_ipv6.map(IpAddr::from));
        let writer = self.lock();
        let config = NodeConfig {
            router_ipv4: node.router_ipv4.map_or(Be32::new(0), |v4| Be32::new(v4.into())),
            router_ipv6: node
                .router_ipv6
                .map_or(Address::UNSPECIFIED, |v6| IpAddr::from(v6).into()),
            host_ifindex: node.host_ifindex,
            to_host: EthernetPair::new(node.host_mac, node.net_mac),
            reserved: 0,
        };
        self.tables.change_all(|| {
            for router in routers {
                let entry = IpcacheEntry {
                    identity: identity::HOST,
                    slot: IpcacheEntry::NO_SLOT,
                    generation: 0,
                    cidr: writer.book.cidr_of(router.into()),
                };
                self.tables.ipcache.insert(&router.into(), &entry)?;
            }
            Ok(self.tables.config.set(0, &config)?)
        })?;
        self.attach_router(node.net_ifindex)
    }

    /// Makes an endpoint known and attaches the programs to its host link; gives its slot. Where an
    /// endpoint is known on that link already it is changed, its programs replaced.
    ///
    /// # Errors
    ///
    /// If there is no free slot, an address belongs to another endpoint, a map refuses, or the
    /// programs cannot be attached; nothing is left behind then.
    pub fn add_endpoint(&self, endpoint: &EndpointConfig) -> Result<u32> {
        self.add(endpoint, None)
    }

    /// The same on terms that hold from the endpoint's first packet on. Without them a new endpoint is
    /// [unmanaged](identity::UNMANAGED) and everything passes; one that is changed keeps what it has.
    ///
    /// # Errors
    ///
    /// The same, and if there is no room for the policy.
    pub fn add_endpoint_with(&self, endpoint: &EndpointConfig, terms: Terms<'_>) -> Result<u32> {
        policy::check_identity(terms.identity)?;
        self.add(endpoint, Some(terms))
    }

    fn add(&self, endpoint: &EndpointConfig, terms: Option<Terms<'_>>) -> Result<u32> {
        let mut writer = self.lock();
        let addresses = Addresses::of(endpoint)?;
        let known = self.tables.links.get(&endpoint.ifindex)?;
        self.check_holders(endpoint, known)?;
        let number = match known {
            Some(number) => number,
            None => {
                let slots = self.tables.slot_count();
                let place = endpoint.ifindex & slot_mask(slots);
                writer.free.take(place).ok_or(Error::Full { slots })?
            }
        };
        let added = self
            .write_endpoint(&writer.book, endpoint, number, &addresses, terms)
            .and_then(|()| terms.map_or(Ok(()), |terms| self.put_on(&mut writer, number, terms)))
            .and_then(|()| self.attach_new(endpoint));
        match added {
            Ok(()) => Ok(number),
            Err(error) => {
                // The first error tells what is wrong; what cannot be undone now is found by the
                // reconciliation at the next start.
                let _ = self.erase(&mut writer, endpoint.ifindex, number);
                let _ = self.detach(&endpoint.host_link, endpoint.ifindex);
                Err(error)
            }
        }
    }

    /// What is attached to a new link is attached once: there is nothing to detach. A link that has its
    /// programs by TCX keeps them so: somebody else may have its queueing disciplines by now.
    fn attach_new(&self, endpoint: &EndpointConfig) -> Result<()> {
        let (link, ifindex) = (&endpoint.host_link, endpoint.ifindex);
        let mode = match endpoint.by {
            By::Filter if !self.has_links(link, ifindex)? => AttachMode::Clsact,
            By::Filter | By::Link => AttachMode::Tcx,
        };
        self.attach_both(link, ifindex, mode)
    }

    /// Forgets an endpoint and detaches its programs. Its addresses may be given to another only
    /// after [`grace_period`].
    ///
    /// # Errors
    ///
    /// If a map or a pin cannot be changed.
    pub fn remove_endpoint(&self, host_link: &str, ifindex: u32) -> Result<Removal> {
        let withdrawn = self.withdraw_endpoint(ifindex)?;
        let detached = self.detach(host_link, ifindex)?;
        Ok(if withdrawn == Removal::Removed { withdrawn } else { detached })
    }

    /// Forgets an endpoint. Its programs stay attached, and drop all they see: for an interface that
    /// is about to be deleted, which takes programs along at no cost of their own.
    ///
    /// The addresses may be given to another only after [`grace_period`], or once the interface is
    /// gone: deleting it waits for one.
    ///
    /// # Errors
    ///
    /// If a map cannot be changed.
    pub fn withdraw_endpoint(&self, ifindex: u32) -> Result<Removal> {
        let mut writer = self.lock();
        let Some(number) = self.tables.links.get(&ifindex)? else { return Ok(Removal::Absent) };
        self.erase(&mut writer, ifindex, number)?;
        Ok(Removal::Removed)
    }

    /// Changes how packets are handed to an endpoint, effective for the very next one.
    ///
    /// # Errors
    ///
    /// If no endpoint is known on the link, or the map refuses.
    pub fn set_delivery(&self, ifindex: u32, delivery: Delivery) -> Result<()> {
        let _writer = self.lock();
        let number = self.tables.links.get(&ifindex)?.ok_or(Error::NoEndpoint { ifindex })?;
        self.tables.change_slot(number, |slot| {
            Ok(Slot { flags: flags(delivery, interface(slot.flags)), ..slot })
        })
    }

    /// Changes the MAC of an endpoint's interface in the container. What is on its way in that moment is
    /// dropped, and never judged by half of each.
    ///
    /// # Errors
    ///
    /// If no endpoint is known on the link, or the map refuses.
    pub fn set_mac(&self, ifindex: u32, mac: Mac) -> Result<()> {
        let _writer = self.lock();
        let number = self.tables.links.get(&ifindex)?.ok_or(Error::NoEndpoint { ifindex })?;
        self.tables.change_slot(number, |slot| {
            let host_mac = slot.to_pod.source();
            let changed = Slot {
                from_pod: EthernetPair::new(host_mac, mac),
                to_pod: EthernetPair::new(mac, host_mac),
                ..slot
            };
            let unbelieved = Slot { generation: empty_generation(slot.generation), ..changed };
            self.tables.slots.set(number, &unbelieved)?;
            Ok(changed)
        })
    }

    /// No address may belong to an endpoint in another slot.
    fn check_holders(&self, endpoint: &EndpointConfig, own: Option<u32>) -> Result<()> {
        for &address in &endpoint.addresses {
            let Some(entry) = self.tables.ipcache.get(&address.into())? else { continue };
            if entry.slot == IpcacheEntry::NO_SLOT || Some(entry.slot) == own {
                continue;
            }
            let holder = self.tables.slots.get(entry.slot)?;
            if holder.is_taken() && holder.generation == entry.generation {
                let host_link = endpoint.host_link.clone();
                return Err(Error::AddressInUse { address, host_link, holder: holder.ifindex });
            }
        }
        Ok(())
    }

    /// Writes the slot first, then what leads to it, so that no program follows a name into an
    /// empty slot. The slot itself is written as an empty one first: programs that look into it
    /// while it changes believe none of it.
    fn write_endpoint(
        &self,
        book: &Book,
        endpoint: &EndpointConfig,
        number: u32,
        addresses: &Addresses,
        terms: Option<Terms<'_>>,
    ) -> Result<()> {
        let tables = &self.tables;
        let last = tables.slots.get(number)?;
        let mut remotes = addresses_of(&last);
        remotes.extend(endpoint.addresses.iter().map(|&address| Address::from(address)));
        let marks = Marks { slots: vec![number], remotes, ..Marks::default() };
        tables.change(&marks, |ticket| {
            let generation = empty_generation(last.generation);
            tables.slots.set(number, &Slot { changed: CHANGING, generation, ..last })?;
            self.remove_addresses(book, number, &last)?;
            // An endpoint that is changed keeps its identity, policy and flows.
            let same = last.is_taken() && last.ifindex == endpoint.ifindex;
            // A new one with a policy gets nothing before it has that.
            let closed = match terms {
                Some(Terms { policy: Some(policy), .. })
                    if !policy.permits_all() && endpoint.interface == Interface::Own =>
                {
                    policy::CLOSED
                }
                _ => PolicyRef::default(),
            };
            let kept = if same {
                last
            } else {
                Slot { ingress: closed, egress: closed, ..Slot::default() }
            };
            let unmanaged = terms.map_or(identity::UNMANAGED, |terms| terms.identity);
            let slot = Slot {
                changed: CHANGING,
                generation: taken_generation(generation),
                ifindex: endpoint.ifindex,
                flags: flags(endpoint.delivery, endpoint.interface),
                ipv4: addresses.ipv4,
                from_pod: EthernetPair::new(endpoint.host_mac, endpoint.mac),
                to_pod: EthernetPair::new(endpoint.mac, endpoint.host_mac),
                ipv6: addresses.ipv6,
                born: if same && addresses.are_of(&last) { last.born } else { ticket },
                identity: if same { last.identity } else { unmanaged },
                ..kept
            };
            tables.slots.set(number, &Slot { generation, ..slot })?;
            tables.slots.set(number, &slot)?;
            tables.links.insert(&endpoint.ifindex, &number)?;
            for &address in &endpoint.addresses {
                let entry = IpcacheEntry {
                    identity: slot.identity,
                    slot: number,
                    generation: slot.generation,
                    cidr: book.cidr_of(address.into()),
                };
                tables.ipcache.insert(&address.into(), &entry)?;
            }
            Ok(())
        })
    }

    /// Removes the addresses that lead to the slot first, then the slot, which is found by the link
    /// until the end: after a failure it can be repeated.
    fn erase(&self, writer: &mut Writer, ifindex: u32, number: u32) -> Result<()> {
        let tables = &self.tables;
        let slot = tables.slots.get(number)?;
        let marks = Marks { slots: vec![number], remotes: addresses_of(&slot), ..Marks::default() };
        tables.change(&marks, |ticket| {
            self.remove_addresses(&writer.book, number, &slot)?;
            let generation = empty_generation(slot.generation);
            let empty = Slot { generation, changed: CHANGING, born: ticket, ..Slot::default() };
            tables.slots.set(number, &empty)?;
            tables.links.remove(&ifindex)?;
            Ok(())
        })?;
        tables.drop_policies(&mut writer.book, &slot);
        writer.free.give_back(number);
        Ok(())
    }

    fn remove_addresses(&self, book: &Book, number: u32, slot: &Slot) -> Result<()> {
        for address in addresses_of(slot) {
            if self.tables.ipcache.get(&address)?.is_some_and(|entry| entry.slot == number) {
                match self.tables.derived(book, address.into())? {
                    Some(entry) => self.tables.ipcache.insert(&address, &entry)?,
                    None => drop(self.tables.ipcache.remove(&address)?),
                }
            }
        }
        Ok(())
    }

    /// The flows' clock goes on: what is seen from now on is so many seconds later. While nobody says so
    /// no flow grows old.
    ///
    /// # Errors
    ///
    /// If the map refuses.
    pub fn tick(&self, seconds: u32) -> Result<()> {
        let _writer = self.lock();
        self.tables.tick(seconds)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Writer> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An endpoint's addresses as its slot holds them.
struct Addresses {
    ipv4: Be32,
    ipv6: Address,
}

impl Addresses {
    fn are_of(&self, slot: &Slot) -> bool {
        self.ipv4 == slot.ipv4 && self.ipv6 == slot.ipv6
    }

    fn of(endpoint: &EndpointConfig) -> Result<Self> {
        let mut addresses = Self { ipv4: Be32::new(0), ipv6: Address::UNSPECIFIED };
        for &address in &endpoint.addresses {
            let second = match address {
                IpAddr::V4(v4) => {
                    let last = std::mem::replace(&mut addresses.ipv4, Be32::new(v4.into()));
                    last.raw() != 0
                }
                IpAddr::V6(_) => {
                    let last = std::mem::replace(&mut addresses.ipv6, address.into());
                    !last.is_unspecified()
                }
            };
            if second {
                let host_link = endpoint.host_link.clone();
                return Err(Error::SecondAddress { host_link, address });
            }
        }
        Ok(addresses)
    }
}

/// The addresses that a slot has.
pub(crate) fn addresses_of(slot: &Slot) -> Vec<Address> {
    let v4 = (slot.ipv4.raw() != 0).then(|| Address::from_ipv4_raw(slot.ipv4));
    let v6 = (!slot.ipv6.is_unspecified()).then_some(slot.ipv6);
    v4.into_iter().chain(v6).collect()
}

const fn flags(delivery: Delivery, interface: Interface) -> u32 {
    const STACK: u32 = slot_flag::DELIVER_TO_EGRESS | slot_flag::BY_STACK;
    match (interface, delivery) {
        (Interface::Adopted, _) => STACK | slot_flag::CHAINED,
        (Interface::Own, Delivery::Peer) => 0,
        (Interface::Own, Delivery::Egress) => slot_flag::DELIVER_TO_EGRESS,
        (Interface::Own, Delivery::Stack) => STACK,
    }
}

pub(crate) const fn delivery(flags: u32) -> Delivery {
    if flags & slot_flag::BY_STACK != 0 {
        Delivery::Stack
    } else if flags & slot_flag::DELIVER_TO_EGRESS != 0 {
        Delivery::Egress
    } else {
        Delivery::Peer
    }
}

pub(crate) const fn interface(flags: u32) -> Interface {
    if flags & slot_flag::CHAINED != 0 { Interface::Adopted } else { Interface::Own }
}

/// Waits until no program that began before this call is still running: what was removed from the
/// maps before it is used by nobody after it. Takes 10 to 20 ms.
///
/// `membarrier(MEMBARRIER_CMD_GLOBAL)` waits for an RCU grace period, and programs run within one.
///
/// # Errors
///
/// If the kernel has no `membarrier`.
pub fn grace_period() -> Result<()> {
    podwire_bpf::grace_period().map_err(|source| Error::GracePeriod { source })
}
