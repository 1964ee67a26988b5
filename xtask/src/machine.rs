//! The machine that figures were measured on, as reports name it.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::Serialize;

/// What figures depend on besides the code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// Release of the kernel.
    pub kernel: String,
    /// The processor's own name for itself.
    pub cpu: String,
    /// Processors that the kernel runs on.
    pub cpus: usize,
    /// How the clock frequency is chosen; `none` where the kernel has no say in it, as in most
    /// virtual machines.
    pub governor: String,
    /// Whether the processor is a virtual one.
    pub virtual_machine: bool,
    /// Memory in bytes.
    pub memory: u64,
    /// What the kernel says of each known flaw of processors.
    pub mitigations: BTreeMap<String, String>,
    /// `net.core.bpf_jit_enable` and `net.core.bpf_jit_harden`.
    pub bpf_jit: String,
    /// The compiler of the programs in user space.
    pub rustc: String,
    /// The commit that was measured, with `+` where the tree had changes.
    pub commit: String,
    /// When, in seconds since 1970.
    pub time: u64,
}

impl Machine {
    /// Looks at this machine.
    pub fn here() -> Self {
        let cpuinfo = text("/proc/cpuinfo");
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
        };
        let memory = text("/proc/meminfo");
        let kilobytes = memory.split_ascii_whitespace().nth(1).and_then(|word| word.parse().ok());
        let governor = text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
        let jit = ["bpf_jit_enable", "bpf_jit_harden"].map(|name| {
            let value = text(&format!("/proc/sys/net/core/{name}"));
            if value.is_empty() { "unknown".to_owned() } else { value }
        });
        let commit = said_by("git", &["rev-parse", "--short=12", "HEAD"]);
        let changed =
            !said_by("git", &["status", "--porcelain", "--untracked-files=no"]).is_empty();
        Self {
            kernel: text("/proc/sys/kernel/osrelease"),
            cpu: field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cpus: thread::available_parallelism().map_or(1, usize::from),
            governor: if governor.is_empty() { "none".to_owned() } else { governor },
            virtual_machine: field("flags").is_some_and(|flags| flags.contains("hypervisor")),
            memory: kilobytes.map_or(0, |kilobytes: u64| kilobytes * 1024),
            mitigations: mitigations(),
            bpf_jit: jit.join(" "),
            rustc: said_by("rustc", &["--version"]),
            commit: format!("{commit}{}", if changed { "+" } else { "" }),
            time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
        }
    }

    /// The facts that tables are headed with, one a line.
    pub fn lines(&self) -> Vec<String> {
        let place = if self.virtual_machine { "virtual, " } else { "" };
        let against: Vec<_> = self
            .mitigations
            .iter()
            .filter_map(|(flaw, state)| {
                Some(format!("{flaw}: {}", state.strip_prefix("Mitigation: ")?))
            })
            .collect();
        vec![
            format!("kernel {}, BPF JIT {}", self.kernel, self.bpf_jit),
            format!("{} ({place}{} CPUs, governor {})", self.cpu, self.cpus, self.governor),
            format!(
                "mitigations: {}",
                if against.is_empty() { "none".into() } else { against.join("; ") }
            ),
            format!("commit {}, {}", self.commit, self.rustc),
        ]
    }
}

fn mitigations() -> BTreeMap<String, String> {
    let folder = Path::new("/sys/devices/system/cpu/vulnerabilities");
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            (name, fs::read_to_string(entry.path()).unwrap_or_default().trim().to_owned())
        })
        .collect()
}

/// A file's text without white space around it; empty if there is none.
fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// What a command prints; empty if it fails.
fn said_by(program: &str, arguments: &[&str]) -> String {
    let output = std::process::Command::new(program)
        .args(arguments)
        .current_dir(crate::cargo::workspace_root())
        .output();
    let output = output.ok().filter(|output| output.status.success());
    output.map_or_else(String::new, |o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
}
