//! `cargo xtask test`: everything, in stages.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use clap::{Args, builder::PossibleValuesParser};
use podwire_lab::{ALLOW_MISSING_VARIABLE, BIN_DIR_VARIABLE, SKIPS_VARIABLE};

use crate::{
    Result, bench, cargo,
    cargo::{Binary, Metadata, PROFILE, PROGRAMS},
    compare, ebpf, fuzz,
    libtest::{self, Outcome},
    needs::{self, Need},
    own_program,
    privilege::{NOBODY, Privilege, Run},
    proof,
    report::{self, Stage},
};

/// A test program that runs longer hangs.
const LIMIT: Duration = Duration::from_secs(600);

/// How often each fuzz target runs.
const SMOKE_RUNS: u64 = 5_000;

/// Largest release binaries, in bytes.
const SIZES: [(&str, u64); 4] = [
    ("podwired", 8_000_000),
    ("podwire", 8_000_000),
    ("podwire-cni", 2_000_000),
    ("podwire-ipam", 2_000_000),
];

/// Crates of the kernel's side: workspaces of their own.
const EBPF_CRATES: [&str; 4] =
    ["benches/kernel", "crates/bpf/tests/kernel", "crates/ebpf", "examples/mini-cni/kernel"];

#[derive(Debug, Args)]
pub struct Options {
    /// Install what is missing (Debian 12)
    #[arg(long)]
    install: bool,
    /// Do without this; what needs it is skipped
    #[arg(long, value_name = "WHAT", value_delimiter = ',', value_parser = PossibleValuesParser::new(needs::names()))]
    allow_missing: Vec<String>,
    /// Run only tests whose name contains this, and no other check
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Run only the tests of these packages, and no other check
    #[arg(long, value_name = "NAME")]
    package: Vec<String>,
}

