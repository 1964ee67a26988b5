//! What to change, of ten thousand routes.

use std::{hint::black_box, net::Ipv4Addr};

use criterion::{Criterion, criterion_group, criterion_main};
use podwire_benches::{criterion, must};
use podwire_netlink::{IfIndex, Route, RouteProtocol};
use podwire_route::{Desired, Observed, Owner, plan};

const ROUTES: u32 = 10_000;

/// One route in so many is to be another.
const CHANGED: u32 = 100;

fn plans(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route");
    let owner = Owner::new(RouteProtocol(80));
    let mut bench = |name: &str, changes: usize, desired: Desired| {
        let observed = Observed {
            routes: (0..ROUTES).map(|number| there(route(number, 2))).collect(),
            ..Observed::default()
        };
        group.bench_function(format!("{name}/{ROUTES}"), |bencher| {
            let made = plan(&desired, &observed, &owner);
            assert_eq!(made.changes.len(), changes, "changes: {:?}", made.changes.first());
            assert!(made.conflicts.is_empty(), "conflicts");
            bencher.iter(|| plan(black_box(&desired), black_box(&observed), &owner));
        });
    };
    let desired = |device: fn(u32) -> u32| Desired {
        routes: (0..ROUTES).map(|number| route(number, device(number))).collect(),
        ..Desired::default()
    };
    bench("plan", 0, desired(|_| 2));
    let changes = must(usize::try_from(ROUTES / CHANGED));
    bench("plan_change", changes, desired(|n| if n.is_multiple_of(CHANGED) { 3 } else { 2 }));
    group.finish();
}

/// A /24 behind a node of its own.
fn route(number: u32, device: u32) -> Route {
    let prefix = Ipv4Addr::from(0x0a00_0000 + (number << 8));
    let gateway = Ipv4Addr::from(0xac10_0000 + number + 1);
    let device = IfIndex::new(device).expect("not zero");
    Route::new(must(format!("{prefix}/24").parse())).via(gateway.into()).dev(device)
}

/// As the kernel tells of it once it is there.
fn there(mut route: Route) -> Route {
    route.protocol = RouteProtocol(80);
    route
}

criterion_group! { name = benches; config = criterion(); targets = plans }
criterion_main!(benches);
