//! Mappings that are over are collected: how often their table is read, and what becomes of them when it
//! fills.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use podwire_api::{Effect, Problem};
use podwire_datapath::abi::Reason;
use podwire_datapath::{NatSwept, Timeout, Timeouts};

use crate::agent::Shared;
use crate::error::{Source, chain};
use crate::pressure::{Pressure, filled};
use crate::seam::Mappings;

/// How often idle mappings are looked for.
const SWEEP: Duration = Duration::from_secs(5);

/// Why packets that should have been masqueraded were dropped.
const DROPS: [Reason; 6] = [
    Reason::NatPortsExhausted,
    Reason::NatTableFull,
    Reason::NatNoAddress,
    Reason::NatUnsupported,
    Reason::NatPortTaken,
    Reason::NatUnrelated,
];

/// Forgets mappings that are over.
#[derive(Debug)]
pub(crate) struct Sweeper {
    table: Arc<dyn Mappings>,
    timeouts: Mutex<Timeouts>,
    usage: Mutex<MappingUsage>,
}

/// How full the table of mappings is, and what was taken out of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct MappingUsage {
    /// How many mappings the last sweep left, and how many there is room for; none before the first one.
    pub(crate) left: Option<(u32, u32)>,
    pub(crate) pressure: Pressure,
    /// Since the agent started, in the order of [`Timeout::ALL`].
    pub(crate) expired: [u64; Timeout::COUNT],
}

impl Sweeper {
    pub(crate) fn new(table: Arc<dyn Mappings>, timeouts: Timeouts) -> Self {
        Self { table, timeouts: Mutex::new(timeouts), usage: Mutex::default() }
    }

    /// Mappings may be idle for so long from now on.
    pub(crate) fn set_timeouts(&self, timeouts: Timeouts) {
        *self.timeouts.lock().unwrap_or_else(PoisonError::into_inner) = timeouts;
    }

    /// Removes mappings that were idle for too long, sooner when the table fills up.
    pub(crate) fn sweep(&self) -> Result<(), Source> {
        let timeouts = *self.timeouts.lock().unwrap_or_else(PoisonError::into_inner);
        let timeouts = self.lock().pressure.shorten(&timeouts);
        let swept = self.table.sweep(&timeouts)?;
        let NatSwept { mappings, room, .. } = swept;
        let change = self.lock().note(&swept);
        match change {
            Some(Pressure::High) => tracing::warn!(
                mappings,
                room,
                "{}: idle mappings are forgotten {} times as soon until it is below {} %; {ADVICE}",
                filled("mappings", mappings, room),
                Pressure::DIVISOR,
                Pressure::ENDS
            ),
            Some(Pressure::Low) => tracing::info!(
                mappings,
                room,
                "the table of mappings has room again: timeouts are as configured"
            ),
            None => {}
        }
        Ok(())
    }

    pub(crate) fn usage(&self) -> MappingUsage {
        *self.lock()
    }

    /// Packets that should have been masqueraded and were dropped, by reason.
    pub(crate) fn dropped(&self) -> Result<Vec<(Reason, u64)>, Source> {
        let rows = self.table.metrics()?;
        let packets = |reason| {
            rows.iter().filter(|row| row.reason == reason).map(|row| row.packets).sum::<u64>()
        };
        Ok(DROPS.map(|reason| (reason, packets(reason))).into())
    }

    /// What status says when the table is filling up.
    pub(crate) fn problem(&self) -> Option<Problem> {
        let MappingUsage { left, pressure, .. } = self.usage();
        let (mappings, room) = left.filter(|_| pressure.is_high())?;
        Some(Problem {
            what: filled("mappings", mappings, room),
            why: format!(
                "conversations with the outside that find no room are dropped; idle mappings are \
                 forgotten {} times as soon until it is below {} %",
                Pressure::DIVISOR,
                Pressure::ENDS
            ),
            fix: ADVICE.into(),
            effect: Effect::Possible,
        })
    }

    fn lock(&self) -> MutexGuard<'_, MappingUsage> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What to do about a table that fills.
const ADVICE: &str = "see who has them (podwire bpf nat list), lower a timeout \
                      (podwire config set timeout.nat-tcp-closing 600), or make the table larger \
                      (podwire cleanup, then podwired --masquerade-mappings)";

impl MappingUsage {
    /// Remembers a sweep; says what the pressure is if it has changed with it.
    fn note(&mut self, swept: &NatSwept) -> Option<Pressure> {
        self.left = Some((swept.mappings, swept.room));
        for (total, more) in self.expired.iter_mut().zip(swept.expired) {
            *total += more;
        }
        let before = self.pressure;
        self.pressure = before.after(swept.mappings.into(), swept.room.into());
        (before != self.pressure).then_some(self.pressure)
    }
}

/// Sweeps until it is dropped.
pub(crate) async fn sweep(shared: Arc<Shared>) {
    loop {
        let working = shared.clone();
        match tokio::task::spawn_blocking(move || working.mappings.sweep()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(error = chain(&*error), "sweeping mappings"),
            Err(error) => tracing::error!(%error, "sweeping mappings"),
        }
        tokio::time::sleep(SWEEP).await;
    }
}

#[cfg(test)]
mod tests {
    use podwire_datapath::Nat;

    use super::*;
    use crate::memory::MemoryMappings;

    #[test]
    fn pressure_begins_and_ends_apart() {
        let table = Arc::new(MemoryMappings::default());
        let usual = Nat::default_timeouts();
        let sweeper = Sweeper::new(table.clone(), usual);
        assert_eq!(sweeper.usage(), MappingUsage::default());
        for (left, is_pressure) in [(75, false), (76, true), (60, true), (59, false), (75, false)] {
            table.leave(left);
            sweeper.sweep().unwrap();
            assert_eq!(sweeper.usage().left, Some((left, 100)));
            assert_eq!(sweeper.usage().pressure.is_high(), is_pressure, "{left}");
            assert_eq!(sweeper.problem().is_some(), is_pressure, "{left}");
        }
        let hurried = usual.divided_by(4);
        assert_eq!(table.sweeps(), [usual, usual, hurried, hurried, usual]);
        assert_eq!(sweeper.usage().expired[Timeout::UdpReplied as usize], 5);
    }

    #[test]
    fn timeouts_are_changed_and_drops_are_told() {
        let table = Arc::new(MemoryMappings::default());
        let sweeper = Sweeper::new(table.clone(), Nat::default_timeouts());
        let mut changed = Nat::default_timeouts();
        changed.set(Timeout::Icmp, 7).unwrap();
        sweeper.set_timeouts(changed);
        sweeper.sweep().unwrap();
        assert_eq!(table.sweeps(), [changed]);
        let dropped = sweeper.dropped().unwrap();
        assert_eq!(dropped.len(), DROPS.len());
        assert_eq!(dropped[0], (Reason::NatPortsExhausted, 3), "at both hooks");
        assert_eq!(dropped[1], (Reason::NatTableFull, 0));
    }
}
