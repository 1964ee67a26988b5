use std::collections::{BTreeSet, HashMap, HashSet};

use podwire_api::{
    Delivery, Endpoint, EndpointId, Interface, Mark, NodeName, Repair, UNMANAGED_IDENTITY,
};
use podwire_ipam::Addresses;
use podwire_netns::UNFINISHED_GROUP;

use crate::seam::{Link, Pin, Row, Survey, Terms};

/// What stands in the kernel when the agent starts.
#[derive(Debug, Default)]
pub(crate) struct Observed {
    pub(crate) links: Vec<Link>,
    /// What hangs on the records' links.
    pub(crate) hanging: Survey,
    pub(crate) rows: Vec<(u32, Row)>,
    /// Who endpoints are and what they may, by interface.
    pub(crate) terms: HashMap<u32, Terms>,
    pub(crate) pins: Vec<Pin>,
}

/// One act that brings records and kernel together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Take an interface out of the datapath, and remove the pins of that name.
    Remove { link: String, ifindex: u32 },
    /// Delete a marked link.
    DeleteLink { link: String, ifindex: u32 },
    /// Take the mark off a link that was adopted.
    Unmark { link: String, ifindex: u32, mark: String },
    /// Forget an endpoint; its lease goes with it.
    DropRecord { id: EndpointId },
    /// Write the endpoint into the datapath and attach the programs.
    Write { endpoint: Endpoint, row: Row },
    /// The datapath has it as it should be, but its programs are gone: attach today's.
    Refresh { endpoint: Endpoint },
    /// All is as it should be. Its programs are yesterday's, on the same maps: they may wait.
    Keep { endpoint: Endpoint },
}

impl Step {
    /// The endpoint that it leaves there.
    pub(crate) fn endpoint(&self) -> Option<&Endpoint> {
        match self {
            Self::Write { endpoint, .. } | Self::Refresh { endpoint } | Self::Keep { endpoint } => {
                Some(endpoint)
            }
            _ => None,
        }
    }
}

/// What to do, in this order, and what of it is worth telling.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    pub(crate) repairs: Vec<Repair>,
}

