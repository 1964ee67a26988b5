use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use podwire_bpf::{
    Array, HashMap, Loader, Map, Object, Program, ProgramArray, SkbContext, TestRun, TypedMap,
};
use podwire_datapath::{
    Attach, By, Datapath, Delivery, EndpointConfig, Interface, MetricRow, NodeSetup, Options,
    abi::{
        Address, CHANGING, Hook, IpcacheEntry, Mac, NodeConfig, NodeState, PolicyKey, PolicyRef,
        PolicyRow, PortRule, Protocol, Slot, identity, map, policy_flag, program,
    },
};
use podwire_lab::{
    Host, Pod as PodNetns, interface,
    probe::{FrameSocket, frame::Link},
};
use podwire_netlink::{AdminState, Birth, IfName, LinkChange, LinkId, Netlink, NewLink};

use super::case::{self, Case, Place, Restore, State};
use crate::{
    error::{Error, Result},
    lookup::OBJECT,
    timing::{self, Difference, Run},
};

pub(super) const ROUTER4: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
pub(super) const ROUTER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1);
pub(super) const HOST_MAC: Mac = [2, 0, 0, 0, 0, 0xf0];
pub(super) const NET_MAC: Mac = [2, 0, 0, 0, 0, 0xf1];

type Ipcache = HashMap<Address, IpcacheEntry>;

/// Flows that are known where many are.
pub(super) const MANY_FLOWS: u32 = 60_000;

/// Numbers of the policies: what pod a may send, and pod b receive.
const EGRESS_OF_A: u32 = 1;
const INGRESS_OF_B: u32 = 2;

/// Rules of a policy that lets pass HTTP and DNS.
const WEB: PolicyRow = PolicyRow { first: 0, count: 2 };
const RULES: [PortRule; 2] = [
    rule(PortRule::place(Protocol::TCP, 80), PortRule::place(Protocol::TCP, 80)),
    rule(PortRule::place(Protocol::UDP, 0), PortRule::place(Protocol::UDP, u16::MAX)),
];

const fn rule(first: u32, last: u32) -> PortRule {
    PortRule { first, last }
}

const BPFFS: &str = "/sys/fs/bpf/podwire";
const TEMPLATE_LEN: usize = 96;

/// How long a frame that was sent may take to arrive.
const PATIENCE: Duration = Duration::from_secs(5);

/// Answer of `judge_nothing`.
const REDIRECT: u32 = 7;

/// A pod behind a real veth pair.
#[derive(Debug)]
pub(super) struct Pod {
    netns: PodNetns,
    host_link: &'static str,
    pub(super) ifindex: u32,
    pub(super) mac: Mac,
    pub(super) host_mac: Mac,
    pub(super) v4: Ipv4Addr,
    pub(super) v6: Ipv6Addr,
}

impl Pod {
    /// Addresses of a frame from this pod to its gateway.
    pub(super) fn to_gateway(&self) -> Link {
        Link { from: self.mac, to: self.host_mac }
    }

    /// Addresses of a frame to this pod.
    pub(super) fn delivered(&self) -> Link {
        Link { from: self.host_mac, to: self.mac }
    }
}

/// A node with the shipped programs, the shipped sizes of tables, and two pods.
///
/// It lives in a lab host: what runs in the kernel, and the frames that are really sent, are there.
#[derive(Debug)]
pub struct Node {
    datapath: Datapath,
    setup: NodeSetup,
    pub(super) a: Pod,
    pub(super) b: Pod,
    /// A link that no endpoint is known on.
    pub(super) stranger: u32,
    judged: Stage,
    unjudged: Stage,
}

/// The programs that restore a frame, and what they jump to.
#[derive(Debug)]
struct Stage {
    object: Object,
    template: Array<[u8; TEMPLATE_LEN]>,
    judge: ProgramArray,
}

impl Stage {
    fn new() -> Result<Self> {
        let object = Loader::new(OBJECT)
            .global("ENTRIES", &MANY_FLOWS)
            .programs([
                "restore_ipv4",
                "restore_ipv6",
                "restore_arp",
                "restore_neighbour",
                "restore_nothing",
                "restore_next_flow",
                "restore_any_flow",
                "restore_new_flow",
                "restore_new_pair",
                "judge_nothing",
            ])
            .load()?;
        Ok(Self { template: object.map("TEMPLATE")?, judge: object.map("JUDGE")?, object })
    }

