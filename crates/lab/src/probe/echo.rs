//! What an echo carries, and the accounts of both ends.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

const MAGIC: [u8; 4] = *b"pwlb";

/// Magic, sender, sequence number; the rest is a pattern.
pub(super) const SMALLEST: usize = 16;

/// What the sender of echo requests saw.
#[derive(Clone, Debug, Default)]
pub struct EchoReport {
    /// The number that marks this sender's requests; see [`Arrivals`].
    pub sender: u32,
    /// Requests sent, or tried to.
    pub sent: u64,
    /// Requests that were answered.
    pub received: u64,
    /// Sequence numbers of the requests that were not, the first being 0.
    pub lost: Vec<u64>,
    /// Answers beyond the first to the same request.
    pub duplicates: u64,
    /// Answers that came after the answer to a later request.
    pub reordered: u64,
    /// Errors of the socket, such as those that ICMP reports.
    pub errors: Vec<String>,
    /// Mean time to the answer.
    pub mean: Duration,
    /// Longest time to an answer.
    pub worst: Duration,
}

impl EchoReport {
    /// Something was sent, and all of it answered exactly once without an error.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.sent > 0 && self.lost.is_empty() && self.errors.is_empty() && self.duplicates == 0
    }
}

impl fmt::Display for EchoReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, received, mean, worst, .. } = self;
        write!(f, "{received} of {sent} answered, mean {mean:.0?}, worst {worst:.0?}")?;
        if !self.lost.is_empty() {
            let first: Vec<_> = self.lost.iter().take(10).map(u64::to_string).collect();
            write!(f, ", {} lost (first: {})", self.lost.len(), first.join(" "))?;
        }
        if self.duplicates > 0 {
            write!(f, ", {} duplicates", self.duplicates)?;
        }
        if let Some(first) = self.errors.first() {
            write!(f, ", {} errors (first: {first})", self.errors.len())?;
        }
        Ok(())
    }
}

/// What a receiver saw of echo requests, by sender.
#[derive(Clone, Debug, Default)]
pub struct Arrivals {
    senders: BTreeMap<u32, (BTreeSet<u64>, u64)>,
}

impl Arrivals {
    /// Number of different requests of this sender that arrived.
    #[must_use]
    pub fn received(&self, sender: u32) -> u64 {
        self.senders.get(&sender).map_or(0, |(seen, _)| seen.len() as u64)
    }

    /// Number of requests of this sender that arrived once more.
    #[must_use]
    pub fn duplicates(&self, sender: u32) -> u64 {
        self.senders.get(&sender).map_or(0, |(_, duplicates)| *duplicates)
    }

    /// Sequence numbers below `sent` that did not arrive.
    #[must_use]
    pub fn missing(&self, sender: u32, sent: u64) -> Vec<u64> {
        let empty = BTreeSet::new();
        let seen = self.senders.get(&sender).map_or(&empty, |(seen, _)| seen);
        (0..sent).filter(|sequence| !seen.contains(sequence)).collect()
    }

    pub(super) fn note(&mut self, token: Token) {
        let (seen, duplicates) = self.senders.entry(token.sender).or_default();
        if !seen.insert(token.sequence) {
            *duplicates += 1;
        }
    }
}

/// What marks a request as one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) sender: u32,
    pub(super) sequence: u64,
}

impl Token {
    /// The payload of `size` bytes, at least [`SMALLEST`].
    pub(super) fn payload(self, size: usize) -> Vec<u8> {
        let mut payload = Vec::with_capacity(size);
        payload.extend(MAGIC);
        payload.extend(self.sender.to_be_bytes());
        payload.extend(self.sequence.to_be_bytes());
        payload.extend((SMALLEST..size).map(pattern));
        payload
    }

    /// Of a payload that is ours and arrived as it was sent.
    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        let (head, rest) = payload.split_at_checked(SMALLEST)?;
        let intact = rest.iter().zip(SMALLEST..).all(|(&byte, at)| byte == pattern(at));
        (head[..4] == MAGIC && intact).then_some(())?;
        Some(Self {
            sender: u32::from_be_bytes(head[4..8].try_into().ok()?),
            sequence: u64::from_be_bytes(head[8..].try_into().ok()?),
        })
    }
}

/// Each byte of the pattern differs from its neighbours, also 256 bytes further on.
pub(super) fn pattern(at: usize) -> u8 {
    let [low, high, ..] = at.to_le_bytes();
    low ^ high.wrapping_mul(31)
}

/// Sends a request, and receives answers.
pub(super) trait Channel: Send {
    fn send(&mut self, sequence: u64) -> io::Result<()>;
    /// The sequence number of the next answer, or nothing if none comes in time.
    fn receive(&mut self, patience: Duration) -> io::Result<Option<u64>>;
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    /// Without a count it goes on until told to stop.
    pub(super) count: Option<u64>,
    pub(super) interval: Duration,
    /// How long to wait for answers after the last request.
    pub(super) patience: Duration,
}

