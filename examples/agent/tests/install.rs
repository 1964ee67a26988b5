//! `podwired install-cni`: what it writes, leaves alone and removes, whenever it is killed; and a pod
//! that is attached by the files it has installed.

#![allow(clippy::print_stdout, reason = "what a test measured is worth knowing")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod node;

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::{Command, Stdio},
};

use nix::{
    libc,
    sys::{
        ptrace,
        wait::{WaitStatus, waitpid},
    },
    unistd::Pid,
};
use node::{Node, attachment};
use podwire_lab::{Cni, Host, allowed_missing, binary, probe::Ping};
use serde_json::{Value, json};

const BIN: &str = "/run/cni/bin";
const CONF: &str = "/etc/cni/net.d";
const CONFLIST: &str = "/etc/cni/net.d/05-podwire.conflist";

/// What stands for one version of the plugin and for the next: any two programs.
const OLD: &str = "/bin/true";
const NEW: &str = "/bin/false";

/// A host, with two folders to install from.
fn prepared() -> Host {
    let host = Host::new().unwrap();
    host.run(|| {
        for (folder, program) in [("/run/old", OLD), ("/run/new", NEW)] {
            fs::create_dir(folder).unwrap();
            fs::copy(program, format!("{folder}/podwire-cni")).unwrap();
        }
    });
    host
}

fn command(host: &Host, arguments: &[&str]) -> Command {
    let mut command = host.command(binary("podwired").unwrap());
    command.args(["install-cni", "--bin-dir", BIN, "--conf-dir", CONF]).args(arguments);
    command
}

/// Runs it, and gives standard output, or standard error if it fails.
fn try_install(host: &Host, arguments: &[&str]) -> Result<String, String> {
    let output = command(host, arguments).output().unwrap();
    let [out, error] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    if output.status.success() { Ok(out) } else { Err(error) }
}

#[track_caller]
fn install(host: &Host, arguments: &[&str]) -> String {
    try_install(host, arguments).unwrap()
}

fn names(folder: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
#[ignore = "needs root: a host in namespaces of its own"]
fn files_are_created_changed_and_left_alone() {
    let host = prepared();
    let old = ["--source", "/run/old", "--cni-version", "1.0.0"];
    let said = install(&host, &old);
    assert_eq!(
        said,
        "note      no portmap in /run/cni/bin: no ports are published\n\
         created   /run/cni/bin/podwire-cni\n\
         created   /etc/cni/net.d/05-podwire.conflist\n\
         version   1.0.0: as asked for\n"
    );
    let said = install(&host, &old);
    assert!(said.contains("unchanged /run/cni/bin/podwire-cni\nunchanged /etc/cni/net.d/"));

    // The next version has podwire-ipam with it.
    host.run(|| fs::copy(OLD, "/run/new/podwire-ipam")).unwrap();
    let said = install(&host, &["--source", "/run/new", "--cni-version", "1.0.0"]);
    assert!(said.contains("changed   /run/cni/bin/podwire-cni\ncreated   /run/cni/bin/podwire-ipam\nunchanged /etc/cni/net.d/"), "{said}");
    host.run(|| {
        let installed = fs::read("/run/cni/bin/podwire-cni").unwrap();
        assert!(installed == fs::read(NEW).unwrap());
        let mode = |path: &str| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("/run/cni/bin/podwire-cni"), mode(CONFLIST)), (0o755, 0o644));
        let mut check = Command::new("sha256sum");
        check.args(["--check", "--status", ".podwire-installed"]).current_dir(BIN);
        assert!(check.status().unwrap().success());
    });

    let other = ["--cni-version=1.1.0", "--network=blue", "--run-dir=/run/blue"];
    let said = install(&host, &[&["--source", "/run/new"][..], &other].concat());
    assert!(said.contains("changed   /etc/cni/net.d/05-podwire.conflist"), "{said}");
    let written: Value = serde_json::from_slice(&host.run(|| fs::read(CONFLIST)).unwrap()).unwrap();
    assert_eq!((&written["cniVersion"], &written["name"]), (&json!("1.1.0"), &json!("blue")));
    assert_eq!(written["plugins"][0]["runDir"], "/run/blue");

    let said = install(&host, &["--remove"]);
    assert_eq!(
        said,
        "removed   /etc/cni/net.d/05-podwire.conflist\n\
         removed   /run/cni/bin/podwire-cni\n\
         removed   /run/cni/bin/podwire-ipam\n"
    );
    host.run(|| assert_eq!([names(BIN), names(CONF)].concat(), [""; 0]));
    let said = install(&host, &["--remove"]);
    assert!(said.starts_with("absent ") && said.lines().count() == 2, "{said}");
}

