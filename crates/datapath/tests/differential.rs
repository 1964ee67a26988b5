//! The programs do what the model says: many packets, most of them nearly right.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod comparison;
mod model;
mod node;

use std::{collections::BTreeSet, fs, path::Path};

use comparison::Differential;
use node::on_node;
use podwire_datapath::abi::{Hook, Reason};
use proptest::test_runner::{RngAlgorithm, TestRng};

const INPUTS: usize = 8192;

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
            Reason::UnknownFragment,
            Reason::ExtensionHeaders,
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
        ],
    ),
];

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn programs_and_model_agree() {
    use proptest::prelude::Rng;
    on_node(|node| {
        let mut differential = Differential::new(node);
        let mut random = TestRng::from_seed(RngAlgorithm::XorShift, &[7; 16]);
        for _ in 0..INPUTS {
            let mut bytes = [0; 256];
            random.fill_bytes(&mut bytes[..]);
            differential.run(&bytes);
        }
        differential.check_all();
        assert_every_fate_was_met(&differential);
    });
}

#[test]
#[ignore = "needs root: loads programs in a namespace of its own"]
fn the_seeds_of_the_fuzz_target_meet_every_fate() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/packet");
    on_node(|node| {
        let mut differential = Differential::new(node);
        for seed in fs::read_dir(seeds).unwrap() {
            differential.run(&fs::read(seed.unwrap().path()).unwrap());
        }
        differential.check_all();
        assert_every_fate_was_met(&differential);
    });
}

fn assert_every_fate_was_met(differential: &Differential<'_>) {
    let met: BTreeSet<_> =
        differential.fates().map(|(hook, reason)| format!("{hook} {reason}")).collect();
    let all: BTreeSet<_> = FATES
        .iter()
        .flat_map(|(hook, reasons)| reasons.iter().map(move |reason| format!("{hook} {reason}")))
        .collect();
    assert_eq!(met, all, "fates of {} packets", differential.packets);
}
