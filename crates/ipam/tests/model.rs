//! The allocator against a model that is nothing but sets and lists, over random sequences of
//! operations.

#[path = "model/mod.rs"]
mod model;

use podwire_ipam::Family;
use proptest::prelude::*;

use model::{Families, Lists, Step, Wish, run};

/// Numbers beyond the last one stand for others.
const OWNERS: u8 = 20;
const NAMES: u8 = 4;
const ADDRESSES: usize = 30;
const POOLS: usize = 5;
const CIDRS: usize = 11;

fn wish() -> impl Strategy<Value = Wish> {
    let families = prop_oneof![
        4 => Just(Families::Any),
        1 => Just(Families::Dual),
        1 => Just(Families::Only(Family::V4)),
        1 => Just(Families::Only(Family::V6)),
    ];
    // The fifth pool never exists.
    let pool = || prop_oneof![16 => 0..POOLS - 1, 1 => Just(POOLS - 1)];
    let list = move || prop::collection::vec(pool(), 1..4);
    let pools = prop_oneof![
        3 => Just(Lists::Default),
        5 => list().prop_map(Lists::Paired),
        2 => (list(), list()).prop_map(|(v4, v6)| Lists::Each(v4, v6)),
    ];
    let explicit = prop::option::weighted(0.2, 0..ADDRESSES);
    let name = prop::option::weighted(0.25, 0..NAMES);
    (families, explicit, pools, name).prop_map(|(families, explicit, pools, name)| Wish {
        families,
        explicit,
        pools,
        name,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let owner = 0..OWNERS;
    let place = || (0..POOLS, 0..CIDRS);
    let cidrs = prop::collection::vec(0..CIDRS, 0..3);
    prop_oneof![
        24 => (owner.clone(), wish()).prop_map(|(owner, wish)| Step::Allocate(owner, wish)),
        9 => owner.clone().prop_map(Step::Confirm),
        12 => owner.prop_map(Step::Release),
        3 => Just(Step::Expire),
        5 => (0u8..15).prop_map(Step::Wait),
        2 => (0..ADDRESSES).prop_map(Step::Reserve),
        2 => (0..ADDRESSES).prop_map(Step::Unreserve),
        2 => (0..NAMES).prop_map(Step::Forget),
        5 => place().prop_map(|(pool, cidr)| Step::AddCidr(pool, cidr)),
        3 => place().prop_map(|(pool, cidr)| Step::DrainCidr(pool, cidr)),
        3 => place().prop_map(|(pool, cidr)| Step::RemoveCidr(pool, cidr)),
        2 => (0..POOLS - 1, cidrs).prop_map(|(pool, cidrs)| Step::AddPool(pool, cidrs)),
        1 => (0..POOLS).prop_map(Step::RemovePool),
        1 => Just(Step::Restart),
        1 => (0..CIDRS).prop_map(Step::RestartWithout),
    ]
}

proptest! {
    #[test]
    fn behaves_like_sets_and_lists(steps in prop::collection::vec(step(), 1..200)) {
        run(&steps);
    }
}
