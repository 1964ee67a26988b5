//! The report: tables, plots, JSON.

use std::{collections::BTreeMap, fmt::Write, fs, path::Path};

use anstream::println;
use serde_json::{Value, json};

use super::{UNIT, collect::Estimate};
use crate::{
    Result,
    machine::Machine,
    plot,
    report::{BOLD, DIM},
};

pub use crate::compare::figure;

/// All figures of a run, and where they were measured.
#[derive(Debug)]
pub struct Report {
    /// The machine.
    pub machine: Machine,
    /// The figures, by name.
    pub results: Vec<Estimate>,
    /// Sizes of maps that benchmarks told of.
    pub maps: serde_json::Map<String, Value>,
    /// Benchmarks that gave no figure; the report is incomplete if there are any.
    pub failed: Vec<String>,
}

impl Report {
    /// Nanoseconds of the unit, if it was measured.
    pub fn h(&self) -> Option<f64> {
        self.results.iter().find(|one| one.name == UNIT).map(|one| one.ns)
    }

    /// Writes `report.json`, `report.md` and the plots into a folder.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let write = |name: &str, text: &str| -> Result<()> {
            let path = folder.join(name);
            fs::write(&path, text).map_err(|e| format!("write {}: {e}", path.display()).into())
        };
        fs::create_dir_all(folder).map_err(|e| format!("make {}: {e}", folder.display()))?;
        write("report.json", &format!("{}\n", serde_json::to_string_pretty(&self.json())?))?;
        write("report.md", &self.markdown())?;
        for (group, rows) in self.groups() {
            let path = folder.join(format!("{group}.svg"));
            let series = by_entries(&rows);
            if series.len() > 1 {
                let title = format!("{group}: ns by number of entries");
                plot::lines(&path, &title, "entries", "ns", &series)?;
            } else {
                let bars: Vec<_> =
                    rows.iter().map(|one| (one.name.clone(), vec![one.ns])).collect();
                plot::bars(&path, &format!("{group}: ns"), "ns", &["ns"], &bars, false)?;
            }
        }
        Ok(())
    }

    /// Prints all tables.
    pub fn print(&self) {
        println!();
        self.machine.lines().iter().for_each(|line| println!("{DIM}{line}{DIM:#}"));
        if let Some(h) = self.h() {
            println!("{BOLD}H = {} ns{BOLD:#}", figure(h));
        }
        for (_, rows) in self.groups() {
            let width = rows.iter().map(|one| one.name.len()).max().unwrap_or_default();
            println!();
            println!("{BOLD}{:<width$} {:>12} {:>10} {:>8}{BOLD:#}", "name", "ns", "H", "samples");
            for one in rows {
                let [name, ns, h, samples] = self.cells(one);
                println!("{name:<width$} {ns:>12} {h:>10} {samples:>8}");
            }
        }
        println!();
    }

    fn json(&self) -> Value {
        let h = self.h();
        let row = |one: &Estimate| {
            json!({
                "name": one.name, "ns": one.ns, "h": h.map(|h| one.ns / h), "samples": one.samples,
                "ns_lower": one.lower, "ns_upper": one.upper,
            })
        };
        let results: Vec<_> = self.results.iter().map(row).collect();
        json!({
            "machine": self.machine, "h_ns": h, "maps": self.maps, "results": results,
            "complete": self.failed.is_empty(), "failed": self.failed,
        })
    }

    fn markdown(&self) -> String {
        let mut text = String::from("# podwire's benchmarks\n\n");
        self.machine.lines().iter().for_each(|line| text += &format!("- {line}\n"));
        if let Some(h) = self.h() {
            text += &format!("- H, one lookup of one key in a hash map, is {} ns\n", figure(h));
        }
        if !self.failed.is_empty() {
            text += &format!("- **incomplete**: no figure of {}\n", self.failed.join(", "));
        }
        for (group, rows) in self.groups() {
            text += &format!("\n## {group}\n\n| name | ns | H | samples |\n|---|---:|---:|---:|\n");
            for one in rows {
                // Writing to a string cannot fail.
                let _ = writeln!(text, "| {} |", self.cells(one).join(" | "));
            }
        }
        text
    }

    fn cells(&self, one: &Estimate) -> [String; 4] {
        let h = self.h().map_or_else(|| "-".to_owned(), |h| figure(one.ns / h));
        [one.name.clone(), figure(one.ns), h, one.samples.to_string()]
    }

    /// The figures by the first part of their names, each group in an order that people expect.
    fn groups(&self) -> BTreeMap<&str, Vec<&Estimate>> {
        let mut groups = BTreeMap::<_, Vec<_>>::new();
        for one in &self.results {
            let group = one.name.split('/').next().unwrap_or(&one.name);
            groups.entry(group).or_default().push(one);
        }
        for rows in groups.values_mut() {
            rows.sort_by(|a, b| {
                let key = |one: &Estimate| {
                    entries(&one.name).map_or((one.name.clone(), 0.0), |(of, n)| (of.to_owned(), n))
                };
                let ((name_a, n_a), (name_b, n_b)) = (key(a), key(b));
                name_a.cmp(&name_b).then(n_a.total_cmp(&n_b))
            });
        }
        groups
    }
}

