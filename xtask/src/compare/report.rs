//! The report: its rows, its tables, its files.

use std::{collections::BTreeSet, fmt::Write, fs, path::Path};

use anstream::println;
use serde::{Deserialize, Serialize};

use crate::{
    Result,
    machine::Machine,
    plot,
    report::{BAD, BOLD, DIM, GOOD},
};

/// Which figures are the better ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// Of time and memory.
    Less,
    /// Of rates.
    More,
}

/// One work by podwire and by one peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What was done, such as `cni_add`.
    pub work: String,
    /// Who else did it.
    pub peer: String,
    /// The unit of all figures.
    pub unit: String,
    /// Median of podwire's runs.
    pub podwire: f64,
    /// Median of the peer's.
    pub other: f64,
    /// `podwire / other`, always: below 1 is good where less is better, above 1 where more is.
    pub ratio: f64,
    /// Runs of each.
    pub runs: usize,
    /// Which way is good: `less` (time, memory) or `more` (rates).
    pub better: Better,
    /// First and third quartile of podwire's runs.
    pub podwire_quartiles: [f64; 2],
    /// The same of the peer's.
    pub other_quartiles: [f64; 2],
    /// What must be known to judge it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub note: Option<String>,
}

/// All rows, and where they were measured.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The machine.
    pub machine: Machine,
    /// The rows.
    pub results: Vec<Row>,
}

const TITLES: [&str; 8] = ["work", "peer", "podwire", "peer's", "unit", "ratio", "better", "runs"];

impl Report {
    /// Writes `report.json`, `report.md` and `report.svg` into a folder.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let write = |name: &str, text: &str| -> Result<()> {
            let path = folder.join(name);
            fs::write(&path, text).map_err(|e| format!("write {}: {e}", path.display()).into())
        };
        fs::create_dir_all(folder).map_err(|e| format!("make {}: {e}", folder.display()))?;
        write("report.json", &format!("{}\n", serde_json::to_string_pretty(self)?))?;
        write("report.md", &self.markdown())?;
        self.plot(&folder.join("report.svg"))
    }

    /// Prints the table; colours only on a terminal.
    pub fn print(&self) {
        let notes = self.notes();
        let cells: Vec<_> = self.results.iter().map(|row| cells(row, &notes)).collect();
        let widths: [usize; 8] = std::array::from_fn(|column| {
            let all = cells.iter().map(|row| row[column].chars().count());
            all.chain([TITLES[column].len()]).max().unwrap_or_default()
        });
        println!();
        println!("{BOLD}{}{BOLD:#}", line(&TITLES.map(str::to_owned), &widths, ""));
        for (row, cells) in self.results.iter().zip(&cells) {
            let colour = match verdict(row) {
                Some(true) => format!("{GOOD}"),
                Some(false) => format!("{BAD}"),
                None => String::new(),
            };
            println!("{}", line(cells, &widths, &colour));
        }
        println!();
        for (number, note) in notes.iter().enumerate() {
            println!("{DIM}[{}] {note}{DIM:#}", number + 1);
        }
    }

    fn markdown(&self) -> String {
        let mut text = String::from("# podwire compared with its peers\n\n");
        self.machine.lines().iter().for_each(|line| text += &format!("- {line}\n"));
        text += "\nMedians of alternating runs. `ratio` is podwire / peer: below 1 is good where less is\n\
                 better, above 1 where more is. Quartiles are in `report.json`.\n\n";
        let notes = self.notes();
        let mut table_line = |cells: &[String]| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "| {} |", cells.join(" | "));
        };
        table_line(&TITLES.map(str::to_owned));
        table_line(
            &["---", "---", "---:", "---:", "---", "---:", "---", "---:"].map(str::to_owned),
        );
        self.results.iter().for_each(|row| table_line(&cells(row, &notes)));
        text += "\n";
        for (note, number) in notes.iter().zip(1..) {
            text += &format!("{number}. {note}\n");
        }
        text
    }

    fn plot(&self, path: &Path) -> Result<()> {
        let label = |row: &Row| {
            let better = if row.better == Better::More { " (more is better)" } else { "" };
            format!("{} / {}{better}", row.work, row.peer)
        };
        let rows: Vec<_> = self.results.iter().map(|row| (label(row), vec![row.ratio])).collect();
        let title = "podwire / peer: less is better, but for rates";
        plot::bars(path, title, "ratio", &["podwire / peer"], &rows, false)
    }

    /// All different notes, in the order of their rows.
    fn notes(&self) -> Vec<&str> {
        let mut seen = BTreeSet::new();
        let notes = self.results.iter().filter_map(|row| row.note.as_deref());
        notes.filter(|note| seen.insert(*note)).collect()
    }
}

