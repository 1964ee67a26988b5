//! What a person sees: progress, outcomes, the final table. Colours only on a terminal.

use std::{
    error::Error,
    io::Write,
    time::{Duration, Instant},
};

use anstream::{eprintln, println};
use anstyle::{AnsiColor, Style};

pub const BOLD: Style = Style::new().bold();
pub const DIM: Style = Style::new().dimmed();
pub const GOOD: Style = AnsiColor::Green.on_default().bold();
pub const BAD: Style = AnsiColor::Red.on_default().bold();

/// Something begins.
pub fn heading(text: &str) {
    println!("{BOLD}== {text}{BOLD:#}");
    flush();
}

/// Something went as it should.
pub fn good(text: &str) {
    println!("{GOOD}ok{GOOD:#}    {text}");
    flush();
}

/// Something did not.
pub fn bad(text: &str) {
    println!("{BAD}FAIL{BAD:#}  {text}");
    flush();
}

/// Something to know.
pub fn note(text: &str) {
    println!("{DIM}      {text}{DIM:#}");
    flush();
}

/// An error with all its reasons, on standard error.
pub fn failure(error: &dyn Error) {
    eprintln!("{BAD}error{BAD:#}: {}", chain(error));
}

/// An error and its reasons on one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(reason) = source {
        text = format!("{text}: {reason}");
        source = reason.source();
    }
    text
}

/// `12.3 s`, or minutes and seconds.
pub fn seconds(time: Duration) -> String {
    match time.as_secs() {
        0..100 => format!("{:.1} s", time.as_secs_f64()),
        whole => format!("{} min {:02} s", whole / 60, whole % 60),
    }
}

/// Outcome of one stage.
#[derive(Debug)]
pub struct Stage {
    name: &'static str,
    started: Instant,
    elapsed: Duration,
    /// Tests or checks that passed.
    pub passed: u64,
    /// Tests or checks that failed.
    pub failed: u64,
    /// Tests or checks left out because something may be missing.
    pub skipped: u64,
    /// Tests that another stage runs.
    pub ignored: u64,
    /// Whether another stage counts the same tests.
    pub counted_elsewhere: bool,
}

impl Stage {
    /// Begins a stage.
    pub fn begin(name: &'static str) -> Self {
        heading(name);
        Self {
            name,
            started: Instant::now(),
            elapsed: Duration::ZERO,
            passed: 0,
            failed: 0,
            skipped: 0,
            ignored: 0,
            counted_elsewhere: false,
        }
    }

    /// Notes one check.
    pub fn check(&mut self, outcome: Result<(), String>, what: &str) {
        match outcome {
            Ok(()) => {
                self.passed += 1;
                good(what);
            }
            Err(why) => {
                self.failed += 1;
                bad(&format!("{what}: {why}"));
            }
        }
    }

    /// Ends it.
    pub fn end(mut self) -> Self {
        self.elapsed = self.started.elapsed();
        self
    }

    fn row(&self) -> String {
        let Self { name, passed, failed, skipped, ignored, elapsed, .. } = self;
        let style = if *failed > 0 { BAD } else { GOOD };
        let time = seconds(*elapsed);
        format!(
            "{style}{name:<34}{style:#} {passed:>6} {failed:>6} {skipped:>7} {ignored:>7}  {time:>12}"
        )
    }
}

/// Prints all stages and the total; the total's line is the last, and plain.
pub fn table(stages: &[Stage]) -> bool {
    println!();
    let titles = ["stage", "passed", "failed", "skipped", "ignored", "time"];
    let [stage, passed, failed, skipped, ignored, time] = titles;
    println!(
        "{BOLD}{stage:<34} {passed:>6} {failed:>6} {skipped:>7} {ignored:>7}  {time:>12}{BOLD:#}"
    );
    for stage in stages {
        println!("{}", stage.row());
    }
    let total: Duration = stages.iter().map(|stage| stage.elapsed).sum();
    println!("{DIM}{:<66} {:>12}{DIM:#}", "in all", seconds(total));
    for stage in stages.iter().filter(|stage| stage.counted_elsewhere) {
        let Stage { name, passed, ignored, .. } = stage;
        println!(
            "{name}: {passed} passed, {ignored} ignored with their reason; counted where root runs them"
        );
    }
    let once = || stages.iter().filter(|stage| !stage.counted_elsewhere);
    let passed: u64 = once().map(|stage| stage.passed).sum();
    let skipped: u64 = once().map(|stage| stage.skipped).sum();
    let failed: u64 = stages.iter().map(|stage| stage.failed).sum();
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    flush();
    failed == 0
}

fn flush() {
    // A closed pipe is noticed at the next line.
    let _ = std::io::stdout().flush();
}