/// Brings together what was recorded, what DELs without an agent have noted, and what stands.
///
/// Records say who the endpoints are, the kernel says what is alive: a record without its link is
/// dropped, a link of ours without a record is deleted, and everything else follows from the
/// endpoints that remain. What bears no mark of this node is not looked at. An endpoint that is
/// whole is not rewritten, so that its traffic notices nothing.
pub(crate) fn plan(
    node: &NodeName,
    records: &[Endpoint],
    noted: &BTreeSet<EndpointId>,
    observed: &Observed,
) -> Plan {
    let marked = marked_links(node, &observed.links);
    let adopted = adopted_links(node, &observed.links);
    let pins: HashMap<&str, &Pin> =
        observed.pins.iter().map(|pin| (pin.link.as_str(), pin)).collect();
    let mut plan = Plan::default();
    let mut alive = Vec::new();
    let mut keep = HashSet::new();

    for record in records {
        let of_kind = match record.interface {
            Interface::Adopted => &adopted,
            _ => &marked,
        };
        let link = of_kind.get(&record.id).filter(|link| link.index == record.ifindex);
        let found = match link {
            _ if noted.contains(&record.id) => "deleted while no agent was running",
            Some(link) => {
                keep.insert(link.index);
                alive.push((record, *link));
                continue;
            }
            None => "its link is gone",
        };
        plan.steps.push(Step::Remove { link: record.host_link.clone(), ifindex: record.ifindex });
        plan.steps.push(Step::DropRecord { id: record.id.clone() });
        plan.tell(format!("endpoint {}", record.id), found, "removed, addresses released");
    }
    plan.delete_links(&marked, &keep, noted, &observed.links);
    plan.unmark_links(&adopted, &keep);

    let dropped: HashSet<u32> = records.iter().map(|record| record.ifindex).collect();
    let by_index: HashMap<u32, &str> =
        pins.values().filter_map(|pin| Some((pin.ifindex?, pin.link.as_str()))).collect();
    for (slot, row) in &observed.rows {
        if keep.contains(&row.ifindex) || dropped.contains(&row.ifindex) {
            continue;
        }
        // Without a pin there is no name, and no name of ours looks like this one.
        let link = by_index.get(&row.ifindex).copied().unwrap_or("no-link").to_owned();
        plan.steps.push(Step::Remove { link, ifindex: row.ifindex });
        plan.tell(format!("slot {slot}"), "no endpoint goes with it", "emptied");
    }
    let known: HashSet<&str> = records.iter().map(|record| record.host_link.as_str()).collect();
    for pin in &observed.pins {
        if !known.contains(pin.link.as_str()) {
            let ifindex = pin.ifindex.unwrap_or(GONE);
            plan.steps.push(Step::Remove { link: pin.link.clone(), ifindex });
            plan.tell(format!("pin {}", pin.link), "no endpoint goes with it", "removed");
        }
    }

    let rows: HashMap<u32, (u32, &Row)> =
        observed.rows.iter().map(|(slot, row)| (row.ifindex, (*slot, row))).collect();
    for (record, link) in alive {
        let delivery = match record.interface {
            Interface::Adopted => Delivery::Stack,
            _ => observed.hanging.foreign.get(&link.index).copied().unwrap_or(Delivery::Peer),
        };
        let row = Row {
            ifindex: link.index,
            mac: record.mac,
            host_mac: link.mac.unwrap_or(record.host_mac),
            addresses: Addresses::from_list(&record.addresses).unwrap_or_default(),
            delivery,
            interface: record.interface,
        };
        let mut endpoint = Endpoint { host_mac: row.host_mac, delivery, ..record.clone() };
        let subject = format!("endpoint {}", record.id);
        let pinned =
            pins.get(link.name.as_str()).is_some_and(|pin| pin.ifindex == Some(link.index));
        let attached = pinned || observed.hanging.ours.contains(&link.index);
        if !attached {
            plan.tell(subject.clone(), "its programs were not attached", "attached");
        }
        match rows.get(&link.index) {
            Some((slot, found)) if **found == row => {
                endpoint.slot = *slot;
                plan.steps.push(match attached {
                    true => Step::Keep { endpoint },
                    false => Step::Refresh { endpoint },
                });
                continue;
            }
            Some(_) => plan.tell(subject, "the datapath had other properties", "rewritten"),
            None => plan.tell(subject, "the datapath did not know it", "written"),
        }
        plan.steps.push(Step::Write { endpoint, row });
    }
    plan
}

/// Stands for the interface of a dead pin. The kernel numbers upwards and has no such interface.
const GONE: u32 = i32::MAX.unsigned_abs();

impl Plan {
    /// Links of ours that no endpoint goes with, finished or not.
    fn delete_links(
        &mut self,
        marked: &HashMap<EndpointId, &Link>,
        keep: &HashSet<u32>,
        noted: &BTreeSet<EndpointId>,
        links: &[Link],
    ) {
        let mut doomed: Vec<(&Link, Option<&EndpointId>)> = marked
            .iter()
            .filter(|(_, link)| !keep.contains(&link.index))
            .map(|(id, link)| (*link, Some(id)))
            .chain(links.iter().filter(|link| is_unfinished(link)).map(|link| (link, None)))
            .collect();
        doomed.sort_by_key(|(link, _)| link.index);
        for (link, id) in doomed {
            let name = &link.name;
            self.steps.push(Step::Remove { link: name.clone(), ifindex: link.index });
            self.steps.push(Step::DeleteLink { link: name.clone(), ifindex: link.index });
            match id {
                Some(id) if noted.contains(id) => {}
                Some(id) => {
                    self.tell(
                        format!("link {name} of {id}"),
                        "no endpoint goes with it",
                        "deleted",
                    );
                }
                None => {
                    self.tell(format!("link {name}"), "left by an ADD that was killed", "deleted");
                }
            }
        }
    }

