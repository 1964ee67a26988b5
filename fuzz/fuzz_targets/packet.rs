//! Arbitrary packets through the programs that podwire ships, by `BPF_PROG_TEST_RUN`, beside a plain
//! model of what must become of them (`crates/datapath/tests/model`).
//!
//! An input is a sequence of packets and changes of the node's tables. Action, reason, counters, bytes,
//! mark, flows, events and fragments must be the model's. Needs root: the node is a lab host of its own.
#![no_main]
#![expect(clippy::print_stderr, reason = "`cargo xtask fuzz` reads how many packets there were")]

#[path = "../../crates/datapath/tests/comparison/mod.rs"]
mod comparison;
#[path = "../../crates/datapath/tests/model/mod.rs"]
mod model;
#[path = "../../crates/datapath/tests/node/mod.rs"]
mod node;

use std::{
    sync::{
        Mutex, OnceLock, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use libfuzzer_sys::fuzz_target;

use comparison::Differential;

/// Packets between two lines that tell how many there were.
const TOLD_AFTER: u64 = 1000;

/// The thread that is in the node's namespaces: what it is asked, and that it has done it.
struct Worker {
    inputs: SyncSender<Vec<u8>>,
    done: Receiver<()>,
}

static WORKER: OnceLock<Mutex<Worker>> = OnceLock::new();

fuzz_target!(|input: &[u8]| {
    let worker = WORKER.get_or_init(|| Mutex::new(start()));
    let worker = worker.lock().unwrap_or_else(PoisonError::into_inner);
    worker.inputs.send(input.to_vec()).expect("the node's thread ends only with the process");
    worker.done.recv().expect("the node's thread ends only with the process");
});

fn start() -> Worker {
    let (inputs, asked) = sync_channel::<Vec<u8>>(0);
    let (answer, done) = sync_channel(0);
    thread::spawn(move || {
        comparison::on_small_node(|node| {
            let mut differential = Differential::new(node);
            let mut told = 0;
            for input in asked {
                differential.run(&input);
                if differential.packets - told >= TOLD_AFTER {
                    told = differential.packets;
                    eprintln!("packets: {told}");
                }
                if answer.send(()).is_err() {
                    break;
                }
            }
        });
    });
    Worker { inputs, done }
}
