//! Lookups inside the kernel, by kind of table and number of entries.

use criterion::{Criterion, criterion_group, criterion_main};
use podwire_benches::{
    criterion, flat_group,
    lookup::{Lookup, Table},
    must, timing,
};

const ENTRIES: [u32; 4] = [100, 10_000, 100_000, 1_000_000];

fn lookups(criterion: &mut Criterion) {
    must(timing::bind_to_one_cpu());
    let mut group = flat_group(criterion, "lookup");
    for table in Table::ALL {
        for entries in ENTRIES {
            // Filled when criterion first asks, which it does only for what its filter lets pass.
            let mut filled = None;
            group.bench_function(format!("{}/{entries}", table.name()), |bencher| {
                let lookup = filled.get_or_insert_with(|| must(Lookup::new(table, entries)));
                bencher.iter_custom(|repetitions| must(lookup.measure(repetitions)));
            });
        }
    }
}

criterion_group! { name = benches; config = criterion(); targets = lookups }
criterion_main!(benches);
