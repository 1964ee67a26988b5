//! What is remembered of conversations: what is believed of it, and how flows begin, are confirmed and
//! end.

use std::{collections::BTreeMap, net::IpAddr};

use podwire_datapath::abi::{FlowEvent, remote_place};

use super::{Node, Ticket, parse::TCP, segment::Meaning};

/// One direction of a conversation, as an endpoint sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The endpoint's slot.
    pub slot: u32,
    pub way: Way,
    /// IP protocol number.
    pub protocol: u8,
    /// The endpoint's port.
    pub port: u16,
    /// Whom it speaks with.
    pub peer: (IpAddr, u16),
}

/// Which way packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// The endpoint sends them.
    Sent,
    /// The host stack hands them to it.
    Received,
}

impl Key {
    /// The other direction, where the host stack carries it.
    pub fn by_stack(self) -> Self {
        let way = match self.way {
            Way::Sent => Way::Received,
            Way::Received => Way::Sent,
        };
        Self { way, ..self }
    }

    /// The other direction, where the peer is the endpoint in that slot and answers straight.
    pub fn straight(self, peer: u32, local: IpAddr) -> Self {
        Self {
            slot: peer,
            way: Way::Sent,
            protocol: self.protocol,
            port: self.peer.1,
            peer: (local, self.port),
        }
    }
}

impl Key {
    /// Which of two keys of a conversation counts: the one whose first eight bytes are less, read as a number of
    /// a little-endian machine.
    pub fn rank(self) -> u64 {
        let [[a, b], [c, d]] = [self.port, self.peer.1].map(u16::to_be_bytes);
        let [slot, slot_high, ..] = self.slot.to_le_bytes();
        let way = u8::from(self.way == Way::Received);
        u64::from_le_bytes([slot, slot_high, self.protocol, way, a, b, c, d])
    }
}

/// What was decided about a direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// The last change when the deciding began.
    pub stamp: Ticket,
    /// The other direction began the flow.
    pub is_reply: bool,
    /// The endpoint's packets go to the host stack.
    pub to_stack: bool,
    /// They would anyhow, since the other direction comes out of it.
    pub by_flow: bool,
    /// The peer is the endpoint in this slot.
    pub peer: Option<u32>,
}

/// What a direction of a TCP connection has shown, in the header's own bits (RFC 9293, 3.1).
pub mod shown {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    /// An acknowledgement with none of the others.
    pub const ACK: u8 = 16;
}

/// Packets and their bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

impl Count {
    fn add(&mut self, bytes: u64) {
        self.packets += 1;
        self.bytes += bytes;
    }
}

/// A direction of a flow that both sides have spoken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    pub word: Word,
    pub count: Count,
    /// The flows' clock at the last packet.
    pub seen: u32,
    /// The same when the flow began.
    pub created: u32,
    /// What it has shown, and what the other direction has.
    pub own: u8,
    pub other: u8,
}

/// A flow that only one side has spoken in, a TCP connection that is not open yet or has ended; known
/// by the direction that began it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Of the direction that began it.
    pub word: Word,
    /// At the last packet of either direction.
    pub seen: u32,
    pub created: u32,
    pub own: u8,
    pub other: u8,
    pub count: Count,
    pub replies: Count,
}

/// The two tables.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Flows {
    pub confirmed: BTreeMap<Key, Flow>,
    /// How many directions there is room for.
    pub room: usize,
    pub pending: BTreeMap<Key, Pending>,
}

/// A packet, as far as its flow is concerned.
#[derive(Clone, Copy, Debug)]
pub struct Spoken {
    pub key: Key,
    /// The endpoint's address.
    pub local: IpAddr,
    pub meaning: Meaning,
    pub shown: u8,
    /// Length of its frame.
    pub bytes: u64,
}

/// How a packet's flow is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Not at all: it begins with this packet.
    New,
    /// Both sides have spoken; this was decided last about this direction.
    Confirmed(Word),
    /// This direction began it.
    Begun,
    /// The other one did, under that key.
    Answered(Key),
}

impl Node {
    /// Whether a word says what would be decided now: nothing that it rests on has changed since.
    pub fn believes(&self, key: Key, word: Word) -> bool {
        let peer_changed = match word.peer {
            Some(slot) => self.slots[slot as usize].changed,
            None => {
                let place = remote_place(&key.peer.0.into());
                self.remotes.get(&place).copied().unwrap_or_default()
            }
        };
        let own_changed = self.slots[key.slot as usize].changed;
        [self.changed, own_changed, peer_changed].into_iter().all(|change| word.stamp >= change)
    }

    /// Whether what is remembered is of the endpoints that there are now. Then it stays true who began
    /// a flow, whatever else has changed.
    pub fn is_bound(&self, key: Key, word: Word) -> bool {
        let born = |slot: u32| self.slots[slot as usize].born;
        word.stamp >= born(key.slot) && word.peer.is_none_or(|peer| word.stamp >= born(peer))
    }

    pub fn confirmed(&self, key: Key) -> Option<&Flow> {
        self.flows.confirmed.get(&key).filter(|flow| self.is_bound(key, flow.word))
    }

    pub fn pending(&self, key: Key) -> Option<&Pending> {
        self.flows.pending.get(&key).filter(|pending| self.is_bound(key, pending.word))
    }

