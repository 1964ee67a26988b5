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

/// Parses a kernel CPU list such as `0-3,5`; the count is the highest number plus one, since the
/// kernel lays out a slot for each number up to it.
fn parse(list: &str) -> Option<usize> {
    let mut highest = None;
    for range in list.trim().split(',') {
        let (_, last) = range.split_once('-').unwrap_or((range, range));
        highest = highest.max(Some(last.parse::<usize>().ok()?));
    }
    highest.map(|last| last + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_counted_to_their_highest_number() {
        assert_eq!(parse("0\n"), Some(1));
        assert_eq!(parse("0-3\n"), Some(4));
        assert_eq!(parse("0-1,4-7"), Some(8));
        assert_eq!(parse("0,2"), Some(3));
        assert_eq!(parse(""), None);
        assert_eq!(parse("a-b"), None);
    }

    #[test]
    fn this_machine_has_at_least_one() {
        assert!(possible().unwrap() >= 1);
    }
}
