//! What the agent needs of the kernel, as the agent sees it. Two implementations stand behind each
//! trait: the kernel's, and one in memory that the tests of the rules above it run on.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use podwire_api::{AttachMode, Delivery, Difference, Disciplines, Interface, Mac};
use podwire_datapath::{FlowEvent, MapRow, MetricRow, NatSwept, Sweep, Timeouts};
use podwire_ipam::Addresses;
use podwire_policy::Compiled;

use crate::error::Source;

/// An endpoint as the datapath has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) ifindex: u32,
    pub(crate) mac: Mac,
    pub(crate) host_mac: Mac,
    pub(crate) addresses: Addresses,
    pub(crate) delivery: Delivery,
    pub(crate) interface: Interface,
}

/// Who an endpoint is to others, and what it may send and receive: what it may already, if nothing is said
/// of that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) identity: u32,
    pub(crate) policy: Option<Compiled>,
}

impl Terms {
    /// What is otherwise about an endpoint on these terms, which are the record's, if the datapath has these.
    pub(crate) fn difference(&self, found: &Self) -> Option<String> {
        let everything = Compiled::default();
        let [said, is] = [self, found].map(|one| one.policy.as_ref().unwrap_or(&everything));
        let policy = match &self.policy {
            _ if said == is => None,
            None => Some("a policy is in force that is not on record".to_owned()),
            Some(_) => Some("the datapath has another policy".to_owned()),
        };
        let identity = (self.identity != found.identity).then(|| {
            format!("the datapath has identity {}, the record {}", found.identity, self.identity)
        });
        let all: Vec<String> = identity.into_iter().chain(policy).collect();
        (!all.is_empty()).then(|| all.join(", and "))
    }
}

/// A pin of a program's attachment, named as its host link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pin {
    pub(crate) link: String,
    /// The interface it is attached to; `None` when that is gone, or a part of the pin is.
    pub(crate) ifindex: Option<u32>,
}

/// The programs and maps.
pub(crate) trait Datapath: Debug + Send + Sync {
    /// How programs are attached.
    fn mode(&self) -> AttachMode;

    /// Makes an endpoint known and attaches the programs to its host link, or changes the one that
    /// is known on that interface, and says in which slot. A failure leaves nothing behind.
    /// Its terms hold from its first packet on.
    fn add(
        &self,
        link: &str,
        row: &Row,
        disciplines: Disciplines,
        terms: &Terms,
    ) -> Result<u32, Source>;

    /// Forgets the endpoint of an interface. Its programs stay, and drop all they see. Packets on
    /// their way may still see it until the next [`settle`](Self::settle), or until the interface
    /// is gone. Nothing there is no error.
    fn withdraw(&self, ifindex: u32) -> Result<(), Source>;

    /// Forgets the endpoint of an interface, and detaches the programs. Packets on their way may
    /// still see it until the next [`settle`](Self::settle). Nothing there is no error.
    fn remove(&self, link: &str, ifindex: u32) -> Result<(), Source>;

    /// Changes how packets are handed to the endpoint of an interface.
    fn set_delivery(&self, ifindex: u32, delivery: Delivery) -> Result<(), Source>;

    /// Changes the MAC of an endpoint's interface in the container.
    fn set_mac(&self, ifindex: u32, mac: Mac) -> Result<(), Source>;

    /// Puts the endpoint of an interface on its terms, effective for the very next packet.
    fn set_terms(&self, ifindex: u32, terms: &Terms) -> Result<(), Source>;

    /// On which terms the endpoint of an interface is.
    fn terms_of(&self, ifindex: u32) -> Result<Option<Terms>, Source>;

    /// On which terms all endpoints are, by interface.
    fn all_terms(&self) -> Result<HashMap<u32, Terms>, Source>;

    /// Takes what stands in policies for what was written there, so that terms that are set next put right what
    /// somebody else has changed.
    fn reread_policies(&self) -> Result<(), Source>;

    /// Says who is behind prefixes, effective for the very next packet.
    fn set_identities(&self, entries: &[(IpNetwork, u32)]) -> Result<(), Source>;

    /// Forgets who is behind prefixes. Nothing there is no error.
    fn forget_identities(&self, prefixes: &[IpNetwork]) -> Result<(), Source>;

    /// Who is said to be behind prefixes, but for the node's own addresses.
    fn identities(&self) -> Result<Vec<(IpNetwork, u32)>, Source>;

