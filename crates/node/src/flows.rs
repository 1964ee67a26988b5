//! Flows that are over are collected: the clock by which they grow old, how often the tables are read,
//! and what becomes of them when they fill.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use podwire_api::{Effect, FlowUsage, MapUsage, Problem};
use podwire_datapath::{FlowEvent, Sweep, Timeout, Timeouts, map};

use crate::error::Source;
use crate::pressure::{Pressure, filled};
use crate::seam::Flows;

/// Seconds between sweeps, and while the table is filling up.
const INTERVAL: u32 = 5;
const INTERVAL_UNDER_PRESSURE: u32 = 1;

/// However large the tables are, the collector rests so many times as long as a sweep takes.
const REST: u32 = 20;

/// Keeps the clock, and forgets what is over.
#[derive(Debug)]
pub(crate) struct Collector {
    tables: Arc<dyn Flows>,
    timeouts: Mutex<Timeouts>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Seconds since the last sweep; none before the first one.
    since: Option<u32>,
    /// What the last sweep left, and what the programs had counted by then.
    left: (u32, u32),
    counted: Counts,
    took: Duration,
    /// On the table of confirmed flows.
    pressure: Pressure,
    totals: Totals,
}

/// Sums since the agent started.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Totals {
    pub(crate) sweeps: u64,
    pub(crate) sweep_seconds: f64,
    /// In the order of [`Timeout::ALL`].
    pub(crate) expired: [u64; Timeout::COUNT],
    pub(crate) orphaned: u64,
}

/// How flows came and went, as the programs count it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    began: u64,
    confirmed: u64,
    ended: u64,
}

impl Counts {
    fn of(events: &[(FlowEvent, u64)]) -> Self {
        let count = |wanted| {
            events.iter().find(|(event, _)| *event == wanted).map_or(0, |(_, count)| *count)
        };
        Self {
            began: count(FlowEvent::Began),
            confirmed: count(FlowEvent::Confirmed),
            ended: count(FlowEvent::Ended),
        }
    }

    /// How many entries both tables should have by now, if they had `left` when `before` was counted.
    fn fill(self, before: Self, left: (u32, u32), room: (u32, u32)) -> (u64, u64) {
        let confirmed = self.confirmed.saturating_sub(before.confirmed);
        let ended = self.ended.saturating_sub(before.ended);
        let began = self.began.saturating_sub(before.began);
        let flows = (u64::from(left.0) + 2 * confirmed).saturating_sub(2 * ended);
        let pending = (u64::from(left.1) + began + ended).saturating_sub(confirmed);
        (flows.min(room.0.into()), pending.min(room.1.into()))
    }
}

impl Collector {
    pub(crate) fn new(tables: Arc<dyn Flows>, timeouts: Timeouts) -> Self {
        Self { tables, timeouts: Mutex::new(timeouts), state: Mutex::default() }
    }

    /// Flows may be idle for so long from now on.
    pub(crate) fn set_timeouts(&self, timeouts: Timeouts) {
        *self.timeouts.lock().unwrap_or_else(PoisonError::into_inner) = timeouts;
    }

    /// A second has gone by. To be called by one thread at a time.
    pub(crate) fn second(&self) -> Result<(), Source> {
        self.tables.tick(1)?;
        let events = Counts::of(&self.tables.events()?);
        let room = self.tables.capacities();
        let is_due = {
            let mut state = self.lock();
            state.since = state.since.map(|since| since.saturating_add(1));
            let (flows, _) = events.fill(state.counted, state.left, room);
            state.is_due(Pressure::begins(flows, room.0.into()))
        };
        if is_due { self.sweep(room) } else { Ok(()) }
    }

    fn sweep(&self, room: (u32, u32)) -> Result<(), Source> {
        let timeouts = *self.timeouts.lock().unwrap_or_else(PoisonError::into_inner);
        let timeouts = self.lock().pressure.shorten(&timeouts);
        // What happens meanwhile is counted twice rather than not at all.
        let counted = Counts::of(&self.tables.events()?);
        let sweep = self.tables.sweep(&timeouts)?;
        let change = {
            let mut state = self.lock();
            state.counted = counted;
            state.note(&sweep, room)
        };
        match change {
            Some(Pressure::High) => tracing::warn!(
                entries = sweep.flows,
                room = room.0,
                "{}: idle flows are forgotten {} times as soon until it is below {} %; {}",
                filled("flows", sweep.flows, room.0),
                Pressure::DIVISOR,
                Pressure::ENDS,
                ADVICE
            ),
            Some(Pressure::Low) => tracing::info!(
                entries = sweep.flows,
                room = room.0,
                "the table of flows has room again: timeouts are as configured"
            ),
            None => {}
        }
        tracing::debug!(?sweep, "swept");
        Ok(())
    }

    /// How full the tables are, as far as is known without reading them.
    pub(crate) fn usage(&self) -> Result<FlowUsage, Source> {
        let room = self.tables.capacities();
        let events = Counts::of(&self.tables.events()?);
        let state = self.lock();
        let (confirmed, pending) = match state.since {
            Some(_) => events.fill(state.counted, state.left, room),
            None => (0, 0),
        };
        Ok(FlowUsage {
            confirmed,
            capacity: room.0.into(),
            pending,
            pending_capacity: room.1.into(),
            pressure: state.pressure.is_high(),
        })
    }

    /// What the programs have counted of flows.
    pub(crate) fn events(&self) -> Result<Vec<(FlowEvent, u64)>, Source> {
        self.tables.events()
    }

    pub(crate) fn totals(&self) -> Totals {
        self.lock().totals
    }

