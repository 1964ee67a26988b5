//! What is decided about a flow: one word, which is believed until something changes that it rests on.
//!
//! A flow goes through the host stack in both directions or in none (docs/decisions/0003).

use std::net::IpAddr;

use podwire_datapath::abi::{FlowEvent, Reason, identity};

use super::{
    Endpoint, Fate, Known, Node, Through,
    flows::{Key, Origin, Spoken, Way, Word},
    parse::Ip,
    segment::{Meaning, Quote, Segment},
};

/// Who is at one end, as policies know it.
#[derive(Clone, Copy, Debug)]
struct Party {
    identity: u32,
    cidr: Option<u32>,
    /// With its slot, where it is an endpoint of this node.
    endpoint: Option<(u32, Endpoint)>,
}

impl Node {
    /// Decides about a packet that the endpoint in `slot` sends, or that the host stack hands to it.
    pub fn decide(
        &mut self,
        way: Way,
        slot: u32,
        ip: &Ip<'_>,
        segment: Segment,
        fate: &mut Fate,
    ) -> Result<Word, Reason> {
        let (local, peer) = match way {
            Way::Sent => ((ip.from, segment.from_port), (ip.to, segment.to_port)),
            Way::Received => ((ip.to, segment.to_port), (ip.from, segment.from_port)),
        };
        let packet = Spoken {
            key: Key { slot, way, protocol: ip.protocol, port: local.1, peer },
            local: local.0,
            meaning: segment.meaning,
            shown: segment.shown,
            bytes: fate.frame.len() as u64,
        };
        fate.flows.extend([packet.key, packet.key.by_stack()]);
        if let Some(word) = self.known(&packet) {
            fate.flows.extend(word.peer.map(|peer| packet.key.straight(peer, packet.local)));
            self.go_on(&packet);
            return Ok(word);
        }
        self.count(FlowEvent::Judged);
        let stamp = self.ticket;
        if let Meaning::Error(quote) = packet.meaning {
            return self.decide_error(&packet, quote, stamp, fate);
        }
        let peer = self.party(packet.key.peer.0)?;
        let origin = self.origin(&packet, &peer, fate);
        let word = self.word(&packet, &peer, origin, stamp);
        fate.flows.extend(word.peer.map(|peer| packet.key.straight(peer, packet.local)));
        self.permit(&packet, packet.key, &peer, word.is_reply)?;
        self.keep(&packet, origin, word);
        Ok(word)
    }

    /// The word that is believed without a second thought.
    fn known(&self, packet: &Spoken) -> Option<Word> {
        let may_be_known = match packet.meaning {
            Meaning::Opens | Meaning::Error(_) => false,
            Meaning::Asks | Meaning::Within => true,
        };
        let flow = self.flows.confirmed.get(&packet.key).filter(|_| may_be_known)?;
        let is_other_way = packet.meaning == Meaning::Asks && flow.word.is_reply;
        (!is_other_way && self.believes(packet.key, flow.word)).then_some(flow.word)
    }

    /// Who is behind an address. An endpoint that has gone, or has the address no longer, gets nothing.
    fn party(&self, address: IpAddr) -> Result<Party, Reason> {
        let Some(&Known { identity, cidr, slot }) = self.addresses.get(&address) else {
            let around = self.prefixes.iter().filter(|(prefix, _)| prefix.has(address));
            let narrowest = around.max_by_key(|(prefix, _)| prefix.length);
            let (identity, cidr) = narrowest
                .map_or((identity::WORLD, None), |(_, known)| (known.identity, known.cidr));
            return Ok(Party { identity, cidr, endpoint: None });
        };
        let Some((number, generation)) = slot else {
            return Ok(Party { identity, cidr, endpoint: None });
        };
        let endpoint =
            self.endpoint_in(number, generation, address).ok_or(Reason::StaleEndpoint)?;
        Ok(Party { identity, cidr, endpoint: Some((number, endpoint)) })
    }

    /// The endpoint in a slot, if it is the one that had the address when this was written.
    pub fn endpoint_in(&self, number: u32, generation: u32, address: IpAddr) -> Option<Endpoint> {
        let slot = self.slots.get(number as usize).filter(|slot| slot.generation == generation)?;
        slot.endpoint.filter(|endpoint| endpoint.owns(address))
    }

    /// How the flow of a packet that is no error is known.
    fn origin(&self, packet: &Spoken, peer: &Party, fate: &mut Fate) -> Origin {
        if packet.meaning == Meaning::Opens {
            return Origin::New;
        }
        let asks = packet.meaning == Meaning::Asks;
        self.origin_of(packet.key, packet.local, peer, asks, fate)
    }

