//! What criterion left in its folder: three files for each benchmark.

use std::{fs, path::Path, time::SystemTime};

use serde::{Deserialize, de::DeserializeOwned};

use crate::Result;

/// One benchmark's figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimate {
    /// Criterion's full name of it.
    pub name: String,
    /// Nanoseconds of one operation: the median.
    pub ns: f64,
    /// Lower end of the median's confidence interval.
    pub lower: f64,
    /// Its upper end.
    pub upper: f64,
    /// How many samples it is the median of.
    pub samples: usize,
    at: SystemTime,
}

#[derive(Deserialize)]
struct Benchmark {
    full_id: String,
}

#[derive(Deserialize)]
struct Estimates {
    median: Median,
}

#[derive(Deserialize)]
struct Median {
    point_estimate: f64,
    confidence_interval: Interval,
}

#[derive(Deserialize)]
struct Interval {
    lower_bound: f64,
    upper_bound: f64,
}

#[derive(Deserialize)]
struct Sample {
    times: Vec<f64>,
}

#[cfg(test)]
impl Estimate {
    /// A figure of three samples.
    pub fn of(name: &str, ns: f64) -> Self {
        let at = SystemTime::UNIX_EPOCH;
        Self { name: name.to_owned(), ns, lower: ns, upper: ns, samples: 3, at }
    }
}

/// Figures that were written since then, in the order in which they were.
pub fn since(home: &Path, time: SystemTime) -> Result<Vec<Estimate>> {
    let mut estimates = Vec::new();
    walk(home, time, &mut estimates)?;
    estimates.sort_by(|a, b| a.at.cmp(&b.at).then_with(|| a.name.cmp(&b.name)));
    Ok(estimates)
}

fn walk(folder: &Path, time: SystemTime, estimates: &mut Vec<Estimate>) -> Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            continue;
        }
        if entry.file_name() == "new" {
            estimates.extend(read(&entry.path(), time)?);
        } else {
            walk(&entry.path(), time, estimates)?;
        }
    }
    Ok(())
}

/// Criterion writes the name last.
fn read(folder: &Path, time: SystemTime) -> Result<Option<Estimate>> {
    let at = match fs::metadata(folder.join("benchmark.json")) {
        Ok(file) => file.modified()?,
        Err(_) => return Ok(None),
    };
    if at < time {
        return Ok(None);
    }
    let Benchmark { full_id: name } = json(&folder.join("benchmark.json"))?;
    let Estimates { median } = json(&folder.join("estimates.json"))?;
    let Sample { times } = json(&folder.join("sample.json"))?;
    let Interval { lower_bound: lower, upper_bound: upper } = median.confidence_interval;
    Ok(Some(Estimate { name, ns: median.point_estimate, lower, upper, samples: times.len(), at }))
}

fn json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read(path).map_err(|e| format!("read {}: {e}", path.display()))?;
    serde_json::from_slice(&text).map_err(|e| format!("{}: {e}", path.display()).into())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn write(home: &Path, folder: &str, name: &str, ns: f64) {
        let new = home.join(folder).join("new");
        fs::create_dir_all(&new).unwrap();
        let interval =
            format!(r#"{{"confidence_level":0.95,"lower_bound":{ns},"upper_bound":{ns}}}"#);
        let median = format!(r#"{{"confidence_interval":{interval},"point_estimate":{ns}}}"#);
        fs::write(new.join("sample.json"), r#"{"iters":[1,1,1],"times":[3,4,5]}"#).unwrap();
        let estimates = format!(r#"{{"median":{median}}}"#);
        fs::write(new.join("estimates.json"), estimates).unwrap();
        let benchmark = format!(r#"{{"group_id":"g","full_id":"{name}"}}"#);
        fs::write(new.join("benchmark.json"), benchmark).unwrap();
    }

    #[test]
    fn figures_keep_their_full_names() {
        let home = tempfile::tempdir().unwrap();
        write(home.path(), "lookup/lpm4_100", "lookup/lpm4/100", 7.5);
        write(home.path(), "unit/h", "unit/h", 2.5);
        let long_ago = SystemTime::now() - Duration::from_secs(60);
        let found = since(home.path(), long_ago).unwrap();
        let names: Vec<_> = found.iter().map(|one| (one.name.as_str(), one.ns)).collect();
        assert_eq!(names, [("lookup/lpm4/100", 7.5), ("unit/h", 2.5)]);
        assert!(found.iter().all(|one| one.samples == 3));
    }

    #[test]
    fn figures_of_earlier_runs_are_left_out() {
        let home = tempfile::tempdir().unwrap();
        write(home.path(), "unit/h", "unit/h", 2.5);
        let later = SystemTime::now() + Duration::from_secs(60);
        assert_eq!(since(home.path(), later).unwrap(), []);
        assert_eq!(since(&home.path().join("none"), later).unwrap(), []);
    }

    #[test]
    fn a_broken_file_is_named() {
        let home = tempfile::tempdir().unwrap();
        write(home.path(), "unit/h", "unit/h", 2.5);
        fs::write(home.path().join("unit/h/new/estimates.json"), "{").unwrap();
        let error = since(home.path(), SystemTime::UNIX_EPOCH).unwrap_err().to_string();
        assert!(error.contains("estimates.json"), "{error}");
    }
}
