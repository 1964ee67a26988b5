use std::fmt;

use crate::{Code, Error};

/// The key-value pairs of `CNI_ARGS`, `FOO=BAR;ABC=123`.
///
/// Of a key given twice the last value counts, as in the reference library.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    pairs: Vec<(String, String)>,
}

/// The key that makes plugins tolerate keys they do not know.
const IGNORE_UNKNOWN: &str = "IgnoreUnknown";

impl Args {
    /// Reads the text of `CNI_ARGS`.
    ///
    /// # Errors
    ///
    /// Code 4 if a part has no `=` or no key, or if `IgnoreUnknown` is not a truth value.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let invalid = |what: String| {
            Error::new(Code::INVALID_ENVIRONMENT_VARIABLES, format!("CNI_ARGS is invalid: {what}"))
        };
        let mut pairs = Vec::new();
        for part in text.split(';').filter(|_| !text.is_empty()) {
            match part.split_once('=') {
                Some((key, value)) if !key.is_empty() => {
                    pairs.push((key.to_owned(), value.to_owned()));
                }
                _ => return Err(invalid(format!("{part:?} is not KEY=VALUE"))),
            }
        }
        let args = Self { pairs };
        match args.value(IGNORE_UNKNOWN) {
            Some(value) if truth(value).is_none() => {
                Err(invalid(format!("{IGNORE_UNKNOWN}={value} is not true or false")))
            }
            _ => Ok(args),
        }
    }

    /// Makes them of pairs.
    ///
    /// # Errors
    ///
    /// Code 4 if a pair cannot be written: an empty key, one with `=` or `;`, a value with `;`.
    pub fn from_pairs<K, V>(pairs: impl IntoIterator<Item = (K, V)>) -> Result<Self, Error>
    where
        K: Into<String>,
        V: Into<String>,
    {
        let pairs: Vec<_> =
            pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        let unfit = |(key, value): &&(String, String)| {
            key.is_empty() || key.contains(['=', ';', '\0']) || value.contains([';', '\0'])
        };
        if let Some((key, value)) = pairs.iter().find(unfit) {
            let msg = format!("CNI_ARGS cannot hold {key:?}={value:?}");
            return Err(Error::new(Code::INVALID_ENVIRONMENT_VARIABLES, msg));
        }
        Self::parse(&Self { pairs }.to_string())
    }

    /// The value of `key`.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&str> {
        self.pairs.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// All pairs, in the order given.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Whether the caller said `IgnoreUnknown=1` or `true`.
    #[must_use]
    pub fn ignore_unknown(&self) -> bool {
        self.value(IGNORE_UNKNOWN).and_then(truth) == Some(true)
    }

    /// Refuses keys that are not in `known`, unless the caller wants them ignored.
    ///
    /// # Errors
    ///
    /// Code 4, naming every unknown key.
    pub fn require_known(&self, known: &[&str]) -> Result<(), Error> {
        if self.ignore_unknown() {
            return Ok(());
        }
        let unknown: Vec<&str> = self
            .iter()
            .map(|(key, _)| key)
            .filter(|key| *key != IGNORE_UNKNOWN && !known.contains(key))
            .collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let msg = format!("CNI_ARGS is invalid: unknown keys {}", unknown.join(", "));
        Err(Error::new(Code::INVALID_ENVIRONMENT_VARIABLES, msg))
    }
}

/// The text of `CNI_ARGS`.
impl fmt::Display for Args {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (key, value)) in self.pairs.iter().enumerate() {
            let separator = if place == 0 { "" } else { ";" };
            write!(f, "{separator}{key}={value}")?;
        }
        Ok(())
    }
}

fn truth(value: &str) -> Option<bool> {
    if value == "1" || value.eq_ignore_ascii_case("true") {
        Some(true)
    } else if value == "0" || value.eq_ignore_ascii_case("false") {
        Some(false)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs() {
        let args = Args::parse("IgnoreUnknown=1;K8S_POD_NAME=web-0;X=a=b;E=;X=last").unwrap();
        assert!(args.ignore_unknown());
        assert_eq!(args.value("K8S_POD_NAME"), Some("web-0"));
        assert_eq!(args.value("X"), Some("last"));
        assert_eq!(args.value("E"), Some(""));
        assert_eq!(args.value("k8s_pod_name"), None);
        assert_eq!(args.iter().count(), 5);
        assert_eq!(Args::parse("").unwrap(), Args::default());
    }

    #[test]
    fn refusals_name_the_variable() {
        for bad in ["FOO", "=BAR", "A=1;", ";", "A=1;;B=2", "IgnoreUnknown=maybe"] {
            let error = Args::parse(bad).unwrap_err();
            assert_eq!(error.code(), Code::INVALID_ENVIRONMENT_VARIABLES, "{bad}");
            assert!(error.msg().contains("CNI_ARGS"), "{bad}: {error}");
        }
    }

    #[test]
    fn written_as_read() {
        for text in ["", "A=1", "A=1;A=2;B==x;C="] {
            assert_eq!(Args::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Args::from_pairs([("A", "1"), ("B", "=")]).unwrap().to_string(), "A=1;B==");
        for (key, value) in [("", "1"), ("A=", "1"), ("A;", ""), ("A", "1;B=2"), ("A", "\0")] {
            let error = Args::from_pairs([(key, value)]).unwrap_err();
            assert_eq!(error.code(), Code::INVALID_ENVIRONMENT_VARIABLES, "{error}");
        }
    }

    #[test]
    fn unknown_keys() {
        let known = ["IP"];
        assert!(Args::parse("IP=10.0.0.1").unwrap().require_known(&known).is_ok());
        assert!(Args::parse("A=1;IgnoreUnknown=TRUE").unwrap().require_known(&known).is_ok());
        let error =
            Args::parse("A=1;IP=x;B=2;IgnoreUnknown=0").unwrap().require_known(&known).unwrap_err();
        assert_eq!(error.msg(), "CNI_ARGS is invalid: unknown keys A, B");
    }
}