pub(super) fn exchange(
    channel: &mut dyn Channel,
    schedule: Schedule,
    stop: &AtomicBool,
) -> EchoReport {
    let mut accounts = Accounts::default();
    let mut due = Instant::now();
    let more = |sent: u64| {
        let count = schedule.count.is_none_or(|count| sent < count);
        // Stopped or not, one is always sent.
        count && (sent == 0 || !stop.load(Ordering::Relaxed))
    };
    while more(accounts.report.sent) {
        if Instant::now() >= due {
            accounts.send(channel);
            due += schedule.interval;
        }
        // All that is there, even when the next request is overdue.
        loop {
            let left = due.saturating_duration_since(Instant::now());
            let answered = accounts.receive(channel, left.min(Duration::from_millis(50)));
            if !answered || left.is_zero() {
                break;
            }
        }
    }
    let end = Instant::now() + schedule.patience;
    while accounts.open() > 0 {
        let patience = end.saturating_duration_since(Instant::now());
        if patience.is_zero() {
            break;
        }
        accounts.receive(channel, patience);
    }
    accounts.close()
}

#[derive(Default)]
struct Accounts {
    report: EchoReport,
    /// By sequence number: when it was sent, and whether it was answered.
    requests: Vec<(Instant, bool)>,
    latest: u64,
    total: Duration,
}

impl Accounts {
    fn send(&mut self, channel: &mut dyn Channel) {
        let sequence = self.report.sent;
        self.requests.push((Instant::now(), false));
        self.report.sent += 1;
        if let Err(error) = channel.send(sequence) {
            self.report.errors.push(format!("send {sequence}: {error}"));
        }
    }

    /// Tells whether there was something.
    fn receive(&mut self, channel: &mut dyn Channel, patience: Duration) -> bool {
        match channel.receive(patience) {
            Ok(Some(sequence)) => self.answered(sequence),
            Ok(None) => return false,
            Err(error) => self.report.errors.push(format!("receive: {error}")),
        }
        true
    }

    fn answered(&mut self, sequence: u64) {
        let Ok(index) = usize::try_from(sequence) else { return };
        let Some((sent, answered)) = self.requests.get_mut(index) else { return };
        if *answered {
            self.report.duplicates += 1;
            return;
        }
        *answered = true;
        let elapsed = sent.elapsed();
        self.total += elapsed;
        self.report.worst = self.report.worst.max(elapsed);
        self.report.received += 1;
        self.report.reordered += u64::from(sequence < self.latest);
        self.latest = self.latest.max(sequence);
    }

    fn open(&self) -> u64 {
        self.report.sent - self.report.received
    }

    fn close(mut self) -> EchoReport {
        let lost = self.requests.iter().zip(0..).filter(|((_, answered), _)| !answered);
        self.report.lost = lost.map(|(_, sequence)| sequence).collect();
        let received = u32::try_from(self.report.received).unwrap_or(u32::MAX);
        self.report.mean = self.total.checked_div(received).unwrap_or_default();
        self.report
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// Answers what `fate` says for each request.
    struct Fates {
        fate: fn(u64) -> Vec<u64>,
        answers: VecDeque<u64>,
    }

    impl Channel for Fates {
        fn send(&mut self, sequence: u64) -> io::Result<()> {
            self.answers.extend((self.fate)(sequence));
            Ok(())
        }

        fn receive(&mut self, _: Duration) -> io::Result<Option<u64>> {
            Ok(self.answers.pop_front())
        }
    }

    fn report(fate: fn(u64) -> Vec<u64>) -> EchoReport {
        let schedule = Schedule {
            count: Some(10),
            interval: Duration::ZERO,
            patience: Duration::from_millis(10),
        };
        exchange(&mut Fates { fate, answers: VecDeque::new() }, schedule, &AtomicBool::new(false))
    }

    #[test]
    fn every_answered_request_is_counted_once() {
        let report = report(|n| vec![n]);
        assert!(report.is_complete(), "{report}");
        assert_eq!((report.sent, report.received, report.reordered), (10, 10, 0));
    }

    #[test]
    fn losses_are_told_by_number() {
        let report = report(|n| if n % 4 == 3 { vec![] } else { vec![n] });
        assert!(!report.is_complete());
        assert_eq!(report.lost, [3, 7]);
    }

    #[test]
    fn duplicates_and_reordering_are_counted() {
        let report = report(|n| match n {
            2 => vec![],
            3 => vec![3, 2, 3],
            n => vec![n],
        });
        assert_eq!((report.lost.len(), report.duplicates, report.reordered), (0, 1, 1));
        assert!(!report.is_complete());
    }

    #[test]
    fn answers_to_what_was_never_sent_are_ignored() {
        let report = report(|n| vec![n, 1 << 40]);
        assert!(report.is_complete(), "{report}");
    }

    #[test]
    fn tokens_survive_the_way_and_damage_is_seen() {
        let token = Token { sender: 7, sequence: 1 << 33 };
        for size in [SMALLEST, 17, 1400] {
            let mut payload = token.payload(size);
            assert_eq!(payload.len(), size);
            assert_eq!(Token::parse(&payload), Some(token));
            payload[size - 1] ^= 1;
            assert_ne!(Token::parse(&payload), Some(token));
        }
        assert_eq!(Token::parse(b"pwlb"), None);
    }

    #[test]
    fn arrivals_are_kept_by_sender() {
        let mut arrivals = Arrivals::default();
        for sequence in [0, 1, 1, 3] {
            arrivals.note(Token { sender: 7, sequence });
        }
        assert_eq!((arrivals.received(7), arrivals.duplicates(7)), (3, 1));
        assert_eq!(arrivals.missing(7, 5), [2, 4]);
        assert_eq!(arrivals.missing(8, 2), [0, 1]);
    }
}
