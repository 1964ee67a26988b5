use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::NameError;

/// What went wrong between a client and the agent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No connection came about; the agent saw nothing of the request.
    #[error("the podwire agent is not reachable at {}", socket.display())]
    Unreachable {
        /// Where it was looked for.
        socket: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },

    /// The connection broke, or the deadline passed, after the request had been sent: the agent
    /// may have acted on it. Every request may be repeated.
    #[error("{request}: no answer from the podwire agent")]
    NoAnswer {
        /// Method and path.
        request: String,
        /// The reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// The agent refused.
    #[error("{}", body.message)]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The agent's reasons.
        body: ErrorBody,
    },

    /// The answer is not what this version of the API says.
    #[error(
        "{request}: the answer (HTTP {status}) is not of this API; is it another version's agent?"
    )]
    Malformed {
        /// Method and path.
        request: String,
        /// The HTTP status.
        status: u16,
        /// What the parser says.
        source: serde_json::Error,
    },

    /// A name that breaks its rules.
    #[error(transparent)]
    Name(#[from] NameError),
}

impl Error {
    /// Whether nobody listens: the request was not seen by any agent.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    /// Whether the same request may well succeed later without anybody changing it: no agent, no
    /// answer, or an agent that is not ready. A CNI plugin answers code 11.
    #[must_use]
    pub fn is_try_again(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::NoAnswer { .. } => true,
            Self::Refused { body, .. } => body.code == ErrorCode::NotReady,
            _ => false,
        }
    }

    /// Whether the agent knows nothing by that name.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(ErrorCode::NotFound)
    }

    /// Whether no address is left.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.code() == Some(ErrorCode::Exhausted)
    }

    /// The agent's code, where it answered.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused { body, .. } => Some(body.code),
            _ => None,
        }
    }

    /// What to do about it, where anybody knows.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Unreachable { .. } => Some("start podwired on this node, or name its --run-dir"),
            Self::Refused { body, .. } => body.hint.as_deref(),
            _ => None,
        }
    }
}

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What kind of error.
    pub code: ErrorCode,
    /// What happened, to which object.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// The kinds of errors of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ErrorCode {
    /// No such endpoint, or no such path (404).
    NotFound,
    /// Another endpoint has the address, or the endpoint exists with other properties (409).
    Conflict,
    /// No address, or no slot, is left (507).
    Exhausted,
    /// The request is wrong in itself (400, 413 or 415).
    Invalid,
    /// The link is none of ours, or the caller is not allowed (403).
    Denied,
    /// The agent failed (500).
    Internal,
    /// The agent is starting, stopping or overloaded (503).
    NotReady,
    /// A code of a later version.
    #[serde(other)]
    Unknown,
}

impl ErrorCode {
    /// The HTTP status that goes with it.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::Exhausted => 507,
            Self::Invalid => 400,
            Self::Denied => 403,
            Self::Internal | Self::Unknown => 500,
            Self::NotReady => 503,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: ErrorCode) -> Error {
        let body = ErrorBody { code, message: "m".into(), hint: None };
        Error::Refused { status: code.status(), body }
    }

    #[test]
    fn bodies_look_as_documented() {
        let body = ErrorBody { code: ErrorCode::NotReady, message: "m".into(), hint: None };
        let text = serde_json::to_string(&body).unwrap();
        assert_eq!(text, r#"{"code":"not-ready","message":"m"}"#);
        let later = r#"{"code":"of-tomorrow","message":"m","hint":"h"}"#;
        assert_eq!(serde_json::from_str::<ErrorBody>(later).unwrap().code, ErrorCode::Unknown);
    }

    #[test]
    fn predicates_tell_apart() {
        assert!(refused(ErrorCode::NotReady).is_try_again());
        assert!(!refused(ErrorCode::Conflict).is_try_again());
        assert!(refused(ErrorCode::NotFound).is_not_found());
        assert!(refused(ErrorCode::Exhausted).is_exhausted());
        let unreachable = Error::Unreachable {
            socket: "/run/podwire/podwire.sock".into(),
            source: std::io::ErrorKind::NotFound.into(),
        };
        assert!(unreachable.is_unreachable() && unreachable.is_try_again());
        assert!(unreachable.hint().is_some());
    }
}
