use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use ipnetwork::IpNetwork;
use podwire_api::{AttachMode, Delivery, Difference, Disciplines, Interface, Mac};
use podwire_datapath::abi::identity::HOST;
use podwire_datapath::{self as datapath, Attached, By, IpcacheRow};
use podwire_ipam::Addresses;
use podwire_netlink::{
    Direction, Family, IfIndex, IfName, LinkChange, Netlink,
    tc::{self, Foreign},
};
use podwire_netns::{
    LEAVING_GROUPS,
    sysctl::{self, Key},
};
use podwire_policy::{Compiled, Rows};

use crate::error::{Source, chain};
use crate::node::policy::is_whole;
use crate::seam::{Datapath, Flows, Link, Links, Mappings, Pin, Row, Survey, Terms};
use crate::worker::Worker;

/// The programs and maps of this node.
#[derive(Debug)]
pub(crate) struct KernelDatapath(pub(crate) Arc<datapath::Datapath>);

impl Datapath for KernelDatapath {
    fn mode(&self) -> AttachMode {
        match self.0.attach_mode() {
            datapath::AttachMode::Tcx if self.0.is_all_links() => AttachMode::Tcx,
            datapath::AttachMode::Tcx => AttachMode::Mixed,
            datapath::AttachMode::Clsact => AttachMode::Tc,
        }
    }

    fn add(
        &self,
        link: &str,
        row: &Row,
        disciplines: Disciplines,
        terms: &Terms,
    ) -> Result<u32, Source> {
        let by = match (self.mode(), disciplines, row.interface) {
            // An adopted link's disciplines are its owner's.
            (AttachMode::Tcx | AttachMode::Mixed, _, Interface::Adopted) => By::Link,
            (AttachMode::Tcx | AttachMode::Mixed, Disciplines::Others, _) => By::Link,
            (_, Disciplines::Others, Interface::Own) => {
                return Err(
                    "attaching beside somebody else's queueing disciplines needs TCX links \
                            (Linux 6.6, and no --attach tc)"
                        .into(),
                );
            }
            _ => By::Filter,
        };
        let endpoint = datapath::EndpointConfig {
            host_link: link.to_owned(),
            ifindex: row.ifindex,
            mac: row.mac.0,
            host_mac: row.host_mac.0,
            addresses: row.addresses.iter().collect(),
            delivery: theirs(row.delivery),
            interface: match row.interface {
                Interface::Adopted => datapath::Interface::Adopted,
                _ => datapath::Interface::Own,
            },
            by,
        };
        let terms = datapath::Terms { identity: terms.identity, policy: terms.policy.as_ref() };
        Ok(self.0.add_endpoint_with(&endpoint, terms)?)
    }

    fn withdraw(&self, ifindex: u32) -> Result<(), Source> {
        self.0.withdraw_endpoint(ifindex)?;
        Ok(())
    }

    fn remove(&self, link: &str, ifindex: u32) -> Result<(), Source> {
        self.0.remove_endpoint(link, ifindex)?;
        Ok(())
    }

    fn set_delivery(&self, ifindex: u32, delivery: Delivery) -> Result<(), Source> {
        Ok(self.0.set_delivery(ifindex, theirs(delivery))?)
    }

    fn set_mac(&self, ifindex: u32, mac: Mac) -> Result<(), Source> {
        Ok(self.0.set_mac(ifindex, mac.0)?)
    }

    fn set_terms(&self, ifindex: u32, terms: &Terms) -> Result<(), Source> {
        self.0.set_identity(ifindex, terms.identity)?;
        if let Some(policy) = &terms.policy {
            self.0.set_policy(ifindex, policy)?;
        }
        Ok(())
    }

    fn terms_of(&self, ifindex: u32) -> Result<Option<Terms>, Source> {
        let rows = self.0.tables().endpoints()?;
        let Some(row) = rows.into_iter().find(|row| row.ifindex == ifindex) else {
            return Ok(None);
        };
        let policy = Some(self.0.policy_of(row.slot)?);
        Ok(Some(Terms { identity: row.identity, policy }))
    }

    fn all_terms(&self) -> Result<HashMap<u32, Terms>, Source> {
        let mut policies = self.0.policies()?;
        let rows = self.0.tables().endpoints()?.into_iter();
        let terms = rows.map(|row| {
            let policy = Some(policies.remove(&row.slot).unwrap_or_default());
            (row.ifindex, Terms { identity: row.identity, policy })
        });
        Ok(terms.collect())
    }

    fn reread_policies(&self) -> Result<(), Source> {
        Ok(self.0.reread_policies()?)
    }

