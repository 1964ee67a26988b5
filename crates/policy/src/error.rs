/// A word of a rule that means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {text:?}: {wanted}")]
pub struct ParseError {
    /// What it should be.
    pub what: &'static str,
    /// The word.
    pub text: String,
    /// What is allowed there.
    pub wanted: &'static str,
}

/// Why rules are no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A rule that cannot be meant so.
    #[error("{direction} rule {number} ({rule}): {why}")]
    Rule {
        /// `ingress` or `egress`.
        direction: &'static str,
        /// Which one, counted from 1.
        number: usize,
        /// The rule.
        rule: String,
        /// What is wrong with it.
        why: String,
    },
    /// More ranges of ports for one peer than a row can have.
    #[error("the rules for {peer} make {count} ranges of ports, and there can be {most}")]
    TooManyRanges {
        /// Whom they concern.
        peer: String,
        /// How many.
        count: usize,
        /// How many there can be.
        most: u32,
    },
}
