//! The programs do what the model says: many packets, most of them nearly right.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod comparison;
mod model;
mod node;

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use comparison::{Differential, on_small_node};
use podwire_datapath::abi::{FlowEvent, Hook, Reason};
use proptest::{
    prelude::Rng,
    test_runner::{RngAlgorithm, TestRng},
};

/// So many packets at least are compared; `cargo xtask soak packet` says how many otherwise.
const PACKETS: u64 = 200_000;
const PACKETS_VARIABLE: &str = "PODWIRE_PACKETS";

/// Where the sequence of inputs begins.
const SEED_VARIABLE: &str = "PODWIRE_PACKETS_SEED";

/// Bytes of an input, enough for all its steps.
const INPUT: usize = 384;

/// Fates that a packet can meet. [`Reason::Unchangeable`] is not one: the kernel refuses to change a
/// packet only without memory.
const FATES: [(Hook, &[Reason]); 3] = [
    (
        Hook::FromContainer,
        &[
            Reason::Delivered,
            Reason::DeliveredToEgress,
            Reason::ToStack,
            Reason::ToStackByFlow,
            Reason::ToStackExpired,
            Reason::AnsweredArp,
            Reason::AnsweredNeighbour,
            Reason::PassedToLink,
            Reason::UnknownLink,
            Reason::NotReady,
            Reason::Malformed,
            Reason::Vlan,
            Reason::UnsupportedProtocol,
            Reason::SpoofedMac,
            Reason::SpoofedAddress,
            Reason::NotForGateway,
            Reason::ForeignArp,
            Reason::ForeignNeighbour,
            Reason::Multicast,
            Reason::LinkLocal,
            Reason::StaleEndpoint,
            Reason::UnknownFragment,
            Reason::ExtensionHeaders,
            Reason::EgressDenied,
            Reason::IngressDenied,
        ],
    ),
    (
        Hook::ToContainer,
        &[
            Reason::Passed,
            Reason::UnknownLink,
            Reason::Malformed,
            Reason::Vlan,
            Reason::UnsupportedProtocol,
            Reason::Multicast,
            Reason::UnknownDestination,
            Reason::StaleEndpoint,
            Reason::UnknownFragment,
            Reason::ExtensionHeaders,
            Reason::EgressDenied,
            Reason::IngressDenied,
        ],
    ),
    (
        Hook::FromHost,
        &[
            Reason::Delivered,
            Reason::DeliveredToEgress,
            Reason::Malformed,
            Reason::Vlan,
            Reason::UnsupportedProtocol,
            Reason::Multicast,
            Reason::UnknownDestination,
            Reason::StaleEndpoint,
            Reason::UnknownFragment,
            Reason::ExtensionHeaders,
            Reason::EgressDenied,
            Reason::IngressDenied,
        ],
    ),
];

/// What can happen to flows. [`FlowEvent::Unkept`] needs several CPUs at one place, and [`FlowEvent::Evicted`] more flows
/// than an input has.
const EVENTS: [FlowEvent; 5] = [
    FlowEvent::Judged,
    FlowEvent::Began,
    FlowEvent::Confirmed,
    FlowEvent::Ended,
    FlowEvent::TableFull,
];

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn programs_and_model_agree() {
    let wanted = number(PACKETS_VARIABLE).unwrap_or(PACKETS);
    let seed = number(SEED_VARIABLE).unwrap_or(7);
    on_small_node(|node| {
        let mut differential = Differential::new(node);
        let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &seed_of(seed));
        let (start, mut told) = (Instant::now(), Instant::now());
        while differential.packets < wanted {
            let mut bytes = [0; INPUT];
            random.fill_bytes(&mut bytes[..]);
            differential.run(&bytes);
            if told.elapsed() > Duration::from_secs(10) {
                told = Instant::now();
                println!("{}", progress(differential.packets, start));
            }
        }
        differential.check_all();
        println!("{}, no difference", progress(differential.packets, start));
        assert_every_fate_was_met(&differential);
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn the_seeds_of_the_fuzz_target_meet_every_fate() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/packet");
    on_small_node(|node| {
        let mut differential = Differential::new(node);
        for seed in fs::read_dir(seeds).unwrap() {
            differential.run(&fs::read(seed.unwrap().path()).unwrap());
        }
        differential.check_all();
        assert_every_fate_was_met(&differential);
    });
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

fn seed_of(number: u64) -> [u8; 32] {
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&number.to_le_bytes());
    seed
}

fn progress(packets: u64, start: Instant) -> String {
    let rate = u128::from(packets) * 1000 / start.elapsed().as_millis().max(1);
    format!("packets: {packets}, {rate} a second")
}

fn assert_every_fate_was_met(differential: &Differential<'_>) {
    let met: BTreeSet<_> =
        differential.fates().map(|(hook, reason)| format!("{hook} {reason}")).collect();
    let all: BTreeSet<_> = FATES
        .iter()
        .flat_map(|(hook, reasons)| reasons.iter().map(move |reason| format!("{hook} {reason}")))
        .collect();
    assert_eq!(met, all, "fates of {} packets", differential.packets);
    let events: Vec<_> = differential.events().collect();
    assert_eq!(events, EVENTS, "events of {} packets", differential.packets);
}
