//! Attaching, replacing and detaching, in both ways.

#![expect(clippy::unwrap_used, reason = "a test has nobody to report to")]

mod support;

use std::net::UdpSocket;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use podwire_bpf::{
    AttachMode, AttachPoint, Attachment, ClsactFilter, Direction, Ensured, Error, FilterSlot,
    IfIndex, Loader, Object, PerCpuArray, Removal, TcxLink, probe_tcx, reap_links, tcx_programs,
};
use podwire_netlink::{Birth, LinkChange, Netlink, NewLink, tc};
use support::{BPFFS, FIXTURE, isolated, names};

const MODES: [AttachMode; 2] = [AttachMode::Tcx, AttachMode::Clsact];
const SLOT: FilterSlot = FilterSlot { priority: 7, handle: 3 };

fn load() -> Object {
    Loader::new(FIXTURE).programs(["count_first", "count_second", "count_drop"]).load().unwrap()
}

fn counts(object: &Object) -> [u64; 3] {
    let totals = object.map::<PerCpuArray<u64>>("VERDICTS").unwrap().totals().unwrap();
    [totals[1], totals[2], totals[3]]
}

fn at(mode: AttachMode, ifindex: IfIndex, direction: Direction, pin: &str) -> AttachPoint<'_> {
    AttachPoint { ifindex, direction, mode, pin: Path::new(pin), slot: SLOT }
}

/// A device that can be removed: one end of a veth pair.
fn device(name: &str) -> IfIndex {
    let mut netlink = Netlink::open().unwrap();
    let [end, peer] = [name, &format!("{name}p")].map(|name| Birth::named(name.parse().unwrap()));
    netlink.create_link(&NewLink::veth(end, peer)).unwrap();
    netlink.link(podwire_netlink::LinkId::Name(name.parse().unwrap())).unwrap().index
}

/// Datagrams over the loopback interface of a namespace of its own; none is lost, since each is
/// received before the next is sent.
struct Traffic {
    sender: UdpSocket,
    receiver: UdpSocket,
}

impl Traffic {
    fn new() -> Self {
        Netlink::open().unwrap().change_link(&LinkChange::of(IfIndex::LOOPBACK).up()).unwrap();
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        Self { sender, receiver }
    }

    fn exchange(&self) {
        self.sender.send(b"podwire").unwrap();
        let mut buffer = [0; 16];
        assert_eq!(self.receiver.recv(&mut buffer).unwrap(), 7);
    }
}

#[test]
#[ignore = "needs root: asks for TCX, which needs Linux 6.6"]
fn tcx_is_found_by_probing() {
    assert!(probe_tcx().unwrap());
    assert_eq!(AttachMode::detect().unwrap(), AttachMode::Tcx);
}

#[test]
#[ignore = "needs root: attaches programs in a network namespace of its own"]
fn an_attached_program_sees_the_traffic_until_it_is_detached() {
    for mode in MODES {
        for direction in Direction::ALL {
            isolated(|| {
                let object = load();
                let traffic = Traffic::new();
                let pin = format!("{BPFFS}/links/lo/{direction}");
                let at = at(mode, IfIndex::LOOPBACK, direction, &pin);
                assert!(Attachment::open(&at).unwrap().is_none());
                let first = object.program("count_first").unwrap();
                let attachment = Attachment::attach(first, &at).unwrap();
                for _ in 0..10 {
                    traffic.exchange();
                }
                assert_eq!(counts(&object), [10, 0, 0]);
                let info = attachment.info().unwrap();
                assert_eq!(
                    (info.mode, info.ifindex, info.direction, info.program_id),
                    (mode, Some(IfIndex::LOOPBACK), direction, first.id())
                );
                let taken = Attachment::attach(first, &at).unwrap_err();
                assert!(taken.is_already_exists(), "{mode}: {taken}");
                traffic.exchange();
                assert_eq!(counts(&object), [11, 0, 0], "what failed has left nothing");

                // As after the end of the process that attached it.
                drop(attachment);
                traffic.exchange();
                assert_eq!(counts(&object), [12, 0, 0]);
                let attachment = Attachment::open(&at).unwrap().unwrap();
                attachment.update(object.program("count_second").unwrap()).unwrap();
                traffic.exchange();
                assert_eq!(counts(&object), [12, 1, 0]);
                assert_eq!(Attachment::remove(&at).unwrap(), Removal::Removed);
                assert_eq!(Attachment::remove(&at).unwrap(), Removal::Absent);
                traffic.exchange();
                assert_eq!(counts(&object), [12, 1, 0]);
                assert!(!Path::new(&pin).exists());
                let gone = attachment.update(first).unwrap_err();
                assert!(gone.is_not_found(), "{mode}: {gone}");
            });
        }
    }
}