    /// Links that were adopted for endpoints that are none.
    fn unmark_links(&mut self, adopted: &HashMap<EndpointId, &Link>, keep: &HashSet<u32>) {
        let strays = adopted.iter().filter(|(_, link)| !keep.contains(&link.index));
        let mut strays: Vec<(&EndpointId, &&Link)> = strays.collect();
        strays.sort_by_key(|(_, link)| link.index);
        for (id, link) in strays {
            let (name, ifindex) = (&link.name, link.index);
            let mark = link.alias.clone().unwrap_or_default();
            self.steps.push(Step::Remove { link: name.clone(), ifindex });
            self.steps.push(Step::Unmark { link: name.clone(), ifindex, mark });
            self.tell(format!("link {name} of {id}"), "no endpoint goes with it", "mark taken off");
        }
    }

    fn tell(&mut self, object: String, found: &str, done: &str) {
        self.repairs.push(Repair { object, found: found.into(), done: done.into() });
    }
}

/// The endpoints that the kernel knows, when nothing else does: marked links with their rows of the
/// datapath. Pods and networks are not known any more.
pub(crate) fn rebuild(node: &NodeName, observed: &Observed) -> Vec<Endpoint> {
    let rows: HashMap<u32, (u32, &Row)> =
        observed.rows.iter().map(|(slot, row)| (row.ifindex, (*slot, row))).collect();
    let own = marked_links(node, &observed.links).into_iter();
    let adopted = adopted_links(node, &observed.links).into_iter();
    let all = own.chain(adopted).filter_map(|(id, link)| {
        let (slot, row) = rows.get(&link.index)?;
        Some(Endpoint {
            id,
            host_link: link.name.clone(),
            ifindex: link.index,
            mac: row.mac,
            host_mac: row.host_mac,
            addresses: row.addresses.iter().collect(),
            slot: *slot,
            delivery: row.delivery,
            created: 0,
            network: None,
            pod: None,
            interface: row.interface,
            identity: observed
                .terms
                .get(&link.index)
                .map_or(UNMANAGED_IDENTITY, |one| one.identity),
        })
    });
    let mut all: Vec<Endpoint> = all.collect();
    all.sort_by(|a, b| a.id.cmp(&b.id));
    all
}

/// The links that this node marked as an endpoint's host link. The name must be right as well: a
/// mark copied to another link does not hand it over to us.
fn marked_links<'a>(node: &NodeName, links: &'a [Link]) -> HashMap<EndpointId, &'a Link> {
    let marked = links.iter().filter_map(|link| {
        let mark = link.alias.as_deref()?.parse().ok()?;
        match mark {
            Mark::Endpoint { node: owner, id }
                if owner == *node
                    && link.name == id.host_link()
                    && link.kind.as_deref() == Some("veth") =>
            {
                Some((id, link))
            }
            _ => None,
        }
    });
    marked.collect()
}

/// The links that this node adopted, whatever they are called.
fn adopted_links<'a>(node: &NodeName, links: &'a [Link]) -> HashMap<EndpointId, &'a Link> {
    let adopted = links.iter().filter_map(|link| match link.alias.as_deref()?.parse().ok()? {
        Mark::Chained { node: owner, id } if owner == *node => Some((id, link)),
        _ => None,
    });
    adopted.collect()
}

/// A host link that was born but never got its alias: the group says so (`podwire_netns::veth`).
pub(crate) fn is_unfinished(link: &Link) -> bool {
    link.group == UNFINISHED_GROUP
        && link.alias.as_deref().unwrap_or_default().is_empty()
        && link.kind.as_deref() == Some("veth")
        && link.name.len() == 15
        && link.name.starts_with("pw")
}

