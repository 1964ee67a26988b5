use std::fmt;

use serde_json::{Map, Value, json};

use crate::SpecVersion;

/// The number in an error result that tells a runtime what went wrong.
///
/// 0 to 99 belong to the specification; a plugin has 100 and above for its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Code(u32);

impl Code {
    /// 1: the plugin does not support the configuration's `cniVersion`, or that version does not
    /// have the command.
    pub const INCOMPATIBLE_CNI_VERSION: Self = Self(1);
    /// 2: a field of the network configuration is not supported; the message must contain its key
    /// and value.
    pub const UNSUPPORTED_FIELD: Self = Self(2);
    /// 3: the container is unknown; the runtime need not clean up after it.
    pub const UNKNOWN_CONTAINER: Self = Self(3);
    /// 4: an environment variable is missing or invalid; the message must contain its name.
    pub const INVALID_ENVIRONMENT_VARIABLES: Self = Self(4);
    /// 5: input or output failed.
    pub const IO_FAILURE: Self = Self(5);
    /// 6: content could not be decoded.
    pub const DECODING_FAILURE: Self = Self(6);
    /// 7: the network configuration is invalid.
    pub const INVALID_NETWORK_CONFIG: Self = Self(7);
    /// 8: `CNI_NETNS` is no usable network namespace. Not in the specification's table, but in its
    /// library.
    pub const INVALID_NETNS: Self = Self(8);
    /// 11: something transient; the runtime should try again later.
    pub const TRY_AGAIN_LATER: Self = Self(11);
    /// 50, for STATUS: the plugin cannot service ADD.
    pub const PLUGIN_NOT_AVAILABLE: Self = Self(50);
    /// 51, for STATUS: the plugin cannot service ADD, and existing containers may have limited
    /// connectivity.
    pub const LIMITED_CONNECTIVITY: Self = Self(51);
    /// 999: the plugin itself failed. A code of its own that plugins share by custom.
    pub const INTERNAL: Self = Self(999);

    /// A code of the plugin's own.
    ///
    /// # Panics
    ///
    /// If `code` is below 100.
    #[must_use]
    pub const fn plugin(code: u32) -> Self {
        assert!(code >= 100, "codes below 100 are the specification's");
        Self(code)
    }

    /// A code that a plugin has answered with; what is answered is not for us to choose.
    pub(crate) const fn from_wire(code: u32) -> Self {
        Self(code)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The specification's error result, which is what this crate and its plugins fail with.
///
/// One type instead of an enum per cause: these three fields are all that reaches a runtime, and a
/// plugin's author has to choose the code anyway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    code: Code,
    msg: String,
    details: String,
}

impl Error {
    /// An error with a short message that characterises it.
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// Adds a longer description.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// Adds to what the longer description says already.
    pub(crate) fn with_more(self, more: &str) -> Self {
        let details = match self.details.as_str() {
            "" => more.to_owned(),
            details => format!("{details}; {more}"),
        };
        self.with_details(details)
    }

    /// Adds an error and all its sources as the longer description.
    #[must_use]
    pub fn with_source(self, source: &dyn std::error::Error) -> Self {
        let mut details = source.to_string();
        let mut next = source.source();
        while let Some(cause) = next {
            let cause_text = cause.to_string();
            // Many errors repeat their source in their own text.
            if !details.ends_with(&cause_text) {
                details.push_str(": ");
                details.push_str(&cause_text);
            }
            next = cause.source();
        }
        self.with_details(details)
    }

    /// An error of the plugin itself, code 999.
    pub fn internal(source: &dyn std::error::Error) -> Self {
        Self::new(Code::INTERNAL, "internal error").with_source(source)
    }

    /// The code.
    #[must_use]
    pub const fn code(&self) -> Code {
        self.code
    }

    /// The short message.
    #[must_use]
    pub fn msg(&self) -> &str {
        &self.msg
    }

    /// The longer description; may be empty.
    #[must_use]
    pub fn details(&self) -> &str {
        &self.details
    }

    /// Whether the runtime should try again later.
    #[must_use]
    pub fn is_try_again_later(&self) -> bool {
        self.code == Code::TRY_AGAIN_LATER
    }

    /// The error result of a version.
    #[must_use]
    pub fn to_value(&self, version: SpecVersion) -> Value {
        self.to_value_as(version.as_str())
    }

    /// The error result with whatever the configuration has as `cniVersion`, since a version that
    /// is refused must be repeated too.
    pub(crate) fn to_value_as(&self, version: &str) -> Value {
        let mut object = Map::new();
        object.insert("cniVersion".into(), version.into());
        object.insert("code".into(), json!(self.code.get()));
        object.insert("msg".into(), self.msg.as_str().into());
        if !self.details.is_empty() {
            object.insert("details".into(), self.details.as_str().into());
        }
        Value::Object(object)
    }
}

/// `<msg>: <details> (code <code>)`.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)?;
        if !self.details.is_empty() {
            write!(f, ": {}", self.details)?;
        }
        write!(f, " (code {})", self.code)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_hold_the_whole_chain_once() {
        #[derive(Debug)]
        struct Outer(std::io::Error);
        impl fmt::Display for Outer {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("cannot open the namespace")
            }
        }
        impl std::error::Error for Outer {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                Some(&self.0)
            }
        }
        let error = Error::internal(&Outer(std::io::Error::other("no such file")));
        assert_eq!(error.details(), "cannot open the namespace: no such file");
        assert_eq!(
            error.to_string(),
            "internal error: cannot open the namespace: no such file (code 999)"
        );
    }

    #[test]
    fn empty_details_are_left_out() {
        let error = Error::new(Code::TRY_AGAIN_LATER, "agent is away");
        assert_eq!(
            error.to_value(SpecVersion::V1_0_0),
            json!({"cniVersion": "1.0.0", "code": 11, "msg": "agent is away"})
        );
    }
}
