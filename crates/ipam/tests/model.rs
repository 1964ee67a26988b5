//! The allocator against a model that is nothing but sets, over random sequences of operations.

#[path = "model/mod.rs"]
mod model;

use ipnetwork::IpNetwork;
use podwire_ipam::{Addresses, Allocator, Family};
use proptest::prelude::*;

use model::{Step, Wish, config, grantable, run};

fn step() -> impl Strategy<Value = Step> {
    let owner = 0u8..16;
    let wish = prop_oneof![
        4 => Just(Wish::Any),
        1 => Just(Wish::Dual),
        1 => Just(Wish::Only(Family::V4)),
        1 => Just(Wish::Only(Family::V6)),
        2 => (0usize..24).prop_map(Wish::Explicit),
    ];
    prop_oneof![
        12 => (owner.clone(), wish).prop_map(|(owner, wish)| Step::Allocate(owner, wish)),
        5 => owner.clone().prop_map(Step::Confirm),
        8 => owner.prop_map(Step::Release),
        3 => Just(Step::Expire),
        3 => (0u8..15).prop_map(Step::Wait),
        1 => (0usize..24).prop_map(Step::Reserve),
        1 => (0usize..24).prop_map(Step::Unreserve),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #[test]
    fn behaves_like_sets(steps in prop::collection::vec(step(), 1..150)) {
        run(&steps);
    }
}

#[test]
fn the_model_and_the_pool_have_the_same_size() {
    let pool = Allocator::new(&config()).unwrap();
    let size: u128 = pool.usage()[0].cidrs.iter().map(|entry| entry.usage.size).sum();
    assert_eq!(size, grantable().len() as u128);
    assert!(config().cidrs.iter().all(|cidr: &IpNetwork| pool.contains(cidr.ip())));
    assert_eq!(Addresses::default().to_string(), "no address");
}
