//! Sequences of operations on the allocator, against the model of its property test
//! (`crates/ipam/tests/model`): two bytes a step, at most 64 steps.
#![no_main]

#[path = "../../crates/ipam/tests/model/mod.rs"]
mod model;

use libfuzzer_sys::fuzz_target;
use podwire_ipam::Family;

use model::{Step, Wish};

fuzz_target!(|input: &[u8]| {
    let steps: Vec<_> = input.chunks_exact(2).take(64).map(step).collect();
    model::run(&steps);
});

fn step(bytes: &[u8]) -> Step {
    let (what, which) = (bytes[0], bytes[1]);
    let owner = which % 16;
    let wish = match which >> 4 {
        0..4 => Wish::Any,
        4..6 => Wish::Dual,
        6 => Wish::Only(Family::V4),
        7 => Wish::Only(Family::V6),
        _ => Wish::Explicit(usize::from(what >> 3)),
    };
    match what % 8 {
        0 | 1 => Step::Allocate(owner, wish),
        2 => Step::Confirm(owner),
        3 => Step::Release(owner),
        4 if which % 8 == 0 => Step::Restart,
        4 => Step::Expire,
        5 => Step::Wait(owner),
        6 => Step::Reserve(which.into()),
        _ => Step::Unreserve(which.into()),
    }
}
