//! Taking turns, and what comes of it.

use super::report::{Better, Row};
use crate::Result;

/// What all sides of one work needed or managed, run by run; podwire is the first side.
#[derive(Clone, Debug)]
pub struct Series {
    work: String,
    unit: &'static str,
    better: Better,
    note: Option<String>,
    peers: Vec<String>,
    /// By side.
    figures: Vec<Vec<f64>>,
}

impl Series {
    /// Of a work that podwire and these peers do.
    pub fn new(work: &str, unit: &'static str, better: Better, peers: &[&str]) -> Self {
        let peers: Vec<_> = peers.iter().map(|&peer| peer.to_owned()).collect();
        let figures = vec![Vec::new(); peers.len() + 1];
        Self { work: work.to_owned(), unit, better, note: None, peers, figures }
    }

    /// The same with something to know about it; an empty note is none.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into()).filter(|note| !note.is_empty());
        self
    }

    /// Adds something to know about it.
    pub fn add_note(&mut self, note: &str) {
        self.note =
            Some(self.note.take().map_or_else(|| note.to_owned(), |all| format!("{all}; {note}")));
    }

    /// Its name.
    pub fn work(&self) -> &str {
        &self.work
    }

    /// Adds what a side needed in a run.
    pub fn push(&mut self, side: usize, figure: f64) {
        self.figures[side].push(figure);
    }

    /// Median of a side so far.
    pub fn median(&self, side: usize) -> f64 {
        quantile(&self.figures[side], 0.5)
    }

    /// The medians so far, for people who wait.
    pub fn summary(&self) -> String {
        let names = ["podwire"].into_iter().chain(self.peers.iter().map(String::as_str));
        let medians: Vec<_> = names
            .enumerate()
            .map(|(side, name)| format!("{name} {}", super::report::figure(self.median(side))))
            .collect();
        format!("{}: {} {}", self.work, medians.join(", "), self.unit)
    }

    /// One row for each peer.
    pub fn rows(&self) -> Vec<Row> {
        let quartiles = |side: usize| [0.25, 0.75].map(|part| quantile(&self.figures[side], part));
        let row = |(peer, side): (&String, usize)| {
            let (podwire, other) = (self.median(0), self.median(side));
            Row {
                work: self.work.clone(),
                peer: peer.clone(),
                unit: self.unit.to_owned(),
                podwire,
                other,
                ratio: podwire / other,
                runs: self.figures[side].len(),
                better: self.better,
                podwire_quartiles: quartiles(0),
                other_quartiles: quartiles(side),
                note: self.note.clone(),
            }
        };
        self.peers.iter().zip(1..).map(row).collect()
    }
}

/// Lets each side act once in each run, in an order that changes from run to run.
///
/// Every side is first, and last, equally often, and follows every other: what drifts in the
/// meantime, and what one leaves behind for the next (caches, work of the kernel's put off until
/// later), hits all alike.
pub fn take_turns(
    runs: usize,
    sides: usize,
    mut act: impl FnMut(usize, usize) -> Result<()>,
) -> Result<()> {
    for run in 0..runs {
        for side in order(run, sides) {
            act(run, side)?;
        }
    }
    Ok(())
}

/// Rotated by one every second run, and backwards in between.
fn order(run: usize, sides: usize) -> Vec<usize> {
    let mut order: Vec<_> = (0..sides).map(|place| (place + run / 2) % sides).collect();
    if run % 2 == 1 {
        order.reverse();
    }
    order
}

/// Between the two nearest where it falls between them; not a number where there is nothing.
fn quantile(figures: &[f64], part: f64) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    #[expect(clippy::cast_precision_loss, reason = "there are few figures")]
    let place = last as f64 * part;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0..=last")]
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_side_is_everywhere_equally_often() {
        for sides in 1..=4 {
            let runs = 2 * sides;
            let mut places = vec![vec![0; sides]; sides];
            let mut pairs = vec![vec![0; sides]; sides];
            for run in 0..runs {
                let order = order(run, sides);
                order
                    .iter()
                    .zip(0..)
                    .for_each(|(&side, place): (_, usize)| places[side][place] += 1);
                order.windows(2).for_each(|pair| pairs[pair[0]][pair[1]] += 1);
            }
            assert!(places.iter().flatten().all(|&count| count == 2), "{sides}: {places:?}");
            let symmetric = (0..sides).all(|a| (0..sides).all(|b| pairs[a][b] == pairs[b][a]));
            assert!(symmetric, "{sides}: {pairs:?}");
        }
    }

    #[test]
    fn the_first_failure_ends_the_turns() {
        let mut done = Vec::new();
        let outcome = take_turns(9, 2, |run, side| {
            done.push((run, side));
            if run == 1 { Err("DEL failed".into()) } else { Ok(()) }
        });
        assert_eq!(outcome.unwrap_err().to_string(), "DEL failed");
        assert_eq!(done, [(0, 0), (0, 1), (1, 1)]);
    }

    #[test]
    fn medians_and_quartiles_lie_between_the_figures() {
        assert_eq!(quantile(&[3.0, 1.0, 2.0], 0.5), 2.0);
        assert_eq!(quantile(&[4.0, 1.0, 2.0, 3.0], 0.5), 2.5);
        assert_eq!(quantile(&[5.0, 1.0, 2.0, 3.0, 4.0], 0.25), 2.0);
        assert_eq!(quantile(&[7.0], 0.75), 7.0);
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn a_series_gives_a_row_for_each_peer() {
        let mut series = Series::new("cni_add", "ms", Better::Less, &["ptp", "bridge"]);
        for (side, figures) in
            [[4.0, 2.0, 3.0], [6.0, 6.0, 6.0], [12.0, 12.0, 1.0]].iter().enumerate()
        {
            figures.iter().for_each(|&figure| series.push(side, figure));
        }
        let rows = series.rows();
        let ratios: Vec<_> =
            rows.iter().map(|row| (row.peer.as_str(), row.ratio, row.runs)).collect();
        assert_eq!(ratios, [("ptp", 0.5, 3), ("bridge", 0.25, 3)]);
        assert_eq!(rows[0].podwire_quartiles, [2.5, 3.5]);
    }
}