    fn set_identities(&self, entries: &[(IpNetwork, u32)]) -> Result<(), Source> {
        Ok(self.0.set_identities(entries)?)
    }

    fn forget_identities(&self, prefixes: &[IpNetwork]) -> Result<(), Source> {
        for prefix in prefixes {
            self.0.forget_identity(*prefix)?;
        }
        Ok(())
    }

    fn identities(&self) -> Result<Vec<(IpNetwork, u32)>, Source> {
        let rows = self.0.tables().ipcache()?.into_iter();
        let told = rows.filter(|row| row.slot.is_none() && !row.is_derived);
        let foreign = told.filter(|row| row.identity != HOST || !is_whole(row.prefix));
        Ok(foreign.map(|row| (row.prefix, row.identity)).collect())
    }

    fn is_own(&self, address: IpAddr) -> Result<bool, Source> {
        let entry = self.0.tables().holder(address)?;
        Ok(entry.is_some_and(|entry| entry.slot.is_none() && entry.identity == HOST))
    }

    fn tidy(&self) -> Result<(), Source> {
        Ok(self.0.tidy()?)
    }

    fn refresh(&self, link: &str, ifindex: u32) -> Result<(), Source> {
        // What was attached provisionally is attached for good along with all others.
        let (Attached::InPlace | Attached::Provisionally) = self.0.refresh(link, ifindex)?;
        Ok(())
    }

    fn attach(&self, link: &str, ifindex: u32) -> Result<(), Source> {
        Ok(self.0.attach(link, ifindex)?)
    }

    fn rows(&self) -> Result<Vec<(u32, Row)>, Source> {
        let rows = self.0.tables().endpoints()?;
        rows.into_iter()
            .map(|row| {
                let ours = Row {
                    ifindex: row.ifindex,
                    mac: Mac(row.mac),
                    host_mac: Mac(row.host_mac),
                    addresses: Addresses::from_list(&row.addresses)?,
                    delivery: match row.delivery {
                        datapath::Delivery::Peer => Delivery::Peer,
                        datapath::Delivery::Egress => Delivery::Egress,
                        datapath::Delivery::Stack => Delivery::Stack,
                    },
                    interface: match row.interface {
                        datapath::Interface::Own => Interface::Own,
                        datapath::Interface::Adopted => Interface::Adopted,
                    },
                };
                Ok((row.slot, ours))
            })
            .collect()
    }

    fn is_attached(&self, link: &str, ifindex: u32) -> Result<bool, Source> {
        Ok(self.0.attached(link, ifindex)?.into_iter().all(|(_, is)| is))
    }

    fn inspect(
        &self,
        link: &str,
        slot: u32,
        row: &Row,
        terms: &Terms,
    ) -> Result<Vec<Difference>, Source> {
        let mut found = Vec::new();
        let mut expect = |what: String, expected: String, is: String| {
            if expected != is {
                found.push(Difference { what, expected, found: is });
            }
        };
        let rows = self.rows()?;
        let there = rows.iter().find(|(number, _)| *number == slot).map(|(_, row)| row);
        let told = |row: Option<&Row>| row.map_or_else(|| "empty".to_owned(), tell);
        expect(format!("datapath slot {slot}"), tell(row), told(there));
        let link_leads_to = self.0.tables().slot_of_link(row.ifindex)?;
        expect(
            format!("datapath entry of interface {}", row.ifindex),
            format!("slot {slot}"),
            link_leads_to.map_or_else(|| "nothing".to_owned(), |number| format!("slot {number}")),
        );
        let here = self.0.tables().endpoints()?.into_iter().find(|one| one.slot == slot);
        let generation = here.as_ref().map_or(0, |one| one.generation);
        let identity = terms.identity;
        for address in row.addresses.iter() {
            let is = match self.0.tables().holder(address)? {
                None => "nothing".to_owned(),
                Some(IpcacheRow { slot: None, .. }) => "no slot".to_owned(),
                Some(IpcacheRow { slot: Some(number), generation: of, identity, .. }) => {
                    let last = if of == generation { "" } else { ", of another generation" };
                    format!("slot {number}{last}, identity {identity}")
                }
            };
            let expected = format!("slot {slot}, identity {identity}");
            expect(format!("ipcache entry of {address}"), expected, is);
        }
        // Of an empty slot all is said.
        if let Some(here) = here {
            let what = format!("identity in slot {slot}");
            expect(what, identity.to_string(), here.identity.to_string());
            let (is, everything) = (self.0.policy_of(slot)?, Compiled::default());
            let wanted = terms.policy.as_ref().unwrap_or(&everything);
            for (direction, wanted, is) in
                [("ingress", &wanted.ingress, &is.ingress), ("egress", &wanted.egress, &is.egress)]
            {
                let (expected, mut has) = (tell_rows(wanted), tell_rows(is));
                if wanted != is && has == expected {
                    has.push_str(", other ones");
                }
                expect(format!("{direction} policy in slot {slot}"), expected, has);
            }
        }
        let attached = self.0.attached(link, row.ifindex)?;
        for (program, is) in attached {
            let is = if is { "attached" } else { "not attached" };
            expect(format!("program {program} at {link}"), "attached".into(), is.into());
        }
        Ok(found)
    }