/// Runs all stages; fails if one of them does.
pub fn run(options: &Options) -> Result<ExitCode> {
    let privilege = Privilege::find();
    let missing = find_missing(options, privilege)?;
    if missing.iter().any(|need| !options.allow_missing.iter().any(|name| name == need.name)) {
        return Ok(ExitCode::FAILURE);
    }
    let missing: BTreeSet<&str> = missing.iter().map(|need| need.name).collect();
    let all = options.filter.is_none() && options.package.is_empty();
    let mut stages = Vec::new();
    if all {
        stages.push(formatting(&missing));
    }
    match build(&options.package) {
        Ok((stage, metadata, tests, programs)) => {
            stages.push(stage);
            let runner = Runner::new(options, privilege, &missing, &metadata, programs)?;
            if missing.contains("root") || missing.contains("lab") {
                stages.push(runner.without_root(&tests)?);
            } else {
                stages.push(runner.as_nobody(&tests)?);
                stages.push(runner.as_root(&tests)?);
            }
            if all {
                stages.push(sizes(&runner.programs));
                stages.push(benchmarks(privilege, &missing));
                stages.push(comparison(&runner.programs, &missing));
                stages.push(doc_tests()?);
                stages.push(lints(&missing));
                stages.push(documentation());
                stages.push(objects(&missing));
                stages.push(packages(&metadata));
                stages.push(library_proof(&metadata, privilege, &missing));
                stages.push(fuzz_smoke(privilege, &missing));
            }
        }
        Err((stage, error)) => {
            report::failure(error.as_ref());
            stages.push(stage);
        }
    }
    Ok(if report::table(&stages) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn find_missing(options: &Options, privilege: Privilege) -> Result<BTreeSet<Need>> {
    report::heading("what the tests need");
    let mut missing = needs::missing(privilege)?;
    if options.install && !missing.is_empty() {
        needs::install(&missing, privilege)?;
        missing = needs::missing(privilege)?;
    }
    if missing.is_empty() {
        report::good("everything is here");
    } else {
        needs::print(&missing, &options.allow_missing);
    }
    Ok(missing)
}

fn formatting(missing: &BTreeSet<&str>) -> Stage {
    let mut stage = Stage::begin("formatting");
    if missing.contains("rustfmt") {
        stage.skipped += 1;
        return stage.end();
    }
    check(&mut stage, "the workspace", cargo::run(["fmt", "--all", "--check"]));
    for folder in EBPF_CRATES.into_iter().chain(["examples/mini-cni", "fuzz"]) {
        let manifest = cargo::workspace_root().join(folder).join("Cargo.toml");
        let mut command = cargo::cargo();
        command.args(["fmt", "--check", "--manifest-path"]).arg(manifest);
        check(&mut stage, folder, cargo::finish(command));
    }
    stage.end()
}

type Built = (Stage, Metadata, Vec<Binary>, PathBuf);

fn build(packages: &[String]) -> std::result::Result<Built, (Stage, Box<dyn std::error::Error>)> {
    let mut stage = Stage::begin("build");
    let built = Metadata::read().and_then(|metadata| {
        let tests = cargo::build_tests(&metadata, packages)?;
        report::note(&format!("{} test programs", tests.len()));
        Ok((metadata, tests, cargo::build_programs()?))
    });
    match built {
        Ok((metadata, tests, programs)) => Ok((stage.end(), metadata, tests, programs)),
        Err(error) => {
            stage.failed += 1;
            Err((stage.end(), error))
        }
    }
}

/// Runs test programs, each in its package's folder.
struct Runner<'a> {
    options: &'a Options,
    privilege: Privilege,
    reachable: Vec<PathBuf>,
    variables: Vec<(&'static str, OsString)>,
    skips: PathBuf,
    programs: PathBuf,
    _folder: tempfile::TempDir,
}

impl<'a> Runner<'a> {
    fn new(
        options: &'a Options,
        privilege: Privilege,
        missing: &BTreeSet<&str>,
        metadata: &Metadata,
        programs: PathBuf,
    ) -> Result<Self> {
        // Every user must be able to note a skipped test.
        let folder = tempfile::tempdir()?;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        let skips = folder.path().join("skips");
        fs::write(&skips, "")?;
        fs::set_permissions(&skips, fs::Permissions::from_mode(0o666))?;
        let allowed: Vec<_> = missing.iter().copied().collect();
        let variables = vec![
            (BIN_DIR_VARIABLE, programs.clone().into()),
            (ALLOW_MISSING_VARIABLE, allowed.join(",").into()),
            (SKIPS_VARIABLE, skips.clone().into()),
            ("RUST_BACKTRACE", "1".into()),
        ];
        let reachable = vec![metadata.target_directory.clone(), cargo::workspace_root()];
        Ok(Self { options, privilege, reachable, variables, skips, programs, _folder: folder })
    }

    fn as_nobody(&self, tests: &[Binary]) -> Result<Stage> {
        let mut stage = Stage::begin("tests as uid 65534, no capabilities");
        stage.counted_elsewhere = true;
        for test in tests {
            let command = self.command(NOBODY, test)?;
            self.run(&mut stage, test, command)?;
        }
        Ok(stage.end())
    }

    fn as_root(&self, tests: &[Binary]) -> Result<Stage> {
        let mut stage = Stage::begin("tests as root, all");
        let (before, modules_before) = (self.inventory()?, modules()?);
        for test in tests {
            let mut command = self.command(0, test)?;
            command.arg("--include-ignored");
            self.run(&mut stage, test, command)?;
        }
        if stage.passed + stage.failed + stage.skipped == 0 {
            stage.check(Err("no test has such a name".to_owned()), "there is something to run");
        }
        let loaded: Vec<_> = modules()?.difference(&modules_before).cloned().collect();
        let left: Vec<_> = self
            .inventory()?
            .difference(&before)
            .filter(|thing| !loaded.iter().any(|module| is_made_by(module, thing)))
            .cloned()
            .collect();
        let outcome = if left.is_empty() { Ok(()) } else { Err(left.join("; ")) };
        stage.check(outcome, "nothing is left on the machine");
        Ok(stage.end())
    }

    /// Where nobody can become root: as the caller, and root's tests are skipped.
    fn without_root(&self, tests: &[Binary]) -> Result<Stage> {
        let mut stage = Stage::begin("tests as the caller");
        for test in tests {
            let mut command = Command::new(&test.path);
            command.current_dir(&test.folder).envs(self.variables.iter().cloned());
            command.env("CARGO_MANIFEST_DIR", &test.folder);
            command.args(self.options.filter.iter());
            self.run(&mut stage, test, command)?;
        }
        stage.skipped += stage.ignored;
        Ok(stage.end())
    }

    fn command(&self, user: u32, test: &Binary) -> Result<Command> {
        let mut variables = self.variables.clone();
        variables.push(("CARGO_MANIFEST_DIR", test.folder.clone().into()));
        let run = Run {
            folder: &test.folder,
            reachable: &self.reachable,
            variables: &variables,
            limit: LIMIT,
        };
        let mut command = self.privilege.command_as(user, &test.path, &run)?;
        command.args(self.options.filter.iter());
        Ok(command)
    }

    fn run(&self, stage: &mut Stage, test: &Binary, command: Command) -> Result<()> {
        let start = Instant::now();
        let Outcome { passed, failed, ignored, without_reason, output } = libtest::run(command)?;
        let skips = fs::read_to_string(&self.skips)?;
        fs::write(&self.skips, "")?;
        let skipped = skips.lines().count() as u64;
        // To its harness, a skipped test has passed.
        let passed = passed.saturating_sub(skipped);
        stage.passed += passed;
        stage.failed += failed + without_reason.len() as u64;
        stage.skipped += skipped;
        stage.ignored += ignored;

        let mut counts = format!("{:<40} {passed:>4} passed", test.name);
        for (number, what) in [(failed, "failed"), (ignored, "ignored"), (skipped, "skipped")] {
            if number > 0 {
                counts.push_str(&format!(", {number} {what}"));
            }
        }
        let line = format!("{counts}  ({})", report::seconds(start.elapsed()));
        if failed > 0 {
            report::bad(&line);
            print!("{output}");
        } else if passed + ignored + skipped > 0 {
            report::good(&line);
            // A test may tell in a table what it has tried.
            output.lines().filter(|line| line.starts_with("| ")).for_each(report::note);
        }
        for name in without_reason {
            report::bad(&format!("{}: {name} is ignored without a reason", test.name));
        }
        skips.lines().for_each(|skip| report::note(&format!("skipped {skip}")));
        Ok(())
    }

    /// What stands on the machine itself.
    fn inventory(&self) -> Result<BTreeSet<String>> {
        let output = self.privilege.command(&own_program()?).arg("inventory").output()?;
        Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
    }
}

/// The kernel's modules, built in or loaded.
fn modules() -> Result<BTreeSet<String>> {
    let names = fs::read_dir("/sys/module")?;
    names.map(|name| Ok(name?.file_name().to_string_lossy().into_owned())).collect()
}

/// Whether a module that was just loaded brings this link, as ifb brings ifb0 and ifb1.
fn is_made_by(module: &str, thing: &str) -> bool {
    let number = thing.strip_prefix("link ").and_then(|link| link.strip_prefix(module));
    number.is_some_and(|number| number.parse::<u8>().is_ok())
}

fn sizes(programs: &Path) -> Stage {
    let mut stage = Stage::begin("sizes of the release binaries");
    debug_assert_eq!(SIZES.map(|(name, _)| name), PROGRAMS.map(|(name, _)| name));
    for (name, most) in SIZES {
        let what = format!("{name} is at most {most} bytes");
        match fs::metadata(programs.join(name)).map(|file| file.len()) {
            Ok(size) if size <= most => stage.check(Ok(()), &format!("{what}: {size}")),
            Ok(size) => stage.check(Err(format!("it has {size}")), &what),
            Err(error) => stage.check(Err(error.to_string()), &what),
        }
    }
    stage.end()
}

/// Every benchmark once: what it measures goes right. Its figure is not looked at.
fn benchmarks(privilege: Privilege, missing: &BTreeSet<&str>) -> Stage {
    let mut stage = Stage::begin("benchmarks, each once");
    if ["root", "lab"].iter().any(|name| missing.contains(name)) {
        stage.skipped += 1;
        return stage.end();
    }
    match cargo::build_benches(&PROFILE) {
        Ok(binaries) => {
            for binary in binaries {
                let outcome = bench::smoke(privilege, &binary);
                check(&mut stage, &format!("benches/{}", binary.name), outcome);
            }
        }
        Err(error) => check(&mut stage, "the benchmarks build", Err(error)),
    }
    stage.end()
}

/// A run of `cargo xtask compare` that is too short to say anything but that it works.
fn comparison(programs: &Path, missing: &BTreeSet<&str>) -> Stage {
    let mut stage = Stage::begin("comparison");
    if ["root", "lab"].iter().chain(&compare::NEEDS).any(|name| missing.contains(name)) {
        stage.skipped += 1;
        return stage.end();
    }
    let folder = tempfile::tempdir().map_err(Into::into);
    let outcome = folder.and_then(|folder| compare::smoke(programs, folder.path()));
    check(&mut stage, "every work is done and reported", outcome);
    stage.end()
}

fn doc_tests() -> Result<Stage> {
    let mut stage = Stage::begin("doc tests");
    let mut command = cargo::cargo();
    command
        .args(["test", "--doc", "--workspace", "--all-features", "--no-fail-fast"])
        .args(PROFILE);
    let Outcome { passed, failed, ignored, output, .. } = libtest::run(command)?;
    (stage.passed, stage.failed, stage.ignored) = (passed, failed, ignored);
    if failed > 0 {
        report::bad("doc tests");
        print!("{output}");
    } else {
        report::good(&format!("{passed} examples"));
    }
    Ok(stage.end())
}

fn lints(missing: &BTreeSet<&str>) -> Stage {
    let mut stage = Stage::begin("lints");
    if missing.contains("clippy") {
        stage.skipped += 1;
        return stage.end();
    }
    let mut command = cargo::cargo();
    command.args(["clippy", "--workspace", "--all-targets", "--all-features"]).args(PROFILE);
    command.args(["--", "-D", "warnings"]);
    check(&mut stage, "no warning of rustc and clippy", cargo::finish(command));
    if needs::FUZZ.iter().any(|name| missing.contains(name)) {
        stage.skipped += 1;
        return stage.end();
    }
    let mut command = cargo::cargo();
    // As cargo-fuzz builds them: with the private parsers within reach.
    command.env("RUSTFLAGS", "--cfg fuzzing").args([
        "clippy",
        "--manifest-path",
        "fuzz/Cargo.toml",
    ]);
    command.args(["--target-dir", "target/fuzz/clippy", "--", "-D", "warnings"]);
    check(&mut stage, "none in the fuzz targets", cargo::finish(command));
    stage.end()
}

fn documentation() -> Stage {
    let mut stage = Stage::begin("documentation");
    let mut command = cargo::cargo();
    command.env("RUSTDOCFLAGS", "-D warnings");
    command.args(["doc", "--workspace", "--no-deps", "--all-features"]).args(PROFILE);
    check(&mut stage, "no warning of rustdoc", cargo::finish(command));
    stage.end()
}

fn objects(missing: &BTreeSet<&str>) -> Stage {
    let mut stage = Stage::begin("eBPF objects");
    if needs::EBPF.iter().any(|name| missing.contains(name)) {
        stage.skipped += 1;
        return stage.end();
    }
    let outcome = ebpf::run(&cargo::workspace_root(), ebpf::Mode::Check).map_err(Into::into);
    check(&mut stage, "the committed objects are what their sources build", outcome);
    stage.end()
}

/// Each target over its seeds and a few thousand inputs made from them.
fn fuzz_smoke(privilege: Privilege, missing: &BTreeSet<&str>) -> Stage {
    let mut stage = Stage::begin("fuzz targets");
    if needs::FUZZ.iter().any(|name| missing.contains(name)) {
        stage.skipped += 1;
        return stage.end();
    }
    let built = fuzz::targets_of(None).and_then(|t| Ok((t, fuzz::build(fuzz::Sanitizer::None)?)));
    let (targets, programs) = match built {
        Ok(built) => built,
        Err(error) => {
            stage.check(Err(report::chain(error.as_ref())), "the targets build");
            return stage.end();
        }
    };
    for target in targets {
        if fuzz::needs_root(&target) && privilege == Privilege::None {
            stage.skipped += 1;
            continue;
        }
        let outcome = fuzz::run_one(&target, &programs, fuzz::Limit::Runs(SMOKE_RUNS));
        let outcome = outcome.and_then(|outcome| match outcome.findings.len() {
            0 => Ok(()),
            number => Err(format!("{number} findings").into()),
        });
        check(&mut stage, &target, outcome);
    }
    stage.end()
}

/// Every library builds from its own package, its siblings taken from theirs.
fn packages(metadata: &Metadata) -> Stage {
    let mut stage = Stage::begin("packages");
    let mut command = cargo::cargo();
    // As light as the other builds of this run; a package takes no profile of the workspace.
    command.env("CARGO_PROFILE_DEV_DEBUG", "0").stdout(Stdio::null());
    command.args(["package", "--allow-dirty", "--quiet"]);
    let published = metadata.published();
    command.args(published.iter().flat_map(|name| ["--package", name]));
    let what = format!("{} packages build by themselves", published.len());
    check(&mut stage, &what, cargo::finish(command));
    stage.end()
}

/// Somebody else's plugin, built from the packages alone.
fn library_proof(metadata: &Metadata, privilege: Privilege, missing: &BTreeSet<&str>) -> Stage {
    let mut stage = Stage::begin("somebody else's plugin");
    let plugin = match proof::build(metadata) {
        Ok(plugin) => plugin,
        Err(error) => {
            check(&mut stage, "it builds from the packages alone", Err(error));
            return stage.end();
        }
    };
    check(&mut stage, "it builds from the packages alone", Ok(()));
    if ["root", "lab"].iter().any(|name| missing.contains(name)) {
        stage.skipped += 1;
        return stage.end();
    }
    check(&mut stage, "it connects two pods", proof::run_as(privilege, &plugin));
    stage.end()
}

fn check(stage: &mut Stage, what: &str, outcome: Result<()>) {
    stage.check(outcome.map_err(|error| report::chain(error.as_ref())), what);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_a_loaded_module_are_told_from_others() {
        assert!(is_made_by("ifb", "link ifb0"));
        assert!(!is_made_by("ifb", "link ifbx"));
        assert!(!is_made_by("veth", "link pw0"));
        assert!(!is_made_by("ifb", "pin ifb0"));
    }
}
