//! Shows that the libraries serve somebody who has nothing but their packages: his plugin,
//! `examples/mini-cni`, is built from those alone, in a folder of its own, and connects two pods.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use clap::Args;
use podwire_bpf::PerCpuArray;
use podwire_lab::{Attachment, Cni, Host, Pod, probe::Ping};
use serde_json::{Value, json};

use crate::{
    Result, cargo,
    cargo::Metadata,
    own_program,
    privilege::{Privilege, own_program_as_root},
    report,
};

/// The plugin's sources.
const SOURCES: &str = "examples/mini-cni";

/// The packages it is built from.
const PACKAGES: [&str; 5] =
    ["podwire-bpf", "podwire-cni", "podwire-ipam", "podwire-netlink", "podwire-netns"];

/// What none of them may bring along.
const UNWANTED: [&str; 8] = [
    "podwire-abi",
    "podwire-api",
    "podwire-datapath",
    "podwire-endpoint",
    "podwire-node",
    "podwire-route",
    "rtnetlink",
    "tokio",
];

#[derive(Debug, Args)]
pub struct RunOptions {
    #[arg(long)]
    plugin: PathBuf,
}

/// Builds the plugin and runs it.
pub fn build_and_run() -> Result<ExitCode> {
    report::heading("somebody else's plugin, from the packages alone");
    let plugin = build(&Metadata::read()?)?;
    finish(own_program_as_root()?, &plugin)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs a plugin that was built, as root.
pub fn run_as(privilege: Privilege, plugin: &Path) -> Result<()> {
    finish(privilege.command(&own_program()?), plugin)
}

fn finish(mut command: Command, plugin: &Path) -> Result<()> {
    let status = command.arg("proof-run").arg("--plugin").arg(plugin).status()?;
    if status.success() { Ok(()) } else { Err(format!("the run ended with {status}").into()) }
}

/// Packages the libraries, unpacks them, and builds the plugin from them.
pub fn build(metadata: &Metadata) -> Result<PathBuf> {
    let folder = metadata.target_directory.join("proof");
    let (packages, project) = (folder.join("packages"), folder.join("mini-cni"));
    for leftover in [&packages, &project] {
        if leftover.exists() {
            fs::remove_dir_all(leftover)?;
        }
    }
    let unpacked = unpack(metadata, &packages)?;
    copy(&cargo::workspace_root().join(SOURCES), &project)?;
    // The same versions of everybody else's crates as everywhere here.
    let lock = cargo::workspace_root().join("Cargo.lock");
    fs::copy(&lock, project.join("Cargo.lock"))?;
    // Until they are published, this takes the registry's place.
    fs::create_dir(project.join(".cargo"))?;
    fs::write(project.join(".cargo/config.toml"), patches(&unpacked))?;

    let mut build = in_project(&project, &folder);
    build.args(["build", "--quiet"]);
    cargo::finish(build)?;
    let tree = tree(&project, &folder)?;
    expect_packages_only(&tree, &packages)?;
    expect_same_versions(&project.join("Cargo.lock"), &lock)?;
    report::note(&format!(
        "built of {} packages, among them {}; not {}",
        tree.len(),
        PACKAGES.join(", "),
        UNWANTED.join(", ")
    ));
    Ok(folder.join("build/debug/mini-cni"))
}

fn in_project(project: &Path, folder: &Path) -> Command {
    let mut command = cargo::cargo();
    command.current_dir(project).env("CARGO_PROFILE_DEV_DEBUG", "0");
    command.env("CARGO_TARGET_DIR", folder.join("build"));
    command
}

/// Makes the packages as they would be published; gives the folder of each.
fn unpack(metadata: &Metadata, into: &Path) -> Result<Vec<(&'static str, PathBuf)>> {
    let mut package = cargo::cargo();
    package.args(["package", "--allow-dirty", "--no-verify", "--quiet"]);
    package.args(PACKAGES.iter().flat_map(|name| ["--package", name]));
    cargo::finish(package)?;
    fs::create_dir_all(into)?;
    let mut unpacked = Vec::new();
    for name in PACKAGES {
        let version = metadata.version(name).ok_or_else(|| format!("there is no {name}"))?;
        let file = format!("{name}-{version}.crate");
        let mut tar = Command::new("tar");
        tar.arg("-xzf").arg(metadata.target_directory.join("package").join(&file));
        let status = tar.arg("-C").arg(into).status()?;
        if !status.success() {
            return Err(format!("{file} cannot be unpacked: tar ended with {status}").into());
        }
        unpacked.push((name, into.join(format!("{name}-{version}"))));
    }
    Ok(unpacked)
}

fn patches(unpacked: &[(&str, PathBuf)]) -> String {
    let mut text = "[patch.crates-io]\n".to_owned();
    for (name, folder) in unpacked {
        text.push_str(&format!("{name} = {{ path = {:?} }}\n", folder.display().to_string()));
    }
    text
}

/// Copies a folder, without what was built or opened by tools there.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (name, kind) = (entry.file_name(), entry.file_type()?);
        if kind.is_dir() && name != "target" && name != "kernel" {
            copy(&entry.path(), &to.join(name))?;
        } else if kind.is_file() {
            fs::copy(entry.path(), to.join(name))?;
        }
    }
    Ok(())
}