    /// What every map takes; how many entries it has where that is known.
    pub(crate) fn maps(
        &self,
        endpoints: u64,
        mappings: Option<u64>,
    ) -> Result<Vec<MapUsage>, Source> {
        let flows = self.usage()?;
        let rows = self.tables.maps()?.into_iter().map(|row| MapUsage {
            name: row.name.to_owned(),
            entries: match row.name {
                map::FLOWS => Some(flows.confirmed),
                map::PENDING => Some(flows.pending),
                map::SLOTS | map::LINKS => Some(endpoints),
                // One for each direction.
                map::NAT => mappings.map(|mappings| 2 * mappings),
                _ => None,
            },
            capacity: row.capacity.into(),
            bytes: row.bytes,
        });
        Ok(rows.collect())
    }

    /// What status says when the table is filling up.
    pub(crate) fn problem(&self) -> Option<Problem> {
        let (room, _) = self.tables.capacities();
        let state = self.lock();
        state.pressure.is_high().then(|| Problem {
            what: filled("flows", state.left.0, room),
            why: format!(
                "flows that find no room are judged packet by packet; idle ones are forgotten {} \
                 times as soon until it is below {} %",
                Pressure::DIVISOR,
                Pressure::ENDS
            ),
            fix: ADVICE.into(),
            effect: Effect::Possible,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What to do about a table that fills.
const ADVICE: &str = "see who has them (podwire bpf flow list), lower a timeout \
                      (podwire config set timeout.tcp-established 3600), or make the table larger \
                      (podwire cleanup, then podwired --flows)";

impl State {
    /// Whether it is time for a sweep, if the table is thought to be so full.
    fn is_due(&self, is_filling: bool) -> bool {
        let Some(since) = self.since else { return true };
        let interval = match is_filling || self.pressure.is_high() {
            true => INTERVAL_UNDER_PRESSURE,
            false => INTERVAL,
        };
        since >= interval && Duration::from_secs(since.into()) >= self.took * REST
    }

    /// Remembers a sweep; says what the pressure is if it has changed with it.
    fn note(&mut self, sweep: &Sweep, room: (u32, u32)) -> Option<Pressure> {
        self.since = Some(0);
        self.left = (sweep.flows, sweep.pending);
        self.took = sweep.took;
        self.totals.sweeps += 1;
        self.totals.sweep_seconds += sweep.took.as_secs_f64();
        self.totals.orphaned += sweep.orphaned;
        for (total, more) in self.totals.expired.iter_mut().zip(sweep.expired) {
            *total += more;
        }
        let before = self.pressure;
        self.pressure = before.after(sweep.flows.into(), room.0.into());
        (before != self.pressure).then_some(self.pressure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryFlows;

    fn collector(tables: &Arc<MemoryFlows>) -> Collector {
        Collector::new(tables.clone(), Timeouts::default())
    }

    fn seconds(collector: &Collector, count: u32) {
        (0..count).for_each(|_| collector.second().unwrap());
    }

    #[test]
    fn it_sweeps_every_few_seconds_and_ticks_each() {
        let tables = Arc::new(MemoryFlows::default());
        let collector = collector(&tables);
        seconds(&collector, 16);
        assert_eq!(tables.seconds(), 16);
        assert_eq!(tables.sweeps().len(), 4, "at once, and every five seconds");
        assert_eq!(collector.totals().sweeps, 4);
    }

    #[test]
    fn pressure_begins_and_ends_apart() {
        let tables = Arc::new(MemoryFlows::default());
        let collector = collector(&tables);
        seconds(&collector, 1);
        let usual = Timeouts::default();
        for (left, is_pressure, sweeps) in
            [(75, false, 1), (76, true, 1), (60, true, 5), (59, false, 1), (75, false, 1)]
        {
            tables.leave(left);
            let before = tables.sweeps().len();
            seconds(&collector, 5);
            let made = tables.sweeps().len() - before;
            assert_eq!(collector.usage().unwrap().pressure, is_pressure, "{left}");
            assert!(made >= sweeps, "{left}: {made} sweeps");
            assert_eq!(collector.problem().is_some(), is_pressure);
        }
        let used = tables.sweeps();
        assert_eq!(*used.last().unwrap(), usual);
        assert!(used.contains(&usual.divided_by(4)));
    }

    #[test]
    fn it_does_not_wait_while_the_table_fills() {
        let tables = Arc::new(MemoryFlows::default());
        let collector = collector(&tables);
        seconds(&collector, 1);
        // 39 conversations have two entries each: more than three quarters of a hundred.
        tables.count(FlowEvent::Began, 39);
        tables.count(FlowEvent::Confirmed, 39);
        tables.leave(78);
        assert_eq!(collector.usage().unwrap().confirmed, 78, "before any sweep has seen them");
        seconds(&collector, 1);
        assert_eq!(tables.sweeps().len(), 2);
        assert!(collector.usage().unwrap().pressure);
    }

    #[test]
    fn a_long_sweep_is_followed_by_a_long_rest() {
        let state = State { since: Some(5), took: Duration::from_secs(1), ..State::default() };
        assert!(!state.is_due(true));
        assert!(State { since: Some(20), ..state }.is_due(false));
    }

    #[test]
    fn fill_is_counted_on() {
        let before = Counts { began: 100, confirmed: 50, ended: 10 };
        let now = Counts { began: 110, confirmed: 54, ended: 12 };
        assert_eq!(now.fill(before, (20, 7), (100, 100)), (24, 15));
        assert_eq!(
            now.fill(before, (99, 99), (100, 100)),
            (100, 100),
            "at most what there is room for"
        );
        assert_eq!(
            Counts::default().fill(before, (20, 7), (100, 100)),
            (20, 7),
            "another's counters"
        );
    }
}