    /// The restoring program of a case, ready to restore its frame and to jump to `judge`.
    fn prepare(&self, case: &Case, judge: &Program) -> Result<&Program> {
        let mut template = [0; TEMPLATE_LEN];
        for (place, byte) in template.iter_mut().zip(&case.frame) {
            *place = *byte;
        }
        self.template.set(0, &template)?;
        self.judge.set(0, judge)?;
        Ok(self.object.program(case.restore.program())?)
    }
}

impl Node {
    /// Makes a node, and runs `f` on it in the node's namespaces.
    ///
    /// # Errors
    ///
    /// If a namespace, a link or a program cannot be made, or `f` fails.
    pub fn run<T: Send>(f: impl FnOnce(&Self) -> Result<T> + Send) -> Result<T> {
        let host = Host::new()?;
        host.run(|| f(&Self::new(&host)?))
    }

    fn new(host: &Host) -> Result<Self> {
        // The kernel's own IPv6 chatter would be counted among what is measured.
        silence_ipv6()?;
        let mut netlink = Netlink::open()?;
        let router = ("podwire_host", HOST_MAC);
        veth(&mut netlink, router, Birth::named(name("podwire_net")?), NET_MAC)?;
        for link in ["podwire_host", "podwire_net"] {
            netlink.change_link(&LinkChange::of(LinkId::Name(name(link)?)).up())?;
        }
        let a = pod(host, &mut netlink, "pwa", 2)?;
        let b = pod(host, &mut netlink, "pwb", 3)?;
        let stranger = pod(host, &mut netlink, "pwc", 4)?.ifindex;
        let datapath = Datapath::open(&Options { attach: Attach::Auto, ..Options::new(BPFFS) })?;
        let setup = NodeSetup {
            router_ipv4: Some(ROUTER4),
            router_ipv6: Some(ROUTER6),
            host_ifindex: index("podwire_host")?,
            host_mac: HOST_MAC,
            net_ifindex: index("podwire_net")?,
            net_mac: NET_MAC,
        };
        datapath.set_node(&setup)?;
        for pod in [&a, &b] {
            datapath.add_endpoint(&EndpointConfig {
                host_link: pod.host_link.to_owned(),
                ifindex: pod.ifindex,
                mac: pod.mac,
                host_mac: pod.host_mac,
                addresses: vec![pod.v4.into(), pod.v6.into()],
                delivery: Delivery::Peer,
                interface: Interface::Own,
                by: By::Filter,
            })?;
        }
        restrict(a.ifindex, EGRESS_OF_A, &datapath)?;
        restrict(b.ifindex, INGRESS_OF_B, &datapath)?;
        let (judged, unjudged) = (Stage::new()?, Stage::new()?);
        Ok(Self { datapath, setup, a, b, stranger, judged, unjudged })
    }

    /// The programs and tables.
    #[must_use]
    pub fn datapath(&self) -> &Datapath {
        &self.datapath
    }

    /// Entries that each table has room for, as a JSON object.
    ///
    /// # Errors
    ///
    /// If a map cannot be opened.
    pub fn sizes(&self) -> Result<String> {
        let mut sizes = Vec::new();
        for name in map::ALL {
            let room = Map::open(format!("{BPFFS}/maps/{name}"))?.layout().max_entries;
            sizes.push(format!("\"{name}\": {room}"));
        }
        Ok(format!("{{{}}}", sizes.join(", ")))
    }

    pub(super) fn router_link(&self) -> u32 {
        self.setup.net_ifindex
    }

    /// What judging the case's frame takes, `repetitions` times. Restoring the frame before each
    /// repetition is subtracted.
    ///
    /// # Errors
    ///
    /// If any repetition met another fate than the case's, by the counters, or the program's answer
    /// or the frame that it left behind is wrong.
    pub fn measure(&self, case: &Case, repetitions: u64) -> Result<Duration> {
        self.enter(case.state)?;
        let measured = self.prepare(case).and_then(|()| self.measure_in_state(case, repetitions));
        self.leave(case.state)?;
        self.forget_flows();
        measured
    }