    fn origin_of(
        &self,
        key: Key,
        local: IpAddr,
        peer: &Party,
        asks: bool,
        fate: &mut Fate,
    ) -> Origin {
        if let Some(flow) = self.confirmed(key)
            && !(asks && flow.word.is_reply)
        {
            return Origin::Confirmed(flow.word);
        }
        let by_stack = key.by_stack();
        let straight = peer.endpoint.map(|(number, _)| key.straight(number, local));
        let straight = straight.filter(|_| key.way == Way::Sent);
        let others = [Some(by_stack), straight].into_iter().flatten();
        fate.flows.extend(others.clone());
        let is_there = |began: &Key| self.pending(*began).is_some();
        // What came out of the stack is answered into it.
        let other = others.filter(|_| !asks).find(is_there);
        // Where both sides have begun at once, they agree on one of the two.
        let began =
            other.into_iter().chain(Some(key).filter(is_there)).min_by_key(|began| began.rank());
        match began {
            None => Origin::New,
            Some(began) if began == key => Origin::Begun,
            Some(began) => Origin::Answered(began),
        }
    }

    fn word(&self, packet: &Spoken, peer: &Party, origin: Origin, stamp: u64) -> Word {
        let key = packet.key;
        let (is_reply, comes_by_stack) = match origin {
            Origin::New | Origin::Begun => (false, false),
            Origin::Confirmed(word) => (word.is_reply, word.by_flow),
            Origin::Answered(began) => (true, began == key.by_stack()),
        };
        let must_see = |endpoint: &Endpoint| endpoint.through == Through::Stack;
        let own = self.slots[key.slot as usize].endpoint.as_ref();
        let is_straight = own.is_some_and(|own| !must_see(own))
            && peer.endpoint.is_some_and(|(_, endpoint)| !must_see(&endpoint));
        let is_sent = key.way == Way::Sent;
        let by_flow = is_sent && comes_by_stack;
        Word {
            stamp,
            is_reply,
            to_stack: is_sent && !is_straight || by_flow,
            by_flow,
            peer: peer.endpoint.map(|(number, _)| number),
        }
    }

    /// Asks both sides' policies about the direction that began the flow.
    fn permit(
        &self,
        packet: &Spoken,
        key: Key,
        peer: &Party,
        is_reply: bool,
    ) -> Result<(), Reason> {
        let number = key.slot;
        let Some(endpoint) = self.slots[number as usize].endpoint else { return Ok(()) };
        let own = Party {
            identity: endpoint.identity,
            cidr: self.addresses.get(&packet.local).and_then(|known| known.cidr),
            endpoint: Some((number, endpoint)),
        };
        let began_here = (key.way == Way::Sent) != is_reply;
        let (sender, receiver, port) =
            if began_here { (&own, peer, key.peer.1) } else { (peer, &own, key.port) };
        let judged = |party: &Party| {
            party.endpoint.map(|(_, endpoint)| endpoint).filter(|endpoint| !endpoint.chained)
        };
        let policies = &self.policies;
        if let Some(endpoint) = judged(sender)
            && !policies.permit(
                endpoint.egress,
                receiver.identity,
                receiver.cidr,
                key.protocol,
                port,
            )
        {
            return Err(Reason::EgressDenied);
        }
        if let Some(endpoint) = judged(receiver)
            && sender.identity != identity::HOST
            && !policies.permit(endpoint.ingress, sender.identity, sender.cidr, key.protocol, port)
        {
            return Err(Reason::IngressDenied);
        }
        Ok(())
    }

    /// An error goes with the flow that it is about, and is permitted with it; it changes nothing of it. One
    /// that is about no flow stands for itself.
    fn decide_error(
        &self,
        packet: &Spoken,
        quote: Option<Quote>,
        stamp: u64,
        fate: &mut Fate,
    ) -> Result<Word, Reason> {
        if let Some(key) = quote.and_then(|quote| flow_of_quote(packet, quote)) {
            fate.flows.insert(key);
            let peer = self.party(key.peer.0)?;
            let origin = self.origin_of(key, packet.local, &peer, false, fate);
            if origin != Origin::New {
                let word = self.word(&Spoken { key, ..*packet }, &peer, origin, stamp);
                self.permit(packet, key, &peer, word.is_reply)?;
                return Ok(word);
            }
        }
        let peer = self.party(packet.key.peer.0)?;
        let word = self.word(packet, &peer, Origin::New, stamp);
        self.permit(packet, packet.key, &peer, false)?;
        Ok(word)
    }
}

/// The direction of the quoted packet's flow in which an error about it goes. A pod speaks only of what it
/// received, and to the one who sent that; it hears only of what it sent, from whomever.
fn flow_of_quote(packet: &Spoken, quote: Quote) -> Option<Key> {
    let Quote { from, to, protocol } = quote;
    let Key { slot, way, .. } = packet.key;
    let (local, peer) = match way {
        Way::Sent => (to, from),
        Way::Received => (from, to),
    };
    let is_own = local.0 == packet.local && (way == Way::Received || peer.0 == packet.key.peer.0);
    is_own.then_some(Key { slot, way, protocol, port: local.1, peer })
}
