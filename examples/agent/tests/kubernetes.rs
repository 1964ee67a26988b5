//! The manifest of `docs/kubernetes`: its options exist, its mounts are where they lead, and its
//! commands run a node.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod node;

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Stdio},
};

use node::until;
use podwire_lab::{AgentSpec, Attachment, Cni, Host, Inventory, binary, probe::Ping};
use serde_json::Value;

const MANIFEST: &str = include_str!("../../../docs/kubernetes/podwire.yaml");

/// What the first init container writes on a node of two families.
const PREFIXES: &str = "10.1.0.0/24 fd00:1::/64";

fn objects() -> BTreeMap<String, Value> {
    let objects: Vec<Value> = serde_saphyr::from_multiple(MANIFEST).unwrap();
    objects.into_iter().map(|object| (text(&object["kind"]), object)).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}

fn list<'v>(value: &'v Value, of: &str) -> Vec<&'v Value> {
    value[of].as_array().map(|list| list.iter().collect()).unwrap_or_default()
}

/// The pod that runs on every node.
fn pod() -> Value {
    objects()["DaemonSet"]["spec"]["template"]["spec"].clone()
}

fn container(name: &str) -> Value {
    let pod = pod();
    let all = [list(&pod, "initContainers"), list(&pod, "containers")].concat();
    let found = all.into_iter().find(|container| container["name"] == name);
    found.unwrap_or_else(|| panic!("no container {name}")).clone()
}

/// Command and arguments of a container.
fn words(container: &Value) -> Vec<String> {
    let both = [list(container, "command"), list(container, "args")].concat();
    both.into_iter().map(text).collect()
}

/// Every `--option` in some words, and its value where one is written.
fn options(words: &[String]) -> Vec<(String, Option<String>)> {
    let words = words.iter().flat_map(|word| word.split_ascii_whitespace());
    let options = words.filter_map(|word| {
        // In the shell's command, one is made by sed.
        let word = &word[word.find("--")?..];
        let option = word.split(['&', '"']).next()?;
        Some(match option.split_once('=') {
            Some((name, "")) => (name.to_owned(), None),
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (option.to_owned(), None),
        })
    });
    options.collect()
}

fn help(program: &str, subcommand: &[&str]) -> String {
    let mut command = Command::new(binary(program).unwrap());
    let output = command.args(subcommand).arg("--help").output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn objects_belong_together() {
    let objects = objects();
    let kinds: Vec<_> = objects.keys().map(String::as_str).collect();
    assert_eq!(kinds, ["ClusterRole", "ClusterRoleBinding", "DaemonSet", "ServiceAccount"]);
    let (account, binding) = (&objects["ServiceAccount"], &objects["ClusterRoleBinding"]);
    assert_eq!(binding["roleRef"]["name"], objects["ClusterRole"]["metadata"]["name"]);
    for key in ["name", "namespace"] {
        assert_eq!(binding["subjects"][0][key], account["metadata"][key]);
    }
    let daemons = &objects["DaemonSet"];
    assert_eq!(daemons["metadata"]["namespace"], account["metadata"]["namespace"]);
    let (spec, pod) = (&daemons["spec"], &daemons["spec"]["template"]["spec"]);
    assert_eq!(spec["selector"]["matchLabels"], spec["template"]["metadata"]["labels"]);
    assert_eq!(pod["serviceAccountName"], account["metadata"]["name"]);
    assert_eq!(
        (&pod["hostNetwork"], &pod["priorityClassName"]),
        (&true.into(), &"system-node-critical".into())
    );
}

#[test]
fn options_exist() {
    for (name, program, subcommand) in
        [("install", "podwired", &["install-cni"][..]), ("podwired", "podwired", &[])]
    {
        let (help, words) = (help(program, subcommand), words(&container(name)));
        let options = options(&words);
        assert!(options.len() >= 4, "{options:?}");
        for (option, _) in options {
            assert!(help.contains(&format!("{option} <")), "{name}: {option}");
        }
    }
}

#[test]
fn folders_of_options_are_mounted_where_the_node_has_them() {
    let pod = pod();
    for name in ["install", "podwired"] {
        let container = container(name);
        // The plugin, which runs on the node itself, is told only the path of the agent's folder.
        let told_on = |option: &str| name == "install" && option == "--run-dir";
        for (option, folder) in options(&words(&container)) {
            let Some(folder) = folder.filter(|value| value.starts_with('/')) else { continue };
            if told_on(&option) {
                continue;
            }
            let mounts = list(&container, "volumeMounts");
            let mount = mounts
                .iter()
                .find(|mount| Path::new(&folder).starts_with(text(&mount["mountPath"])))
                .unwrap_or_else(|| panic!("{name}: {option}={folder} is not mounted"));
            let volumes = list(&pod, "volumes");
            let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).unwrap();
            assert_eq!(volume["hostPath"]["path"], mount["mountPath"], "{name}: {option}");
        }
    }
    let run_dir = |name| {
        options(&words(&container(name)))
            .into_iter()
            .find(|(name, _)| name == "--run-dir")
            .unwrap()
            .1
    };
    assert_eq!(run_dir("install"), run_dir("podwired"));
}

