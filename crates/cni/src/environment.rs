use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::{Args, Code, Error, SpecVersion};

/// What a plugin is asked to do, the value of `CNI_COMMAND`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Command {
    /// Attach a container to the network.
    Add,
    /// Undo an ADD.
    Del,
    /// See whether an attachment is as ADD left it; since 0.4.0.
    Check,
    /// See whether the plugin could service an ADD; since 1.1.0.
    Status,
    /// Remove what belongs to no valid attachment; since 1.1.0.
    Gc,
    /// Tell the supported versions of the specification.
    Version,
}

impl Command {
    /// The first version of the specification that has the command.
    #[must_use]
    pub const fn since(self) -> SpecVersion {
        match self {
            Self::Add | Self::Del | Self::Version => SpecVersion::V0_1_0,
            Self::Check => SpecVersion::V0_4_0,
            Self::Status | Self::Gc => SpecVersion::V1_1_0,
        }
    }

    /// The command as it stands in `CNI_COMMAND`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::Version => "VERSION",
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The environment of a plugin's process, as far as the protocol defines it.
///
/// Built from the variables that the caller passes, so that tests need no process:
///
/// ```
/// use podwire_cni::Environment;
///
/// let own = Environment::new(std::env::vars_os());
/// let made_up = Environment::new([("CNI_COMMAND", "VERSION")]);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Environment {
    variables: HashMap<&'static str, OsString>,
}

/// The variables that the protocol defines.
const NAMES: [&str; 6] =
    ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"];

impl Environment {
    /// Picks the protocol's variables out of an environment; of a variable that is there twice the
    /// first counts.
    pub fn new<K, V>(variables: impl IntoIterator<Item = (K, V)>) -> Self
    where
        K: AsRef<OsStr>,
        V: Into<OsString>,
    {
        let mut found = HashMap::with_capacity(NAMES.len());
        for (key, value) in variables {
            if let Some(name) = NAMES.into_iter().find(|name| key.as_ref() == *name) {
                found.entry(name).or_insert_with(|| value.into());
            }
        }
        Self { variables: found }
    }

    /// Whether anything says what to do; a human at a shell may not have known that something must.
    #[must_use]
    pub fn has_command(&self) -> bool {
        self.raw("CNI_COMMAND").is_some()
    }

    /// What is to be done.
    ///
    /// # Errors
    ///
    /// Code 4 if `CNI_COMMAND` is missing or not a command.
    pub fn command(&self) -> Result<Command, Error> {
        let commands = [
            Command::Add,
            Command::Del,
            Command::Check,
            Command::Status,
            Command::Gc,
            Command::Version,
        ];
        let mut problems = Problems::default();
        let text = self.text("CNI_COMMAND", &mut problems);
        problems.into_result()?;
        commands.into_iter().find(|command| text == command.as_str()).ok_or_else(|| {
            Error::new(
                Code::INVALID_ENVIRONMENT_VARIABLES,
                format!("CNI_COMMAND {text:?} is not a command of CNI"),
            )
        })
    }

    /// The directories of `CNI_PATH`.
    #[must_use]
    pub fn path(&self) -> Vec<PathBuf> {
        let path = self.raw("CNI_PATH");
        path.map(|path| std::env::split_paths(path).collect()).unwrap_or_default()
    }

    /// The pairs of `CNI_ARGS`.
    pub(crate) fn args(&self, problems: &mut Problems) -> Args {
        let Some(args) = self.raw("CNI_ARGS") else { return Args::default() };
        let Some(args) = args.to_str() else {
            problems.push("CNI_ARGS is not UTF-8".to_owned());
            return Args::default();
        };
        Args::parse(args).unwrap_or_else(|error| {
            problems.push(error.msg().to_owned());
            Args::default()
        })
    }

    /// A variable that must be there and valid.
    pub(crate) fn required<T>(&self, name: &'static str, problems: &mut Problems) -> Option<T>
    where
        T: FromStr<Err: fmt::Display>,
    {
        let before = problems.0.len();
        let text = self.text(name, problems);
        if problems.0.len() > before {
            return None;
        }
        text.parse().map_err(|error| problems.push(format!("{name} {text:?}: {error}"))).ok()
    }

    /// A variable that may be missing or empty.
    pub(crate) fn optional<T>(&self, name: &'static str, problems: &mut Problems) -> Option<T>
    where
        T: FromStr<Err: fmt::Display>,
    {
        self.raw(name)?;
        self.required(name, problems)
    }

    /// An empty variable counts as missing.
    fn raw(&self, name: &str) -> Option<&OsStr> {
        self.variables.get(name).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    fn text(&self, name: &'static str, problems: &mut Problems) -> &str {
        match self.raw(name).map(OsStr::to_str) {
            Some(Some(text)) => return text,
            Some(None) => problems.push(format!("{name} is not UTF-8")),
            None => problems.push(format!("{name} is missing")),
        }
        ""
    }
}

/// Everything that is wrong with the environment, so that one answer names all of it.
#[derive(Debug, Default)]
pub(crate) struct Problems(Vec<String>);

impl Problems {
    pub(crate) fn push(&mut self, problem: String) {
        self.0.push(problem);
    }

    pub(crate) fn into_result(self) -> Result<(), Error> {
        if self.0.is_empty() {
            return Ok(());
        }
        Err(Error::new(Code::INVALID_ENVIRONMENT_VARIABLES, self.0.join("; ")))
    }
}
