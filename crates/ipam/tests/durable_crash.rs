//! Durable leases of a process that is killed at any moment.
#![cfg(feature = "file")]
#![expect(clippy::unwrap_used, reason = "functions that tests share panic as tests do")]

mod clients;
mod random;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use std::{env, io, thread};

use podwire_ipam::durable::{FileStore, Ipam};

use clients::{BOOT, Event, Witness, pool, work};
use random::Rng;

const CLIENTS: usize = 16;

/// Tells the test program that it is the process to be killed, and where its file is.
const FILE: &str = "PODWIRE_CRASH_FILE";

/// How often a long run kills it.
const ROUNDS: &str = "PODWIRE_CRASH_ROUNDS";

fn open(file: &Path) -> Ipam<FileStore> {
    let (ipam, recovered) = Ipam::open(FileStore::open(file).unwrap(), BOOT).unwrap();
    assert_eq!((recovered.stray, recovered.dropped), (vec![], vec![]));
    ipam
}

#[test]
fn what_was_acknowledged_is_there_after_a_kill() {
    if let Some(file) = env::var_os(FILE) {
        return be_killed(Path::new(&file));
    }
    let wanted: Option<u64> = env::var(ROUNDS).ok().map(|number| number.parse().unwrap());
    let rounds = wanted.unwrap_or(20);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ipam");
    open(&file).add_pool(&pool()).unwrap();

    let mut rng = Rng::new(rounds);
    let mut witness = Witness::default();
    for round in 1..=rounds {
        let lifetime = Duration::from_micros(rng.next() % 150_000);
        for line in live_and_die(&file, lifetime) {
            witness.hear(line.parse().unwrap());
        }
        witness.compare(&open(&file));
        if wanted.is_some() && round % 10 == 0 {
            let acknowledged = witness.acknowledged;
            writeln!(io::stderr(), "{round} of {rounds} kills, {acknowledged} operations").unwrap();
        }
    }
    assert!(witness.acknowledged > rounds, "only {} operations", witness.acknowledged);
}

/// Runs the process until it has told something and so long has passed; gives what it told.
fn live_and_die(file: &Path, lifetime: Duration) -> Vec<String> {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "what_was_acknowledged_is_there_after_a_kill", "--nocapture"])
        .env(FILE, file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let told = BufReader::new(child.stderr.take().unwrap());
    let (first, begun) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut lines = Vec::new();
        for line in told.split(b'\n') {
            lines.push(String::from_utf8(line.unwrap()).unwrap());
            let _ = first.send(());
        }
        lines
    });
    let lives = begun.recv().is_ok();
    thread::sleep(lifetime);
    child.kill().unwrap();
    child.wait().unwrap();
    let lines = reader.join().unwrap();
    assert!(lives, "it said nothing");
    lines
}

/// Each line is one write, which a pipe takes whole or not at all.
fn be_killed(file: &Path) {
    let ipam = open(file);
    let tell = |event: Event| io::stderr().write_all(format!("{event}\n").as_bytes()).unwrap();
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (ipam, tell) = (&ipam, &tell);
            let seed = u64::from(std::process::id()) << 8 | client as u64;
            scope.spawn(move || work(ipam, client, seed, tell));
        }
    });
}
