//! How long a program takes, by difference.

use std::{
    panic::resume_unwind,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::{Pid, SysconfVar, sysconf},
};
use podwire_bpf::{Program, SkbContext, TestRun, TestRunOutput};

use crate::error::{Error, Result};

/// Repetitions of one call: some milliseconds, so that what a call costs by itself does not count
/// and the two programs of a difference meet the same weather.
const CHUNK: u64 = 50_000;

/// Repetitions of a measurement at least, whatever criterion asks for: of fewer, the difference would
/// be that of two system calls.
const FEWEST: u64 = 10_000;

/// Shortest difference that is reported: criterion takes no time for an error.
const LEAST: Duration = Duration::from_nanos(1);

/// Binds the calling thread to the last of its CPUs, the one that is disturbed least.
///
/// # Errors
///
/// [`Error::Pin`] if the kernel refuses.
pub fn bind_to_one_cpu() -> Result<()> {
    let own = Pid::from_raw(0);
    let allowed = sched_getaffinity(own).map_err(Error::Pin)?;
    let last = (0..CpuSet::count()).rev().find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(last.unwrap_or(0)).map_err(Error::Pin)?;
    sched_setaffinity(own, &one).map_err(Error::Pin)
}

/// Whether there is a CPU beside the one that [`bind_to_one_cpu`] binds to.
#[must_use]
pub fn has_another_cpu() -> bool {
    matches!(sysconf(SysconfVar::_NPROCESSORS_ONLN), Ok(Some(2..)))
}

/// Binds the calling thread to the first CPU.
///
/// # Errors
///
/// [`Error::Pin`] if the kernel refuses.
pub fn bind_to_another_cpu() -> Result<()> {
    let mut one = CpuSet::new();
    one.set(0).map_err(Error::Pin)?;
    sched_setaffinity(Pid::from_raw(0), &one).map_err(Error::Pin)
}

/// Runs over and over again on another CPU while `work` is done; gives its result and how often.
///
/// # Errors
///
/// If the program cannot be run, or answers wrongly.
pub fn beside<T>(run: &Run<'_>, what: &str, work: impl FnOnce() -> Result<T>) -> Result<(T, u64)> {
    let (is_running, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            let made = (|| -> Result<u64> {
                bind_to_another_cpu()?;
                let mut made = 0;
                while !is_over.load(Relaxed) {
                    run.time(what, FEWEST)?;
                    is_running.store(true, Relaxed);
                    made += FEWEST;
                }
                Ok(made)
            })();
            is_running.store(true, Relaxed);
            made
        });
        while !is_running.load(Relaxed) {
            thread::yield_now();
        }
        let result = work();
        is_over.store(true, Relaxed);
        let made = other.join().unwrap_or_else(|panic| resume_unwind(panic))?;
        Ok((result?, made))
    })
}

/// A program and the packet it is run on.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// The program.
    pub program: &'a Program,
    /// The packet from its link-layer header on.
    pub frame: &'a [u8],
    /// Its context.
    pub context: SkbContext,
    /// What every repetition answers.
    pub answer: u32,
}

impl Run<'_> {
    /// Runs that often, and gives the time of all repetitions by the clock of user space: the
    /// kernel's own is an average cut to whole nanoseconds.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, or the last answer is not the expected one.
    pub fn time(&self, what: &str, repetitions: u64) -> Result<(Duration, TestRunOutput)> {
        let repeat = u32::try_from(repetitions).unwrap_or(u32::MAX);
        let run = TestRun::new(self.frame).context(self.context).repeat(repeat);
        let start = Instant::now();
        let output = self.program.test_run(&run)?;
        let elapsed = start.elapsed();
        if output.return_value == self.answer {
            return Ok((elapsed, output));
        }
        Err(Error::Answer {
            what: what.to_owned(),
            program: self.program.name().to_owned(),
            found: output.return_value,
            expected: self.answer,
        })
    }
}

/// Two programs that differ by what is measured.
#[derive(Clone, Copy, Debug)]
pub struct Difference<'a> {
    /// The program with it.
    pub with: Run<'a>,
    /// The program without it.
    pub without: Run<'a>,
}

impl Difference<'_> {
    /// What `repetitions` of the difference take. The two programs take turns, so that what
    /// disturbs one disturbs the other. `check` sees what each turn of the first left behind.
    ///
    /// # Errors
    ///
    /// If a program cannot be run, or answers wrongly, or `check` says so.
    pub fn measure(
        &self,
        what: &str,
        repetitions: u64,
        mut check: impl FnMut(&TestRunOutput) -> Result<()>,
    ) -> Result<Measured> {
        let made = repetitions.max(FEWEST);
        let (mut with, mut without) = (Duration::ZERO, Duration::ZERO);
        let mut left = made;
        while left > 0 {
            let chunk = left.min(CHUNK);
            without += self.without.time(what, chunk)?.0;
            let (elapsed, output) = self.with.time(what, chunk)?;
            check(&output)?;
            with += elapsed;
            left -= chunk;
        }
        let elapsed = with.saturating_sub(without).max(LEAST);
        #[expect(clippy::cast_precision_loss, reason = "a quotient of numbers far below 2^52")]
        let share = repetitions as f64 / made as f64;
        Ok(Measured { elapsed: elapsed.mul_f64(share), made })
    }
}

/// What a difference took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// The time of as many repetitions as were asked for.
    pub elapsed: Duration,
    /// Repetitions of each program that were made.
    pub made: u64,
}
