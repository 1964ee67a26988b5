//! Delegation to real IPAM plugins, and to plugins that are as bad as plugins can be.

#![expect(clippy::unwrap_used, reason = "functions that tests share panic as tests do")]

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use podwire_cni::delegate::Delegate;
use podwire_cni::types::{Interface, Success};
use podwire_cni::{Add, Check, Code, Del, Environment, Error, Gc, Plugin, Status, dispatch};
use podwire_lab::allowed_missing;
use serde_json::{Value, json};
use tempfile::TempDir;

const DEBIANS: &str = "/usr/lib/cni";

/// A main plugin that configures nothing, and fails after its IPAM's ADD if told so.
struct Main;

impl Plugin for Main {
    fn add(&self, add: &Add) -> Result<Success, Error> {
        let ipam = Delegate::ipam(&add.config, &add.path)?.unwrap();
        ipam.add_then(add, |mut success| {
            if add.args.value("FAIL").is_some() {
                return Err(Error::new(Code::plugin(120), "no link"));
            }
            success.interfaces.push(Interface::in_sandbox(add.ifname.as_str(), "/run/netns/x"));
            Ok(success)
        })
    }

    fn del(&self, del: &Del) -> Result<(), Error> {
        Delegate::ipam(&del.config, &del.path)?.unwrap().del(del)
    }

    fn check(&self, check: &Check) -> Result<(), Error> {
        Delegate::ipam(&check.config, &check.path)?.unwrap().check(check)
    }

    fn status(&self, status: &Status) -> Result<(), Error> {
        Delegate::ipam(&status.config, &status.path)?.unwrap().status(status)
    }

    fn gc(&self, gc: &Gc) -> Result<(), Error> {
        Delegate::ipam(&gc.config, &gc.path)?.unwrap().gc(gc)
    }
}

fn call(command: &str, args: &str, path: &str, config: &Value) -> (bool, Value) {
    let environment = Environment::new([
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", args),
        ("CNI_PATH", path),
    ]);
    let mut answer = Vec::new();
    let exit = dispatch(&Main, &environment, config.to_string().as_bytes(), &mut answer);
    (exit.is_success(), serde_json::from_slice(&answer).unwrap_or_default())
}

fn host_local(folder: &Path, version: &str) -> Value {
    json!({
        "cniVersion": version, "name": "net", "type": "main",
        "ipam": {
            "type": "host-local", "dataDir": folder,
            "ranges": [[{"subnet": "10.8.0.0/24"}], [{"subnet": "fd08::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    })
}

/// The addresses that host-local has on record.
fn recorded(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder.join("net")) else { return Vec::new() };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("10.8.") || name.starts_with("fd08")).collect()
}

#[test]
#[ignore = "needs containernetworking-plugins"]
fn host_local_in_every_version_it_has() {
    if allowed_missing("containernetworking-plugins", || Path::new(DEBIANS).exists()) {
        return;
    }
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
        let folder = tempfile::tempdir().unwrap();
        let mut config = host_local(folder.path(), version);
        let (added, result) = call("ADD", "", DEBIANS, &config);
        assert!(added, "{version}: {result}");
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["ips"][0]["address"], "10.8.0.2/24");
        assert_eq!(result["ips"][1]["gateway"], "fd08::1");
        assert_eq!(result["routes"], json!([{"dst": "0.0.0.0/0"}]));
        assert_eq!(recorded(folder.path()).len(), 2);

        config["prevResult"] = result;
        if version >= "0.4.0" {
            assert!(call("CHECK", "", DEBIANS, &config).0);
        }
        assert!(call("DEL", "", DEBIANS, &config).0);
        assert!(recorded(folder.path()).is_empty());
        if version >= "0.4.0" {
            let (there, error) = call("CHECK", "", DEBIANS, &config);
            assert!(!there);
            let msg = error["msg"].as_str().unwrap();
            assert!(msg.starts_with("plugin host-local: "), "{msg}");
        }
    }
}

#[test]
#[ignore = "needs containernetworking-plugins"]
fn static_in_the_oldest_version() {
    if allowed_missing("containernetworking-plugins", || Path::new(DEBIANS).exists()) {
        return;
    }
    let config = json!({
        "cniVersion": "0.2.0", "name": "net", "type": "main",
        "ipam": {"type": "static", "addresses": [{"address": "10.8.0.9/24"}]},
    });
    let (added, result) = call("ADD", "", DEBIANS, &config);
    assert!(added, "{result}");
    assert_eq!(result["ip4"]["ip"], "10.8.0.9/24");
    let mut config = config;
    config["cniVersion"] = "1.1.0".into();
    let (added, error) = call("ADD", "", DEBIANS, &config);
    assert!(!added);
    // Debian's plugins know no 1.1.0.
    assert_eq!(error["code"], 1, "{error}");
    assert_eq!(error["cniVersion"], "1.1.0");
}

#[test]
#[ignore = "needs containernetworking-plugins"]
fn an_add_that_fails_later_gives_the_addresses_back() {
    if allowed_missing("containernetworking-plugins", || Path::new(DEBIANS).exists()) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let config = host_local(folder.path(), "1.0.0");
    let (added, error) = call("ADD", "FAIL=1;IgnoreUnknown=1", DEBIANS, &config);
    assert!(!added);
    assert_eq!(error, json!({"cniVersion": "1.0.0", "code": 120, "msg": "no link"}));
    assert!(folder.path().join("net").exists(), "host-local has been there");
    assert!(recorded(folder.path()).is_empty());
}

/// A folder with plugins that do what their names say.
struct Oddities(TempDir);

impl Oddities {
    fn new(names: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plugins/odd.sh");
        for name in names {
            symlink(&script, folder.path().join(name)).unwrap();
        }
        Self(folder)
    }

    fn noted(&self, file: &str) -> String {
        fs::read_to_string(self.0.path().join(file)).unwrap_or_default()
    }

    fn add(&self, name: &str) -> Add {
        add(&[self.0.path().to_owned()], name, 0)
    }
}

/// The parameters of an ADD, as a plugin gets them.
fn add(path: &[PathBuf], name: &str, padding: usize) -> Add {
    struct Keep(RefCell<Option<Add>>);
    impl Plugin for Keep {
        fn add(&self, add: &Add) -> Result<Success, Error> {
            *self.0.borrow_mut() = Some(add.clone());
            Ok(Success::default())
        }
        fn del(&self, _: &Del) -> Result<(), Error> {
            Ok(())
        }
        fn check(&self, _: &Check) -> Result<(), Error> {
            Ok(())
        }
    }
    let path = std::env::join_paths(path).unwrap();
    let environment = Environment::new([
        ("CNI_COMMAND", "ADD".into()),
        ("CNI_CONTAINERID", "c1".into()),
        ("CNI_NETNS", "/run/netns/c1".into()),
        ("CNI_IFNAME", "eth0".into()),
        ("CNI_ARGS", "A=1;A=2".into()),
        ("CNI_PATH", path),
    ]);
    let config = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "main", "extra": [1, {"a": null}],
        "padding": "x".repeat(padding), "ipam": {"type": name},
    });
    let keep = Keep(RefCell::new(None));
    let exit = dispatch(&keep, &environment, config.to_string().as_bytes(), std::io::sink());
    assert!(exit.is_success(), "{exit}");
    keep.0.into_inner().unwrap()
}

