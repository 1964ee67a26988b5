//! What tests with real container runtimes share: the guides' configuration, servers, what is left.
#![allow(
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    reason = "a test fails by panicking; every test binary compiles this module and uses a part"
)]

use std::{
    fs,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::fs::symlink,
    path::Path,
    process::{self, Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use podwire_lab::{Attachment, Cni, Host, allowed_missing, binary};
use serde_json::Value;

use crate::node::{Node, until};

/// Tells its name on port 80, and ends when it is told to.
pub const SERVE: &str = "trap 'exit 0' TERM; mkdir -p /www; hostname > /www/name; \
                         httpd -f -p 80 -h /www & wait";

/// What [`SERVE`] and its clients need of busybox.
pub const APPLETS: [&str; 8] =
    ["hostname", "httpd", "mkdir", "ping", "sh", "sleep", "true", "wget"];

/// Whether this runtime's program, or something that any runtime needs here, is missing and may be.
pub fn may_do_without(package: &str, program: &str) -> bool {
    let needed = [
        (package, program),
        ("runc", "/usr/sbin/runc"),
        ("busybox-static", "/bin/busybox"),
        ("containernetworking-plugins", "/usr/lib/cni/portmap"),
        ("iptables", "/usr/sbin/iptables"),
    ];
    needed.iter().any(|(name, file)| allowed_missing(name, || Path::new(file).exists()))
}

/// A guide's only block in this language.
#[track_caller]
pub fn block<'a>(guide: &'a str, language: &str) -> &'a str {
    let start = format!("\n```{language}\n");
    let [_, rest] = guide.split(&start).collect::<Vec<_>>()[..] else {
        panic!("the guide has one block of {language}");
    };
    rest.split("```").next().unwrap()
}

/// Writes a file and the folders above it.
pub fn write(path: &str, text: &str) -> io::Result<()> {
    fs::create_dir_all(Path::new(path).parent().unwrap())?;
    fs::write(path, text)
}

/// Makes the folder that becomes a runtime's only image: busybox.
pub fn write_image(folder: &str) -> io::Result<()> {
    let programs = Path::new(folder).join("bin");
    fs::create_dir_all(&programs)?;
    fs::copy("/bin/busybox", programs.join("busybox"))?;
    APPLETS.iter().try_for_each(|applet| symlink("busybox", programs.join(applet)))
}

/// Runs a program on the node, with nothing of the caller's environment: what it printed, or what
/// it said when it failed.
pub fn run(host: &Host, program: &str, arguments: &[&str]) -> Result<String, String> {
    let mut command = clean_command(host, program);
    let output = command.args(arguments).stdin(Stdio::null()).output().unwrap();
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    if output.status.success() { Ok(stdout) } else { Err(stderr) }
}

/// A command on the node, with nothing of the caller's environment.
pub fn clean_command(host: &Host, program: &str) -> Command {
    let mut command = host.command(program);
    command.current_dir("/").env_clear().envs([
        ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        ("HOME", "/run/home"),
        ("TMPDIR", "/run"),
    ]);
    command
}