#[test]
#[ignore = "needs root: attaches programs in a network namespace of its own"]
fn replacing_misses_no_packet() {
    const PACKETS: u64 = 20_000;
    for mode in MODES {
        isolated(|| {
            let object = load();
            let traffic = Traffic::new();
            let pin = format!("{BPFFS}/links/lo");
            let at = at(mode, IfIndex::LOOPBACK, Direction::Ingress, &pin);
            let programs =
                ["count_first", "count_second"].map(|name| object.program(name).unwrap());
            let attachment = Attachment::attach(programs[0], &at).unwrap();
            let done = AtomicBool::new(false);
            let (sent, replaced) = std::thread::scope(|scope| {
                let sender = scope.spawn(|| {
                    let mut sent = 0;
                    // Where the two threads take turns on one CPU, each turn may find the same program.
                    while sent < PACKETS || counts(&object)[..2].contains(&0) {
                        traffic.exchange();
                        sent += 1;
                    }
                    done.store(true, Ordering::Release);
                    sent
                });
                let mut replaced = 0;
                while !done.load(Ordering::Acquire) {
                    replaced += 1;
                    attachment.update(programs[replaced % 2]).unwrap();
                }
                (sender.join().unwrap(), replaced)
            });
            let [first, second, _] = counts(&object);
            assert_eq!(first + second, sent, "{mode}: {replaced} replacements");
        });
    }
}

#[test]
#[ignore = "needs root: attaches programs in a network namespace of its own"]
fn ensuring_does_what_is_left_to_do() {
    for mode in MODES {
        isolated(|| {
            let object = load();
            let [first, second] =
                ["count_first", "count_second"].map(|name| object.program(name).unwrap());
            let pin = format!("{BPFFS}/links/d0");
            let old = device("d0");
            let place = at(mode, old, Direction::Ingress, &pin);
            let ensure = |program| Attachment::ensure(program, &place).unwrap().1;
            assert_eq!(ensure(first), Ensured::Created);
            assert_eq!(ensure(first), Ensured::Unchanged);
            assert_eq!(ensure(second), Ensured::Changed);
            assert_eq!(ensure(second), Ensured::Unchanged);

            // Another interface comes in the place of the first.
            Netlink::open().unwrap().remove_link(old).unwrap();
            let new = device("d0");
            assert_ne!(old, new);
            let place = at(mode, new, Direction::Ingress, &pin);
            let (attachment, ensured) = Attachment::ensure(first, &place).unwrap();
            assert_eq!(ensured, Ensured::Created);
            let info = attachment.info().unwrap();
            assert_eq!((info.ifindex, info.program_id), (Some(new), first.id()));
        });
    }
}

#[test]
#[ignore = "needs root: attaches programs in a network namespace of its own"]
fn what_cannot_be_attached_names_interface_and_program() {
    for mode in MODES {
        isolated(|| {
            let object = load();
            let pin = format!("{BPFFS}/links/none");
            let nowhere = at(mode, IfIndex::new(4242).unwrap(), Direction::Egress, &pin);
            let program = object.program("count_first").unwrap();
            let error = Attachment::attach(program, &nowhere).unwrap_err();
            assert!(error.is_not_found(), "{error}");
            let text = error.to_string();
            let wanted = "attaching program count_first to the egress of interface 4242: ";
            assert!(text.starts_with(wanted), "{text}");
            assert!(!Path::new(&pin).exists());
        });
    }
}

