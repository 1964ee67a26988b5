//! A plugin as a process, as runtimes see it: the examples that `cargo test` builds.

#![expect(clippy::unwrap_used, reason = "functions that tests share panic as tests do")]

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

const CONFIG: &str = r#"{"cniVersion": "1.0.0", "name": "net", "type": "fixed_ipam",
    "ipam": {"type": "fixed_ipam", "address": "10.1.0.5/24", "gateway": "10.1.0.1"}}"#;

fn plugin() -> Command {
    example("fixed_ipam")
}

fn example(name: &str) -> Command {
    let mut path: PathBuf = std::env::current_exe().unwrap();
    path.pop();
    path.set_file_name("examples");
    path.push(name);
    assert!(
        path.exists(),
        "{} is built by `cargo test` and `cargo build --examples`",
        path.display()
    );
    let mut command = Command::new(path);
    command.env_clear();
    command
}

fn add() -> Command {
    as_add(plugin())
}

fn as_add(mut command: Command) -> Command {
    command.env("CNI_COMMAND", "ADD").env("CNI_CONTAINERID", "c1").env("CNI_IFNAME", "eth0");
    command.env("CNI_NETNS", "/run/netns/c1");
    command
}

fn output(command: &mut Command, stdin: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A plugin that refuses early does not read its input.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap()
}

fn answer(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn add_and_check_and_del() {
    let added = output(&mut add(), CONFIG);
    assert!(added.status.success());
    assert!(added.stderr.is_empty());
    let result = answer(&added);
    assert_eq!(
        result,
        json!({
            "cniVersion": "1.0.0",
            "ips": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}],
        })
    );
    let mut config: Value = serde_json::from_str(CONFIG).unwrap();
    config["prevResult"] = result;
    for command in ["CHECK", "DEL"] {
        let done = output(add().env("CNI_COMMAND", command), &config.to_string());
        assert!(done.status.success());
        assert!(done.stdout.is_empty());
    }
    config["prevResult"] = json!({});
    let checked = output(add().env("CNI_COMMAND", "CHECK"), &config.to_string());
    assert_eq!(checked.status.code(), Some(1));
    assert_eq!(answer(&checked)["code"], 100);
}

#[test]
fn what_a_plugin_prints_is_not_in_its_answer() {
    let config = r#"{"cniVersion": "1.0.0", "name": "net", "type": "call_log",
        "prevResult": {"ips": [{"address": "10.1.0.5/24"}]}}"#;
    let added = output(&mut as_add(example("call_log")), config);
    assert!(added.status.success());
    assert_eq!(answer(&added)["ips"][0]["address"], "10.1.0.5/24");
    assert_eq!(added.stderr, b"net ADD c1/eth0 /run/netns/c1\n");
    // Nor where a plugin answers nothing.
    let deleted = output(as_add(example("call_log")).env("CNI_COMMAND", "DEL"), config);
    assert!(deleted.status.success() && deleted.stdout.is_empty());
    assert_eq!(deleted.stderr, b"net DEL c1/eth0\n");
    let file = tempfile::NamedTempFile::new().unwrap();
    let config = config.replace("\"type\"", &format!("\"logFile\": {:?}, \"type\"", file.path()));
    let added = output(&mut as_add(example("call_log")), &config);
    assert!(added.status.success() && added.stderr.is_empty());
    assert_eq!(std::fs::read(file.path()).unwrap(), b"net ADD c1/eth0 /run/netns/c1\n");
}

#[test]
fn version_without_any_input() {
    let output = plugin().env("CNI_COMMAND", "VERSION").stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success());
    assert_eq!(answer(&output)["cniVersion"], "1.1.0");
}

#[test]
fn without_a_command_nothing_is_waited_for() {
    // The pipe stays open: a plugin that read it would never end.
    let mut child = plugin()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let stdin = child.stdin.take();
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(answer(&output)["code"], 4);
}

#[test]
fn errors_end_the_process_with_one() {
    let refused = output(add().env("CNI_IFNAME", "a/b"), CONFIG);
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(answer(&refused)["code"], 4);
    assert_eq!(answer(&refused)["cniVersion"], "1.0.0");
    let settings = r#"{"cniVersion": "1.0.0", "name": "net", "ipam": {"address": "10.1.0.5"}}"#;
    let refused = output(&mut add(), settings);
    assert_eq!(answer(&refused)["code"], 7);
    assert!(answer(&refused)["details"].as_str().unwrap().contains("is not ADDRESS/LENGTH"));
}

#[test]
fn an_answer_that_cannot_be_written_ends_the_process_with_one() {
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut child =
        add().stdin(Stdio::piped()).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(CONFIG.as_bytes()).unwrap();
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    let told = String::from_utf8(ended.stderr).unwrap();
    assert!(told.contains("cannot write the answer"), "{told}");
}
