use podwire_api::{AttachMode, Delivery, Mac};
use podwire_datapath::{self as datapath, Attached};
use podwire_ipam::Addresses;
use podwire_netlink::{Direction, IfIndex, IfName, Netlink, tc};

use crate::error::Source;
use crate::seam::{Datapath, Link, Links, Pin, Row, Survey};

/// The programs and maps of this node.
#[derive(Debug)]
pub(crate) struct KernelDatapath(pub(crate) datapath::Datapath);

impl Datapath for KernelDatapath {
    fn mode(&self) -> AttachMode {
        match self.0.attach_mode() {
            datapath::AttachMode::Tcx => AttachMode::Tcx,
            datapath::AttachMode::Clsact => AttachMode::Tc,
        }
    }

    fn add(&self, link: &str, row: &Row) -> Result<u32, Source> {
        let endpoint = datapath::EndpointConfig {
            host_link: link.to_owned(),
            ifindex: row.ifindex,
            mac: row.mac.0,
            host_mac: row.host_mac.0,
            addresses: row.addresses.iter().collect(),
            delivery: theirs(row.delivery),
        };
        Ok(self.0.add_endpoint(&endpoint)?)
    }

    fn remove(&self, link: &str, ifindex: u32) -> Result<(), Source> {
        self.0.remove_endpoint(link, ifindex)?;
        Ok(())
    }

    fn set_delivery(&self, ifindex: u32, delivery: Delivery) -> Result<(), Source> {
        Ok(self.0.set_delivery(ifindex, theirs(delivery))?)
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
                let delivery = match row.delivery {
                    datapath::Delivery::Peer => Delivery::Peer,
                    datapath::Delivery::Egress => Delivery::Egress,
                };
                let ours = Row {
                    ifindex: row.ifindex,
                    mac: Mac(row.mac),
                    host_mac: Mac(row.host_mac),
                    addresses: Addresses::from_list(&row.addresses)?,
                    delivery,
                };
                Ok((row.slot, ours))
            })
            .collect()
    }

    fn pins(&self) -> Result<Vec<Pin>, Source> {
        let pins = self.0.link_pins()?;
        Ok(pins.into_iter().map(|pin| Pin { link: pin.name, ifindex: pin.ifindex }).collect())
    }

    fn settle(&self) -> Result<(), Source> {
        Ok(datapath::grace_period()?)
    }
}

fn theirs(delivery: Delivery) -> datapath::Delivery {
    match delivery {
        Delivery::Egress => datapath::Delivery::Egress,
        _ => datapath::Delivery::Peer,
    }
}

/// The interfaces of the namespace that the agent runs in.
///
/// Each call opens its own socket: opening one costs a few microseconds, while sharing one would
/// have a request wait for the deletion of somebody else's link.
#[derive(Debug, Default)]
pub(crate) struct KernelLinks;

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
        match Netlink::open()?.remove_link(index) {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
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
            if !survey.foreign(is_ours).is_empty() {
                found.foreign.insert(number);
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