#[test]
#[ignore = "needs root: attaches programs in a network namespace of its own"]
fn a_link_outlives_its_device_as_a_dead_file_that_is_reaped() {
    isolated(|| {
        let object = load();
        let program = object.program("count_first").unwrap();
        let folder = format!("{BPFFS}/links");
        std::fs::create_dir(&folder).unwrap();
        let device = device("d0");
        let pin = format!("{folder}/dead");
        let link = TcxLink::attach(program, device, Direction::Ingress).unwrap();
        link.pin(&pin).unwrap();
        let alive = TcxLink::attach(program, IfIndex::LOOPBACK, Direction::Egress).unwrap();
        alive.pin(format!("{folder}/alive")).unwrap();
        object.untyped_map("VERDICTS").unwrap().pin(format!("{folder}/map")).unwrap();
        program.pin(format!("{folder}/program")).unwrap();
        assert_eq!(reap_links(&folder).unwrap(), Vec::<std::path::PathBuf>::new());

        Netlink::open().unwrap().remove_link(device).unwrap();
        let dead = TcxLink::open(&pin).unwrap();
        assert_eq!(dead.info().unwrap().ifindex, None);
        assert!(dead.update(program).unwrap_err().is_not_found());
        assert_eq!(reap_links(&folder).unwrap(), [Path::new(&pin)]);
        assert_eq!(names(&folder), ["alive", "map", "program"]);
        let error = TcxLink::open(format!("{folder}/map")).unwrap_err();
        assert!(error.to_string().contains("a bpf-map where a bpf-link is needed"), "{error}");
    });
}

#[test]
#[ignore = "needs root: attaches programs in a network namespace of its own"]
fn a_link_that_is_not_pinned_ends_with_its_handle() {
    isolated(|| {
        let object = load();
        let program = object.program("count_first").unwrap();
        let query = || tcx_programs(IfIndex::LOOPBACK, Direction::Ingress).unwrap();
        let link = TcxLink::attach(program, IfIndex::LOOPBACK, Direction::Ingress).unwrap();
        let other = object.program("count_drop").unwrap();
        let second = TcxLink::attach(other, IfIndex::LOOPBACK, Direction::Ingress).unwrap();
        assert_eq!(query(), [program.id(), other.id()], "in the order of their attaching");
        drop(link);
        assert_eq!(query(), [other.id()]);
        second.detach().unwrap();
        assert_eq!(query(), [0; 0]);
    });
}

#[test]
#[ignore = "needs root: attaches programs in a network namespace of its own"]
fn filters_of_others_are_left_alone() {
    isolated(|| {
        let object = load();
        let [first, second] =
            ["count_first", "count_second"].map(|name| object.program(name).unwrap());
        let lo = IfIndex::LOOPBACK;
        let others = FilterSlot { priority: 1, handle: 1 };
        let other = ClsactFilter::attach(second, lo, Direction::Ingress, others).unwrap();
        assert_eq!(ClsactFilter::open(lo, Direction::Ingress, SLOT).unwrap(), None);
        let ours = ClsactFilter::attach(first, lo, Direction::Ingress, SLOT).unwrap();
        assert_eq!(ours.detach().unwrap(), Removal::Removed);
        assert_eq!(ours.detach().unwrap(), Removal::Absent);
        let error = ours.update(first).unwrap_err();
        assert!(matches!(error, Error::Link { .. }) && error.is_not_found(), "{error}");
        assert_eq!(other.info().unwrap().program_id, second.id());
        let mut netlink = Netlink::open().unwrap();
        let left = tc::list(&mut netlink, lo, Direction::Ingress).unwrap();
        let names: Vec<_> =
            left.iter().filter_map(|filter| Some(&filter.bpf.as_ref()?.name)).collect();
        assert_eq!(names, ["count_second"]);
    });
}
