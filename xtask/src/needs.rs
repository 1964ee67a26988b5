//! What the tests need of the machine, and how it is installed on Debian 12.

use std::{
    collections::BTreeSet,
    env, fs, iter,
    os::unix,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    Result, cargo, own_program,
    privilege::Privilege,
    report::{self, heading},
};

/// Debian packages, and a file that shows that each is there.
const PACKAGES: [(&str, &str); 16] = [
    ("bpftool", "bpftool"),
    ("busybox-static", "busybox"),
    ("cargo-web", "/usr/bin/cargo"),
    ("containerd", "containerd"),
    ("containernetworking-plugins", "/usr/lib/cni/ptp"),
    ("g++", "g++"),
    (
        "golang-github-appc-cni-dev",
        "/usr/share/gocode/src/github.com/containernetworking/cni/libcni",
    ),
    ("golang-go", "/usr/bin/go"),
    ("iperf3", "iperf3"),
    ("iptables", "iptables"),
    ("nftables", "nft"),
    ("podman", "podman"),
    (PROTOBUF_COMPILER, "protoc"),
    ("runc", "runc"),
    ("rust-web-src", "/usr/lib/rustlib/src/rust/library/core/src/lib.rs"),
    ("rustc-web", "/usr/bin/rustc"),
];

/// The client of containerd's CRI is generated when it is built. Without it the tests of the agent
/// do not build, so it may not be missing.
const PROTOBUF_COMPILER: &str = "protobuf-compiler";

const BPF_LINKER: &str = "bpf-linker";
const BPF_LINKER_VERSION: &str = "0.13.0";

const CARGO_FUZZ: &str = "cargo-fuzz";
const CARGO_FUZZ_VERSION: &str = "0.13.2";

/// What the fuzz targets need: libFuzzer is C++.
pub const FUZZ: [&str; 2] = [CARGO_FUZZ, "g++"];

/// What `cargo xtask ebpf --check` needs.
pub const EBPF: [&str; 4] = ["cargo-web", "rust-web-src", "rustc-web", BPF_LINKER];

/// One missing thing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Need {
    /// Its name, as `--allow-missing` takes it.
    pub name: &'static str,
    /// How to come by it.
    pub remedy: String,
}

/// All names that `--allow-missing` takes.
pub fn names() -> Vec<&'static str> {
    let others = ["root", "lab", "rustfmt", "clippy", BPF_LINKER, CARGO_FUZZ];
    let packages = PACKAGES.iter().map(|(name, _)| *name);
    others.into_iter().chain(packages.filter(|name| *name != PROTOBUF_COMPILER)).collect()
}

/// Everything that is missing.
pub fn missing(privilege: Privilege) -> Result<BTreeSet<Need>> {
    let mut missing = BTreeSet::new();
    for component in ["rustfmt", "clippy"] {
        let tool = if component == "rustfmt" { "fmt" } else { component };
        if !succeeds(cargo::cargo().args([tool, "--version"])) {
            let remedy = format!("rustup component add {component}");
            missing.insert(Need { name: component, remedy });
        }
    }
    if privilege == Privilege::None {
        let remedy = "run as root, or with a sudo that asks for no password".to_owned();
        missing.insert(Need { name: "root", remedy });
    } else {
        let output = privilege.command(&own_program()?).arg("probe").output()?;
        if !output.status.success() {
            let remedy = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            missing.insert(Need { name: "lab", remedy });
        }
    }
    missing.extend(missing_packages());
    if !has(CARGO_FUZZ, CARGO_FUZZ_VERSION) {
        let remedy = format!("cargo install {CARGO_FUZZ} --version {CARGO_FUZZ_VERSION} --locked");
        missing.insert(Need { name: CARGO_FUZZ, remedy });
    }
    if !has(BPF_LINKER, BPF_LINKER_VERSION) {
        let remedy = format!(
            "cargo install {BPF_LINKER} --version {BPF_LINKER_VERSION} --no-default-features \
             --features llvm-22, with LLVM_PREFIX naming a folder whose lib/libLLVM.so is LLVM 22"
        );
        missing.insert(Need { name: BPF_LINKER, remedy });
    }
    Ok(missing)
}

/// The Debian packages that are missing.
fn missing_packages() -> impl Iterator<Item = Need> {
    let missing = PACKAGES.into_iter().filter(|(name, file)| !is_installed(name, file));
    missing.map(|(name, _)| Need { name, remedy: format!("apt-get install {name} (Debian 12)") })
}

