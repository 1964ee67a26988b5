//! Changes as the running kernel tells of them, in network namespaces of their own.

#![cfg(feature = "watch")]
#![expect(clippy::unwrap_used, reason = "a test outside of `mod tests`")]

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use futures_util::StreamExt;
use ipnetwork::IpNetwork;
use podwire_netlink::tc::Clsact;
use podwire_netlink::watch::{Event, Object, Topic, Watch};
use podwire_netlink::{
    Address, Batch, Birth, Family, IfIndex, LinkChange, LinkId, MacAddr, Neighbour, Netlink,
    NewLink, Replace, Route, Rule, TableId,
};

const ALL: [Topic; 6] = [
    Topic::Links,
    Topic::Addresses,
    Topic::Routes,
    Topic::Rules,
    Topic::Neighbours,
    Topic::TrafficControl,
];

/// A namespace that ends with the descriptor and the sockets in it.
fn netns() -> OwnedFd {
    std::thread::spawn(|| {
        // SAFETY: takes no pointers; the thread ends with this closure.
        let left = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(left, 0, "{}", std::io::Error::last_os_error());
        File::open("/proc/thread-self/ns/net").unwrap().into()
    })
    .join()
    .unwrap()
}

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

/// Waits for an event; the limit only ends a test that would wait for ever.
async fn until(watch: &mut Watch, wanted: impl Fn(&Event) -> bool) -> Event {
    let found = async {
        loop {
            let event = watch.next().await.unwrap();
            assert_ne!(event, Event::Lost);
            if wanted(&event) {
                return event;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), found).await.unwrap()
}

fn pair(netlink: &mut Netlink, near: &str, far: &str) -> IfIndex {
    let near = near.parse().unwrap();
    let pair = NewLink::veth(Birth::named(near), Birth::named(far.parse().unwrap()));
    netlink.create_link(&pair).unwrap();
    netlink.link(LinkId::Name(near)).unwrap().index
}

#[tokio::test]
#[ignore = "needs root: makes network namespaces and changes links in them"]
async fn everything_is_told() {
    let netns = netns();
    let mut watch = Watch::open_in(netns.as_fd(), &ALL).unwrap();
    let mut netlink = Netlink::open_in(netns.as_fd()).unwrap();
    let index = pair(&mut netlink, "a", "b");
    let is = |event: &Event, present: bool, test: &dyn Fn(&Object) -> bool| match event {
        Event::Present(object) => present && test(object),
        Event::Absent(object) => !present && test(object),
        Event::Lost => false,
    };

    let link = |object: &Object| matches!(object, Object::Link(link) if link.index == index);
    until(&mut watch, |event| is(event, true, &link)).await;
    netlink.change_link(&LinkChange::of(index).alias("podwire:n:c/eth0").up()).unwrap();
    until(&mut watch, |event| {
        is(event, true, &|object| {
            matches!(object, Object::Link(link)
                if link.alias.as_deref() == Some("podwire:n:c/eth0") && link.is_up())
        })
    })
    .await;

    for network in ["10.7.0.1/24", "fd07::1/64"] {
        let address = Address::new(index, net(network));
        let same = |object: &Object| matches!(object, Object::Address(found) if found.network == net(network));
        netlink.add(&address).unwrap();
        until(&mut watch, |event| is(event, true, &same)).await;
    }
    for (destination, gateway) in [("10.8.0.0/16", "10.7.0.2"), ("fd08::/64", "fd07::2")] {
        let route = Route::new(net(destination)).via(gateway.parse().unwrap()).dev(index);
        let same = |object: &Object| matches!(object, Object::Route(found) if found.destination == net(destination));
        netlink.add(&route).unwrap();
        until(&mut watch, |event| is(event, true, &same)).await;
        netlink.remove(&route).unwrap();
        until(&mut watch, |event| is(event, false, &same)).await;

        let mac = MacAddr::new([2, 0, 0, 0, 0, 9]);
        let neighbour = Neighbour::permanent(index, gateway.parse().unwrap(), mac);
        let same = |object: &Object| {
            matches!(object, Object::Neighbour(found)
                if found.address == neighbour.address && found.mac == Some(mac))
        };
        netlink.replace(&neighbour).unwrap();
        until(&mut watch, |event| is(event, true, &same)).await;
    }
    for family in Family::ALL {
        let rule = Rule::lookup(family, 100, TableId(1000));
        let same = Object::Rule(rule.clone().into());
        netlink.add(&rule).unwrap();
        until(&mut watch, |event| is(event, true, &|object| *object == same)).await;
        netlink.remove(&rule).unwrap();
        until(&mut watch, |event| is(event, false, &|object| *object == same)).await;
    }
    let clsact = |object: &Object| matches!(object, Object::Qdisc(found) if found.kind == "clsact" && found.index == index);
    netlink.add(&Clsact(index)).unwrap();
    until(&mut watch, |event| is(event, true, &clsact)).await;
    netlink.remove(&Clsact(index)).unwrap();
    until(&mut watch, |event| is(event, false, &clsact)).await;

    netlink.remove_link(index).unwrap();
    until(&mut watch, |event| is(event, false, &link)).await;
}

#[tokio::test]
#[ignore = "needs root: makes network namespaces and changes links in them"]
async fn only_what_was_asked_for_is_told() {
    let netns = netns();
    let mut watch = Watch::open_in(netns.as_fd(), &[Topic::Addresses]).unwrap();
    let mut netlink = Netlink::open_in(netns.as_fd()).unwrap();
    let index = pair(&mut netlink, "a", "b");
    netlink.change_link(&LinkChange::of(index).up()).unwrap();
    let address = Address::new(index, net("10.7.0.1/24"));
    netlink.add(&address).unwrap();
    // As a stream, too.
    let first = StreamExt::next(&mut watch).await.unwrap();
    assert!(
        matches!(first, Event::Present(Object::Address(found)) if found.network == address.network)
    );
}

#[tokio::test]
#[ignore = "needs root: makes network namespaces and changes links in them"]
async fn losses_are_told() {
    let netns = netns();
    let mut watch = Watch::open_in(netns.as_fd(), &[Topic::Neighbours]).unwrap();
    let mut netlink = Netlink::open_in(netns.as_fd()).unwrap();
    let index = pair(&mut netlink, "a", "b");
    // More than the socket can hold while nobody looks.
    let mac = MacAddr::new([2, 0, 0, 0, 0, 9]);
    for round in 0..20_u8 {
        let mut batch = Batch::new();
        for low in 0..=255_u8 {
            let address = [10, 7, round, low].into();
            batch.push(&Replace(&Neighbour::permanent(index, address, mac)));
        }
        netlink.send(&mut batch).unwrap().all_ok().unwrap();
    }
    let lost = async { while watch.next().await.unwrap() != Event::Lost {} };
    tokio::time::timeout(Duration::from_secs(30), lost).await.unwrap();
    // The stream goes on: what waited is still there, and then comes what is new.
    let fresh = Neighbour::permanent(index, [10, 8, 0, 1].into(), mac);
    let told = async {
        loop {
            // There is room once what waited has been taken.
            netlink.replace(&fresh).unwrap();
            netlink.remove(&fresh).unwrap();
            if let Event::Present(Object::Neighbour(found)) = watch.next().await.unwrap()
                && found.address == fresh.address
            {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), told).await.unwrap();
}
