//! Flows: what is remembered of conversations, and how their packets are judged.
//!
//! A packet of a known flow costs one lookup ([`judge`]). Everything else is decided by [`decide`]: who
//! is at the other end, in which direction the conversation began, whether policy allows it, and whether
//! it goes by the host stack. That is written down, with the node's ticket of before the first lookup, and
//! believed until one of the things it rests on is marked with a later one.
//!
//! A flow goes through the host stack in both directions or in none: the stack may translate it (port
//! mappings, kube-proxy), and must see the replies. So the reply of what came out of it goes back into it.

mod entries;
mod table;

use aya_ebpf::{btf_maps::lpm_trie, programs::TcContext};
pub use entries::{count, note};
use entries::{event, remember};
use podwire_abi::{
    Address, FlowEvent, FlowHash, FlowKey, IpcacheEntry, NodeState, PolicyRef, PortRule, Protocol,
    Reason, Slot, Verdict, direction, fold, identity, place_of, slot_flag, tag, verdict_flag,
};
use table::hash_conversation;
pub use table::{Found, Sides};

use crate::{
    maps::{IPCACHE, PREFIXES, REMOTES, SCRATCH, SLOTS, STATE, Scratch},
    packet::{self, Kind, Packet, Words},
    policy,
    verdict::{self, Drop},
};

/// A packet, and the endpoint that sends or receives it.
#[repr(C)]
pub struct Question {
    /// The flow, and the endpoint's own address.
    pub sides: Sides,
    /// The packet's length, Ethernet header included.
    pub len: u32,
    /// Of `tcp_seen`.
    pub shown: u32,
    pub kind: Kind,
}

/// A [`FlowKey`] in the words that it is written by.
#[repr(transparent)]
pub struct Key([u64; 3]);

impl Key {
    /// Of what goes in this direction at the endpoint in a slot: the endpoint's port in the lower half of
    /// `ports`, as it lies in a packet that the endpoint sends.
    #[inline(always)]
    pub fn new(slot: u32, protocol: Protocol, direction: u8, ports: u32, peer: Words) -> Self {
        let head = slot | u32::from(protocol.0) << 16 | u32::from(direction) << 24;
        Self([u64::from(head) | u64::from(ports) << 32, peer.0[0], peer.0[1]])
    }

    /// Of a packet that the endpoint in a slot sends, or the host stack hands to it.
    #[inline(always)]
    fn of(packet: &Packet, direction: u8, slot: u32) -> Self {
        let (ports, peer) = if direction == direction::SENT {
            (packet.ports, packet.destination)
        } else {
            (packet.ports.rotate_left(16), packet.source)
        };
        Self::new(slot, packet.protocol, direction, ports, peer)
    }

    /// What is known of the flow, if it is confirmed.
    #[inline(always)]
    pub fn confirmed(&self) -> Option<Found> {
        table::likely_confirmed(self.as_flow_key())
    }

    #[inline(always)]
    fn as_flow_key(&self) -> &FlowKey {
        // SAFETY: 24 bytes, aligned as a flow key is, any of which are one: its fields are these bytes in this order on a little-endian machine, as all targets of this crate are.
        unsafe { &*(&raw const self.0).cast::<FlowKey>() }
    }
}

/// What is to become of a packet.
pub enum Judged {
    /// Its flow says it.
    Known(Verdict),
    /// [`decide`] is to say it: what it is asked is written down.
    Asked(About),
}

/// What is to become of the packet: by its flow, if that is known, or decided anew.
#[inline(always)]
pub fn judge(
    ctx: &TcContext,
    packet: &Packet,
    direction: u8,
    slot: u32,
    own: &Slot,
) -> Result<Verdict, Drop> {
    match look(ctx, packet, direction, slot, own, false)? {
        Judged::Known(verdict) => Ok(verdict),
        Judged::Asked(about) => match decide(about) {
            number @ 0..256 => Err(Drop(verdict::reason(number as u8))),
            word => Ok(Verdict(word)),
        },
    }
}