/// Fails when one of these packages is missing, and says how to come by all that are.
pub fn require(packages: &[&str]) -> Result<()> {
    let missing: BTreeSet<_> =
        missing_packages().filter(|need| packages.contains(&need.name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    print(&missing, &[]);
    let names: Vec<_> = missing.iter().map(|need| need.name).collect();
    let names = names.join(", ");
    Err(format!("needs {names}: `cargo xtask test --install` installs what is missing").into())
}

/// Installs what can be installed.
pub fn install(missing: &BTreeSet<Need>, privilege: Privilege) -> Result<()> {
    let is = |need: &&Need, name: &str| need.name == name;
    let packages: Vec<_> = PACKAGES
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| missing.iter().any(|need| is(&need, name)))
        .collect();
    if !packages.is_empty() && privilege != Privilege::None {
        heading(&format!("installing {}", packages.join(" ")));
        apt(privilege, &["update"])?;
        // Recommended packages would bring services that start by themselves.
        let options = ["install", "--yes", "--no-install-recommends"];
        apt(privilege, &[&options[..], &packages].concat())?;
    }
    for component in ["rustfmt", "clippy"] {
        if missing.iter().any(|need| is(&need, component)) {
            heading(&format!("installing {component}"));
            run(Command::new("rustup").args(["component", "add", component]))?;
        }
    }
    if missing.iter().any(|need| is(&need, BPF_LINKER)) {
        heading("installing bpf-linker");
        install_bpf_linker()?;
    }
    if missing.iter().any(|need| is(&need, CARGO_FUZZ)) {
        heading("installing cargo-fuzz");
        let mut command = cargo::cargo();
        command.env_remove("CARGO_TARGET_DIR");
        command.args(["install", CARGO_FUZZ, "--version", CARGO_FUZZ_VERSION, "--locked"]);
        run(&mut command)?;
    }
    Ok(())
}

fn apt(privilege: Privilege, arguments: &[&str]) -> Result<()> {
    /// A policy of 101 keeps the services of new packages, such as containerd's, from being started
    /// (invoke-rc.d(8)). One that is there stays; ours goes at the end.
    const WITHOUT_SERVICES: &str = r#"
        policy=/usr/sbin/policy-rc.d
        if [ ! -e $policy ]; then
            trap 'rm -f $policy' EXIT
            trap 'exit 1' HUP INT TERM
            printf '#!/bin/sh\nexit 101\n' >$policy
            chmod 755 $policy
        fi
        "$@""#;
    let mut command = privilege.command(Path::new("/bin/sh"));
    command.args(["-c", WITHOUT_SERVICES, "sh"]);
    command.args(["/usr/bin/env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"]);
    command.args(["-o", "DPkg::Lock::Timeout=300"]).args(arguments);
    run(&mut command)
}

/// The linker is installed as the caller; it needs LLVM as a library only, under the name that
/// its build looks for.
fn install_bpf_linker() -> Result<()> {
    let library =
        llvm_library().ok_or("needs LLVM 22 (Debian's libllvm22, which rustc-web brings)")?;
    let prefix = tempfile::tempdir()?;
    fs::create_dir(prefix.path().join("lib"))?;
    unix::fs::symlink(library, prefix.path().join("lib/libLLVM.so"))?;
    let mut command = cargo::cargo();
    command.env("LLVM_PREFIX", prefix.path()).env_remove("CARGO_TARGET_DIR");
    command.args(["install", BPF_LINKER, "--version", BPF_LINKER_VERSION, "--locked", "--force"]);
    command.args(["--no-default-features", "--features", "llvm-22"]);
    run(&mut command)
}

fn llvm_library() -> Option<PathBuf> {
    let folders = fs::read_dir("/usr/lib").ok()?.flatten().map(|entry| entry.path());
    let mut folders = folders.chain(iter::once("/usr/lib/llvm-22/lib".into()));
    folders.find_map(|folder| {
        let library = folder.join("libLLVM.so.22.1");
        library.exists().then_some(library)
    })
}

fn has(program: &str, version: &str) -> bool {
    let output = Command::new(program).arg("--version").env("PATH", search_path()).output();
    output.is_ok_and(|output| {
        let text = String::from_utf8_lossy(&output.stdout);
        text.trim().ends_with(version)
    })
}

/// By the package's own word where there is one, or else by the file.
fn is_installed(package: &str, file: &str) -> bool {
    let status = Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .stderr(Stdio::null())
        .output();
    match status {
        Ok(output) => output.stdout == b"installed",
        Err(_) => env::split_paths(&search_path()).any(|folder| folder.join(file).exists()),
    }
}

/// The caller's, with the folders for administrators and cargo's own.
fn search_path() -> std::ffi::OsString {
    let mut folders: Vec<PathBuf> =
        env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default();
    folders.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let home = env::var_os("HOME").map(|home| Path::new(&home).join(".cargo"));
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from).or(home);
    folders.extend(cargo_home.map(|home| home.join("bin")));
    env::join_paths(folders).unwrap_or_default()
}

fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.stdin(Stdio::null()).status().map_err(|e| format!("{program}: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("{program} ended with {status}").into()) }
}

/// Prints what is missing.
pub fn print(missing: &BTreeSet<Need>, allowed: &[String]) {
    for Need { name, remedy } in missing {
        if allowed.iter().any(|a| a == name) {
            report::note(&format!("without {name}, as allowed"));
        } else {
            report::bad(&format!("needs {name}: {remedy}"));
        }
    }
}
