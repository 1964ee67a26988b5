use std::{io, path::PathBuf, process::ExitStatus, time::Duration};

/// Why a lab could not be built, or what a program in it answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused the namespaces.
    #[error("{operation}: a lab host needs root (CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_NET_RAW)")]
    Privileges {
        /// What was refused.
        operation: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A namespace could not be made or entered.
    #[error("{operation}")]
    Namespace {
        /// What was tried.
        operation: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A private mount of the host failed.
    #[error("mount {kind} on {}", target.display())]
    Mount {
        /// File system type or flag.
        kind: &'static str,
        /// Where.
        target: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A pod's namespace could not be made, opened or removed.
    #[error("{operation} pod namespace {name:?}")]
    Pod {
        /// What was tried.
        operation: &'static str,
        /// The pod.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A program could not be started or talked to.
    #[error("{operation} {}", program.display())]
    Program {
        /// What was tried.
        operation: &'static str,
        /// The program.
        program: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The agent ended while it was expected to run.
    #[error("{} ended with {status}; it said:\n{log}", program.display())]
    AgentEnded {
        /// The agent's binary.
        program: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// Its standard output and standard error.
        log: String,
    },
    /// The agent did not open its socket in time.
    #[error("no socket at {} after {waited:?}; the agent said:\n{log}", socket.display())]
    AgentSilent {
        /// The socket waited for.
        socket: PathBuf,
        /// How long.
        waited: Duration,
        /// The agent's standard output and standard error.
        log: String,
    },
    /// A CNI plugin answered with an error object.
    #[error("CNI {command}: error {code}: {msg}{}{}", separated(details), said(stderr))]
    Cni {
        /// The verb.
        command: String,
        /// The specification's error code.
        code: u64,
        /// The plugin's message.
        msg: String,
        /// The plugin's details, maybe empty.
        details: String,
        /// What it wrote to standard error.
        stderr: String,
    },
    /// A CNI plugin answered with neither a result nor an error object.
    #[error(
        "CNI {command}: {status}, and no result of the specification on stdout: {stdout:?}{}",
        said(stderr)
    )]
    CniOutput {
        /// The verb.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// All of standard output.
        stdout: String,
        /// All of standard error.
        stderr: String,
    },
    /// A binary of this workspace has not been built.
    #[error("no binary {name} in {}: build it first (`cargo build --bin {name}`)", folder.display())]
    Binary {
        /// The binary.
        name: String,
        /// The folder searched.
        folder: PathBuf,
    },
}

impl Error {
    /// The CNI error code, if a plugin gave one.
    #[must_use]
    pub fn cni_code(&self) -> Option<u64> {
        match self {
            Self::Cni { code, .. } => Some(*code),
            _ => None,
        }
    }

    pub(crate) fn namespace(operation: &'static str, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::Privileges { operation, source },
            _ => Self::Namespace { operation, source },
        }
    }
}

fn separated(details: &str) -> String {
    if details.is_empty() { String::new() } else { format!(" ({details})") }
}

fn said(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!("; stderr: {}", stderr.trim_end()) }
}