/// `lookup/lpm4/100` as `lookup/lpm4` and 100.
fn entries(name: &str) -> Option<(&str, f64)> {
    let (of, last) = name.rsplit_once('/')?;
    Some((of, last.parse().ok()?))
}

/// One line for each name whose last part is a number, if that has several.
fn by_entries(rows: &[&Estimate]) -> Vec<(String, Vec<(f64, f64)>)> {
    let mut series = BTreeMap::<_, Vec<_>>::new();
    for one in rows {
        // A logarithmic axis has no zero.
        if let Some((of, number)) = entries(&one.name).filter(|(_, number)| *number > 0.0) {
            series.entry(of.to_owned()).or_default().push((number, one.ns));
        }
    }
    series.into_iter().filter(|(_, points)| points.len() > 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estimate(name: &str, ns: f64) -> Estimate {
        Estimate::of(name, ns)
    }

    fn report(failed: &[&str]) -> Report {
        let named = [
            ("unit/h", 25.0),
            ("lookup/lpm4/100", 100.0),
            ("lookup/lpm4/10000", 200.0),
            ("lookup/hash4/100", 25.0),
            ("lookup/hash4/10000", 50.0),
            ("datapath/arp", 40.0),
        ];
        Report {
            machine: Machine::here(),
            results: named.map(|(name, ns)| estimate(name, ns)).to_vec(),
            maps: serde_json::Map::new(),
            failed: failed.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn figures_stand_in_nanoseconds_and_in_h() {
        let json = report(&[]).json();
        assert_eq!(json["h_ns"], 25.0);
        assert_eq!(json["results"][1]["name"], "lookup/lpm4/100");
        assert_eq!(
            (&json["results"][1]["ns"], &json["results"][1]["h"]),
            (&json!(100.0), &json!(4.0))
        );
        assert_eq!(json["complete"], true);
    }

    #[test]
    fn an_incomplete_report_says_so() {
        let report = report(&["datapath/neighbour"]);
        assert_eq!(report.json()["complete"], false);
        assert!(report.markdown().contains("**incomplete**: no figure of datapath/neighbour"));
    }

    #[test]
    fn the_files_are_written_with_a_plot_for_each_group() {
        let folder = tempfile::tempdir().unwrap();
        report(&[]).write(folder.path()).unwrap();
        for file in ["report.json", "report.md", "lookup.svg", "datapath.svg"] {
            assert!(folder.path().join(file).metadata().unwrap().len() > 0, "{file}");
        }
        let table = fs::read_to_string(folder.path().join("report.md")).unwrap();
        assert!(table.contains("| lookup/lpm4/10000 | 200 | 8.00 | 3 |"), "{table}");
    }

    #[test]
    fn numbers_are_sorted_as_numbers() {
        let report = report(&[]);
        let names: Vec<_> = report.groups()["lookup"].iter().map(|one| one.name.clone()).collect();
        assert_eq!(
            names,
            ["lookup/hash4/100", "lookup/hash4/10000", "lookup/lpm4/100", "lookup/lpm4/10000"]
        );
    }
}
