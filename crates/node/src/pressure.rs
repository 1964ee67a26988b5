//! When a table is filling up: what is idle goes sooner then, before there is no room for what is new.

use podwire_datapath::Timeouts;

/// Whether a table is filling up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Pressure {
    /// There is room.
    #[default]
    Low,
    /// There was little, and there is not enough again.
    High,
}

impl Pressure {
    /// Percent of a table's room above which pressure begins, and below which it ends.
    pub(crate) const BEGINS: u64 = 75;
    pub(crate) const ENDS: u64 = 60;

    /// What timeouts are divided by meanwhile.
    pub(crate) const DIVISOR: u32 = 4;

    /// What it is when so many entries are counted.
    pub(crate) fn after(self, entries: u64, room: u64) -> Self {
        match self {
            Self::Low if Self::begins(entries, room) => Self::High,
            Self::High if entries * 100 < room * Self::ENDS => Self::Low,
            same => same,
        }
    }

    /// Whether so many entries are too many.
    pub(crate) fn begins(entries: u64, room: u64) -> bool {
        entries * 100 > room * Self::BEGINS
    }

    pub(crate) fn is_high(self) -> bool {
        self == Self::High
    }

    /// What holds now of timeouts that hold usually.
    pub(crate) fn shorten(self, usual: &Timeouts) -> Timeouts {
        match self {
            Self::Low => *usual,
            Self::High => usual.divided_by(Self::DIVISOR),
        }
    }
}

/// How full a table is, in words.
pub(crate) fn filled(table: &str, entries: u32, room: u32) -> String {
    let percent = u64::from(entries) * 100 / u64::from(room.max(1));
    format!("the table of {table} is {percent} % full: {entries} of {room} entries")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rises_and_falls_at_different_fillings() {
        let mut pressure = Pressure::default();
        for (entries, expected) in [
            (75, Pressure::Low),
            (76, Pressure::High),
            (60, Pressure::High),
            (59, Pressure::Low),
            (75, Pressure::Low),
        ] {
            pressure = pressure.after(entries, 100);
            assert_eq!(pressure, expected, "{entries} of 100");
        }
    }
}