#[cfg(test)]
mod tests {
    use podwire_api::Mac;

    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const HOST_MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);

    fn node() -> NodeName {
        "n1".parse().unwrap()
    }

    fn id(container: &str) -> EndpointId {
        EndpointId::new(container, "eth0").unwrap()
    }

    fn record(container: &str, ifindex: u32) -> Endpoint {
        let id = id(container);
        Endpoint {
            host_link: id.host_link(),
            id,
            ifindex,
            mac: MAC,
            host_mac: HOST_MAC,
            addresses: vec![[10, 0, 0, u8::try_from(ifindex).unwrap()].into()],
            slot: ifindex,
            delivery: Delivery::Peer,
            created: 1,
            network: None,
            pod: None,
            interface: Interface::Own,
            identity: UNMANAGED_IDENTITY,
        }
    }

    fn link(container: &str, index: u32) -> Link {
        let id = id(container);
        Link {
            name: id.host_link(),
            index,
            kind: Some("veth".into()),
            mac: Some(HOST_MAC),
            alias: Some(Mark::Endpoint { node: node(), id }.to_string()),
            group: 0,
        }
    }

    fn row(ifindex: u32) -> (u32, Row) {
        let addresses = record("x", ifindex).addresses;
        let addresses = Addresses::from_list(&addresses).unwrap();
        let row = Row {
            ifindex,
            mac: MAC,
            host_mac: HOST_MAC,
            addresses,
            delivery: Delivery::Peer,
            interface: Interface::Own,
        };
        (ifindex, row)
    }

    fn pin(container: &str, ifindex: Option<u32>) -> Pin {
        Pin { link: id(container).host_link(), ifindex }
    }

    fn nothing_noted() -> BTreeSet<EndpointId> {
        BTreeSet::new()
    }

    #[test]
    fn a_whole_endpoint_is_only_refreshed() {
        let observed = Observed {
            links: vec![link("a", 7)],
            rows: vec![row(7)],
            pins: vec![pin("a", Some(7))],
            ..Observed::default()
        };
        let plan = plan(&node(), &[record("a", 7)], &nothing_noted(), &observed);
        assert_eq!(plan.repairs, []);
        assert_eq!(plan.steps, [Step::Keep { endpoint: record("a", 7) }]);
        let bare = Observed { pins: Vec::new(), ..observed };
        let plan = super::plan(&node(), &[record("a", 7)], &nothing_noted(), &bare);
        assert_eq!(plan.steps, [Step::Refresh { endpoint: record("a", 7) }]);
        assert_eq!(plan.repairs.len(), 1);
    }

    #[test]
    fn missing_rows_and_pins_come_back() {
        let plan_of = |hanging| {
            let observed = Observed { links: vec![link("a", 7)], hanging, ..Observed::default() };
            plan(&node(), &[record("a", 7)], &nothing_noted(), &observed)
        };
        let bare = plan_of(Survey::default());
        assert_eq!(bare.repairs.len(), 2, "{bare:?}");
        assert!(matches!(&bare.steps[..], [Step::Write { .. }]), "{bare:?}");
        let filtered = plan_of(Survey { ours: HashSet::from([7]), ..Survey::default() });
        assert_eq!(filtered.repairs.len(), 1, "filters leave no pins");
    }

    #[test]
    fn changed_properties_are_rewritten() {
        let mut renamed = link("a", 7);
        renamed.mac = Some(Mac([2, 0, 0, 0, 0, 9]));
        let observed = Observed {
            links: vec![renamed],
            hanging: Survey {
                foreign: HashMap::from([(7, Delivery::Egress)]),
                ours: HashSet::new(),
            },
            rows: vec![row(7)],
            pins: vec![pin("a", Some(7))],
            ..Observed::default()
        };
        let plan = plan(&node(), &[record("a", 7)], &nothing_noted(), &observed);
        let [Step::Write { endpoint, row }] = &plan.steps[..] else { panic!("{plan:?}") };
        assert_eq!((endpoint.host_mac.0[5], row.host_mac.0[5]), (9, 9));
        assert_eq!((endpoint.delivery, row.delivery), (Delivery::Egress, Delivery::Egress));
        assert_eq!(plan.repairs.len(), 1);
    }

    #[test]
    fn records_without_their_link_are_dropped() {
        let observed =
            Observed { rows: vec![row(7)], pins: vec![pin("a", None)], ..Observed::default() };
        let plan = plan(&node(), &[record("a", 7)], &nothing_noted(), &observed);
        let link = id("a").host_link();
        assert_eq!(
            plan.steps,
            [Step::Remove { link, ifindex: 7 }, Step::DropRecord { id: id("a") }]
        );
        assert_eq!(plan.repairs.len(), 1);
    }

    #[test]
    fn rows_and_pins_without_a_record_are_removed() {
        let observed = Observed {
            rows: vec![row(7), row(8)],
            pins: vec![pin("a", Some(7)), pin("b", None)],
            ..Observed::default()
        };
        let plan = plan(&node(), &[], &nothing_noted(), &observed);
        let removed: Vec<_> = plan
            .steps
            .iter()
            .map(|step| match step {
                Step::Remove { link, ifindex } => (link.clone(), *ifindex),
                other => panic!("{other:?}"),
            })
            .collect();
        let (a, b) = (id("a").host_link(), id("b").host_link());
        let expected = [(a.clone(), 7), ("no-link".into(), 8), (a, 7), (b, GONE)];
        assert_eq!(removed, expected);
    }

    #[test]
    fn unfinished_links_are_deleted() {
        let unfinished = Link { alias: None, group: UNFINISHED_GROUP, ..link("a", 7) };
        let grouped = Link { name: "eth1".into(), ..unfinished.clone() };
        let observed = Observed { links: vec![unfinished, grouped], ..Observed::default() };
        let plan = plan(&node(), &[], &nothing_noted(), &observed);
        let link = id("a").host_link();
        let expected = [
            Step::Remove { link: link.clone(), ifindex: 7 },
            Step::DeleteLink { link, ifindex: 7 },
        ];
        assert_eq!(plan.steps, expected);
    }

    #[test]
    fn a_link_born_again_is_not_the_endpoint() {
        let observed = Observed { links: vec![link("a", 8)], ..Observed::default() };
        let plan = plan(&node(), &[record("a", 7)], &nothing_noted(), &observed);
        assert_eq!(plan.steps[1], Step::DropRecord { id: id("a") });
        assert!(
            plan.steps.contains(&Step::DeleteLink { link: id("a").host_link(), ifindex: 8 }),
            "{plan:?}"
        );
    }

    #[test]
    fn only_our_marked_links_are_deleted() {
        let stranger = Link { alias: None, ..link("b", 8) };
        let other_node = Link { alias: Some(format!("podwire:n2:{}", id("c"))), ..link("c", 9) };
        let other_name = Link { name: "eth0".into(), ..link("d", 10) };
        let other_kind = Link { kind: Some("dummy".into()), ..link("e", 11) };
        let router = Link { alias: Some("podwire:n1:router".into()), ..link("f", 12) };
        let observed = Observed {
            links: vec![link("a", 7), stranger, other_node, other_name, other_kind, router],
            ..Observed::default()
        };
        let plan = plan(&node(), &[], &nothing_noted(), &observed);
        let name = id("a").host_link();
        let expected = [
            Step::Remove { link: name.clone(), ifindex: 7 },
            Step::DeleteLink { link: name, ifindex: 7 },
        ];
        assert_eq!(plan.steps, expected);
    }

    #[test]
    fn notes_remove_what_they_name() {
        let observed = Observed {
            links: vec![link("a", 7)],
            rows: vec![row(7)],
            pins: vec![pin("a", Some(7))],
            ..Observed::default()
        };
        let noted = BTreeSet::from([id("a"), id("unheard-of")]);
        let plan = plan(&node(), &[record("a", 7)], &noted, &observed);
        assert_eq!(plan.steps[1], Step::DropRecord { id: id("a") });
        assert!(plan.steps.iter().any(|step| matches!(step, Step::DeleteLink { .. })));
        assert!(!plan.steps.iter().any(|step| matches!(step, Step::Write { .. })));
    }
}
