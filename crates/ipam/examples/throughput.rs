//! measure
use podwire_ipam::durable::{Change, FileStore, Journal, Store};
use std::time::Instant;

fn main() {
    let folder = tempfile::tempdir_in(std::env::args().nth(1).unwrap_or("/tmp".into())).unwrap();
    let change = |t: usize, i: usize| {
        vec![
            Change::put(
                "leases",
                format!("{t}-0123456789abcdef0123456789abcdef-{i}/eth0"),
                format!(
                    "{{\"addresses\":[\"10.0.{t}.{i}\",\"fd00::{t}:{i}\"],\"state\":{{\"pending\":{{\"secs\":1000000,\"nanos\":{i}}}}}}}"
                ),
            ),
            Change::remove("cooling", format!("10.0.{t}.{i}")),
        ]
    };
    let mut store = FileStore::open(&folder.path().join("a")).unwrap();
    let mut times: Vec<_> = (0..500)
        .map(|i| {
            let b = Instant::now();
            store.commit(&change(99, i)).unwrap();
            b.elapsed()
        })
        .collect();
    times.sort();
    println!("bare commit: median {:?} p90 {:?}", times[250], times[450]);
    let journal = Journal::start(store).unwrap();
    let mut times: Vec<_> = (0..500)
        .map(|i| {
            let b = Instant::now();
            journal.commit(change(98, i)).unwrap();
            b.elapsed()
        })
        .collect();
    times.sort();
    println!("journal, alone: median {:?} p90 {:?}", times[250], times[450]);
    for threads in [1, 4, 16, 64] {
        let before = journal.counts();
        let begin = Instant::now();
        let each = 8000 / threads;
        std::thread::scope(|s| {
            for t in 0..threads {
                let j = &journal;
                s.spawn(move || {
                    for i in 0..each {
                        j.commit(change(t, i)).unwrap()
                    }
                });
            }
        });
        let took = begin.elapsed();
        let c = journal.counts();
        println!(
            "{threads} threads: {:.0}/s, {} requests in {} commits, {:?} a commit",
            (threads * each) as f64 / took.as_secs_f64(),
            c.requests - before.requests,
            c.commits - before.commits,
            took / (c.commits - before.commits) as u32
        );
    }
}
