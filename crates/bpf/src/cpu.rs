//! How many CPUs the kernel may ever have: it sizes per-CPU values by that, not by those present.

use std::io;
use std::sync::OnceLock;

const POSSIBLE: &str = "/sys/devices/system/cpu/possible";

/// The number of possible CPUs, read once: the kernel fixes it at boot.
pub(crate) fn possible() -> io::Result<usize> {
    static COUNT: OnceLock<usize> = OnceLock::new();
    if let Some(count) = COUNT.get() {
        return Ok(*count);
    }
    let text = std::fs::read_to_string(POSSIBLE)
        .map_err(|error| io::Error::new(error.kind(), format!("{POSSIBLE}: {error}")))?;
    let count = parse(&text).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{POSSIBLE} holds {text:?}"))
    })?;
    Ok(*COUNT.get_or_init(|| count))
}

/// Counts a kernel CPU list such as `0-3,5`: the kernel lays out a value for each CPU in it, gaps
/// left out (`num_possible_cpus`).
fn parse(list: &str) -> Option<usize> {
    let mut count = 0;
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        count += last.checked_sub(first)? + 1;
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_counted_without_their_gaps() {
        assert_eq!(parse("0\n"), Some(1));
        assert_eq!(parse("0-3\n"), Some(4));
        assert_eq!(parse("0-1,4-7"), Some(6));
        assert_eq!(parse("0,2"), Some(2));
        assert_eq!(parse(""), None);
        assert_eq!(parse("3-1"), None);
        assert_eq!(parse("a-b"), None);
    }

    #[test]
    fn this_machine_has_at_least_one() {
        assert!(possible().unwrap() >= 1);
    }
}
