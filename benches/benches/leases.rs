//! Leases out of the agent: over its socket, and on the disk before they are answered.
//!
//! The agent is a node's, in namespaces of its own, with its database in cargo's target folder, which
//! is on a disk where `/var/lib` of a node is. Time is that of one lease of all that clients ask for
//! at the same time; 200 us are 5,000 leases a second.
#![expect(clippy::print_stdout, reason = "it tells how many commits it took")]

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use criterion::{Criterion, Throughput};
use podwire_api::{Client, DEFAULT_RUN_DIR, EndpointId, LeaseRequest, Removed, socket_path};
use podwire_benches::{criterion, flat_group, must};
use podwire_lab::Host;
use podwire_node::{Agent, Config, runtime};
use tokio::sync::oneshot;

const CLIENTS: [usize; 2] = [1, 16];

fn main() {
    let host = must(Host::new());
    let state = must(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")));
    let cidrs = ["10.0.0.0/12", "fd00::/64"].map(|cidr| must(cidr.parse()));
    let mut config = Config::new(must("bench".parse()), cidrs.to_vec());
    config.state_dir = state.path().to_owned();

    let (stop, stopped) = oneshot::channel::<()>();
    let (started, start) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            host.run(move || {
                let agent = must(Agent::start(&config));
                must(started.send(()));
                let stop = async { drop(stopped.await) };
                must(must(runtime()).block_on(agent.run(stop)));
            });
        });
        must(start.recv());
        host.run(|| {
            let mut criterion = criterion();
            CLIENTS.into_iter().for_each(|clients| measure(&mut criterion, clients));
            criterion.final_summary();
        });
        drop(stop);
    });
}

fn measure(criterion: &mut Criterion, clients: usize) {
    let connect = |_| Client::new(socket_path(DEFAULT_RUN_DIR.as_ref()));
    let all: Vec<Client> = (0..clients).map(connect).collect();
    let before = counts(&all[0]);
    let mut group = flat_group(criterion, "agent/lease");
    group.throughput(Throughput::Elements(1));
    group.bench_function(clients.to_string(), |bencher| {
        bencher.iter_custom(|leases| time(&all, leases));
    });
    group.finish();
    let after = counts(&all[0]);
    let (requests, commits) = (after.0 - before.0, after.1 - before.1);
    if commits > 0 {
        println!("{clients} clients: {requests} leases and releases in {commits} commits");
    }
}

/// How long it takes to lease so many, of all clients at the same time.
fn time(clients: &[Client], leases: u64) -> Duration {
    let share = leases.div_ceil(clients.len() as u64);
    let ids = |client: usize| {
        (0..share).map(move |number| {
            must(EndpointId::new(&format!("{client:032x}{number:032x}"), "eth0"))
        })
    };
    let each = |act: &(dyn Fn(&Client, EndpointId) + Sync)| {
        let began = Instant::now();
        thread::scope(|scope| {
            for (number, client) in clients.iter().enumerate() {
                scope.spawn(move || ids(number).for_each(|id| act(client, id)));
            }
        });
        began.elapsed()
    };
    let took = each(&|client, id| {
        let reply = must(client.lease(&LeaseRequest::new(id)));
        assert_eq!(reply.addresses.len(), 2, "one of each family");
    });
    each(&|client, id| assert_eq!(must(client.release(&id)), Removed::Removed, "it was leased"));
    // The share of each is rounded up.
    took.mul_f64(leases as f64 / (share * clients.len() as u64) as f64)
}

/// Requests and commits of the agent's database so far.
fn counts(client: &Client) -> (u64, u64) {
    let metrics = must(client.metrics());
    let value = |name: &str| {
        let line = metrics.lines().find(|line| line.starts_with(name));
        let number = line.and_then(|line| line.rsplit(' ').next());
        must(number.unwrap_or("0").parse())
    };
    (value("podwire_store_requests_total "), value("podwire_store_commits_total "))
}