fn ipam(add: &Add) -> Delegate {
    Delegate::ipam(&add.config, &add.path).unwrap().unwrap()
}

#[test]
fn the_same_environment_and_configuration() {
    let plugins = Oddities::new(&["good"]);
    let add = plugins.add("good");
    let success = ipam(&add).add(&add).unwrap();
    // An IPAM plugin has no interfaces to tell of.
    assert_eq!(success.ips.len(), 1);
    assert_eq!(success.ips[0].interface, None);
    assert!(success.interfaces.is_empty());
    let any = Delegate::find("good", &add.path).unwrap().add(&add).unwrap();
    assert_eq!(any.interfaces.len(), 1);
    assert_eq!(any.ips[0].interface, Some(0));

    let expected = format!(
        "CNI_ARGS=A=1;A=2\nCNI_COMMAND=ADD\nCNI_CONTAINERID=c1\nCNI_IFNAME=eth0\n\
         CNI_NETNS=/run/netns/c1\nCNI_PATH={}\n",
        plugins.0.path().display()
    );
    assert_eq!(plugins.noted("good.ADD.env"), expected);
    let input: Value = serde_json::from_str(&plugins.noted("good.ADD.stdin")).unwrap();
    assert_eq!(input, Value::Object(add.config.object().clone()));
    assert_eq!(plugins.noted("good.calls"), "ADD\nADD\n");
}

#[test]
fn commands_that_are_about_no_container() {
    let plugins = Oddities::new(&["good", "refusing-all"]);
    let path = plugins.0.path().to_str().unwrap();
    let mut config = json!({
        "cniVersion": "1.1.0", "name": "net", "type": "main", "ipam": {"type": "good"},
        "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}],
    });
    for command in ["STATUS", "GC"] {
        let (done, answer) = call(command, "", path, &config);
        assert!(done, "{answer}");
        let expected = format!("CNI_COMMAND={command}\nCNI_PATH={path}\n");
        assert_eq!(plugins.noted(&format!("good.{command}.env")), expected);
        let input: Value =
            serde_json::from_str(&plugins.noted(&format!("good.{command}.stdin"))).unwrap();
        assert_eq!(input, config);
    }
    config["ipam"]["type"] = "refusing-all".into();
    for command in ["STATUS", "GC"] {
        assert_eq!(call(command, "", path, &config).1["code"], 11);
    }
}