    fn measure_in_state(&self, case: &Case, repetitions: u64) -> Result<Duration> {
        let judge = self.datapath.program(program_at(case.hook))?;
        let nothing = self.unjudged.object.program("judge_nothing")?;
        let context = SkbContext { ifindex: case.ifindex, mark: 0, ..SkbContext::default() };
        let run = |program, answer| Run { program, frame: &case.frame, context, answer };
        let difference = Difference {
            with: run(self.judged.prepare(case, judge)?, case.answer),
            without: run(self.unjudged.prepare(case, nothing)?, REDIRECT),
        };
        let before = self.datapath.tables().metrics()?;
        let measure = || {
            difference.measure(&case.name, repetitions, |output| {
                if case.is_after(&output.data) {
                    return self.make_room(case);
                }
                let (what, found) = (case.name.clone(), output.data.clone());
                Err(Error::Frame { what, found, expected: case.after.clone() })
            })
        };
        let (measured, others) = match case.state {
            State::Shared => timing::beside(&difference.with, &case.name, measure)?,
            _ => (measure()?, 0),
        };
        self.check_counters(case, &before, measured.made + others)?;
        Ok(measured.elapsed)
    }

    fn check_counters(&self, case: &Case, before: &[MetricRow], packets: u64) -> Result<()> {
        let after = self.datapath.tables().metrics()?;
        let earlier = |row: &MetricRow| {
            let same = before.iter().find(|old| (old.hook, old.reason) == (row.hook, row.reason));
            same.map_or((0, 0), |old| (old.packets, old.bytes))
        };
        let grown: Vec<_> = after
            .iter()
            .map(|row| {
                let (old_packets, old_bytes) = earlier(row);
                (row.hook, row.reason, row.packets - old_packets, row.bytes - old_bytes)
            })
            .filter(|(.., packets, _)| *packets != 0)
            .collect();
        let bytes = packets * case.after.len() as u64;
        if grown == [(case.hook, case.fate, packets, bytes)] {
            return Ok(());
        }
        Err(Error::Counters {
            what: case.name.clone(),
            packets,
            fate: format!("{} {}", case.hook, case.fate),
            counted: grown
                .into_iter()
                .map(|(hook, reason, packets, _)| (format!("{hook} {reason}"), packets))
                .collect(),
        })
    }

    /// Sends the case's frame over the real link, once, and looks where it comes out, and how: under
    /// test-run a redirect goes nowhere. Cases whose frame goes nowhere are not sent.
    ///
    /// # Errors
    ///
    /// [`Error::Path`] if it does not arrive at the place; [`Error::Frame`] if it arrives changed.
    pub fn check_path(&self, case: &Case) -> Result<()> {
        let Some(lands) = case.lands else { return Ok(()) };
        self.enter(case.state)?;
        let checked = self.prepare(case).and_then(|()| self.send_and_receive(case, lands));
        self.leave(case.state)?;
        self.forget_flows();
        checked
    }

    fn send_and_receive(&self, case: &Case, lands: Place) -> Result<()> {
        let mut receiver = self.socket(lands)?;
        let mut sender = self.socket(case.sent_at)?;
        sender
            .send(&case.frame)
            .map_err(|source| Error::Io { operation: "send a frame", source })?;
        let ours = |frame: &[u8]| frame.get(..case.after.len()) == Some(&case.after[..]);
        let received = receiver
            .receive(PATIENCE, ours)
            .map_err(|source| Error::Io { operation: "receive a frame", source })?;
        match received {
            Some(_) => Ok(()),
            None => {
                let what = case.name.clone();
                Err(Error::Path { what, problem: "it did not arrive where it must, as it must" })
            }
        }
    }