/// Looks for the packet's flow, and else asks what is to become of it. `is_new` says that its flow was looked for
/// among the confirmed ones before, in vain.
#[inline(always)]
pub fn look(
    ctx: &TcContext,
    packet: &Packet,
    direction: u8,
    slot: u32,
    own: &Slot,
    mut is_new: bool,
) -> Result<Judged, Drop> {
    let key = Key::of(packet, direction, slot);
    if !is_new && matches!(packet.kind, Kind::Within | Kind::Echo) {
        if let Some(Found { value: flow, verdict }) = key.confirmed() {
            if let Some(state) = STATE.get(0)
                && is_believed(verdict, &key, own, state)
                && !(packet.kind == Kind::Echo && verdict.has(verdict_flag::REPLY))
            {
                count(flow, ctx.len(), state);
                // SAFETY: one aligned word of a live map value.
                if packet.shown & !unsafe { (*flow).tcp() } != 0
                    && let Some(scratch) = ask(ctx, packet, direction, &key)
                {
                    hash_conversation(&mut scratch.question.sides);
                    note(&scratch.question);
                }
                return Ok(Judged::Known(verdict));
            }
        } else {
            is_new = true;
        }
    }
    let scratch = ask(ctx, packet, direction, &key).ok_or(Drop(Reason::Unchangeable))?;
    if packet.kind != Kind::Error {
        return Ok(Judged::Asked(if is_new { ABOUT_A_NEW_ONE } else { ABOUT_ITSELF }));
    }
    let Scratch { question, quoted, .. } = scratch;
    quoted.key = question.sides.key;
    quoted.local = question.sides.local;
    let transport = packet.transport as u64;
    Ok(Judged::Asked(match packet::quoted_flow(ctx, transport, &mut quoted.key, &quoted.local) {
        0 => ABOUT_NOTHING,
        _ => ABOUT_A_FLOW,
    }))
}

/// Writes the question down where the functions that are asked can read it.
#[inline(always)]
fn ask(ctx: &TcContext, packet: &Packet, direction: u8, key: &Key) -> Option<&'static mut Scratch> {
    let local = if direction == direction::SENT { packet.source } else { packet.destination };
    let scratch = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: this CPU's own memory, which nobody else uses before this program ends.
    let scratch = unsafe { &mut *scratch };
    scratch.question = Question {
        sides: Sides { key: *key.as_flow_key(), local: local.address(), hash: FlowHash(0) },
        len: ctx.len(),
        shown: packet.shown,
        kind: packet.kind,
    };
    Some(scratch)
}

/// Whether nothing that the verdict rests on has changed since.
#[inline(always)]
fn is_believed(verdict: Verdict, key: &Key, own: &Slot, state: &NodeState) -> bool {
    SLOTS
        .get(verdict.peer_slot())
        .is_some_and(|peer| is_believed_of(verdict, key, own, state, peer))
}

/// The same, given the slot that the verdict names, be it a peer's or not.
#[inline(always)]
pub fn is_believed_of(
    verdict: Verdict,
    key: &Key,
    own: &Slot,
    state: &NodeState,
    peer: &Slot,
) -> bool {
    let stamp = verdict.stamp();
    let [head, high, low] = key.0;
    if verdict.tag() != tag(fold(head ^ high ^ low))
        || stamp < latest(&own.changed)
        || stamp < latest(&state.changed)
    {
        return false;
    }
    if verdict.has(verdict_flag::LOCAL_PEER) {
        return stamp >= latest(&peer.changed);
    }
    REMOTES.get(place_of(fold(high ^ low))).is_some_and(|changed| stamp >= latest(changed))
}

#[inline(always)]
fn latest(ticket: &u64) -> u64 {
    // SAFETY: an aligned word of a live map value, which user space writes.
    unsafe { (&raw const *ticket).read_volatile() }
}

/// Whether what is known of a flow is of the endpoints that are there now.
#[inline(always)]
fn is_bound(verdict: Verdict, tag: u64, own: &Slot) -> bool {
    verdict.tag() == tag
        && verdict.stamp() >= own.born
        && (!verdict.has(verdict_flag::LOCAL_PEER)
            || SLOTS.get(verdict.peer_slot()).is_some_and(|peer| verdict.stamp() >= peer.born))
}

/// Who is at the other end.
struct Peer {
    identity: u32,
    cidr: u32,
    number: u32,
    slot: Option<&'static Slot>,
}

