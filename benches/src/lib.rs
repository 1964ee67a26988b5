//! What podwire's benchmarks share.
//!
//! `cargo xtask bench` runs them and writes a report; `cargo bench -p podwire-benches --bench ipam`
//! runs one file of them alone.
//!
//! What runs in the kernel is measured under `BPF_PROG_TEST_RUN`, by difference: [`timing`] runs a
//! program with what is measured and one without it in turns. Every repetition is checked, by
//! counters that the programs keep; a figure for wrong work is an [`Error`], and ends the benchmark.
//!
//! Minimum kernel version: 6.6. Privileges: those of an agent, in practice root.

#![forbid(unsafe_code)]

pub mod datapath;
mod error;
#[path = "../kernel/src/keys.rs"]
mod keys;
pub mod lookup;
pub mod timing;

use std::{fmt, time::Duration};

use criterion::{BenchmarkGroup, Criterion, SamplingMode, measurement::WallTime};

pub use error::{Error, Result};

/// How every benchmark here is sampled: twenty samples after a short warm-up.
#[must_use]
pub fn criterion() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args()
}

/// A group whose samples are of one length each, as suits what is measured by difference.
pub fn flat_group<'c>(criterion: &'c mut Criterion, name: &str) -> BenchmarkGroup<'c, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sampling_mode(SamplingMode::Flat);
    group
}

/// The value, or the end of the benchmark with the error on standard error.
///
/// # Panics
///
/// If it is an error.
pub fn must<T, E: fmt::Display>(outcome: std::result::Result<T, E>) -> T {
    outcome.unwrap_or_else(|error| panic!("{error:#}"))
}