/// Every package of the plugin, as `name vX.Y.Z (where)`.
fn tree(project: &Path, folder: &Path) -> Result<BTreeSet<String>> {
    let mut command = in_project(project, folder);
    command.args(["tree", "--prefix", "none", "--edges", "normal,build", "--no-dedupe"]);
    let output = command.stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("cargo tree ended with {}", output.status).into());
    }
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

fn expect_packages_only(tree: &BTreeSet<String>, packages: &Path) -> Result<()> {
    let mut ours = BTreeSet::new();
    for line in tree {
        let name = line.split(' ').next().unwrap_or_default();
        if UNWANTED.contains(&name) {
            return Err(format!("the plugin depends on {name}").into());
        }
        if name.starts_with("podwire") {
            if !line.contains(&format!("({}/", packages.display())) {
                return Err(format!("not from a package: {line}").into());
            }
            ours.insert(name);
        }
    }
    if ours.iter().copied().eq(PACKAGES) {
        return Ok(());
    }
    Err(format!("of podwire, the plugin has {ours:?}").into())
}

fn expect_same_versions(own: &Path, workspace: &Path) -> Result<()> {
    let [own, workspace] = [fs::read_to_string(own)?, fs::read_to_string(workspace)?];
    let known: BTreeSet<_> = locked(&workspace).collect();
    let other = |entry: &(&str, &str)| entry.0 != "mini-cni" && !known.contains(entry);
    match locked(&own).find(other) {
        None => Ok(()),
        Some((name, version)) => {
            Err(format!("{name} {version} is not what the workspace has").into())
        }
    }
}

/// Names and versions of a lock file, which cargo writes one to a line.
fn locked(file: &str) -> impl Iterator<Item = (&str, &str)> {
    file.split("[[package]]").skip(1).filter_map(|entry| {
        let mut lines = entry.lines().skip(1);
        let name = lines.next()?.strip_prefix("name = ")?.trim_matches('"');
        Some((name, lines.next()?.strip_prefix("version = ")?.trim_matches('"')))
    })
}