    /// Remembers a packet and what was decided about it.
    pub fn keep(&mut self, packet: &Spoken, origin: Origin, word: Word) {
        match origin {
            Origin::Confirmed(_) => {
                self.flows.confirmed.get_mut(&packet.key).expect("looked up").word = word;
                self.go_on(packet);
            }
            Origin::New => self.begin(packet, word),
            Origin::Begun => {
                let pending = self.flows.pending.get_mut(&packet.key).expect("looked up");
                pending.word = word;
                pending.count.add(packet.bytes);
                pending.own |= packet.shown;
                pending.seen = self.seconds;
                let is_open = opens(packet, pending.other);
                if is_open && !has_ended(pending) {
                    self.confirm(packet.key, reply_to(packet, word));
                }
            }
            Origin::Answered(began) => {
                let pending = self.flows.pending.get_mut(&began).expect("looked up");
                pending.replies.add(packet.bytes);
                pending.other |= packet.shown;
                pending.seen = self.seconds;
                let is_open = packet.key.protocol != TCP || opens(packet, pending.own);
                if is_open && !has_ended(pending) {
                    self.confirm(began, (packet.key, word));
                }
            }
        }
    }

    fn begin(&mut self, packet: &Spoken, word: Word) {
        if packet.meaning == Meaning::Opens
            && let Some(old) = self.flows.confirmed.remove(&packet.key)
        {
            self.flows.confirmed.remove(&other_direction(packet.key, packet.local, old.word));
        }
        let mut count = Count::default();
        count.add(packet.bytes);
        let pending = Pending {
            word,
            seen: self.seconds,
            created: self.seconds,
            own: packet.shown,
            other: 0,
            count,
            replies: Count::default(),
        };
        self.flows.pending.insert(packet.key, pending);
        self.count(FlowEvent::Began);
    }

    /// Both sides have spoken. Where there is no room for both directions the flow stays where it is. A
    /// reset after which both go on was none.
    fn confirm(&mut self, began: Key, (reply, reply_word): (Key, Word)) {
        let pending = self.flows.pending[&began];
        let original = Flow {
            word: pending.word,
            count: pending.count,
            seen: self.seconds,
            created: pending.created,
            own: pending.own & !shown::RST,
            other: pending.other & !shown::RST,
        };
        let answer = Flow {
            word: reply_word,
            count: pending.replies,
            own: original.other,
            other: original.own,
            ..original
        };
        let mut inserted = Vec::new();
        for (key, flow) in [(began, original), (reply, answer)] {
            let confirmed = &mut self.flows.confirmed;
            if confirmed.len() == self.flows.room && !confirmed.contains_key(&key) {
                confirmed.retain(|key, _| !inserted.contains(key));
                return self.count(FlowEvent::TableFull);
            }
            confirmed.insert(key, flow);
            inserted.push(key);
        }
        self.flows.pending.remove(&began);
        self.flows.pending.remove(&reply);
        self.count(FlowEvent::Confirmed);
    }

    /// A packet of a confirmed flow.
    pub fn go_on(&mut self, packet: &Spoken) {
        let Some(flow) = self.flows.confirmed.get_mut(&packet.key) else { return };
        flow.count.add(packet.bytes);
        flow.seen = self.seconds;
        if packet.shown & !flow.own == 0 {
            return;
        }
        flow.own |= packet.shown;
        let flow = *flow;
        let other = other_direction(packet.key, packet.local, flow.word);
        if let Some(other) = self.flows.confirmed.get_mut(&other) {
            other.other |= packet.shown;
        }
        let is_reset = packet.shown & shown::RST != 0;
        if is_reset || packet.shown & flow.other & shown::FIN != 0 {
            self.end(packet.key, other);
        }
    }

    /// A TCP connection has ended. What still comes of it finds a pending flow; after a reset that
    /// is not believed by both sides, it is confirmed once more.
    fn end(&mut self, key: Key, other: Key) {
        let confirmed = &mut self.flows.confirmed;
        let (Some(&this), that) = (confirmed.get(&key), confirmed.get(&other).copied()) else {
            return;
        };
        // They are one where a pod speaks with itself, from a port to the same.
        confirmed.remove(&key);
        confirmed.remove(&other);
        self.count(FlowEvent::Ended);
        let is_reset = (this.own | this.other) & shown::RST != 0;
        // Of which direction began it only itself can tell what was decided.
        let (began, original, replies) = match (this.word.is_reply, that) {
            (false, that) => (key, this, that.map(|that| that.count).unwrap_or_default()),
            (true, Some(that)) => (other, that, this.count),
            (true, None) => return,
        };
        let (own, other) = if is_reset { (shown::RST, 0) } else { (shown::FIN, shown::FIN) };
        let pending = Pending {
            word: original.word,
            seen: self.seconds,
            created: this.created,
            own,
            other,
            count: original.count,
            replies,
        };
        self.flows.pending.insert(began, pending);
    }
}

/// Whether both directions of a TCP connection have acknowledged, or one an open request.
fn opens(packet: &Spoken, other: u8) -> bool {
    packet.shown & shown::ACK != 0 && other & (shown::SYN | shown::ACK) != 0
}

/// Both sides have said that they will say no more.
fn has_ended(pending: &Pending) -> bool {
    pending.own & pending.other & shown::FIN != 0
}

/// The key of the other direction of a flow, by what was decided about this one.
fn other_direction(key: Key, local: IpAddr, word: Word) -> Key {
    match word.peer {
        Some(peer) if key.way == Way::Sent && !word.to_stack => key.straight(peer, local),
        _ => key.by_stack(),
    }
}

/// What answers a flow goes the way that the flow goes.
fn reply_to(packet: &Spoken, word: Word) -> (Key, Word) {
    let key = other_direction(packet.key, packet.local, word);
    let is_by_stack = key == packet.key.by_stack();
    let goes_to_stack = packet.key.way == Way::Received;
    let reply = Word {
        stamp: word.stamp,
        is_reply: true,
        to_stack: goes_to_stack,
        by_flow: goes_to_stack,
        peer: if is_by_stack { word.peer } else { Some(packet.key.slot) },
    };
    (key, reply)
}