    /// Whether an address is the node's own.
    fn is_own(&self, address: IpAddr) -> Result<bool, Source>;

    /// Removes what no packet is judged by any more.
    fn tidy(&self) -> Result<(), Source>;

    /// Puts today's programs in the place of those on a host link, without a gap, and attaches
    /// those that are missing, in the way that costs least.
    fn refresh(&self, link: &str, ifindex: u32) -> Result<(), Source>;

    /// Attaches today's programs to a host link in the node's way, in the place of yesterday's, and
    /// of those that were added in a way that costs less. It takes tens of milliseconds, in which
    /// other changes of links wait.
    fn attach(&self, link: &str, ifindex: u32) -> Result<(), Source>;

    /// Whether both programs are attached, in whichever way.
    fn is_attached(&self, link: &str, ifindex: u32) -> Result<bool, Source>;

    /// How programs and maps differ from what they should be for an endpoint in this slot, on these terms.
    fn inspect(
        &self,
        link: &str,
        slot: u32,
        row: &Row,
        terms: &Terms,
    ) -> Result<Vec<Difference>, Source>;

    /// All endpoints, with their slots.
    fn rows(&self) -> Result<Vec<(u32, Row)>, Source>;

    /// What is pinned, of all host links.
    fn pins(&self) -> Result<Vec<Pin>, Source>;

    /// Waits until no packet is on its way that may have seen rows removed before.
    fn settle(&self) -> Result<(), Source>;
}

/// The tables of flows.
pub(crate) trait Flows: Debug + Send + Sync {
    /// The flows' clock goes on by so many seconds.
    fn tick(&self, seconds: u32) -> Result<(), Source>;

    /// Removes what has been idle for too long, and what belongs to nobody.
    fn sweep(&self, timeouts: &Timeouts) -> Result<Sweep, Source>;

    /// What the programs have counted so far.
    fn events(&self) -> Result<Vec<(FlowEvent, u64)>, Source>;

    /// How many directions of confirmed flows there is room for, and how many others.
    fn capacities(&self) -> (u32, u32);

    /// Every map of the datapath, and what it takes.
    fn maps(&self) -> Result<Vec<MapRow>, Source>;
}

/// The table of mappings.
pub(crate) trait Mappings: Debug + Send + Sync {
    /// Removes what has been idle for too long.
    fn sweep(&self, timeouts: &Timeouts) -> Result<NatSwept, Source>;

    /// What the programs have counted so far, but for what is zero.
    fn metrics(&self) -> Result<Vec<MetricRow>, Source>;
}

/// A network interface of the agent's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) name: String,
    pub(crate) index: u32,
    pub(crate) kind: Option<String>,
    pub(crate) mac: Option<Mac>,
    pub(crate) alias: Option<String>,
    pub(crate) group: u32,
}

/// What hangs on links.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Survey {
    /// Those with a queueing discipline or filter that is not ours, and how that has packets handed
    /// to them.
    pub(crate) foreign: HashMap<u32, Delivery>,
    /// Those on which both of our programs hang as filters.
    pub(crate) ours: HashSet<u32>,
}

/// The interfaces of the agent's namespace.
pub(crate) trait Links: Debug + Send + Sync {
    /// The link of that name.
    fn find(&self, name: &str) -> Result<Option<Link>, Source>;

    /// All of them.
    fn all(&self) -> Result<Vec<Link>, Source>;

    /// Deletes one, and waits for a grace period in doing so. Nothing there is no error.
    fn delete(&self, index: u32) -> Result<(), Source>;

    /// The MAC of the other end of a pair; `None` if it is gone.
    fn peer_mac(&self, index: u32) -> Result<Option<Mac>, Source>;

    /// Takes the alias off one, if it still is this one. Nothing there is no error.
    fn unmark(&self, index: u32, alias: &str) -> Result<(), Source>;

    /// Lets the stack take what arrives over a link that has no address.
    fn accept_all_sources(&self, name: &str) -> Result<(), Source>;

    /// What hangs on these.
    fn survey(&self, indices: &[u32]) -> Result<Survey, Source>;
}

/// The routes of the node's namespace.
pub(crate) trait Routes: Debug + Send + Sync {
    /// Lets these prefixes lead to the pods, and no other prefix any more.
    fn lead_to_pods(&self, prefixes: &[IpNetwork]) -> Result<(), Source>;
}