#[test]
#[ignore = "needs root: a node in namespaces of its own"]
fn its_commands_run_a_node() {
    let host = Host::new().unwrap();
    // In this host alone: what a node has there is hidden.
    let mounted = host.command("mount").args(["-t", "tmpfs", "tmpfs", "/opt"]).status().unwrap();
    assert!(mounted.success());
    host.run(|| {
        fs::create_dir("/run/prefixes").unwrap();
        fs::write("/run/prefixes/pod-cidrs", PREFIXES).unwrap();
    });
    let programs = binary("podwired").unwrap().parent().unwrap().to_owned();
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", programs.display());
    let run = |words: &[String]| {
        let mut command = host.command(programs.join(&words[0]));
        let output = command.args(&words[1..]).stdin(Stdio::null()).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { Err(error) }
    };
    run(&words(&container("install"))).unwrap();

    let agent = words(&container("podwired"));
    let mut agent = AgentSpec::new(&host, &agent[0])
        .args(&agent[1..])
        .env("PATH", &path)
        .env("NODE_NAME", "node-1")
        .start()
        .unwrap();
    let probe = list(&container("podwired")["startupProbe"]["exec"], "command")
        .into_iter()
        .map(text)
        .collect::<Vec<_>>();
    until("the probe succeeds", || run(&probe).is_ok());

    let list: Value = host.run(|| {
        serde_json::from_slice(&fs::read("/etc/cni/net.d/05-podwire.conflist").unwrap()).unwrap()
    });
    let mut config = list["plugins"][0].clone();
    for key in ["cniVersion", "name"] {
        config[key] = list[key].clone();
    }
    let plugin = Cni::new(&host, "/opt/cni/bin/podwire-cni", config);
    let before = host.inventory().unwrap();
    let pod = host.add_pod("a").unwrap();
    let attachment = Attachment::new("a-container", pod.path());
    let result = plugin.add(&attachment).unwrap();
    assert_eq!(result["ips"][0]["gateway"], "10.1.0.1");
    for router in ["10.1.0.1", "fd00:1::1"] {
        let report = pod.run(|| Ping::new(router.parse().unwrap()).run()).unwrap();
        assert!(report.is_complete(), "{report}");
    }
    plugin.del(&attachment, Some(&result)).unwrap();
    host.remove_pod_netns("a").unwrap();
    let left = |now: Inventory| now.since(&before);
    until("nothing is left", || left(host.inventory().unwrap()).is_empty());

    // The shell has become the agent, which therefore hears of the end.
    assert!(agent.terminate().unwrap().success());
    assert!(run(&probe).is_err());
}
