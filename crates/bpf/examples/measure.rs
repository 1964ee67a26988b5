//! Measures reading a map in batches against walking it key by key, and attaching two programs to a
//! device of a network namespace of its own. Needs root; not a test: its numbers depend on the
//! machine.
#![expect(clippy::print_stdout, reason = "an example")]

use std::time::Instant;

use podwire_bpf::HashMap;

const ENTRIES: u32 = 65_536;

fn main() -> podwire_bpf::Result<()> {
    let map = HashMap::<[u64; 2], [u64; 8]>::create("measure", ENTRIES)?;
    let entries: Vec<_> = (0..u64::from(ENTRIES)).map(|key| ([key, key], [key; 8])).collect();
    let report = |what: &str, begin: Instant| {
        let micros = begin.elapsed().as_secs_f64() * 1e6;
        println!("{what}: {:.3} us an entry", micros / f64::from(ENTRIES));
    };
    let begin = Instant::now();
    map.insert_batch(&entries)?;
    report("insert_batch", begin);
    for _ in 0..3 {
        let begin = Instant::now();
        let read = map.entries()?;
        report("entries", begin);
        assert_eq!(read.len(), entries.len());
        let begin = Instant::now();
        let walked = map.iter().collect::<Result<Vec<_>, _>>()?;
        report("iter", begin);
        assert_eq!(walked.len(), entries.len());
    }
    let begin = Instant::now();
    assert_eq!(map.drain()?.len(), entries.len());
    report("drain", begin);
    Ok(())
}
