//! What people see while they wait, on standard error: standard output carries the rows.

use std::{
    io::{IsTerminal, Write, stderr},
    time::{Duration, Instant},
};

use anstream::{eprint, eprintln};

use super::turns::Series;
use crate::report::{BOLD, DIM};

const INTERVAL: Duration = Duration::from_millis(200);

/// Headings, and a line that changes while a work is done; in a pipe, one line when it is done.
#[derive(Debug)]
pub struct Progress {
    changes: bool,
    shown: Option<Instant>,
}

impl Progress {
    pub fn new() -> Self {
        Self { changes: stderr().is_terminal(), shown: None }
    }

    /// Something begins.
    pub fn heading(&self, text: &str) {
        eprintln!("{BOLD}== {text}{BOLD:#}");
    }

    /// Run `run` of `runs` begins.
    pub fn run(&mut self, run: usize, runs: usize, series: &Series) {
        if !self.changes || self.shown.is_some_and(|shown| shown.elapsed() < INTERVAL) {
            return;
        }
        self.shown = Some(Instant::now());
        let medians = if run == 0 { series.work().to_owned() } else { series.summary() };
        eprint!("\r\x1b[K{DIM}      run {} of {runs}: {medians}{DIM:#}", run + 1);
        // It is for eyes only.
        let _ = stderr().flush();
    }

    /// All runs are done.
    pub fn done(&mut self, runs: usize, series: &[&Series]) {
        if self.changes {
            eprint!("\r\x1b[K");
        }
        self.shown = None;
        for series in series {
            eprintln!("      {} (medians of {runs})", series.summary());
        }
    }
}