#[test]
fn failures() {
    for (name, code, msg, details) in [
        ("refusing", 111, "plugin refusing: pool is empty", "why"),
        (
            "refusing-all",
            11,
            "plugin refusing-all: not now",
            "why; undoing the ADD failed as well: plugin refusing-all: not now: why (code 11)",
        ),
        ("broken", 999, "plugin broken: exited with 3 without an error result", "disk on fire"),
        ("crashing", 999, "plugin crashing: was killed by signal 11 without an error result", ""),
        ("garbage", 6, "plugin garbage: succeeded, but its answer cannot be read", ""),
        ("mute", 6, "plugin mute: succeeded, but its answer cannot be read", "EOF"),
        ("twice", 6, "plugin twice: succeeded, but its answer cannot be read", "there twice"),
        ("newer", 6, "plugin newer: succeeded, but its answer cannot be read", "9.0.0"),
        ("no-address", 6, "plugin no-address: assigned no address", ""),
        ("flooding", 6, "plugin flooding: printed more than 1048576 bytes", ""),
    ] {
        let plugins = Oddities::new(&[name]);
        let add = plugins.add(name);
        let error = ipam(&add).add(&add).unwrap_err();
        assert_eq!((error.code().get(), error.msg()), (code, msg), "{error}");
        assert!(error.details().contains(details), "{error}");
        assert_eq!(plugins.noted(&format!("{name}.calls")), "ADD\nDEL\n", "{name}");
    }
}

#[test]
fn what_is_not_there() {
    let plugins = Oddities::new(&["good"]);
    let folder = plugins.0.path().to_owned();
    fs::create_dir(folder.join("folder")).unwrap();
    fs::write(folder.join("plain"), "no program").unwrap();
    for (name, path, code, words) in [
        ("absent", vec![folder.clone()], 7, folder.to_str().unwrap()),
        ("absent", vec![], 7, "CNI_PATH"),
        ("folder", vec![folder.clone()], 7, "\"folder\" was not found"),
        ("../good", vec![folder.clone()], 7, "without folder"),
        ("/bin/true", vec![folder.clone()], 7, "without folder"),
        ("..", vec![folder.clone()], 7, "without folder"),
        // An empty entry is not the search path of programs.
        ("true", vec![PathBuf::new()], 7, "not found"),
        ("plain", vec![folder.clone()], 5, "cannot run"),
    ] {
        let add = add(&path, name, 0);
        let error = match Delegate::ipam(&add.config, &add.path) {
            Ok(ipam) => ipam.unwrap().add(&add).unwrap_err(),
            Err(error) => error,
        };
        assert_eq!(error.code().get(), code, "{name}: {error}");
        assert!(error.to_string().contains(words), "{name}: {error}");
    }
    let good = add(&["/nonexistent".into(), folder.clone()], "good", 0);
    assert_eq!(ipam(&good).add(&good).unwrap().ips.len(), 1);
}

#[test]
fn inputs_and_outputs_beyond_a_pipes_room() {
    let plugins = Oddities::new(&["good", "deaf", "loud"]);
    for name in ["good", "deaf", "loud"] {
        let add = add(&[plugins.0.path().to_owned()], name, 500_000);
        assert_eq!(ipam(&add).add(&add).unwrap().ips.len(), 1, "{name}");
    }
    assert!(plugins.noted("loud.ADD.stdin").len() > 500_000);
}

#[test]
fn one_that_is_being_replaced_is_waited_for() {
    let plugins = Oddities::new(&[]);
    let file = plugins.0.path().join("good");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plugins/odd.sh");
    fs::copy(script, &file).unwrap();
    let writer = fs::OpenOptions::new().append(true).open(&file).unwrap();
    let add = plugins.add("good");
    std::thread::scope(|scope| {
        let added = scope.spawn(|| ipam(&add).with_timeout(Duration::MAX).add(&add));
        std::thread::sleep(Duration::from_millis(100));
        drop(writer);
        assert_eq!(added.join().unwrap().unwrap().ips.len(), 1);
    });
}

#[test]
fn one_that_hangs_is_killed_with_all_it_started() {
    let plugins = Oddities::new(&["hanging"]);
    let add = plugins.add("hanging");
    let error = ipam(&add).with_timeout(Duration::from_millis(500)).add(&add).unwrap_err();
    assert_eq!(error.code(), Code::IO_FAILURE);
    assert!(error.msg().contains("ADD took longer than 0.5 s and was killed"), "{error}");
    assert!(error.details().contains("looking for a lease"), "{error}");
    assert!(error.details().contains("undoing the ADD failed as well"), "{error}");
    let pid = plugins.noted("hanging.pid");
    // Killed is not gone yet.
    while runs(pid.trim()) {
        std::thread::yield_now();
    }
}

#[test]
fn one_that_leaves_a_process_is_not_waited_for() {
    let plugins = Oddities::new(&["lingering"]);
    let add = plugins.add("lingering");
    assert_eq!(ipam(&add).add(&add).unwrap().ips.len(), 1);
    let pid = plugins.noted("lingering.pid");
    assert!(runs(pid.trim()), "what a plugin leaves is its own business");
    assert!(Command::new("kill").arg(pid.trim()).status().unwrap().success());
}

/// Whether a process is there and no zombie.
fn runs(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}
