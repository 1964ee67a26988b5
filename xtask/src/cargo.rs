//! What is asked of cargo.

use std::{
    env,
    ffi::OsStr,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde::Deserialize;

use crate::Result;

/// The binaries that tests and the demo run, and the packages they are in.
pub const PROGRAMS: [(&str, &str); 4] = [
    ("podwired", "podwire-agent"),
    ("podwire", "podwire-cli"),
    ("podwire-cni", "podwire-plugin"),
    ("podwire-ipam", "podwire-plugin"),
];

/// One profile for all that is tested, linted and documented, so that nothing is built twice.
pub const PROFILE: [&str; 2] = ["--profile", "ci"];

/// The folder of the workspace's manifest.
pub fn workspace_root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

/// Cargo, in the workspace, as the caller.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace_root());
    // Set by `cargo run` for this program; the crates built from here are others.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// Runs cargo with these arguments; it talks to the terminal itself.
pub fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Result<()> {
    let mut command = cargo();
    command.args(arguments);
    finish(command)
}

/// Runs a command of cargo's that was prepared.
pub fn finish(mut command: Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status()?;
    if status.success() {
        return Ok(());
    }
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
    Err(format!("`cargo {}` ended with {status}", words.join(" ")).into())
}

/// The workspace as cargo sees it.
#[derive(Debug, Deserialize)]
pub struct Metadata {
    /// Its own packages.
    pub packages: Vec<Package>,
    /// Where it builds.
    pub target_directory: PathBuf,
}

/// A package of the workspace.
#[derive(Debug, Deserialize)]
pub struct Package {
    id: String,
    /// Its name.
    pub name: String,
    version: String,
    manifest_path: PathBuf,
    publish: Option<Vec<String>>,
}

impl Metadata {
    /// Asks cargo.
    pub fn read() -> Result<Self> {
        let output = cargo()
            .args(["metadata", "--no-deps", "--format-version", "1"])
            .stderr(Stdio::inherit())
            .output()?;
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Names of the packages that are published.
    pub fn published(&self) -> Vec<&str> {
        let public = |package: &&Package| package.publish.as_ref().is_none_or(|to| !to.is_empty());
        self.packages.iter().filter(public).map(|package| package.name.as_str()).collect()
    }

    /// The version of a package.
    pub fn version(&self, name: &str) -> Option<&str> {
        let package = self.packages.iter().find(|package| package.name == name)?;
        Some(&package.version)
    }
}

/// A program of tests or benchmarks that cargo has built.
#[derive(Clone, Debug)]
pub struct Binary {
    /// Package and target, as in `podwire-ipam::model`; of benchmarks, the target.
    pub name: String,
    /// The folder of the package's manifest, in which it runs.
    pub folder: PathBuf,
    /// The program.
    pub path: PathBuf,
}

/// Builds the test programs of these packages, or of all when there are none.
pub fn build_tests(metadata: &Metadata, packages: &[String]) -> Result<Vec<Binary>> {
    let mut command = cargo();
    // Without --all-targets: with it, examples are built as tests, and those that tests run as
    // programs would not be there.
    command.args(["test", "--no-run", "--message-format=json-render-diagnostics"]);
    command.arg("--all-features").args(PROFILE);
    match packages {
        [] => command.arg("--workspace"),
        some => command.args(some.iter().flat_map(|name| ["--package", name])),
    };
    binaries(command, |message| message.test_binary(metadata))
}

/// Builds the files of benchmarks; `profile` chooses another profile than cargo's own for them.
pub fn build_benches(profile: &[&str]) -> Result<Vec<Binary>> {
    let metadata = Metadata::read()?;
    let mut command = cargo();
    command.args(["bench", "--package", "podwire-benches", "--benches", "--no-run"]);
    command.arg("--message-format=json-render-diagnostics").args(profile);
    binaries(command, |message| message.bench_binary(&metadata))
}

/// Runs a build, and gives those of its programs that `choose` takes.
fn binaries(
    mut command: Command,
    choose: impl Fn(Message) -> Option<Binary>,
) -> Result<Vec<Binary>> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut binaries = Vec::new();
    for line in child.stdout.take().map(BufReader::new).into_iter().flat_map(BufRead::lines) {
        binaries.extend(choose(serde_json::from_str(&line?)?));
    }
    let status = child.wait()?;
    if !status.success() {
        return Err(format!("the build ended with {status}").into());
    }
    binaries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(binaries)
}

/// Builds the binaries that tests and the demo run, and gives their folder.
pub fn build_programs() -> Result<PathBuf> {
    let packages = PROGRAMS.iter().flat_map(|(_, package)| ["--package", package]);
    run(["build", "--release", "--bins"].into_iter().chain(packages))?;
    Ok(Metadata::read()?.target_directory.join("release"))
}

#[derive(Deserialize)]
struct Message {
    reason: String,
    package_id: Option<String>,
    executable: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

impl Message {
    fn test_binary(self, metadata: &Metadata) -> Option<Binary> {
        let target = self.target?;
        if self.reason != "compiler-artifact" || !self.profile?.test {
            return None;
        }
        let id = self.package_id?;
        let package = metadata.packages.iter().find(|package| package.id == id)?;
        let is_lib = target.kind.iter().any(|kind| kind.ends_with("lib"));
        let name = match is_lib {
            true => package.name.clone(),
            false => format!("{}::{}", package.name, target.name),
        };
        Some(Binary {
            name,
            folder: package.manifest_path.parent()?.to_owned(),
            path: self.executable?,
        })
    }

    fn bench_binary(self, metadata: &Metadata) -> Option<Binary> {
        let target = self.target?;
        if self.reason != "compiler-artifact" || target.kind != ["bench"] {
            return None;
        }
        let id = self.package_id?;
        let package = metadata.packages.iter().find(|package| package.id == id)?;
        Some(Binary {
            name: target.name,
            folder: package.manifest_path.parent()?.to_owned(),
            path: self.executable?,
        })
    }
}
