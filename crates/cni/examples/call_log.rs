//! A chained plugin that notes what is asked of a network: one line per call, in the file that
//! `logFile` names, or on standard error. It changes nothing.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use podwire_cni::types::Success;
use podwire_cni::{Add, Check, Del, Error, NetworkConfig, Plugin};

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Settings {
    log_file: Option<PathBuf>,
}

struct CallLog;

impl Plugin for CallLog {
    fn add(&self, add: &Add) -> Result<Success, Error> {
        note(&add.config, format_args!("ADD {} {}", add.attachment(), add.netns))?;
        // What the plugins before it have done must be passed on.
        Ok(add.prev_result.clone().unwrap_or_default())
    }

    fn del(&self, del: &Del) -> Result<(), Error> {
        note(&del.config, format_args!("DEL {}", del.attachment()))
    }

    fn check(&self, check: &Check) -> Result<(), Error> {
        note(&check.config, format_args!("CHECK {}", check.attachment()))
    }
}

fn note(config: &NetworkConfig, what: std::fmt::Arguments<'_>) -> Result<(), Error> {
    let line = format!("{} {what}\n", config.name());
    let written = match config.settings::<Settings>()?.log_file {
        Some(file) => OpenOptions::new()
            .create(true)
            .append(true)
            .open(file)
            .and_then(|mut file| file.write_all(line.as_bytes())),
        // Standard output is kept for the answer while a plugin runs: this ends on standard error.
        None => std::io::stdout().write_all(line.as_bytes()),
    };
    written.map_err(|error| Error::internal(&error))
}

fn main() -> ExitCode {
    podwire_cni::run(&CallLog)
}