    fn pins(&self) -> Result<Vec<Pin>, Source> {
        let pins = self.0.link_pins()?;
        Ok(pins.into_iter().map(|pin| Pin { link: pin.name, ifindex: pin.ifindex }).collect())
    }

    fn settle(&self) -> Result<(), Source> {
        Ok(datapath::grace_period()?)
    }
}

impl Flows for KernelDatapath {
    fn tick(&self, seconds: u32) -> Result<(), Source> {
        Ok(self.0.tick(seconds)?)
    }

    fn sweep(&self, timeouts: &datapath::Timeouts) -> Result<datapath::Sweep, Source> {
        Ok(self.0.tables().sweep(timeouts)?)
    }

    fn events(&self) -> Result<Vec<(datapath::FlowEvent, u64)>, Source> {
        Ok(self.0.tables().flow_events()?)
    }

    fn capacities(&self) -> (u32, u32) {
        self.0.tables().flow_capacities()
    }

    fn maps(&self) -> Result<Vec<datapath::MapRow>, Source> {
        Ok(self.0.tables().map_rows()?)
    }
}

impl Mappings for KernelDatapath {
    fn sweep(&self, timeouts: &datapath::Timeouts) -> Result<datapath::NatSwept, Source> {
        Ok(self.0.nat()?.sweep(timeouts)?)
    }

    fn metrics(&self) -> Result<Vec<datapath::MetricRow>, Source> {
        Ok(self.0.tables().metrics()?)
    }
}

fn theirs(delivery: Delivery) -> datapath::Delivery {
    match delivery {
        Delivery::Egress => datapath::Delivery::Egress,
        Delivery::Stack => datapath::Delivery::Stack,
        _ => datapath::Delivery::Peer,
    }
}

/// A slot's content in words.
fn tell(row: &Row) -> String {
    let Row { ifindex, mac, host_mac, addresses, delivery, interface } = row;
    format!(
        "interface {ifindex}, MAC {mac}, host MAC {host_mac}, {addresses}, delivery {delivery:?}, \
         {interface:?}"
    )
    .to_lowercase()
}

/// A direction of a policy in a few words.
fn tell_rows(rows: &Rows) -> String {
    if rows.permits_all() {
        return "everything passes".to_owned();
    }
    let peers = usize::from(!rows.others.is_empty()) + rows.identities.len() + rows.cidrs.len();
    format!("{} by default, peers with rules: {peers}", rows.default)
}

/// The interfaces of the namespace that the agent runs in.
///
/// Each call opens its own socket: opening one costs a few microseconds, while sharing one would
/// have a request wait for the deletion of somebody else's link.
#[derive(Debug)]
pub(crate) struct KernelLinks {
    /// The kernel waits for grace periods when links go, once for all that go together.
    deletions: Worker<IfIndex, Deleted>,
    gone: Arc<Gone>,
}

/// How long deletions gather while many are asked for at a time. Of 3, 5, 8 and 12 ms the last gave the
/// most deletions a second, 16 callers at a time on two processors: each batch costs processor time.
const DELETION_SPACING: Duration = Duration::from_millis(12);

/// How a deletion ended, for all links of its batch.
type Deleted = Result<(), Arc<Source>>;

/// Who waits for which link to be gone.
///
/// A request to delete links returns when the kernel has freed all that belonged to them, which takes
/// it one or two grace periods more (`netdev_run_todo` in net/core/dev.c). They are gone earlier: the
/// kernel tells so when nobody finds them any more and a grace period has passed since
/// (`unregister_netdevice_many_notify`).
#[derive(Debug, Default)]
pub(crate) struct Gone(Mutex<HashMap<IfIndex, Weak<Sender<Deleted>>>>);