    fn socket(&self, place: Place) -> Result<FrameSocket> {
        let open = |link: &'static str| {
            move || {
                FrameSocket::open(link)
                    .map_err(|source| Error::Io { operation: "open a packet socket", source })
            }
        };
        match place {
            Place::PodA => self.a.netns.run(open("eth0")),
            Place::PodB => self.b.netns.run(open("eth0")),
            Place::Router => open("podwire_host")(),
            Place::HostLinkB => open("pwb")(),
        }
    }

    fn enter(&self, state: State) -> Result<()> {
        match state {
            State::Plain => {}
            State::NotReady => {
                open::<Array<NodeConfig>>(map::CONFIG)?.set(0, &NodeConfig::default())?;
            }
            State::Stale => {
                let ipcache = open::<Ipcache>(map::IPCACHE)?;
                let key = Address::from(IpAddr::from(self.b.v4));
                let entry = ipcache.get(&key)?.unwrap_or_default();
                ipcache.insert(&key, &IpcacheEntry { generation: 0, ..entry })?;
            }
            State::Egress => self.datapath.set_delivery(self.b.ifindex, Delivery::Egress)?,
            State::ManyFlows | State::Shared => {}
            State::Crowded => self.crowd()?,
            State::Changing => self.set_changed(CHANGING)?,
        }
        Ok(())
    }

    /// The table of confirmed flows must not be full where new ones are measured.
    fn make_room(&self, case: &Case) -> Result<()> {
        if case.restore == Restore::NewPair {
            self.datapath.tables().confirmed().clear();
        }
        Ok(())
    }

    fn set_changed(&self, changed: u64) -> Result<()> {
        let state = open::<Array<NodeState>>(map::STATE)?;
        Ok(state.set(0, &NodeState { changed, ..state.get(0)? })?)
    }

    /// A thousand endpoints, 400,000 addresses of other nodes, 10,000 entries of a policy.
    fn crowd(&self) -> Result<()> {
        let slots = open::<Array<Slot>>(map::SLOTS)?;
        let links = open::<HashMap<u32, u32>>(map::LINKS)?;
        let others: Vec<_> = (0..slots.len())
            .filter(|number| slots.get(*number).is_ok_and(|slot| !slot.is_taken()))
            .take(998)
            .map(|number| (1 << 20 | number, number))
            .collect();
        for &(ifindex, number) in &others {
            slots.set(number, &Slot { generation: 1, ifindex, ..Slot::default() })?;
        }
        links.insert_batch(&others)?;
        let entry =
            IpcacheEntry { identity: 1000, slot: IpcacheEntry::NO_SLOT, ..Default::default() };
        let far: Vec<_> = (0..400_000_u32)
            .map(|n| (IpAddr::from(Ipv4Addr::from(0x0b00_0000 + n)).into(), entry))
            .collect();
        open::<Ipcache>(map::IPCACHE)?.insert_batch(&far)?;
        let rows: Vec<_> =
            (0..10_000).map(|n| (PolicyKey::identity(EGRESS_OF_A, 100_000 + n), WEB)).collect();
        Ok(open::<HashMap<PolicyKey, PolicyRow>>(map::POLICY)?.insert_batch(&rows)?)
    }

    fn empty(&self) -> Result<()> {
        let slots = open::<Array<Slot>>(map::SLOTS)?;
        let links = open::<HashMap<u32, u32>>(map::LINKS)?;
        for (ifindex, number) in
            links.entries()?.into_iter().filter(|(ifindex, _)| ifindex >> 20 != 0)
        {
            slots.set(number, &Slot::default())?;
            links.remove(&ifindex)?;
        }
        let far: Vec<Address> = (0..400_000_u32)
            .map(|n| IpAddr::from(Ipv4Addr::from(0x0b00_0000 + n)).into())
            .collect();
        open::<Ipcache>(map::IPCACHE)?.remove_batch(&far)?;
        let rows: Vec<_> =
            (0..10_000).map(|n| PolicyKey::identity(EGRESS_OF_A, 100_000 + n)).collect();
        open::<HashMap<PolicyKey, PolicyRow>>(map::POLICY)?.remove_batch(&rows)?;
        Ok(())
    }

    fn leave(&self, state: State) -> Result<()> {
        match state {
            State::Plain => {}
            State::NotReady => self.datapath.set_node(&self.setup)?,
            State::Stale => {
                let ipcache = open::<Ipcache>(map::IPCACHE)?;
                let v6 = ipcache.get(&IpAddr::from(self.b.v6).into())?.unwrap_or_default();
                ipcache.insert(&IpAddr::from(self.b.v4).into(), &v6)?;
            }
            State::Egress => self.datapath.set_delivery(self.b.ifindex, Delivery::Peer)?,
            State::ManyFlows | State::Shared => {}
            State::Crowded => self.empty()?,
            State::Changing => self.set_changed(0)?,
        }
        Ok(())
    }

    /// Has the packets judged that come before the case's own.
    fn prepare(&self, case: &Case) -> Result<()> {
        if case.state == State::ManyFlows {
            for (hook, ifindex, frame) in case::many_flows(self) {
                self.judge_once(hook, ifindex, &frame)?;
            }
        }
        case.before
            .iter()
            .try_for_each(|(hook, ifindex, frame)| self.judge_once(*hook, *ifindex, frame))
    }

    fn forget_flows(&self) {
        self.datapath.tables().confirmed().clear();
        self.datapath.tables().unconfirmed().clear();
    }

    fn judge_once(&self, hook: Hook, ifindex: u32, frame: &[u8]) -> Result<()> {
        let context = SkbContext { ifindex, ..SkbContext::default() };
        let run = TestRun::new(frame).context(context);
        self.datapath.program(program_at(hook))?.test_run(&run)?;
        Ok(())
    }
}