impl Peer {
    /// Whole addresses first, then prefixes.
    #[inline(always)]
    fn find(address: &Address) -> Result<Self, Drop> {
        // SAFETY: entries are plain numbers, and what they name is checked.
        if let Some(entry) = unsafe { IPCACHE.get(address) } {
            let mut peer =
                Self { identity: entry.identity, cidr: entry.cidr, number: entry.slot, slot: None };
            if entry.slot != IpcacheEntry::NO_SLOT {
                match SLOTS.get(entry.slot) {
                    Some(slot) if slot.generation == entry.generation && slot.owns(address) => {
                        peer.slot = Some(slot);
                    }
                    _ => return Err(Drop(Reason::StaleEndpoint)),
                }
            }
            return Ok(peer);
        }
        let (identity, cidr) = match PREFIXES.get(&lpm_trie::Key::new(128, *address)) {
            Some(entry) => (entry.identity, entry.cidr),
            None => (identity::WORLD, 0),
        };
        Ok(Self { identity, cidr, number: IpcacheEntry::NO_SLOT, slot: None })
    }
}

/// What is remembered of a packet's flow: in which table, and under which key.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
enum Known {
    Nothing = 0,
    /// It is not confirmed; the packet goes in the direction that began it.
    Pending = 1,
    /// It is not; the other direction at the same endpoint began it.
    Turned = 2,
    /// It is not; that at the other endpoint did.
    Mirrored = 3,
    /// It is confirmed.
    Flow = 4,
}

/// What flow a packet is about: its own, for an ICMP error that of the packet it quotes, or none.
pub type About = u64;
const ABOUT_ITSELF: About = 0;
const ABOUT_A_FLOW: About = 1;
const ABOUT_NOTHING: About = 2;
/// Its own, which is not among the confirmed ones.
const ABOUT_A_NEW_ONE: About = 3;

/// Decides anew about the question that is written down: the verdict's word, or a reason to drop, which is less than 256.
///
/// A global function to the kernel, which verifies it once and by itself, and not with all that leads to it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn decide(about: About) -> u64 {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return Reason::Unchangeable as u64 };
    // SAFETY: this CPU's own memory, which nobody else uses before this program ends.
    let Scratch { question, quoted, .. } = unsafe { &mut *scratch };
    event(FlowEvent::Judged);
    let mut known = Known::Nothing;
    if question.kind == Kind::Error {
        hash_conversation(quoted);
        return settle(question, quoted, about, &mut known);
    }
    // A SYN is not looked for, and most that are denied are SYNs.
    if question.kind != Kind::Syn {
        hash_conversation(&mut question.sides);
    }
    let word = settle(question, &question.sides, about, &mut known);
    if word >= 256
        && let Some(state) = STATE.get(0)
    {
        if question.kind == Kind::Syn {
            hash_conversation(&mut question.sides);
        }
        remember(question, known, Verdict(word), state);
    }
    word
}

/// Apart from [`decide`], so that its share of the stack is free again when its answer is written down.
#[inline(never)]
fn settle(question: &Question, sides: &Sides, about: u64, known: &mut Known) -> u64 {
    match try_settle(question, sides, about, known) {
        Ok(verdict) => verdict.0,
        Err(Drop(reason)) => reason as u64,
    }
}

#[inline(always)]
fn try_settle<'q>(
    question: &'q Question,
    sides: &'q Sides,
    about: u64,
    known: &mut Known,
) -> Result<Verdict, Drop> {
    let asked = &question.sides.key;
    let mut key = &sides.key;
    let (Some(state), Some(own)) = (STATE.get(0), SLOTS.get(asked.endpoint.into())) else {
        return Err(Drop(Reason::StaleEndpoint));
    };
    // Before the first lookup.
    let stamp = latest(&state.ticket);
    // It may have gone since it was found by its link.
    if !own.is_taken() {
        return Err(Drop(Reason::StaleEndpoint));
    }
    let is_sent = asked.direction == direction::SENT;
    // An error is judged as a packet of the flow that it is about.
    let mut peer = Peer::find(&key.peer)?;
    let mut last = Verdict::FREE;
    if about != ABOUT_NOTHING && question.kind != Kind::Syn {
        (*known, last) = find(sides, about, question.kind, own, &peer);
    }
    if about == ABOUT_A_FLOW && *known == Known::Nothing {
        key = asked;
        peer = Peer::find(&key.peer)?;
    }
    let (is_reply, is_by_flow) = match *known {
        Known::Nothing | Known::Pending => (false, false),
        Known::Flow => (last.has(verdict_flag::REPLY), last.has(verdict_flag::BY_FLOW)),
        Known::Turned => (true, is_sent),
        Known::Mirrored => (true, false),
    };
    let mut flags = if is_reply { verdict_flag::REPLY } else { 0 };
    let mut number = 0;
    let mut goes_straight = false;
    if let Some(slot) = peer.slot {
        flags |= verdict_flag::LOCAL_PEER;
        number = peer.number;
        goes_straight = (slot.flags | own.flags) & slot_flag::BY_STACK == 0;
    }
    if is_sent {
        if is_by_flow {
            flags |= verdict_flag::TO_STACK | verdict_flag::BY_FLOW;
        } else if !goes_straight {
            flags |= verdict_flag::TO_STACK;
        }
    }
    check_policy(key, &question.sides.local, is_sent != is_reply, own, &peer)?;
    Ok(Verdict::new(stamp, asked.tag(), flags, number))
}

