use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::Command;

/// A version of the CNI specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum SpecVersion {
    /// 0.1.0: the first one. Results have `ip4` and `ip6`.
    V0_1_0,
    /// 0.2.0: the VERSION command.
    V0_2_0,
    /// 0.3.0: results with interfaces, chaining.
    V0_3_0,
    /// 0.3.1: corrects the text of 0.3.0.
    V0_3_1,
    /// 0.4.0: the CHECK command, `prevResult` on DEL.
    V0_4_0,
    /// 1.0.0: addresses without `version`, configuration lists only.
    V1_0_0,
    /// 1.1.0: the STATUS and GC commands, more attributes of interfaces and routes.
    V1_1_0,
}

impl SpecVersion {
    /// Every version, oldest first.
    pub const ALL: &'static [Self] = &[
        Self::V0_1_0,
        Self::V0_2_0,
        Self::V0_3_0,
        Self::V0_3_1,
        Self::V0_4_0,
        Self::V1_0_0,
        Self::V1_1_0,
    ];

    /// What a configuration without `cniVersion` is read as: the key came with 0.2.0.
    pub const UNSTATED: Self = Self::V0_1_0;

    /// The version as it stands in `cniVersion`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Whether this version knows `command`.
    ///
    /// VERSION is answered in every version, since it is how a runtime finds out.
    #[must_use]
    pub fn has(self, command: Command) -> bool {
        self >= command.since()
    }
}

impl fmt::Display for SpecVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is no version of the specification that this crate knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownVersion;

impl fmt::Display for UnknownVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a known version of the CNI specification")
    }
}

impl std::error::Error for UnknownVersion {}

impl FromStr for SpecVersion {
    type Err = UnknownVersion;

    fn from_str(text: &str) -> Result<Self, UnknownVersion> {
        Self::ALL.iter().copied().find(|version| version.as_str() == text).ok_or(UnknownVersion)
    }
}

impl Serialize for SpecVersion {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}