impl Gone {
    /// The kernel has told that a link is gone.
    pub(crate) fn tell(&self, index: IfIndex) {
        if let Some(waiting) = self.lock().remove(&index).and_then(|waiting| waiting.upgrade()) {
            // The thread that deletes it may have been faster.
            let _ = waiting.send(Ok(()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IfIndex, Weak<Sender<Deleted>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KernelLinks {
    /// Who is to be told when the kernel tells that a link is gone; without that a deletion takes longer.
    pub(crate) fn gone(&self) -> Arc<Gone> {
        self.gone.clone()
    }

    pub(crate) fn new() -> std::io::Result<Self> {
        let deletions = LEAVING_GROUPS.map(|group| {
            move |links: Vec<IfIndex>| {
                let removed = Netlink::open().and_then(|mut host| host.remove_links(&links, group));
                removed.map_err(|error| Arc::new(error.into()))
            }
        });
        let deletions = Worker::start_all("podwire-links", DELETION_SPACING, deletions)?;
        Ok(Self { deletions, gone: Arc::default() })
    }
}

impl Links for KernelLinks {
    fn find(&self, name: &str) -> Result<Option<Link>, Source> {
        let name: IfName = name.parse()?;
        Ok(Netlink::open()?.find_link(name)?.map(seen))
    }

    fn all(&self) -> Result<Vec<Link>, Source> {
        Ok(Netlink::open()?.links()?.into_iter().map(seen).collect())
    }

    fn delete(&self, index: u32) -> Result<(), Source> {
        let Some(index) = IfIndex::new(index) else { return Ok(()) };
        let (deletion, reply) = self.deletions.begin_or_hear(index);
        self.gone.lock().insert(index, reply);
        let deleted = deletion.wait();
        self.gone.lock().remove(&index);
        deleted
            .ok_or("the thread that deletes links has ended")?
            .map_err(|error| chain(&**error).into())
    }

    fn peer_mac(&self, index: u32) -> Result<Option<Mac>, Source> {
        let Some(index) = IfIndex::new(index) else { return Ok(None) };
        let mut netlink = Netlink::open()?;
        let Some(link) = netlink.find_link(index)? else { return Ok(None) };
        let peer = netlink.peer_of(&link)?;
        Ok(peer.and_then(|peer| peer.mac).map(|mac| Mac(mac.octets())))
    }

    fn unmark(&self, index: u32, alias: &str) -> Result<(), Source> {
        let Some(index) = IfIndex::new(index) else { return Ok(()) };
        let mut netlink = Netlink::open()?;
        let link = netlink.find_link(index)?;
        if link.is_none_or(|link| link.alias.as_deref() != Some(alias)) {
            return Ok(());
        }
        match netlink.change_link(&LinkChange::of(index).alias("")) {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn accept_all_sources(&self, name: &str) -> Result<(), Source> {
        let key = Key::conf(Family::V4, &name.parse::<IfName>()?, "rp_filter")?;
        Ok(sysctl::write(&key, "0")?)
    }

    fn survey(&self, indices: &[u32]) -> Result<Survey, Source> {
        let mut netlink = Netlink::open()?;
        let mut found = Survey::default();
        for &number in indices {
            let Some(index) = IfIndex::new(number) else { continue };
            let survey = match tc::survey(&mut netlink, index) {
                Err(error) if error.is_not_found() => continue,
                survey => survey?,
            };
            let foreign = survey.foreign(is_ours);
            if foreign.iter().any(is_at_ingress) {
                found.foreign.insert(number, Delivery::Stack);
            } else if !foreign.is_empty() {
                found.foreign.insert(number, Delivery::Egress);
            }
            let ours = |direction| {
                let of = |filter: &&tc::Filter| filter.direction() == Some(direction);
                survey.filters.iter().filter(of).any(is_ours)
            };
            if Direction::ALL.into_iter().all(ours) {
                found.ours.insert(number);
            }
        }
        Ok(found)
    }
}

/// Whether it sees what a pod sends.
fn is_at_ingress(foreign: &Foreign<'_>) -> bool {
    match foreign {
        Foreign::Qdisc(qdisc) => qdisc.kind == "ingress",
        Foreign::Filter(filter) => filter.direction() == Some(Direction::Ingress),
    }
}

/// Whether a filter is one of the endpoint programs, attached without TCX.
fn is_ours(filter: &tc::Filter) -> bool {
    filter.bpf.as_ref().is_some_and(|program| {
        datapath::is_own_filter(filter.priority, filter.handle, &program.name)
    })
}

pub(crate) fn seen(link: podwire_netlink::Link) -> Link {
    Link {
        name: link.name.to_string_lossy().into_owned(),
        index: link.index.as_u32(),
        kind: link.kind.map(|kind| kind.as_str().to_owned()),
        mac: link.mac.map(|mac| Mac(mac.octets())),
        alias: link.alias,
        group: link.group,
    }
}