/// The name that a server tells the node, as soon as it listens.
#[track_caller]
pub fn fetch(host: &Host, server: SocketAddr) -> String {
    let fetch = || -> io::Result<String> {
        let patience = Duration::from_secs(30);
        let mut stream = TcpStream::connect_timeout(&server, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.write_all(b"GET /name HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.rsplit("\r\n\r\n").next().unwrap_or_default().trim_end().to_owned())
    };
    let mut name = None;
    until(&format!("the node reaches {server}"), || {
        name = host.run(fetch).ok();
        name.is_some()
    });
    name.unwrap()
}

/// Every process on the node but the agent and the lab's own: number and name.
pub fn processes(node: &Node) -> Vec<(i32, String)> {
    let mounts = node.host.run(|| fs::read_link("/proc/thread-self/ns/mnt")).unwrap();
    let agent = node.agent.pid().to_string();
    let numbers = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<i32>().ok());
    let here = numbers.filter(|number| {
        fs::read_link(format!("/proc/{number}/ns/mnt")).is_ok_and(|other| other == mounts)
    });
    here.filter(|number| number.to_string() != agent)
        .filter_map(|number| {
            Some((number, fs::read_to_string(format!("/proc/{number}/comm")).ok()?))
        })
        .map(|(number, name)| (number, name.trim_end().to_owned()))
        .filter(|(_, name)| name != "podwire-lab")
        .collect()
}

/// Containers whose endpoints the agent has.
pub fn endpoints(node: &Node) -> Vec<String> {
    let endpoints = node.cli(&["endpoint", "list"]);
    let ids = endpoints.as_array().unwrap().iter().map(|e| e["container_id"].as_str());
    ids.map(|id| id.unwrap().to_owned()).collect()
}

/// Has the plugin remove every endpoint whose container is not among these, in the guide's network;
/// tells how many there were.
pub fn collect_garbage(node: &Node, guide: &str, containers: &[String]) -> usize {
    let forgotten = endpoints(node).iter().filter(|id| !containers.contains(id)).count();
    let list: Value = serde_json::from_str(block(guide, "json")).unwrap();
    let mut config = list["plugins"][0].clone();
    // GC came with version 1.1.0.
    (config["name"], config["cniVersion"]) = (list["name"].clone(), "1.1.0".into());
    let plugin = Cni::new(&node.host, binary("podwire-cni").unwrap(), config);
    let valid: Vec<_> = containers.iter().map(|id| Attachment::new(id, "")).collect();
    plugin.gc(&valid).unwrap();
    forgotten
}

/// Removes what a killed runtime forgot besides, when none of its containers is left: processes of
/// its own, but for those of this name, and pinned namespaces. Tells what there was.
pub fn remove_forgotten(node: &Node, spared: &str) -> Vec<String> {
    let mut forgotten = Vec::new();
    for (number, name) in processes(node).into_iter().filter(|(_, name)| name != spared) {
        // It may be about to end by itself.
        let _ = kill(Pid::from_raw(number), Signal::SIGKILL);
        forgotten.push(name);
    }
    for name in node.host.pod_names().unwrap() {
        // Killed between the two steps of removing it, a runtime leaves an empty file.
        node.host
            .remove_pod_netns(&name)
            .or_else(|_| node.host.run(|| fs::remove_file(Path::new("/run/netns").join(&name))))
            .unwrap();
        forgotten.push(name);
    }
    forgotten
}

/// Asserts that neither the runtime's CNI library nor the plugin has noted anything.
#[track_caller]
pub fn assert_no_notes(host: &Host) {
    for folder in ["/var/lib/cni/results", "/run/podwire/pending-del"] {
        let list = || fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name())).collect();
        let left: io::Result<Vec<_>> = host.run(list);
        match left {
            Ok(left) => assert!(left.is_empty(), "{folder}: {left:?}"),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::NotFound, "{folder}"),
        }
    }
}

/// A cgroup of its own in every hierarchy. A lab host does not take its cgroups along when it ends,
/// nor the processes of a container whose network namespace is pinned no more; so a process outside
/// does, however this one ends.
pub struct Cgroups {
    pub name: String,
    sweeper: Child,
}

impl Cgroups {
    pub fn new() -> Self {
        /// Waits for the end of its input; then ends what is inside and removes what has become
        /// empty, until all has.
        const SWEEP: &str = r#"
            cat
            for round in $(seq 3000); do
                find /sys/fs/cgroup -path "*/$0*" -name cgroup.procs -exec cat {} + |
                    sort -un | xargs -r kill -KILL
                find /sys/fs/cgroup -depth -path "*/$0*" -type d -exec rmdir {} + && exit
                sleep 0.01
            done"#;
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("podwire-test-{}-{number}", process::id());
        let mut sweeper = Command::new("setsid");
        sweeper.args(["sh", "-c", SWEEP, &name]).current_dir("/");
        let sweeper = sweeper.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { name, sweeper: sweeper.spawn().unwrap() }
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        // Closes its input, too.
        self.sweeper.wait().unwrap();
    }
}