/// What is remembered of a flow, which may have begun with the other direction, and its verdict if it is confirmed.
#[inline(always)]
fn find(sides: &Sides, about: u64, kind: Kind, own: &Slot, peer: &Peer) -> (Known, Verdict) {
    let key = &sides.key;
    if about != ABOUT_A_NEW_ONE
        && let Some(found) = confirmed(key, kind, own)
    {
        return found;
    }
    let peer = match peer.slot {
        _ if kind == Kind::Echo => table::OWN_KEY,
        Some(_) if key.direction == direction::SENT => u64::from(peer.number),
        _ => table::NO_SLOT,
    };
    const PENDING: u64 = Known::Pending as u64;
    const TURNED: u64 = Known::Turned as u64;
    const MIRRORED: u64 = Known::Mirrored as u64;
    let known = match table::search_conversation(sides, peer) {
        PENDING => Known::Pending,
        TURNED => Known::Turned,
        MIRRORED => Known::Mirrored,
        // Another CPU may have confirmed it between the two looks.
        _ => return confirmed(key, kind, own).unwrap_or((Known::Nothing, Verdict::FREE)),
    };
    (known, Verdict::FREE)
}

#[inline(always)]
fn confirmed(key: &FlowKey, kind: Kind, own: &Slot) -> Option<(Known, Verdict)> {
    let Found { verdict, .. } = table::confirmed(key)?;
    let is_its = is_bound(verdict, key.tag(), own)
        && !(kind == Kind::Echo && verdict.has(verdict_flag::REPLY));
    is_its.then_some((Known::Flow, verdict))
}

/// Policy is asked about the direction that the conversation was opened in, the sender's first.
#[inline(always)]
fn check_policy(
    key: &FlowKey,
    local: &Address,
    is_opened_by_endpoint: bool,
    own: &Slot,
    peer: &Peer,
) -> Result<(), Drop> {
    let port = if is_opened_by_endpoint { key.peer_port } else { key.local_port };
    let place = PortRule::place(key.protocol, port.get());
    if is_opened_by_endpoint {
        if is_judged(own) && !policy::allows(egress_of(own), peer.identity, peer.cidr, place) {
            return Err(Drop(Reason::EgressDenied));
        }
        if let Some(slot) = peer.slot
            && is_judged(slot)
            && !policy::allows(ingress_of(slot), own.identity, cidr_of(local), place)
        {
            return Err(Drop(Reason::IngressDenied));
        }
        return Ok(());
    }
    if let Some(slot) = peer.slot
        && is_judged(slot)
        && !policy::allows(egress_of(slot), own.identity, cidr_of(local), place)
    {
        return Err(Drop(Reason::EgressDenied));
    }
    // Whoever checks whether a pod is well is on the node.
    if peer.identity != identity::HOST
        && is_judged(own)
        && !policy::allows(ingress_of(own), peer.identity, peer.cidr, place)
    {
        return Err(Drop(Reason::IngressDenied));
    }
    Ok(())
}

#[inline(always)]
fn egress_of(slot: &Slot) -> PolicyRef {
    // SAFETY: an aligned word of a live map value, which user space writes.
    unsafe { (&raw const slot.egress).read_volatile() }
}

#[inline(always)]
fn ingress_of(slot: &Slot) -> PolicyRef {
    // SAFETY: as above.
    unsafe { (&raw const slot.ingress).read_volatile() }
}

/// What an adopted pod may do is its own plugin's affair.
#[inline(always)]
fn is_judged(slot: &Slot) -> bool {
    slot.flags & slot_flag::CHAINED == 0
}

#[inline(always)]
fn cidr_of(address: &Address) -> u32 {
    // SAFETY: a plain number.
    unsafe { IPCACHE.get(address) }.map_or(0, |entry| entry.cidr)
}
