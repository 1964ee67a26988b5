//! Datagrams of the kernel: every message in one is given to every parser, as a list would, as an
//! acknowledgement and as a notification.
//!
//! No panic. An object that is understood, written as a request and read again is the same object,
//! where the request can say all of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podwire_netlink::{
    Address, Entity, Link, Neighbour, Route, Rule, fuzzing,
    tc::{Filter, Qdisc},
    wire::{self, HEADER_LEN, MessageBuilder},
};

fuzz_target!(|datagram: &[u8]| {
    for message in wire::messages(datagram).map_while(Result::ok) {
        let payload = message.payload;
        let _ = fuzzing::kernel_words(&message);
        let _ = fuzzing::event(message.kind, payload);
        let _ = (Qdisc::parse(payload), Filter::parse(payload));
        if let Ok(link) = Link::parse(payload) {
            let written = written(|message| link.emit(message));
            if let Some(written) = written {
                assert_eq!(Link::parse(&written).as_ref().map(|l| l.name), Ok(link.name));
            }
        }
        if let Ok(address) = Address::parse(payload) {
            again(&address, Address::parse);
        }
        if let Ok(neighbour) = Neighbour::parse(payload) {
            again(&neighbour, Neighbour::parse);
        }
        if let Ok(route) = Route::parse(payload) {
            again(&route, Route::parse);
        }
        if let Ok(rule) = Rule::parse(payload) {
            again(&rule, Rule::parse);
        }
    }
});

/// Writing and reading reach a fixed point at once: what was read from our own writing is written
/// the same again.
fn again<E: Entity, X: std::fmt::Debug>(object: &E, parse: impl Fn(&[u8]) -> Result<E, X>) {
    let Some(first) = written(|message| object.emit(message)) else { return };
    let read = parse(&first).expect("what was written can be read");
    let second = written(|message| read.emit(message));
    assert_eq!(second.as_ref(), Some(&first), "written again, it is another");
}

fn written(fill: impl FnOnce(&mut MessageBuilder<'_>)) -> Option<Vec<u8>> {
    let mut buffer = Vec::new();
    let mut message = MessageBuilder::new(&mut buffer, 0, 0, 0);
    fill(&mut message);
    // An attribute of more than 64 KiB is refused, and that is right.
    message.finish().ok()?;
    Some(buffer.split_off(HEADER_LEN))
}