#[test]
#[ignore = "needs root: a host in namespaces of its own"]
fn what_is_somebody_elses_is_left_alone() {
    const FOREIGN: &str = r#"{ "name": "x", "plugins": [{ "type": "bridge" }] }"#;
    let host = prepared();
    host.run(|| fs::write(CONFLIST, FOREIGN)).unwrap();
    let error = try_install(&host, &["--source", "/run/old"]).unwrap_err();
    assert!(error.contains("05-podwire.conflist is somebody else's"), "{error}");
    host.run(|| {
        assert_eq!(fs::read_to_string(CONFLIST).unwrap(), FOREIGN);
        assert_eq!(names(BIN), [""; 0]);
    });
    let said = install(&host, &["--remove"]);
    assert!(said.contains("left      /etc/cni/net.d/05-podwire.conflist"), "{said}");
    host.run(|| fs::remove_file(CONFLIST)).unwrap();

    // A binary that was put in the place of ours stays, whatever its name.
    install(&host, &["--source", "/run/old"]);
    host.run(|| fs::copy("/bin/echo", "/run/cni/bin/podwire-cni")).unwrap();
    let said = install(&host, &["--remove"]);
    assert!(said.contains("left      /run/cni/bin/podwire-cni"), "{said}");
    host.run(|| assert_eq!([names(CONF), names(BIN)].concat(), ["podwire-cni"]));
}

#[test]
#[ignore = "needs root: a host in namespaces of its own"]
fn wrong_wishes_change_nothing() {
    let host = prepared();
    let source = ["--source", "/run/old"];
    for (wish, why) in [
        (&["--chain=portmap"][..], "no portmap in /run/cni/bin"),
        (&["--chain=../x"], "is no name of another plugin"),
        (&["--chain=podwire-cni"], "is no name of another plugin"),
        (&["--run-dir=run"], "not an absolute path"),
        (&["--source=/run/nowhere"], "read /run/nowhere/podwire-cni"),
        (&["--network=a/b"], "contains '/'"),
    ] {
        let wishes =
            if wish[0].starts_with("--source") { wish.to_vec() } else { [&source, wish].concat() };
        let error = try_install(&host, &wishes).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    let mut both = host.command(binary("podwired").unwrap());
    both.args(["install-cni", "--source=/run/old", "--bin-dir", CONF, "--conf-dir", CONF]);
    let error = String::from_utf8(both.output().unwrap().stderr).unwrap();
    assert!(error.contains("cannot be the folder of plugins and of configurations"), "{error}");
    host.run(|| {
        fs::write("/run/old/podwire-cni", "#!/bin/sh\n").unwrap();
    });
    let error = try_install(&host, &source).unwrap_err();
    assert!(error.contains("is no program for Linux"), "{error}");
    host.run(|| assert_eq!([names(BIN), names(CONF)].concat(), [""; 0]));
}

#[test]
#[ignore = "needs root: a host in namespaces of its own"]
fn other_configurations_are_named() {
    let host = prepared();
    host.run(|| {
        for (name, network) in
            [("00-first.conf", "x"), ("10-old.conflist", "podwire"), ("9.conf", "y")]
        {
            let text = json!({ "cniVersion": "1.0.0", "name": network, "plugins": [] });
            fs::write(Path::new(CONF).join(name), text.to_string()).unwrap();
        }
        fs::write(Path::new(CONF).join("00-first.conf.off"), "").unwrap();
    });
    let said = install(&host, &["--source", "/run/old"]);
    let warnings: Vec<_> = said.lines().filter(|line| line.starts_with("warning")).collect();
    assert_eq!(
        warnings,
        [
            "warning   /etc/cni/net.d/00-first.conf comes first, and is what the runtime takes",
            "warning   /etc/cni/net.d/10-old.conflist is of a network podwire as well: remove it",
        ]
    );
}

#[test]
#[ignore = "needs root: a host in namespaces of its own"]
fn the_runtime_on_the_path_decides_on_the_version() {
    if allowed_missing("podman", || Path::new("/usr/bin/podman").exists()) {
        return;
    }
    let host = prepared();
    host.run(|| fs::create_dir("/run/path")).unwrap();
    let version = || {
        let mut command = command(&host, &["--source", "/run/old"]);
        let output = command.env("PATH", "/run/path").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().find_map(|line| line.strip_prefix("version   ").map(str::to_owned)).unwrap()
    };
    assert_eq!(version(), "1.0.0: every runtime takes it, and none is on PATH");
    host.run(|| symlink("/usr/bin/podman", "/run/path/podman")).unwrap();
    assert_eq!(version(), "1.0.0: what podman 4.3 handles right");
}

/// How an install ended that was to be killed.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Killed,
    Finished,
}