/// The part that needs root: a host, two pods, the plugin between them.
pub fn run(options: &RunOptions) -> Result<ExitCode> {
    let host = Host::new()?;
    let before = host.inventory()?;
    let config = json!({
        "cniVersion": "1.1.0",
        "name": "mini",
        "type": "mini-cni",
        "subnets": ["10.9.0.0/24", "fd09::/64"],
    });
    let plugin = Cni::new(&host, &options.plugin, config);
    plugin.status()?;
    let attach = |name: &str| -> Result<Attached> {
        let pod = host.add_pod(name)?;
        let attachment = Attachment::new(format!("container-{name}"), pod.path());
        let result = plugin.add(&attachment)?;
        Ok(Attached { pod, attachment, result })
    };
    let (a, b) = (attach("a")?, attach("b")?);
    for (from, to) in [(&a, &b), (&b, &a)] {
        let sent = from.sent()?;
        for address in to.addresses()? {
            let report = from.pod.run(|| Ping::new(address).count(20).run())?;
            if !report.is_complete() {
                return Err(format!("{} to {address}: {report}", from.pod.name()).into());
            }
        }
        // Requests, and the answers that the other pod has asked for.
        let counted = from.sent()? - sent;
        if counted < 40 {
            return Err(format!("the program has counted {counted} of 40 packets").into());
        }
    }
    report::good("two pods reach each other, on both families, and its own program counts");
    for attached in [&a, &b] {
        plugin.check(&attached.attachment, &attached.result)?;
    }
    let taken = plugin.add(&a.attachment).err().ok_or("a second ADD succeeds")?;
    report::note(&format!("a second ADD: {taken}"));
    plugin.del(&a.attachment, Some(&a.result))?;
    if plugin.check(&a.attachment, &a.result).is_ok() {
        return Err("CHECK finds what DEL has removed".into());
    }
    // Everything but b: nothing. Then everything.
    plugin.gc(std::slice::from_ref(&b.attachment))?;
    plugin.check(&b.attachment, &b.result)?;
    plugin.gc(&[])?;
    plugin.del(&b.attachment, None)?;
    for attached in [a, b] {
        host.remove_pod_netns(attached.pod.name())?;
    }
    let leases = host.run(|| fs::read_to_string("/var/lib/mini-cni/mini.json"))?;
    if leases != "[]" {
        return Err(format!("leases are left: {leases}").into());
    }
    // The kernel drops the last routes of a link in a work queue.
    let start = Instant::now();
    loop {
        let left = host.inventory()?.since(&before);
        if left.is_empty() {
            break;
        }
        if start.elapsed() > Duration::from_secs(60) {
            return Err(format!("left behind: {}", left.join("; ")).into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    report::good("CHECK, DEL and GC do their work, and nothing is left");
    Ok(ExitCode::SUCCESS)
}

/// A pod and what ADD has said of it.
struct Attached {
    pod: Pod,
    attachment: Attachment,
    result: Value,
}

impl Attached {
    fn addresses(&self) -> Result<Vec<IpAddr>> {
        let ips = self.result["ips"].as_array().ok_or("a result without addresses")?;
        let address = |ip: &Value| -> Result<IpAddr> {
            let text = ip["address"].as_str().ok_or("an address that is no text")?;
            Ok(text.split('/').next().unwrap_or_default().parse()?)
        };
        ips.iter().map(address).collect()
    }

    /// How many packets of the pod the plugin's program has counted.
    fn sent(&self) -> Result<u64> {
        let link = self.result["interfaces"][0]["name"].as_str().ok_or("no host link")?;
        let pin = format!("/sys/fs/bpf/{link}/PACKETS");
        let counter = self.pod.host().run(|| PerCpuArray::<u64>::open(pin))?;
        Ok(counter.total(0)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_versions_are_found_in_a_lock_file() {
        let file = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.2.3\"\nsource = \"x\"\n\n\
                    [[package]]\nname = \"b\"\nversion = \"0.1.0\"\n";
        assert_eq!(locked(file).collect::<Vec<_>>(), [("a", "1.2.3"), ("b", "0.1.0")]);
    }

    #[test]
    fn a_tree_that_is_not_of_packages_alone_is_refused() {
        let packages = Path::new("/t/packages");
        let good = PACKAGES.map(|name| format!("{name} v0.1.0 (/t/packages/{name}-0.1.0)"));
        let tree = |extra: &str| good.iter().cloned().chain([extra.to_owned()]).collect();
        expect_packages_only(&tree("serde v1.0.0"), packages).unwrap();
        for bad in ["tokio v1.0.0", "podwire-x v0.1.0 (/t/packages/x)", "podwire-bpf v0.1.0 (/w)"] {
            expect_packages_only(&tree(bad), packages).unwrap_err();
        }
        let few = good.iter().skip(1).cloned().collect();
        expect_packages_only(&few, packages).unwrap_err();
    }
}
