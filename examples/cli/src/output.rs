use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::ValueEnum;
use serde::Serialize;

use crate::failure::Failure;

/// What the output looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Tables for people; coloured on a terminal.
    Table,
    /// One JSON document, whose fields stay.
    Json,
}

/// A command's result, in both forms.
#[derive(Debug)]
pub(crate) struct Page {
    json: serde_json::Value,
    text: String,
    verdict: ExitCode,
}

impl Page {
    /// `text` may hold colours; they are taken out where no terminal reads them.
    pub(crate) fn new(data: &impl Serialize, text: impl Into<String>) -> Result<Self, Failure> {
        let json = serde_json::to_value(data).map_err(|error| Failure::of(&error))?;
        Ok(Self { json, text: text.into(), verdict: ExitCode::SUCCESS })
    }

    /// The same, of a command that tells by its exit code that not all is well.
    pub(crate) fn unwell(self) -> Self {
        Self { verdict: ExitCode::FAILURE, ..self }
    }

    #[cfg(test)]
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn verdict(&self) -> ExitCode {
        self.verdict
    }

    pub(crate) fn print(&self, format: Format) -> io::Result<()> {
        let mut stdout = anstream::stdout().lock();
        match format {
            Format::Table => write!(stdout, "{}", self.text)?,
            Format::Json => writeln!(stdout, "{:#}", self.json)?,
        }
        stdout.flush()
    }
}
