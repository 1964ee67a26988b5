//! Sequences of operations on the allocator, against the model of its property test
//! (`crates/ipam/tests/model`): four bytes a step, at most 64 steps.
#![no_main]

#[path = "../../crates/ipam/tests/model/mod.rs"]
mod model;

use libfuzzer_sys::fuzz_target;
use podwire_ipam::Family;

use model::{Families, Lists, Step, Wish};

fuzz_target!(|input: &[u8]| {
    let steps: Vec<_> = input.chunks_exact(4).take(64).map(step).collect();
    model::run(&steps);
});

fn step(bytes: &[u8]) -> Step {
    let [what, which, more, most] = [bytes[0], bytes[1], bytes[2], bytes[3]];
    let owner = which % 20;
    let (number, place) = (usize::from(which), (usize::from(which), usize::from(more)));
    match what % 24 {
        0..=8 => Step::Allocate(owner, wish(which, more, most)),
        9 | 10 => Step::Confirm(owner),
        11..=13 => Step::Release(owner),
        14 => Step::Expire,
        15 => Step::Wait(which % 15),
        16 => Step::Reserve(number),
        17 => Step::Unreserve(number),
        18 => Step::Forget(which),
        19 => Step::AddCidr(place.0, place.1),
        20 => Step::DrainCidr(place.0, place.1),
        21 => Step::RemoveCidr(place.0, place.1),
        22 if most % 4 == 0 => Step::RemovePool(number),
        22 => Step::AddPool(number, vec![place.1, most.into()]),
        _ if most % 4 == 0 => Step::RestartWithout(number),
        _ => Step::Restart,
    }
}

/// Whose owner is `which`, whose pools are in `more` and whose addresses in `most`.
fn wish(which: u8, more: u8, most: u8) -> Wish {
    let families = match most >> 6 {
        0 => Families::Dual,
        1 => Families::Only(Family::V4),
        2 => Families::Only(Family::V6),
        _ => Families::Any,
    };
    let explicit = (which >= 200).then_some(usize::from(most % 32));
    let name = which.is_multiple_of(4).then_some(which >> 6);
    let pools = [more, more >> 2, more >> 4].map(|bits| usize::from(bits % 4));
    let pools = match more >> 6 {
        0 => Lists::Default,
        1 => Lists::Each(pools[..1].to_vec(), pools[1..].to_vec()),
        2 => Lists::Paired(pools[..2].to_vec()),
        _ => Lists::Paired(pools.to_vec()),
    };
    Wish { families, explicit, pools, name }
}