/// Both pods' policies have a row for pods, and one for the rest of the world, and deny what they do not name.
fn restrict(ifindex: u32, policy: u32, datapath: &Datapath) -> Result<()> {
    let rules = open::<Array<PortRule>>(map::POLICY_RULES)?;
    for (place, rule) in (0..).zip(&RULES) {
        rules.set(place, rule)?;
    }
    let rows = open::<HashMap<PolicyKey, PolicyRow>>(map::POLICY)?;
    for subject in [identity::UNMANAGED, identity::WORLD] {
        rows.insert(&PolicyKey::identity(policy, subject), &WEB)?;
    }
    let flags = policy_flag::DENY_BY_DEFAULT | policy_flag::IDENTITIES;
    let reference = PolicyRef::new(policy, flags);
    let slots = open::<Array<Slot>>(map::SLOTS)?;
    let Some(number) = datapath.tables().slot_of_link(ifindex)? else { return Ok(()) };
    let slot = slots.get(number)?;
    let slot = match policy {
        EGRESS_OF_A => Slot { egress: reference, ..slot },
        _ => Slot { ingress: reference, ..slot },
    };
    Ok(slots.set(number, &slot)?)
}

fn program_at(hook: Hook) -> &'static str {
    match hook {
        Hook::ToContainer => program::TO_CONTAINER,
        Hook::FromHost => program::FROM_HOST,
        _ => program::FROM_CONTAINER,
    }
}

fn open<M: TypedMap>(map: &str) -> Result<M> {
    Ok(M::from_map(Map::open(format!("{BPFFS}/maps/{map}"))?)?)
}

fn name(text: &str) -> Result<IfName> {
    text.parse().map_err(|error| Error::Io {
        operation: "name an interface",
        source: io::Error::other(error),
    })
}

fn index(link: &str) -> Result<u32> {
    interface::index(link)
        .map_err(|source| Error::Io { operation: "find an interface of the lab host", source })
}

fn silence_ipv6() -> Result<()> {
    fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")
        .map_err(|source| Error::Io { operation: "turn IPv6 off in a lab namespace", source })
}

fn pod(host: &Host, netlink: &mut Netlink, host_link: &'static str, number: u8) -> Result<Pod> {
    let netns = host.add_pod(host_link)?;
    netns.run(silence_ipv6)?;
    let (mac, host_mac) = ([2, 0, 0, 0, 1, number], [2, 0, 0, 0, 2, number]);
    let inside =
        Birth { netns: Some(netns.netns()), state: AdminState::Up, ..Birth::named(name("eth0")?) };
    veth(netlink, (host_link, host_mac), inside, mac)?;
    netlink.change_link(&LinkChange::of(LinkId::Name(name(host_link)?)).up())?;
    Ok(Pod {
        host_link,
        ifindex: index(host_link)?,
        mac,
        host_mac,
        v4: Ipv4Addr::new(10, 1, 0, number),
        v6: Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, number.into()),
        netns,
    })
}

fn veth(
    netlink: &mut Netlink,
    (host_link, host_mac): (&str, Mac),
    peer: Birth<'_>,
    mac: Mac,
) -> Result<()> {
    let peer = Birth { mac: Some(mac.into()), ..peer };
    let outside = Birth { mac: Some(host_mac.into()), ..Birth::named(name(host_link)?) };
    Ok(netlink.create_link(&NewLink::veth(peer, outside))?)
}