fn cells(row: &Row, notes: &[&str]) -> [String; 8] {
    let note = row.note.as_deref().and_then(|note| notes.iter().position(|known| *known == note));
    let mark = note.map_or_else(String::new, |number| format!(" [{}]", number + 1));
    [
        format!("{}{mark}", row.work),
        row.peer.clone(),
        figure(row.podwire),
        figure(row.other),
        row.unit.clone(),
        format!("{:.2}", row.ratio),
        if row.better == Better::Less { "less" } else { "more" }.to_owned(),
        row.runs.to_string(),
    ]
}

/// Figures to the right, words to the left; the ratio in this colour.
fn line(cells: &[String; 8], widths: &[usize; 8], colour: &str) -> String {
    let [w, p, own, other, unit, ratio, better, runs] = widths;
    let reset = if colour.is_empty() { String::new() } else { format!("{GOOD:#}") };
    format!(
        "{:<w$}  {:<p$}  {:>own$}  {:>other$}  {:<unit$}  {colour}{:>ratio$}{reset}  {:<better$}  {:>runs$}",
        cells[0], cells[1], cells[2], cells[3], cells[4], cells[5], cells[6], cells[7],
    )
}

/// Whether podwire does better, where the difference is more than noise is.
fn verdict(row: &Row) -> Option<bool> {
    let ratio = if row.better == Better::Less { row.ratio } else { 1.0 / row.ratio };
    match ratio {
        ..=0.95 => Some(true),
        1.05.. => Some(false),
        _ => None,
    }
}

/// With three digits that mean something.
pub fn figure(value: f64) -> String {
    let decimals = match value.abs() {
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(better: Better, podwire: f64, other: f64) -> Row {
        Row {
            work: "cni_add".to_owned(),
            peer: "ptp+host-local".to_owned(),
            unit: "ms".to_owned(),
            podwire,
            other,
            ratio: podwire / other,
            runs: 200,
            better,
            podwire_quartiles: [podwire; 2],
            other_quartiles: [other; 2],
            note: None,
        }
    }

    #[test]
    fn less_time_and_more_of_a_rate_are_good() {
        assert_eq!(verdict(&row(Better::Less, 4.0, 9.0)), Some(true));
        assert_eq!(verdict(&row(Better::Less, 9.0, 4.0)), Some(false));
        assert_eq!(verdict(&row(Better::More, 9.0, 4.0)), Some(true));
        assert_eq!(verdict(&row(Better::More, 100.0, 101.0)), None);
        assert_eq!(verdict(&row(Better::Less, f64::NAN, 1.0)), None);
    }

    #[test]
    fn figures_have_three_digits() {
        let shown = [54_123.4, 412.3, 41.26, 4.126, 0.4126].map(figure);
        assert_eq!(shown, ["54123", "412", "41.3", "4.13", "0.413"]);
    }

    #[test]
    fn the_files_say_the_same() {
        let noted = Row { note: Some("a rule is set".to_owned()), ..row(Better::More, 2.0, 4.0) };
        let results = vec![row(Better::Less, 4.0, 8.0), noted];
        let report = Report { machine: Machine::here(), results };
        let folder = tempfile::tempdir().unwrap();
        report.write(folder.path()).unwrap();
        let text = |name| fs::read_to_string(folder.path().join(name)).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text("report.json")).unwrap();
        assert_eq!(json["results"][0]["ratio"], 0.5);
        assert_eq!(json["results"][1]["better"], "more");
        assert!(json["machine"]["kernel"].is_string(), "{json}");
        let rows: Vec<Row> = serde_json::from_value(json["results"].clone()).unwrap();
        assert_eq!(rows, report.results);
        let table = text("report.md");
        assert!(
            table.contains("| cni_add | ptp+host-local | 4.00 | 8.00 | ms | 0.50 | less | 200 |")
        );
        assert!(table.contains("| cni_add [1] |") && table.contains("1. a rule is set"), "{table}");
        assert!(text("report.svg").contains("<svg"));
    }
}