/// Runs an install and kills it with SIGKILL as soon as it has returned from so many system calls,
/// counted from the first that takes a lock: before, it only reads.
#[expect(clippy::zombie_processes, reason = "waited for by its number, as a tracer does")]
fn killed_after(host: &Host, arguments: &[&str], calls: usize) -> Fate {
    // A shell that waits until it is traced, and then becomes the program.
    let mut command = host.command("/bin/sh");
    command.args(["-c", r#"read line; exec "$0" "$@""#]).arg(binary("podwired").unwrap());
    command.args(["install-cni", "--bin-dir", BIN, "--conf-dir", CONF, "--cni-version", "1.0.0"]);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let process = Pid::from_raw(child.id().try_into().unwrap());
    let options = ptrace::Options::PTRACE_O_EXITKILL | ptrace::Options::PTRACE_O_TRACESYSGOOD;
    ptrace::seize(process, options).unwrap();
    ptrace::interrupt(process).unwrap();
    let mut input = child.stdin.take();
    let (mut returned, mut counting, mut inside) = (0, false, false);
    loop {
        match waitpid(process, None).unwrap() {
            WaitStatus::Exited(_, status) => {
                assert_eq!(status, 0);
                return Fate::Finished;
            }
            WaitStatus::PtraceSyscall(_) if input.is_none() => {
                inside = !inside;
                if inside {
                    counting = counting || current_call(process) == Some(libc::SYS_flock);
                } else if counting {
                    returned += 1;
                }
            }
            WaitStatus::PtraceSyscall(_)
            | WaitStatus::PtraceEvent(..)
            | WaitStatus::Stopped(..) => {}
            other => panic!("{other:?}"),
        }
        if counting && !inside && returned == calls {
            child.kill().unwrap();
            let ended = waitpid(process, None).unwrap();
            assert!(matches!(ended, WaitStatus::Signaled(..)), "{ended:?}");
            return Fate::Killed;
        }
        if let Some(mut pipe) = input.take() {
            pipe.write_all(b"\n").unwrap();
        }
        ptrace::syscall(process, None).unwrap();
    }
}

/// The number of the system call that a stopped process is in.
fn current_call(process: Pid) -> Option<libc::c_long> {
    let text = fs::read_to_string(format!("/proc/{process}/syscall")).unwrap();
    text.split(' ').next()?.parse().ok()
}

/// What is installed: of which source, and of which network. Nothing else may be there that a
/// runtime would look at.
fn installed(host: &Host) -> (Option<&'static str>, Option<String>) {
    host.run(|| {
        let program = fs::read(format!("{BIN}/podwire-cni")).ok().map(|found| {
            let of = [OLD, NEW].into_iter().find(|path| found == fs::read(path).unwrap());
            of.expect("the binary is whole")
        });
        let network = fs::read(CONFLIST).ok().map(|found| {
            let found: Value = serde_json::from_slice(&found).expect("the configuration is whole");
            found["name"].as_str().unwrap().to_owned()
        });
        let others = |folder, own| names(folder).iter().any(|n| n != own && !n.starts_with('.'));
        assert!(!others(BIN, "podwire-cni") && !others(CONF, "05-podwire.conflist"));
        (program, network)
    })
}

const TO_OLD: [&str; 3] = ["--source=/run/old", "--network=old", "--no-chain"];
const TO_NEW: [&str; 3] = ["--source=/run/new", "--network=new", "--no-chain"];

/// Kills an install everywhere, starting from what `before` makes; `look` judges what is left.
fn kill_everywhere(before: &[&[&str]], arguments: &[&str], look: fn(&Host)) {
    let host = prepared();
    let mut killed = 0;
    for calls in 1.. {
        install(&host, &["--remove"]);
        for step in before {
            install(&host, &[step, &["--cni-version=1.0.0"][..]].concat());
        }
        let fate = killed_after(&host, arguments, calls);
        look(&host);
        // Half of the time it is done again, half of the time taken back.
        if calls % 2 == 0 && !arguments.contains(&"--remove") {
            install(&host, &[arguments, &["--cni-version=1.0.0"]].concat());
            assert_eq!(installed(&host), (Some(NEW), Some("new".to_owned())));
            let hidden = host.run(|| [names(BIN), names(CONF)].concat());
            assert_eq!(hidden, [".podwire-installed", "podwire-cni", "05-podwire.conflist"]);
        } else {
            install(&host, &["--remove"]);
            host.run(|| assert_eq!([names(BIN), names(CONF)].concat(), [""; 0], "after {calls}"));
        }
        match fate {
            Fate::Killed => killed += 1,
            Fate::Finished => break,
        }
    }
    println!("killed at {killed} points");
    assert!(killed > 10, "killed at {killed} points");
}

#[test]
#[ignore = "needs root: a host in namespaces of its own, installs under ptrace"]
fn a_first_install_that_is_killed_leaves_nothing_half() {
    kill_everywhere(&[], &TO_NEW, |host| match installed(host) {
        (None | Some(NEW), None) | (Some(NEW), Some(_)) => {}
        other => panic!("{other:?}"),
    });
}

#[test]
#[ignore = "needs root: a host in namespaces of its own, installs under ptrace"]
fn an_upgrade_that_is_killed_leaves_the_old_or_the_new() {
    kill_everywhere(&[&TO_OLD], &TO_NEW, |host| {
        let (program, network) = installed(host);
        match (program.unwrap(), network.unwrap().as_str()) {
            (OLD | NEW, "old") | (NEW, "new") => {}
            other => panic!("{other:?}"),
        }
    });
}

#[test]
#[ignore = "needs root: a host in namespaces of its own, installs under ptrace"]
fn a_removal_that_is_killed_leaves_no_configuration_without_its_plugin() {
    kill_everywhere(&[&TO_NEW], &["--remove"], |host| match installed(host) {
        (Some(NEW), _) | (None, None) => {}
        other => panic!("{other:?}"),
    });
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn a_pod_is_attached_by_the_installed_files() {
    let portmap = Path::new("/usr/lib/cni/portmap");
    if allowed_missing("containernetworking-plugins", || portmap.exists()) {
        return;
    }
    let host = Host::new().unwrap();
    host.run(|| {
        fs::create_dir_all(BIN).unwrap();
        fs::copy(portmap, format!("{BIN}/portmap")).unwrap();
    });
    let node = Node::start_in(host, &[]);
    // From podwired's own folder, in the version that this machine's runtimes ask for.
    let said = install(&node.host, &[]);
    assert!(said.contains("created   /etc/cni/net.d/05-podwire.conflist"), "{said}");
    let list: Value =
        serde_json::from_slice(&node.host.run(|| fs::read(CONFLIST)).unwrap()).unwrap();
    let types: Vec<_> = list["plugins"].as_array().unwrap().iter().map(|p| &p["type"]).collect();
    assert_eq!(types, ["podwire-cni", "portmap"]);

    let pods = ["a", "b"].map(|name| node.host.add_pod(name).unwrap());
    let plugins = |previous: Option<&Value>| -> Vec<Cni> {
        let plugin = |plugin: &Value| {
            let mut config = plugin.clone();
            config["cniVersion"] = list["cniVersion"].clone();
            config["name"] = list["name"].clone();
            if let Some(previous) = previous {
                config["prevResult"] = previous.clone();
            }
            let program = format!("{BIN}/{}", plugin["type"].as_str().unwrap());
            Cni::new(&node.host, program, config)
        };
        list["plugins"].as_array().unwrap().iter().map(plugin).collect()
    };
    let results = pods.each_ref().map(|pod| {
        let first = plugins(None)[0].add(&attachment(pod)).unwrap();
        plugins(Some(&first))[1].add(&attachment(pod)).unwrap()
    });
    for ip in results[1]["ips"].as_array().unwrap() {
        let address = ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap();
        let report = pods[0].run(|| Ping::new(address).run()).unwrap();
        assert!(report.is_complete(), "{report}");
    }
    for (pod, result) in pods.iter().zip(&results) {
        for plugin in plugins(Some(result)) {
            plugin.check(&attachment(pod), result).unwrap();
        }
        for plugin in plugins(Some(result)).into_iter().rev() {
            plugin.del(&attachment(pod), Some(result)).unwrap();
        }
        node.host.remove_pod_netns(pod.name()).unwrap();
    }
    node.assert_clean();
    install(&node.host, &["--remove"]);
    node.host.run(|| assert_eq!([names(BIN), names(CONF)].concat(), ["portmap"]));
}

#[test]
#[ignore = "needs root: a host in namespaces of its own"]
fn podman_takes_the_installed_network() {
    let needed =
        [("podman", "/usr/bin/podman"), ("containernetworking-plugins", "/usr/lib/cni/portmap")];
    if needed.iter().any(|(name, file)| allowed_missing(name, || Path::new(file).exists())) {
        return;
    }
    let host = Host::new().unwrap();
    host.run(|| {
        let network = format!(
            "[network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [\"{BIN}\", \"/usr/lib/cni\"]\n"
        );
        fs::create_dir_all("/etc/containers/containers.conf.d").unwrap();
        fs::write("/etc/containers/containers.conf.d/lab.conf", network).unwrap();
        fs::create_dir("/run/home").unwrap();
    });
    let said = install(&host, &["--plugin-dir=/usr/lib/cni", "--network=blue"]);
    assert!(!said.contains("warning"), "{said}");
    let mut podman = host.command("podman");
    podman.args(["network", "ls", "--filter=driver=podwire-cni", "--format={{.Name}} {{.Driver}}"]);
    podman.env_clear().envs([("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), ("HOME", "/run/home")]);
    let output = podman.current_dir("/").output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "blue podwire-cni\n", "{errors}");
}
