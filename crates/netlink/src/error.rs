use std::io;
use std::time::Duration;

use crate::{Operation, Subject};

/// What can go wrong between a request and its answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The socket could not be opened or set up.
    #[error("cannot open a netlink socket: {source}")]
    Open {
        /// Why.
        source: io::Error,
    },
    /// The network namespace in which a socket was to be opened could not be entered.
    #[error("cannot enter the network namespace for a netlink socket: {source}")]
    Enter {
        /// Why; `EINVAL` means that the file is no network namespace.
        source: io::Error,
    },
    /// The kernel refused a request.
    #[error("cannot {operation} {subject}: {}", reason(message.as_deref(), source))]
    Refused {
        /// What was asked for.
        operation: Operation,
        /// On which object.
        subject: Subject,
        /// The error number.
        source: io::Error,
        /// The kernel's own words (extended ack), where it gave any.
        message: Option<Box<str>>,
    },
    /// Requests could not be handed to the kernel.
    #[error("cannot send a request to {operation} {subject}: {source}")]
    Send {
        /// What the first of the requests asked for.
        operation: Operation,
        /// On which object.
        subject: Subject,
        /// Why.
        source: io::Error,
    },
    /// An answer could not be received. `ENOBUFS` means that the kernel had to drop one.
    #[error("cannot receive the answer to {operation} {subject}: {source}")]
    Receive {
        /// What was asked for.
        operation: Operation,
        /// On which object.
        subject: Subject,
        /// Why.
        source: io::Error,
    },
    /// No answer came before the deadline.
    #[error("no answer within {timeout:?} to {operation} {subject}")]
    Timeout {
        /// What was asked for.
        operation: Operation,
        /// On which object.
        subject: Subject,
        /// How long was waited.
        timeout: Duration,
    },
    /// A list changed while it was read, every time it was tried (`NLM_F_DUMP_INTR`).
    #[error("{subject} changed each of the {attempts} times they were read")]
    TornDump {
        /// What was listed.
        subject: Subject,
        /// How often.
        attempts: u32,
    },
    /// An answer that makes no sense, or a request that does not fit a message.
    #[error("cannot {operation} {subject}: {source}")]
    Malformed {
        /// What was asked for.
        operation: Operation,
        /// On which object.
        subject: Subject,
        /// What is wrong.
        source: ParseError,
    },
}

impl Error {
    /// The error number, if the kernel or a system call gave one.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::Open { source }
            | Self::Enter { source }
            | Self::Refused { source, .. }
            | Self::Send { source, .. }
            | Self::Receive { source, .. } => source.raw_os_error(),
            Self::Timeout { .. } | Self::TornDump { .. } | Self::Malformed { .. } => None,
        }
    }

    /// The kernel's own words (extended ack), if it gave any.
    pub fn kernel_message(&self) -> Option<&str> {
        match self {
            Self::Refused { message, .. } => message.as_deref(),
            _ => None,
        }
    }

    /// Whether the kernel refused because the object, or the interface it belongs to, does not exist.
    pub fn is_not_found(&self) -> bool {
        self.refused_with(&[libc::ENOENT, libc::ENODEV, libc::ESRCH, libc::EADDRNOTAVAIL])
    }

    /// Whether the kernel refused because such an object exists already.
    pub fn is_exists(&self) -> bool {
        self.refused_with(&[libc::EEXIST])
    }

    /// Whether the kernel refused for lack of privilege; entering a namespace counts.
    pub fn is_permission_denied(&self) -> bool {
        matches!(self.raw_os_error(), Some(libc::EPERM | libc::EACCES))
    }

    /// Whether the kernel does not know the operation, the family or the kind of object.
    pub fn is_unsupported(&self) -> bool {
        self.refused_with(&[libc::EOPNOTSUPP, libc::EAFNOSUPPORT, libc::EPROTONOSUPPORT])
    }

    /// Whether the deadline passed.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout { .. })
    }

    fn refused_with(&self, numbers: &[i32]) -> bool {
        match self {
            Self::Refused { source, .. } => {
                source.raw_os_error().is_some_and(|number| numbers.contains(&number))
            }
            _ => false,
        }
    }
}

/// Why bytes are no message, or values do not fit one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseError {
    /// Something ends before its length says.
    #[error("{what} of {found} bytes where {needed} are needed")]
    Truncated {
        /// Which part.
        what: &'static str,
        /// Bytes it should have.
        needed: usize,
        /// Bytes there are.
        found: usize,
    },
    /// An attribute has a value of the wrong length.
    #[error("attribute {kind} has {found} bytes instead of {expected}")]
    Attribute {
        /// The attribute's type.
        kind: u16,
        /// The length it should have.
        expected: usize,
        /// The length it has.
        found: usize,
    },
    /// A field has a value outside its range.
    #[error("{field} is out of range")]
    Range {
        /// Which field.
        field: &'static str,
    },
    /// A message lacks what identifies its object.
    #[error("{field} is missing")]
    Missing {
        /// Which field.
        field: &'static str,
    },
    /// An attribute or message is too long for its length field.
    #[error("the request is too long")]
    Oversized,
    /// The kernel acknowledged a query without answering it.
    #[error("the kernel gave no answer")]
    NoAnswer,
    /// A datagram was longer than the receive buffer.
    #[error("a datagram of {length} bytes is longer than the receive buffer")]
    Datagram {
        /// The datagram's length.
        length: usize,
    },
}

fn reason(message: Option<&str>, source: &io::Error) -> String {
    match message {
        Some(message) => format!("{message} ({source})"),
        None => source.to_string(),
    }
}
