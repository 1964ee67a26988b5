//! The dispatcher from outside: what it calls, what it answers, and what it refuses before it
//! calls anything.

#![expect(clippy::unwrap_used, reason = "functions that tests share panic as tests do")]

use std::cell::RefCell;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStringExt;

use podwire_cni::types::{Interface, Ip, Success};
use podwire_cni::{
    Add, Check, Code, Del, Environment, Error, Exit, Gc, NetworkConfig, Plugin, SpecVersion,
    Status, dispatch,
};
use serde_json::{Value, json};

/// Writes down what it is called with.
#[derive(Default)]
struct Recorder {
    calls: RefCell<Vec<String>>,
    fails: Option<Error>,
    panics: bool,
    versions: Option<&'static [SpecVersion]>,
    known_args: Option<&'static [&'static str]>,
}

impl Recorder {
    fn record(&self, call: String) -> Result<(), Error> {
        self.calls.borrow_mut().push(call);
        assert!(!self.panics, "out of luck");
        self.fails.clone().map_or(Ok(()), Err)
    }
}

impl Plugin for Recorder {
    fn add(&self, add: &Add) -> Result<Success, Error> {
        self.record(format!("add {} {} {:?}", add.attachment(), add.netns, add.path))?;
        let mut success = add.prev_result.clone().unwrap_or_default();
        success.interfaces.push(Interface::in_sandbox(add.ifname.as_str(), add.netns.as_str()));
        success.ips.push(Ip::new("10.1.0.5/32".parse().unwrap()));
        Ok(success)
    }

    fn del(&self, del: &Del) -> Result<(), Error> {
        let netns = del.netns.as_ref().map_or("gone", |netns| netns.as_str());
        let ips = del.prev_result.as_ref().map(|prev| prev.ips.len());
        self.record(format!("del {} {netns} {ips:?}", del.attachment()))
    }

    fn check(&self, check: &Check) -> Result<(), Error> {
        let ips = check.prev_result.ips.len();
        self.record(format!("check {} {} {ips}", check.attachment(), check.netns))
    }

    fn status(&self, status: &Status) -> Result<(), Error> {
        self.record(format!("status {}", status.config.name()))
    }

    fn gc(&self, gc: &Gc) -> Result<(), Error> {
        let valid: Vec<String> = gc.valid_attachments.iter().map(ToString::to_string).collect();
        self.record(format!("gc {} {valid:?}", gc.config.name()))
    }

    fn supported_versions(&self) -> &[SpecVersion] {
        self.versions.unwrap_or(SpecVersion::ALL)
    }

    fn known_args(&self) -> Option<&[&str]> {
        self.known_args
    }
}

/// An environment in which everything is there.
fn environment(command: &str) -> Vec<(&'static str, OsString)> {
    vec![
        ("CNI_COMMAND", command.into()),
        ("CNI_CONTAINERID", "c1".into()),
        ("CNI_NETNS", "/run/netns/c1".into()),
        ("CNI_IFNAME", "eth0".into()),
        ("CNI_PATH", "/opt/cni/bin:/usr/lib/cni".into()),
    ]
}

