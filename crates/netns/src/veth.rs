use std::net::IpAddr;
use std::num::NonZeroU32;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use podwire_netlink::link::Query;
use podwire_netlink::{
    AddrGenMode, AdminState, Batch, Birth, Family, IfIndex, IfName, Link, LinkChange, LinkId,
    MacAddr, Netlink, NewLink, OperState, RouteFilter, TableId,
};

use crate::error::Taken;
use crate::{Error, Netns};

/// The group of a host's end until it has its alias. The kernel takes a group in the request that
/// creates a link, but no alias: a process that is killed between the two leaves a link that is
/// known for unfinished by this. Nothing else should use the number.
pub const UNFINISHED_GROUP: u32 = 0x7077_0001;

/// Groups of host's ends that go together ([`Netlink::remove_links`]); each deletion that is under way
/// has one to itself. Nothing else should use the numbers.
pub const LEAVING_GROUPS: [NonZeroU32; 4] = [
    NonZeroU32::new(0x7077_0010).expect("not zero"),
    NonZeroU32::new(0x7077_0011).expect("not zero"),
    NonZeroU32::new(0x7077_0012).expect("not zero"),
    NonZeroU32::new(0x7077_0013).expect("not zero"),
];

/// A veth pair to be created.
#[derive(Debug, Clone, Copy)]
pub struct VethSpec<'a> {
    /// The end in the socket's namespace.
    pub host: VethEnd,
    /// The end in the other namespace.
    pub peer: VethEnd,
    /// The MTU of both, in bytes.
    pub mtu: u32,
    /// The namespace of the other end.
    pub netns: &'a Netns,
    /// The alias of the host's end: who made it, at most 255 bytes.
    pub alias: &'a str,
}

/// One end of a pair. Both MAC addresses are given because udev changes the kernel's own choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VethEnd {
    /// Its name.
    pub name: IfName,
    /// Its Ethernet address.
    pub mac: MacAddr,
}

/// A veth pair that was created.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Veth {
    /// The end in the socket's namespace, as the kernel reported it before it was brought up.
    pub host: Link,
    /// The number of the other end in its namespace.
    pub peer_index: IfIndex,
}

impl Veth {
    /// Waits, for up to `patience`, until packets get through: to be called when the other end has
    /// its addresses. `here` is a socket in the host's end's namespace, `there` in the other's.
    ///
    /// The kernel drops what is sent until it has noticed that the link is whole
    /// (`net/core/link_watch.c`), and what arrives for an IPv6 address until it has made that
    /// address's local route (`addrconf_dad_work`). It does both in work queues, within a millisecond
    /// or so.
    ///
    /// # Errors
    ///
    /// [`Error::NotUsable`] when it has not happened in time; [`Error::Netlink`].
    pub fn wait_until_usable(
        &self,
        here: &mut Netlink,
        there: &mut Netlink,
        patience: Duration,
    ) -> Result<(), Error> {
        let start = Instant::now();
        while let Some(missing) = self.missing(here, there)? {
            let waited = start.elapsed();
            if waited > patience {
                return Err(Error::NotUsable { host: self.host.name, missing, waited });
            }
            thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }

    fn missing(
        &self,
        here: &mut Netlink,
        there: &mut Netlink,
    ) -> Result<Option<&'static str>, Error> {
        let ends = [here.link(self.host.index)?, there.link(self.peer_index)?];
        if ends.iter().any(|end| end.state != OperState::UP) {
            return Ok(Some("the link is not up"));
        }
        let given = |address: &IpAddr| match address {
            IpAddr::V4(_) => false,
            // The kernel gives itself one of these, and takes its time to see that it is unique.
            IpAddr::V6(v6) => !v6.is_unicast_link_local(),
        };
        let addresses = there.addresses(self.peer_index)?;
        let given: Vec<_> = addresses.iter().map(|one| one.network.ip()).filter(given).collect();
        if given.is_empty() {
            return Ok(None);
        }
        let local = RouteFilter {
            family: Some(Family::V6),
            table: Some(TableId::LOCAL),
            output: Some(self.peer_index),
            ..RouteFilter::ALL
        };
        let routes = there.routes(&local)?;
        let has_route = |address| routes.iter().any(|route| route.destination.ip() == address);
        let all = given.into_iter().all(has_route);
        Ok((!all).then_some("an IPv6 address has no local route"))
    }
}

/// Creates a veth pair whose other end is at once, under its own name, in its own namespace.
///
/// The other end is up from the start. The host's end gets its alias, no link-local address of its
/// own, and comes up, in a second send that names it by number. That is not part of the first send:
/// the kernel goes on after a failure, and by name the request would mark somebody else's link when
/// the name is taken. The number is new, so whatever happens to names meanwhile, no other link is
/// touched.
///
/// # Errors
///
/// [`Error::Veth`]; [`Error::taken`] says which name was taken, if that was it. Nothing is left
/// then.
pub fn create_veth(netlink: &mut Netlink, spec: &VethSpec<'_>) -> Result<Veth, Error> {
    let (host, peer) = (spec.host.name, spec.peer.name);
    let failed = |source: podwire_netlink::Error| Error::Veth {
        host,
        peer,
        taken: None,
        source: source.into(),
        leftover: None,
    };

    // The pod's end is the main one: only that can be up at birth, since the kernel opens the other
    // before the two know each other, and refuses (ENOTCONN).
    let inside =
        Birth { netns: Some(spec.netns.as_fd()), state: AdminState::Up, ..birth(spec, spec.peer) };
    let outside = Birth { group: Some(UNFINISHED_GROUP), ..birth(spec, spec.host) };
    let mut batch = Batch::new();
    batch.push(&NewLink::veth(inside, outside));
    let asked = batch.push(&Query(LinkId::Name(host)));
    let mut replies = netlink.send(&mut batch).map_err(failed)?;
    let found = replies.take_link(asked);
    if let Some(Err(source)) = replies.into_outcomes().next() {
        // If the host's name was free the query found nothing.
        let taken = if found.is_ok() { Taken::Host } else { Taken::Peer };
        let taken = source.is_exists().then_some(taken);
        return Err(Error::Veth { host, peer, taken, source: source.into(), leftover: None });
    }
    let link = found.map_err(failed)?;

    let finished =
        LinkChange::of(link.index).alias(spec.alias).group(0).addr_gen_mode(AddrGenMode::None).up();
    if let Err(source) = netlink.change_link(&finished) {
        let leftover = netlink.remove_link(link.index).err().map(Box::new);
        return Err(Error::Veth { host, peer, taken: None, source: source.into(), leftover });
    }
    let peer_index = link.peer.unwrap_or(link.index);
    Ok(Veth { host: link, peer_index })
}

fn birth<'a>(spec: &VethSpec<'a>, end: VethEnd) -> Birth<'a> {
    Birth { mac: Some(end.mac), mtu: Some(spec.mtu), ..Birth::named(end.name) }
}

#[cfg(test)]
#[path = "tests/veth.rs"]
mod tests;
