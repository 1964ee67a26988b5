//! The programs do what the model says: many packets, most of them nearly right.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod comparison;
mod model;
mod node;

use std::collections::BTreeSet;

use comparison::Differential;
use node::on_node;
use podwire_datapath::abi::{Hook, Reason};
use proptest::test_runner::{RngAlgorithm, TestRng};

const INPUTS: usize = 8192;

/// Fates that no packet can meet here: the kernel refuses to change a packet only without memory.
const UNREACHABLE: [Reason; 1] = [Reason::Unchangeable];

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
        let met: BTreeSet<_> = differential.fates().map(|(_, reason)| reason).collect();
        let all = Reason::ALL.iter().filter(|reason| !UNREACHABLE.contains(reason));
        let missed: Vec<_> = all.filter(|reason| !met.contains(reason)).collect();
        assert!(missed.is_empty(), "{} packets, none of them {missed:?}", differential.packets);
        let hooks: BTreeSet<_> = differential.fates().map(|(hook, _)| hook).collect();
        assert_eq!(hooks.into_iter().collect::<Vec<_>>(), Hook::ALL);
    });
}
