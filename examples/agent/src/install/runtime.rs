//! Which version of the specification the machine's container runtime handles right.
//!
//! containerd 1.6 and 1.7 and podman 4 take a configuration of 1.1.0 and cannot delete pods then;
//! 1.0.0 is handled right by every runtime. containerd 2 handles 1.1.0, and asks STATUS and GC with
//! it.

use std::fmt;
use std::process::{Command, Stdio};

use podwire_cni::SpecVersion;

const RUNTIMES: [&str; 3] = ["containerd", "crio", "podman"];

/// A runtime that is on `PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Runtime {
    name: &'static str,
    /// Major and minor; `None` if it does not say.
    version: Option<(u32, u32)>,
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            Some((major, minor)) => write!(f, "{} {major}.{minor}", self.name),
            None => write!(f, "{} of an unknown version", self.name),
        }
    }
}

/// Asks those that are on `PATH`.
pub(super) fn present() -> Vec<Runtime> {
    let ask = |name: &&'static str| {
        let mut command = Command::new(name);
        command.arg("--version").stdin(Stdio::null()).stderr(Stdio::null());
        let output = match command.output() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            output => output.ok(),
        };
        let version = output.and_then(|output| version(&String::from_utf8_lossy(&output.stdout)));
        Some(Runtime { name, version })
    };
    RUNTIMES.iter().filter_map(ask).collect()
}

/// The version for these, and why.
pub(super) fn choose(present: &[Runtime]) -> (SpecVersion, String) {
    match present {
        [] => (SpecVersion::V1_0_0, "every runtime takes it, and none is on PATH".to_owned()),
        [only @ Runtime { name: "containerd", version: Some((2.., _)) }] => {
            (SpecVersion::V1_1_0, format!("{only} is the runtime here"))
        }
        [only] => (SpecVersion::V1_0_0, format!("what {only} handles right")),
        several => {
            let names: Vec<_> = several.iter().map(ToString::to_string).collect();
            (SpecVersion::V1_0_0, format!("what all handle right: {}", names.join(", ")))
        }
    }
}

/// The first word that begins like a version, as in `containerd github.com/.. v2.0.1 0f1e..`.
fn version(text: &str) -> Option<(u32, u32)> {
    text.split_ascii_whitespace().find_map(|word| {
        let mut numbers = word.strip_prefix('v').unwrap_or(word).split('.');
        let major = numbers.next()?.parse().ok()?;
        let minor = numbers.next()?;
        let end = minor.find(|c: char| !c.is_ascii_digit()).unwrap_or(minor.len());
        Some((major, minor[..end].parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_runtimes_say() {
        for (text, expected) in [
            ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+b1", (1, 6)),
            ("containerd github.com/containerd/containerd/v2 v2.1.4 75cb2b7193e4", (2, 1)),
            ("containerd containerd.io v2.0 75cb2b7193e4", (2, 0)),
            ("podman version 4.3.1\n", (4, 3)),
            ("crio version 1.30.0\nVersion:        1.30.0\n", (1, 30)),
        ] {
            assert_eq!(version(text), Some(expected), "{text}");
        }
        for text in ["", "containerd", "containerd 2", "x.y", "github.com/a/b"] {
            assert_eq!(version(text), None, "{text}");
        }
    }

    #[test]
    fn only_containerd_2_alone_gets_the_newest() {
        let chosen = |present: &[(&'static str, Option<(u32, u32)>)]| {
            let present: Vec<_> =
                present.iter().map(|&(name, version)| Runtime { name, version }).collect();
            choose(&present).0
        };
        let (old, new) = (SpecVersion::V1_0_0, SpecVersion::V1_1_0);
        assert_eq!(chosen(&[]), old);
        assert_eq!(chosen(&[("containerd", Some((1, 7)))]), old);
        assert_eq!(chosen(&[("containerd", None)]), old);
        assert_eq!(chosen(&[("containerd", Some((2, 0)))]), new);
        assert_eq!(chosen(&[("podman", Some((4, 3)))]), old);
        assert_eq!(chosen(&[("crio", Some((1, 30)))]), old);
        assert_eq!(chosen(&[("containerd", Some((2, 0))), ("podman", Some((4, 3)))]), old);
    }
}