fn with(command: &str, changes: &[(&'static str, &str)]) -> Vec<(&'static str, OsString)> {
    let mut variables = environment(command);
    for (name, value) in changes {
        variables.retain(|(other, _)| other != name);
        if *value != "<missing>" {
            variables.push((name, value.into()));
        }
    }
    variables
}

fn config(version: SpecVersion) -> Value {
    json!({"cniVersion": version, "name": "net", "type": "recorder"})
}

/// One call: how it ended and the single object it wrote, if any.
fn call(
    plugin: &Recorder,
    variables: Vec<(&'static str, OsString)>,
    stdin: &[u8],
) -> (Exit, Option<Value>) {
    let mut stdout = Vec::new();
    let exit = dispatch(plugin, &Environment::new(variables), stdin, &mut stdout);
    let mut values = serde_json::Deserializer::from_slice(&stdout).into_iter::<Value>();
    let answer = values.next().map(Result::unwrap);
    assert!(values.next().is_none(), "more than one answer");
    assert_eq!(
        matches!(exit, Exit::Failure(_)),
        answer.as_ref().is_some_and(|answer| answer.get("code").is_some())
    );
    (exit, answer)
}

fn refused(variables: Vec<(&'static str, OsString)>, stdin: &[u8]) -> (u64, String, String) {
    let plugin = Recorder::default();
    let (exit, answer) = call(&plugin, variables, stdin);
    assert!(!exit.is_success());
    assert!(plugin.calls.borrow().is_empty(), "the plugin was called");
    let answer = answer.unwrap();
    let text = |key: &str| answer.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    (
        answer["code"].as_u64().unwrap(),
        format!("{} {}", text("msg"), text("details")),
        text("cniVersion"),
    )
}

#[test]
fn add_answers_in_the_configurations_version() {
    for version in SpecVersion::ALL {
        let plugin = Recorder::default();
        let (exit, answer) =
            call(&plugin, environment("ADD"), config(*version).to_string().as_bytes());
        assert!(exit.is_success(), "{exit}");
        assert_eq!(
            *plugin.calls.borrow(),
            [r#"add c1/eth0 /run/netns/c1 ["/opt/cni/bin", "/usr/lib/cni"]"#]
        );
        let interfaces = json!([{"name": "eth0", "sandbox": "/run/netns/c1"}]);
        let expected = match version {
            SpecVersion::V0_1_0 | SpecVersion::V0_2_0 => {
                json!({"cniVersion": version, "ip4": {"ip": "10.1.0.5/32"}})
            }
            SpecVersion::V0_3_0 | SpecVersion::V0_3_1 | SpecVersion::V0_4_0 => json!({
                "cniVersion": version, "interfaces": interfaces,
                "ips": [{"version": "4", "address": "10.1.0.5/32"}],
            }),
            _ => json!({
                "cniVersion": version, "interfaces": interfaces,
                "ips": [{"address": "10.1.0.5/32"}],
            }),
        };
        assert_eq!(answer, Some(expected));
    }
}

#[test]
fn a_configuration_without_version_is_0_1_0() {
    for text in [r#"{"name": "net"}"#, r#"{"name": "net", "cniVersion": ""}"#] {
        let (_, answer) = call(&Recorder::default(), environment("ADD"), text.as_bytes());
        assert_eq!(answer.unwrap()["cniVersion"], "0.1.0");
    }
}

#[test]
fn commands_without_result_write_nothing() {
    let prev_result = json!({"ips": [{"address": "10.1.0.5/32"}]});
    for (command, called) in [
        ("DEL", "del c1/eth0 /run/netns/c1 Some(1)"),
        ("CHECK", "check c1/eth0 /run/netns/c1 1"),
        ("STATUS", "status net"),
        ("GC", r#"gc net ["c1/eth0", "c2/net1"]"#),
    ] {
        let mut config = config(SpecVersion::V1_1_0);
        config["prevResult"] = prev_result.clone();
        config["cni.dev/valid-attachments"] = json!([
            {"containerID": "c2", "ifname": "net1"}, {"containerID": "c1", "ifname": "eth0"},
        ]);
        let plugin = Recorder::default();
        let (exit, answer) = call(&plugin, environment(command), config.to_string().as_bytes());
        assert!(exit.is_success(), "{command}: {exit}");
        assert_eq!(answer, None, "{command}");
        assert_eq!(*plugin.calls.borrow(), [called]);
    }
}

#[test]
fn commands_exist_from_a_version_on() {
    for version in SpecVersion::ALL {
        for (command, since) in [
            ("ADD", SpecVersion::V0_1_0),
            ("DEL", SpecVersion::V0_1_0),
            ("CHECK", SpecVersion::V0_4_0),
            ("STATUS", SpecVersion::V1_1_0),
            ("GC", SpecVersion::V1_1_0),
        ] {
            let mut config = config(*version);
            config["prevResult"] = json!({});
            config["cni.dev/valid-attachments"] = json!([]);
            let plugin = Recorder::default();
            let (exit, answer) = call(&plugin, environment(command), config.to_string().as_bytes());
            assert_eq!(exit.is_success(), *version >= since, "{command} in {version}");
            if *version < since {
                let answer = answer.unwrap();
                assert_eq!(answer["code"], 1);
                assert_eq!(answer["cniVersion"], version.as_str());
                assert!(plugin.calls.borrow().is_empty());
            }
        }
    }
}

#[test]
fn version_looks_at_nothing_else() {
    let all = json!(["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    // What podman gives.
    let podman: Vec<(&str, OsString)> = vec![
        ("CNI_COMMAND", "VERSION".into()),
        ("CNI_NETNS", "dummy".into()),
        ("CNI_IFNAME", "dummy".into()),
        ("CNI_PATH", "dummy".into()),
        ("CNI_ARGS", "not even pairs".into()),
    ];
    for (stdin, version) in [
        (&br#"{"cniVersion":"0.4.0"}"#[..], "0.4.0"),
        (br#"{"cniVersion":"7.0.0"}"#, "7.0.0"),
        (br#"{"cniVersion":"1.0.0"} "#, "1.0.0"),
        (br#"{"cniVersion":""}"#, "1.1.0"),
        (br#"{"cniVersion":5}"#, "1.1.0"),
        (b"{}", "1.1.0"),
        (b"", "1.1.0"),
        (b"\xff\xff", "1.1.0"),
    ] {
        let plugin = Recorder::default();
        let (exit, answer) = call(&plugin, podman.clone(), stdin);
        assert!(exit.is_success());
        assert_eq!(answer, Some(json!({"cniVersion": version, "supportedVersions": all})));
        assert!(plugin.calls.borrow().is_empty());
    }
}

#[test]
fn version_does_not_wait_for_the_end_of_the_input() {
    struct NeverEnds(&'static [u8]);
    impl Read for NeverEnds {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let read = self.0.read(buffer)?;
            assert!(read > 0, "read on behind the object");
            Ok(read)
        }
    }
    let mut stdout = Vec::new();
    let environment = Environment::new([("CNI_COMMAND", "VERSION")]);
    let stdin = NeverEnds(br#"{"cniVersion":"0.4.0"}"#);
    assert!(dispatch(&Recorder::default(), &environment, stdin, &mut stdout).is_success());
}

#[test]
fn a_plugin_may_support_less() {
    let plugin = Recorder {
        versions: Some(&[SpecVersion::V0_4_0, SpecVersion::V1_0_0]),
        ..Recorder::default()
    };
    let (_, answer) = call(&plugin, environment("VERSION"), b"");
    assert_eq!(
        answer,
        Some(json!({"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0"]}))
    );
    for version in ["1.1.0", "0.3.1"] {
        let config = json!({"cniVersion": version, "name": "net"}).to_string();
        let (_, answer) = call(&plugin, environment("ADD"), config.as_bytes());
        assert_eq!(
            answer,
            Some(json!({
                "cniVersion": version, "code": 1,
                "msg": format!("cniVersion {version} is not supported"),
                "details": "supported are 0.4.0, 1.0.0",
            }))
        );
    }
    assert!(plugin.calls.borrow().is_empty());
}

#[test]
fn the_environment_is_checked_before_anything_is_called() {
    let good = config(SpecVersion::V1_0_0).to_string();
    let bad = "<missing>";
    for (command, changes, named) in [
        ("ADD", &[("CNI_COMMAND", bad)][..], "CNI_COMMAND is missing"),
        ("ADD", &[("CNI_COMMAND", "")], "CNI_COMMAND is missing"),
        ("add", &[], "CNI_COMMAND \"add\""),
        ("FOO", &[], "CNI_COMMAND \"FOO\""),
        ("ADD", &[("CNI_CONTAINERID", bad)], "CNI_CONTAINERID is missing"),
        ("ADD", &[("CNI_CONTAINERID", "")], "CNI_CONTAINERID is missing"),
        ("ADD", &[("CNI_CONTAINERID", "-c1")], "CNI_CONTAINERID \"-c1\""),
        ("ADD", &[("CNI_CONTAINERID", "../c1")], "CNI_CONTAINERID \"../c1\""),
        ("ADD", &[("CNI_CONTAINERID", "c1;rm")], "contains ';'"),
        ("ADD", &[("CNI_NETNS", bad)], "CNI_NETNS is missing"),
        ("ADD", &[("CNI_NETNS", "")], "CNI_NETNS is missing"),
        ("CHECK", &[("CNI_NETNS", "")], "CNI_NETNS is missing"),
        ("ADD", &[("CNI_IFNAME", bad)], "CNI_IFNAME is missing"),
        ("ADD", &[("CNI_IFNAME", "..")], "CNI_IFNAME \"..\""),
        ("ADD", &[("CNI_IFNAME", "a/b")], "contains '/'"),
        ("ADD", &[("CNI_IFNAME", "a:b")], "contains ':'"),
        ("ADD", &[("CNI_IFNAME", "a b")], "contains ' '"),
        ("ADD", &[("CNI_IFNAME", "eth%d")], "contains '%'"),
        ("ADD", &[("CNI_IFNAME", "0123456789abcdef")], "longer than 15 bytes"),
        ("DEL", &[("CNI_IFNAME", "0123456789abcdef")], "longer than 15 bytes"),
        ("DEL", &[("CNI_CONTAINERID", "")], "CNI_CONTAINERID is missing"),
        ("ADD", &[("CNI_ARGS", "FOO")], "CNI_ARGS is invalid: \"FOO\""),
        ("DEL", &[("CNI_ARGS", "A=1;IgnoreUnknown=x")], "CNI_ARGS is invalid"),
    ] {
        let (code, text, version) = refused(with(command, changes), good.as_bytes());
        assert_eq!(code, 4, "{command} {changes:?}: {text}");
        assert!(text.contains(named), "{command} {changes:?}: {text}");
        let known = !text.contains("CNI_COMMAND is missing");
        assert_eq!(version, if known { "1.0.0" } else { "1.1.0" });
    }
}

#[test]
fn one_answer_names_every_bad_variable() {
    let variables = with(
        "ADD",
        &[("CNI_CONTAINERID", "?"), ("CNI_NETNS", ""), ("CNI_IFNAME", "."), ("CNI_ARGS", "x")],
    );
    let (code, text, version) =
        refused(variables, config(SpecVersion::V0_3_1).to_string().as_bytes());
    assert_eq!((code, version.as_str()), (4, "0.3.1"));
    for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"] {
        assert!(text.contains(name), "{text}");
    }
    // The environment is told of first, whatever the input is.
    let (code, ..) = refused(with("ADD", &[("CNI_IFNAME", ".")]), b"{");
    assert_eq!(code, 4);
}

#[test]
fn variables_that_are_not_utf_8() {
    for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_COMMAND"] {
        let mut variables = environment("ADD");
        variables.retain(|(other, _)| *other != name);
        variables.push((name, OsString::from_vec(vec![b'a', 0xff])));
        let (code, text, _) =
            refused(variables, config(SpecVersion::V1_0_0).to_string().as_bytes());
        assert_eq!(code, 4);
        assert!(text.contains(&format!("{name} is not UTF-8")), "{text}");
    }
}

#[test]
fn args_that_a_plugin_does_not_know() {
    let plugin = Recorder { known_args: Some(&["IP"]), ..Recorder::default() };
    let config = config(SpecVersion::V1_0_0).to_string();
    for (args, fine) in
        [("IP=10.0.0.1", true), ("IP=x;MAC=y", false), ("MAC=y;IgnoreUnknown=1", true), ("", true)]
    {
        let (exit, _) = call(&plugin, with("ADD", &[("CNI_ARGS", args)]), config.as_bytes());
        assert_eq!(exit.is_success(), fine, "{args}: {exit}");
    }
}

#[test]
fn the_input_is_checked_before_anything_is_called() {
    let long = format!(
        r#"{{"cniVersion":"1.0.0","name":"net","x":"{}"}}"#,
        "x".repeat(NetworkConfig::MAX_LEN)
    );
    let deep = format!(r#"{{"name":"net","x":{}{}}}"#, "[".repeat(1000), "]".repeat(1000));
    let table: &[(&[u8], u64, &str)] = &[
        (b"", 6, "EOF"),
        (b"{", 6, "EOF"),
        (b"[]", 6, "an array"),
        (b"\"net\"", 6, "a string"),
        (b"null", 6, "null"),
        (b"{} trailing", 6, "trailing"),
        (br#"{"cniVersion":"1.0.0","name":"net","name":"net"}"#, 6, "\"name\" is there twice"),
        (br#"{"name":"net","ipam":{"type":"a","type":"b"}}"#, 6, "\"type\" is there twice"),
        (b"{\"cniVersion\":\"1.0.0\",\"name\":\"\xff\"}", 6, "unicode"),
        (b"\x00", 6, "expected value"),
        (deep.as_bytes(), 6, "recursion limit"),
        (br#"{"cniVersion":1.0,"name":"net"}"#, 6, "a number"),
        (br#"{"cniVersion":"9.9.9","name":"net"}"#, 1, "supported are 0.1.0, 0.2.0"),
        (br#"{"cniVersion":"1.0","name":"net"}"#, 1, "\"1.0\" is not supported"),
        (br#"{"cniVersion":"v1.0.0","name":"net"}"#, 1, "\"v1.0.0\" is not supported"),
        (br#"{"cniVersion":"1.0.0"}"#, 7, "name is missing"),
        (br#"{"cniVersion":"1.0.0","name":""}"#, 7, "name is missing"),
        (br#"{"cniVersion":"1.0.0","name":null}"#, 7, "name is missing"),
        (br#"{"cniVersion":"1.0.0","name":{}}"#, 7, "name is an object"),
        (br#"{"cniVersion":"1.0.0","name":"a/b"}"#, 7, "contains '/'"),
        (br#"{"cniVersion":"1.0.0","name":"net","type":7}"#, 7, "type is a number"),
        (br#"{"cniVersion":"1.0.0","name":"net","plugins":[]}"#, 7, "list of plugins"),
        (
            br#"{"cniVersion":"1.0.0","name":"net","runtimeConfig":[]}"#,
            7,
            "runtimeConfig is an array",
        ),
        (br#"{"name":"net","runtimeConfig":{"ips":["x"]}}"#, 7, "\"x\""),
        (br#"{"name":"net","runtimeConfig":{"mac":1}}"#, 7, "mac 1"),
        (br#"{"name":"net","runtimeConfig":{"dns":{"servers":"x"}}}"#, 7, "dns"),
        (
            br#"{"name":"net","runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"a":1}}}"#,
            7,
            "pod-annotations",
        ),
        (br#"{"cniVersion":"1.0.0","name":"net","prevResult":"x"}"#, 6, "prevResult"),
        (br#"{"cniVersion":"1.0.0","name":"net","prevResult":{"ips":3}}"#, 6, "prevResult"),
        (long.as_bytes(), 7, "longer than 1048576 bytes"),
    ];
    for (stdin, expected, why) in table {
        let (code, text, _) = refused(environment("ADD"), stdin);
        let shown = String::from_utf8_lossy(&stdin[..stdin.len().min(80)]);
        assert_eq!(code, *expected, "{shown}: {text}");
        assert!(text.contains(why), "{shown}: {text}");
    }
}

#[test]
fn a_refused_version_is_repeated() {
    let (_, _, version) = refused(environment("ADD"), br#"{"cniVersion":"9.9.9","name":"net"}"#);
    assert_eq!(version, "9.9.9");
}

#[test]
fn the_longest_input_is_read_and_one_byte_more_is_not() {
    let frame = r#"{"cniVersion":"1.0.0","name":"net","x":""}"#;
    for (more, fine) in [(0, true), (1, false)] {
        let padding = "x".repeat(NetworkConfig::MAX_LEN - frame.len() + more);
        let text = frame.replace(r#""x":"""#, &format!(r#""x":"{padding}""#));
        let (exit, answer) = call(&Recorder::default(), environment("ADD"), text.as_bytes());
        assert_eq!(exit.is_success(), fine, "{answer:?}");
    }
    // An endless input is not read to its end.
    let (code, ..) = {
        let mut stdout = Vec::new();
        let environment = Environment::new(environment("ADD"));
        let exit = dispatch(&Recorder::default(), &environment, io::repeat(b' '), &mut stdout);
        assert!(!exit.is_success());
        (serde_json::from_slice::<Value>(&stdout).unwrap()["code"].as_u64().unwrap(),)
    };
    assert_eq!(code, 7);
}

#[test]
fn an_input_that_cannot_be_read_is_an_io_failure() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("the pipe burst"))
        }
    }
    let mut stdout = Vec::new();
    let exit =
        dispatch(&Recorder::default(), &Environment::new(environment("ADD")), Broken, &mut stdout);
    let Exit::Failure(error) = exit else { panic!("{exit}") };
    assert_eq!((error.code(), error.details()), (Code::IO_FAILURE, "the pipe burst"));
}

#[test]
fn del_succeeds_with_little() {
    for (changes, prev_result, called) in [
        (&[("CNI_NETNS", "")][..], json!(null), "del c1/eth0 gone None"),
        (&[("CNI_NETNS", "<missing>")], json!({}), "del c1/eth0 gone Some(0)"),
        (&[], json!("garbage"), "del c1/eth0 /run/netns/c1 None"),
        (&[], json!({"cniVersion": "9.0.0"}), "del c1/eth0 /run/netns/c1 None"),
    ] {
        let mut config = config(SpecVersion::V1_0_0);
        config["prevResult"] = prev_result;
        let plugin = Recorder::default();
        let (exit, answer) = call(&plugin, with("DEL", changes), config.to_string().as_bytes());
        assert!(exit.is_success(), "{exit}");
        assert_eq!(answer, None);
        assert_eq!(*plugin.calls.borrow(), [called]);
    }
}

#[test]
fn keys_of_lists_are_the_runtimes_business() {
    let mut config = config(SpecVersion::V1_1_0);
    for (key, value) in [
        ("cniVersions", json!(["1.0.0", "1.1.0", "9.0.0"])),
        ("disableCheck", json!(true)),
        ("disableGC", json!("true")),
        ("loadOnlyInlinedPlugins", json!(false)),
        ("capabilities", json!({"mac": true})),
    ] {
        config[key] = value;
    }
    let plugin = Recorder::default();
    let stdin = config.to_string();
    let (exit, _) = call(&plugin, environment("STATUS"), stdin.as_bytes());
    assert!(exit.is_success(), "{exit}");
}

#[test]
fn check_needs_a_prev_result() {
    let (code, text, _) =
        refused(environment("CHECK"), config(SpecVersion::V0_4_0).to_string().as_bytes());
    assert_eq!(code, 7);
    assert!(text.contains("prevResult is missing"), "{text}");
}

#[test]
fn status_and_gc_need_no_container() {
    for command in ["STATUS", "GC"] {
        let mut config = config(SpecVersion::V1_1_0);
        config["cni.dev/valid-attachments"] = json!([]);
        let plugin = Recorder::default();
        let (exit, _) =
            call(&plugin, vec![("CNI_COMMAND", command.into())], config.to_string().as_bytes());
        assert!(exit.is_success(), "{exit}");
    }
}

#[test]
fn gc_does_not_take_a_missing_list_for_an_empty_one() {
    let valid = json!([{"containerID": "c1", "ifname": "eth0"}]);
    let other = json!([{"containerID": "c2", "ifname": "eth0"}]);
    for (keys, expected) in [
        (json!({}), Err("cni.dev/valid-attachments is missing")),
        (json!({"cni.dev/valid-attachments": [{"containerID": "c1"}]}), Err("ifname")),
        (json!({"cni.dev/valid-attachments": [{"containerID": "/", "ifname": "a"}]}), Err("\"/\"")),
        (json!({"cni.dev/valid-attachments": {}}), Err("cni.dev/valid-attachments")),
        (json!({"cni.dev/valid-attachments": []}), Ok("gc net []")),
        (json!({"cni.dev/valid-attachments": null}), Ok("gc net []")),
        (json!({"cni.dev/valid-attachments": valid}), Ok("gc net [\"c1/eth0\"]")),
        (json!({"cni.dev/attachments": valid}), Ok("gc net [\"c1/eth0\"]")),
        (
            json!({"cni.dev/valid-attachments": valid, "cni.dev/attachments": valid}),
            Ok("gc net [\"c1/eth0\"]"),
        ),
        (
            json!({"cni.dev/valid-attachments": valid, "cni.dev/attachments": other}),
            Ok("gc net [\"c1/eth0\", \"c2/eth0\"]"),
        ),
    ] {
        let mut config = config(SpecVersion::V1_1_0);
        config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        match expected {
            Ok(called) => {
                let plugin = Recorder::default();
                let (exit, _) = call(&plugin, environment("GC"), config.to_string().as_bytes());
                assert!(exit.is_success(), "{keys}: {exit}");
                assert_eq!(*plugin.calls.borrow(), [called]);
            }
            Err(why) => {
                let (code, text, _) = refused(environment("GC"), config.to_string().as_bytes());
                assert_eq!(code, 7, "{keys}: {text}");
                assert!(text.contains(why), "{keys}: {text}");
            }
        }
    }
}

#[test]
fn what_a_plugin_fails_with_is_the_answer() {
    let fails = Some(Error::new(Code::TRY_AGAIN_LATER, "no agent").with_details("/run/x.sock"));
    for command in ["ADD", "DEL", "CHECK", "STATUS", "GC"] {
        let plugin = Recorder { fails: fails.clone(), ..Recorder::default() };
        let mut config = config(SpecVersion::V1_1_0);
        config["prevResult"] = json!({});
        config["cni.dev/valid-attachments"] = json!([]);
        let (exit, answer) = call(&plugin, environment(command), config.to_string().as_bytes());
        assert!(!exit.is_success());
        assert_eq!(
            answer,
            Some(json!({
                "cniVersion": "1.1.0", "code": 11, "msg": "no agent", "details": "/run/x.sock",
            }))
        );
    }
}

#[test]
fn a_panic_is_an_error_like_any_other() {
    for command in ["ADD", "DEL"] {
        let plugin = Recorder { panics: true, ..Recorder::default() };
        let config = config(SpecVersion::V0_2_0).to_string();
        let (exit, answer) = call(&plugin, environment(command), config.as_bytes());
        assert!(!exit.is_success());
        assert_eq!(
            answer,
            Some(json!({
                "cniVersion": "0.2.0", "code": 999, "msg": "the plugin panicked",
                "details": "out of luck",
            }))
        );
    }
}

#[test]
fn an_answer_that_cannot_be_written_is_no_success() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    /// Takes everything and loses it afterwards, as a buffered file does.
    struct Lossy;
    impl Write for Lossy {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::StorageFull.into())
        }
    }
    let good = config(SpecVersion::V1_0_0).to_string();
    for (command, stdin) in [("ADD", good.as_bytes()), ("ADD", b"{"), ("VERSION", b"")] {
        let plugin = Recorder::default();
        let environment = Environment::new(environment(command));
        let exit = dispatch(&plugin, &environment, stdin, Full);
        assert!(matches!(exit, Exit::Unreported(_)), "{command}: {exit}");
        let exit = dispatch(&plugin, &environment, stdin, Lossy);
        assert!(matches!(exit, Exit::Unreported(_)), "{command}: {exit}");
    }
}

#[test]
fn a_chained_plugin_passes_on_what_came_before_in_its_own_version() {
    // The result before is of another version than the configuration.
    let mut config = config(SpecVersion::V0_4_0);
    config["prevResult"] = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "eth9", "sandbox": "/run/netns/c1"}],
        "ips": [{"address": "fd00::5/128", "interface": 0}],
    });
    let (_, answer) = call(&Recorder::default(), environment("ADD"), config.to_string().as_bytes());
    assert_eq!(
        answer.unwrap()["ips"],
        json!([
            {"version": "6", "address": "fd00::5/128", "interface": 0},
            {"version": "4", "address": "10.1.0.5/32"},
        ])
    );
}

#[test]
fn of_a_repeated_variable_the_first_counts() {
    let mut variables = environment("ADD");
    variables.push(("CNI_IFNAME", "eth1".into()));
    let plugin = Recorder::default();
    let (exit, _) = call(&plugin, variables, config(SpecVersion::V1_0_0).to_string().as_bytes());
    assert!(exit.is_success());
    assert!(plugin.calls.borrow()[0].contains("c1/eth0"));
}
