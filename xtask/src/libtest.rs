//! Runs a test program and reads what its harness prints.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Command, Stdio},
    thread,
};

use crate::Result;

/// What one or more test programs did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed.
    pub failed: u64,
    /// Tests that were not asked for.
    pub ignored: u64,
    /// Ignored tests that do not say what they need.
    pub without_reason: Vec<String>,
    /// Everything it printed.
    pub output: String,
}

/// Runs it to its end.
pub fn run(mut command: Command) -> Result<Outcome> {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let errors = child.stderr.take();
    let errors = thread::spawn(move || {
        let mut text = Vec::new();
        errors.map(|mut errors| errors.read_to_end(&mut text)).transpose().map(|_| text)
    });
    let mut outcome = Outcome::default();
    let mut finished = false;
    let mut lines = child.stdout.take().map(BufReader::new);
    let mut line = Vec::new();
    while let Some(stdout) = &mut lines {
        line.clear();
        if stdout.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let text = String::from_utf8_lossy(&line);
        finished |= outcome.read(text.trim_end());
        outcome.output.push_str(&text);
    }
    let errors = errors.join().map_err(|_| "the reader of standard error panicked")??;
    outcome.output.push_str(&String::from_utf8_lossy(&errors));
    let status = child.wait()?;
    if !finished || (!status.success() && outcome.failed == 0) {
        // It crashed, or it is no harness that counts.
        outcome.failed += 1;
        outcome.output.push_str(&format!("ended with {status} and no result\n"));
    }
    Ok(outcome)
}

impl Outcome {
    /// Takes in a line, and tells whether it is that of a result.
    pub fn read(&mut self, line: &str) -> bool {
        if let Some((name, verdict)) =
            line.strip_prefix("test ").and_then(|l| l.split_once(" ... "))
        {
            if verdict == "ignored" {
                self.without_reason.push(name.to_owned());
            }
            return false;
        }
        let Some(counts) = line.strip_prefix("test result: ") else { return false };
        let counts = counts.split_once(". ").map_or(counts, |(_, counts)| counts);
        for part in counts.split(';') {
            let Some((number, what)) = part.trim().split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_summed_up() {
        let mut outcome = Outcome::default();
        let line = "test result: FAILED. 12 passed; 1 failed; 3 ignored; 0 measured; 2 filtered out; finished in 0.10s";
        assert!(outcome.read(line));
        assert!(outcome.read("test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s"));
        assert_eq!((outcome.passed, outcome.failed, outcome.ignored), (14, 1, 3));
    }

    #[test]
    fn an_ignored_test_must_say_why() {
        let mut outcome = Outcome::default();
        assert!(!outcome.read("test a ... ignored, needs root: namespaces"));
        assert!(!outcome.read("test b ... ignored"));
        assert!(!outcome.read("test c ... ok"));
        assert_eq!(outcome.without_reason, ["b"]);
    }

    #[test]
    fn a_program_that_prints_no_result_has_failed() {
        for program in ["true", "false"] {
            let outcome = run(Command::new(program)).unwrap();
            assert_eq!((outcome.passed, outcome.failed), (0, 1), "{}", outcome.output);
        }
    }

    #[test]
    fn a_crash_after_the_result_is_a_failure() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo 'test result: ok. 1 passed; 0 failed'; kill -SEGV $$"]);
        assert_eq!(run(command).unwrap().failed, 1);
    }
}
