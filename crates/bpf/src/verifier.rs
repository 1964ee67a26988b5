//! The verifier's log, and the one line of it that says why.

use std::io;

/// What the kernel wrote while it checked a program or type information.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifierLog(String);

impl VerifierLog {
    /// The whole log.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last line that gives a reason: what follows it in a log are counters.
    pub fn summary(&self) -> Option<&str> {
        self.0.lines().map(str::trim).rfind(|line| !line.is_empty() && !is_statistics(line))
    }

    fn from_buffer(mut buffer: Vec<u8>) -> Self {
        if let Some(end) = buffer.iter().position(|byte| *byte == 0) {
            buffer.truncate(end);
        }
        Self(String::from_utf8_lossy(&buffer).into_owned())
    }
}

/// Lines of `print_verification_stats` in kernel/bpf/verifier.c.
fn is_statistics(line: &str) -> bool {
    line.starts_with("processed ")
        || line.starts_with("verification time ")
        || line.starts_with("stack depth ")
}

/// Log levels of bpf(2): 1 is the reasons with the instructions that lead to them, 4 the counters.
pub(crate) const LOG_LEVEL: u32 = 1 | 4;

const FIRST_LOG: usize = 64 << 10;
/// The largest buffer that every kernel takes: `UINT_MAX >> 8` before 5.20.
const LARGEST_LOG: usize = (u32::MAX >> 8) as usize;

/// Calls `load` without a log, and when that fails once more with a log as long as is needed.
///
/// The log of a program that loads is never wanted, and writing it costs several times the check.
pub(crate) fn with_log<T>(
    mut load: impl FnMut(&mut [u8]) -> io::Result<T>,
) -> Result<T, (VerifierLog, io::Error)> {
    let mut size = FIRST_LOG;
    let mut retries_left = 5;
    let mut first = loop {
        match load(&mut []) {
            Ok(loaded) => return Ok(loaded),
            // A signal while the verifier runs makes it give up; the kernel asks for a retry.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && retries_left > 0 => {
                retries_left -= 1;
            }
            Err(error) => break error,
        }
    };
    loop {
        let mut log = vec![0; size];
        match load(&mut log) {
            Ok(loaded) => return Ok(loaded),
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && size < LARGEST_LOG => {
                size = (size * 8).min(LARGEST_LOG);
            }
            Err(error) => {
                // A log that is still cut off says why the buffer, not why the program.
                if error.raw_os_error() != Some(libc::ENOSPC) {
                    first = error;
                }
                return Err((VerifierLog::from_buffer(log), first));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(text: &str) -> VerifierLog {
        VerifierLog(text.into())
    }

    #[test]
    fn the_summary_is_the_last_line_that_gives_a_reason() {
        let text = "0: R1=ctx() R10=fp0\n5: (79) r1 = *(u64 *)(r0 +0)\n\
                    R0 invalid mem access 'map_value_or_null'\n\
                    verification time 103 usec\nstack depth 8\n\
                    processed 6 insns (limit 1000000) max_states_per_insn 0\n\n";
        assert_eq!(log(text).summary(), Some("R0 invalid mem access 'map_value_or_null'"));
        assert_eq!(log("").summary(), None);
        assert_eq!(log("processed 1 insns\n").summary(), None);
    }

    #[test]
    fn the_log_grows_until_it_fits() {
        let mut sizes = Vec::new();
        let result: Result<(), _> = with_log(|log| {
            sizes.push(log.len());
            if log.is_empty() {
                return Err(io::Error::from_raw_os_error(libc::EACCES));
            }
            if log.len() < 1 << 20 {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            log[..4].copy_from_slice(b"why\n");
            Err(io::Error::from_raw_os_error(libc::EACCES))
        });
        let (log, error) = result.unwrap_err();
        assert_eq!(sizes, [0, 64 << 10, 512 << 10, 4 << 20]);
        assert_eq!(log.summary(), Some("why"));
        assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    }

    #[test]
    fn an_interrupted_load_is_tried_again() {
        let mut calls = 0;
        let loaded = with_log(|log| {
            assert!(log.is_empty());
            calls += 1;
            if calls < 3 { Err(io::Error::from_raw_os_error(libc::EAGAIN)) } else { Ok(calls) }
        });
        assert_eq!(loaded.unwrap(), 3);
    }
}
