//! What others do to the endpoints' links, and what that changes.

use std::collections::HashSet;

use podwire_api::{Delivery, Endpoint, EndpointId, Interface, Mac};

use super::{Node, look_at, map, unmap};
use crate::{Error, store};

impl Node {
    /// Notes that a link is gone: its endpoint is out of the datapath, but keeps record and lease
    /// until the runtime says DEL.
    pub(crate) fn link_vanished(&self, ifindex: u32) -> Result<Option<EndpointId>, Error> {
        let Some(present) = self.endpoint_of(ifindex) else { return Ok(None) };
        let _turn = self.turns.take(&present.id);
        // While we waited for our turn it may have been deleted, and a new one made.
        if self.endpoint(&present.id).is_none_or(|now| now.ifindex != ifindex) {
            return Ok(None);
        }
        self.datapath.remove(&present.host_link, ifindex).map_err(unmap(&present.id))?;
        Ok(Some(present.id))
    }

    /// Looks at links that may have changed: where something foreign came or went, packets are
    /// delivered otherwise, but to interfaces of others, and where programs of ours were taken off they
    /// are attached again.
    pub(crate) fn links_changed(&self, indices: &[u32]) -> Result<(), Error> {
        let known: Vec<(u32, Interface)> = {
            let endpoints = self.endpoints();
            let of = |index: &u32| endpoints.values().find(|one| one.ifindex == *index);
            indices.iter().filter_map(of).map(|one| (one.ifindex, one.interface)).collect()
        };
        if known.is_empty() {
            return Ok(());
        }
        let indices: Vec<u32> = known.iter().map(|(index, _)| *index).collect();
        let hanging = self.links.survey(&indices).map_err(look_at("what hangs on the links"))?;
        for (index, interface) in known {
            let delivery = hanging.foreign.get(&index).copied().unwrap_or(Delivery::Peer);
            if interface == Interface::Own
                && let Some(id) = self.set_delivery(index, delivery)?
            {
                tracing::info!(%id, ?delivery, "delivery changed");
            }
            if !hanging.ours.contains(&index)
                && let Some(id) = self.attach_again(index)?
            {
                tracing::warn!(%id, index, "somebody took its programs off; attached again");
            }
        }
        Ok(())
    }

    /// Looks at the other ends of endpoints' links, whose MACs somebody may have changed: the
    /// `tuning` plugin, say, or a process in the container. The datapath knows only one as the pod's.
    pub(crate) fn peers_changed(&self, indices: &[u32]) -> Result<(), Error> {
        for &index in indices {
            let Some(Endpoint { id, .. }) = self.endpoint_of(index) else { continue };
            let _turn = self.turns.take(&id);
            let Some(mut endpoint) = self.endpoint(&id).filter(|now| now.ifindex == index) else {
                continue;
            };
            let found = self.links.peer_mac(index).map_err(look_at("the other end of a link"))?;
            let Some(mac) = found.filter(|mac| *mac != endpoint.mac) else { continue };
            self.datapath.set_mac(index, mac).map_err(map(&id))?;
            tracing::info!(%id, before = %endpoint.mac, now = %mac, "its MAC changed");
            endpoint.mac = mac;
            self.ipam.begin(vec![store::put(&endpoint)?])?.wait()?;
            self.endpoints().insert(id.clone(), endpoint);
        }
        Ok(())
    }

    /// Whether a link in a container, whose other end has this number, is an endpoint's that has
    /// another MAC on record.
    pub(crate) fn is_news(&self, ifindex: u32, mac: Mac) -> bool {
        self.endpoints().values().any(|one| one.ifindex == ifindex && one.mac != mac)
    }

    /// Looks at every link, after an unknown number of changes.
    pub(crate) fn all_changed(&self) -> Result<(), Error> {
        let present: HashSet<u32> = {
            let links = self.links.all().map_err(look_at("the links"))?;
            links.into_iter().map(|link| link.index).collect()
        };
        let (present, gone): (Vec<u32>, Vec<u32>) =
            self.list().iter().map(|one| one.ifindex).partition(|index| present.contains(index));
        for index in gone {
            self.link_vanished(index)?;
        }
        self.links_changed(&present)?;
        self.peers_changed(&present)
    }

    /// Attaches one endpoint's programs for good, if one still waits for it. Says whether there was
    /// one.
    pub(crate) fn attach_one(&self) -> Result<bool, Error> {
        let Some(id) = self.provisional().pop_first() else { return Ok(false) };
        let _turn = self.turns.take(&id);
        if let Some(endpoint) = self.endpoint(&id) {
            let Endpoint { host_link, ifindex, .. } = &endpoint;
            self.datapath.attach(host_link, *ifindex).map_err(|source| {
                let object = format!("the programs to {host_link}");
                Error::Datapath { operation: "attach", object, source }
            })?;
        }
        Ok(true)
    }

    /// Attaches the programs of an endpoint that has lost one.
    fn attach_again(&self, ifindex: u32) -> Result<Option<EndpointId>, Error> {
        let Some(Endpoint { id, .. }) = self.endpoint_of(ifindex) else { return Ok(None) };
        let _turn = self.turns.take(&id);
        let Some(endpoint) = self.endpoint(&id).filter(|now| now.ifindex == ifindex) else {
            return Ok(None);
        };
        let missing = |source| Error::Datapath {
            operation: "look at",
            object: format!("the programs of {}", endpoint.host_link),
            source,
        };
        let link = &endpoint.host_link;
        if self.datapath.is_attached(link, ifindex).map_err(missing)? {
            return Ok(None);
        }
        self.datapath.refresh(link, ifindex).map_err(|source| {
            let object = format!("the programs to {link}");
            Error::Datapath { operation: "attach", object, source }
        })?;
        Ok(Some(id))
    }

    fn set_delivery(&self, ifindex: u32, delivery: Delivery) -> Result<Option<EndpointId>, Error> {
        let Some(id) = self.endpoint_of(ifindex).map(|endpoint| endpoint.id) else {
            return Ok(None);
        };
        let _turn = self.turns.take(&id);
        let Some(mut endpoint) = self.endpoint(&id) else { return Ok(None) };
        if endpoint.ifindex != ifindex || endpoint.delivery == delivery {
            return Ok(None);
        }
        if delivery == Delivery::Stack {
            self.accept_all_sources(&endpoint.host_link)?;
        }
        self.datapath.set_delivery(ifindex, delivery).map_err(map(&id))?;
        endpoint.delivery = delivery;
        // Not written to disk: the next start looks at the link itself.
        self.endpoints().insert(id.clone(), endpoint);
        Ok(Some(id))
    }

    pub(super) fn delivery_over(&self, link: &str, ifindex: u32) -> Result<Delivery, Error> {
        let hanging = self.links.survey(&[ifindex]).map_err(look_at("what hangs on the link"))?;
        let delivery = hanging.foreign.get(&ifindex).copied().unwrap_or(Delivery::Peer);
        if delivery == Delivery::Stack {
            self.accept_all_sources(link)?;
        }
        Ok(delivery)
    }

    /// A reverse-path filter on a host link, which has no address, drops all that comes by it.
    fn accept_all_sources(&self, link: &str) -> Result<(), Error> {
        self.links.accept_all_sources(link).map_err(|source| Error::Kernel {
            operation: "switch off the reverse-path filter of",
            object: link.to_owned(),
            source,
        })
    }
}
