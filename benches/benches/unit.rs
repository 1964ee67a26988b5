//! The unit H: one lookup of one key.

use criterion::{Criterion, criterion_group, criterion_main};
use podwire_benches::{criterion, flat_group, lookup::Unit, must, timing};

fn unit(criterion: &mut Criterion) {
    must(timing::bind_to_one_cpu());
    let unit = must(Unit::new());
    let mut group = flat_group(criterion, "unit");
    group.bench_function("h", |bencher| {
        bencher.iter_custom(|repetitions| must(unit.measure(repetitions)));
    });
}

criterion_group! { name = benches; config = criterion(); targets = unit }
criterion_main!(benches);
