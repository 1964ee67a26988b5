use std::error::Error;
use std::io::{self, Write as _};

use anstyle::{AnsiColor, Style};

/// Why a command did not succeed, and what to do next.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    hint: Option<String>,
    broken_pipe: bool,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, broken_pipe: false }
    }

    pub(crate) fn of(error: &dyn Error) -> Self {
        Self::new(chain(error))
    }

    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Says what to do next, unless something better was said.
    pub(crate) fn or_hint(self, hint: impl Into<String>) -> Self {
        if self.hint.is_some() { self } else { self.with_hint(hint) }
    }

    pub(crate) fn is_broken_pipe(&self) -> bool {
        self.broken_pipe
    }

    pub(crate) fn report(&self) {
        let red = Style::new().bold().fg_color(Some(AnsiColor::Red.into()));
        let mut stderr = anstream::stderr().lock();
        // Nobody is left to be told of a failure here.
        let _ = writeln!(stderr, "{red}error:{red:#} {}", self.message);
        if let Some(hint) = &self.hint {
            let _ = writeln!(stderr, "  {hint}");
        }
    }
}

impl From<podwire_api::Error> for Failure {
    fn from(error: podwire_api::Error) -> Self {
        let failure = Self::of(&error);
        match error.hint() {
            Some(hint) => failure.with_hint(hint),
            None => failure,
        }
    }
}

impl From<podwire_node::Error> for Failure {
    fn from(error: podwire_node::Error) -> Self {
        let failure = Self::of(&error);
        match error.hint() {
            Some(hint) => failure.with_hint(hint),
            None => failure,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let broken_pipe = error.kind() == io::ErrorKind::BrokenPipe;
        Self { broken_pipe, ..Self::new(format!("write the output: {error}")) }
    }
}

/// An error with all its reasons, in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut reason = error.source();
    while let Some(error) = reason {
        let part = error.to_string();
        if !text.ends_with(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        reason = error.source();
    }
    text
}
