//! The runtime's side, with plugins that are scripted: what each gets to read, in which order.

#![expect(clippy::unwrap_used, reason = "functions that tests share panic as tests do")]

mod scripted;

use podwire_cni::runtime::{Cache, Entry, Extent, Network, Request};
use podwire_cni::types::Success;
use podwire_cni::{Args, Attachment, Code, SpecVersion};
use scripted::Plugins;
use serde_json::{Value, json};

const LISTS: [(SpecVersion, &str); 7] = [
    (SpecVersion::V0_1_0, include_str!("golden/lists/0.1.0.json")),
    (SpecVersion::V0_2_0, include_str!("golden/lists/0.2.0.json")),
    (SpecVersion::V0_3_0, include_str!("golden/lists/0.3.0.json")),
    (SpecVersion::V0_3_1, include_str!("golden/lists/0.3.1.json")),
    (SpecVersion::V0_4_0, include_str!("golden/lists/0.4.0.json")),
    (SpecVersion::V1_0_0, include_str!("golden/lists/1.0.0.json")),
    (SpecVersion::V1_1_0, include_str!("golden/lists/1.1.0.json")),
];

fn request(container: &str) -> Request {
    let mut request = Request::new(container.parse().unwrap(), "eth0".parse().unwrap());
    request.netns = Some("/var/run/netns/blue".parse().unwrap());
    request
}

fn attachment(container: &str) -> Attachment {
    request(container).attachment()
}

fn list(version: &str, more: &Value, plugins: &[&str]) -> Network {
    let plugins: Vec<Value> = plugins.iter().map(|name| json!({"type": name})).collect();
    let mut list = json!({"cniVersion": version, "name": "dbnet", "plugins": plugins});
    list.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    Network::parse(list.to_string().as_bytes()).unwrap()
}

#[test]
fn the_specifications_lists_in_every_version_and_command() {
    for (version, text) in LISTS {
        let golden: Value = serde_json::from_str(text).unwrap();
        let names: Vec<&str> =
            golden["results"].as_object().unwrap().keys().map(String::as_str).collect();
        let plugins = Plugins::new(&names);
        for name in names {
            plugins.put(&format!("{name}.ADD.result"), &golden["results"][name]);
        }
        let text = golden["network"].to_string();
        let network = match version {
            SpecVersion::V0_1_0 | SpecVersion::V0_2_0 => Network::parse_single(text.as_bytes()),
            _ => Network::parse(text.as_bytes()),
        };
        let network = network.unwrap();
        assert_eq!(network.version(), version);
        let runtime = plugins.runtime();
        let mut request = request("blue");
        request.args = Args::parse(golden["args"].as_str().unwrap()).unwrap();
        request.capabilities = golden["capabilities"].as_object().unwrap().clone();

        let commands = ["ADD", "CHECK", "STATUS", "GC", "DEL"];
        for command in commands.into_iter().filter(|name| golden["calls"].get(name).is_some()) {
            match command {
                "ADD" => {
                    let success = runtime.add(&network, &request).unwrap();
                    let last = network.plugins().last().unwrap();
                    let last = Success::from_value(golden["results"][last].clone(), version);
                    assert_eq!(success, last.unwrap());
                }
                "CHECK" => drop(runtime.check(&network, &request).unwrap()),
                "STATUS" => drop(runtime.status(&network).unwrap()),
                "GC" => drop(runtime.gc(&network, &[attachment("blue")]).unwrap()),
                _ => runtime.del(&network, &request).unwrap(),
            }
            let calls = golden["calls"][command].as_array().unwrap();
            let order: String = calls
                .iter()
                .map(|call| format!("{} {command}\n", call[0].as_str().unwrap()))
                .collect();
            assert_eq!(plugins.take_calls(), order, "{version} {command}");
            for call in calls {
                let name = call[0].as_str().unwrap();
                let input = plugins.input(name, command);
                assert_eq!(input, call[1], "{version} {command} {name}");
                let environment = plugins.environment(name, command);
                assert_eq!(environment, expected(command, &golden, &plugins), "{version}");
            }
        }
    }
}

/// The environment that the specification demands for a command.
fn expected(command: &str, golden: &Value, plugins: &Plugins) -> String {
    let path = plugins.path().display();
    if matches!(command, "STATUS" | "GC") {
        return format!("CNI_COMMAND={command}\nCNI_PATH={path}\n");
    }
    let args = match golden["args"].as_str().unwrap() {
        "" => String::new(),
        args => format!("CNI_ARGS={args}\n"),
    };
    format!(
        "{args}CNI_COMMAND={command}\nCNI_CONTAINERID=blue\nCNI_IFNAME=eth0\n\
         CNI_NETNS=/var/run/netns/blue\nCNI_PATH={path}\n"
    )
}

#[test]
fn an_add_that_fails_is_undone_in_all_plugins() {
    let plugins = Plugins::new(&["a", "b", "c"]);
    plugins.put("a.ADD.result", &json!({"cniVersion": "1.0.0"}));
    plugins.put("b.ADD.error", &json!({"code": 111, "msg": "no room", "details": "at all"}));
    plugins.put("c.DEL.error", &json!({"code": 5, "msg": "locked"}));
    let (runtime, network) = (plugins.runtime(), list("1.0.0", &json!({}), &["a", "b", "c"]));
    let error = runtime.add(&network, &request("c1")).unwrap_err();
    assert_eq!((error.code().get(), error.msg()), (111, "plugin b: no room"));
    assert_eq!(
        error.details(),
        "at all; undoing the ADD failed as well: plugin c: locked (code 5)"
    );
    assert_eq!(plugins.take_calls(), "a ADD\nb ADD\nc DEL\nb DEL\na DEL\n");
    assert_eq!(plugins.input("a", "DEL").get("prevResult"), None);
    assert_eq!(runtime.cache().entries().unwrap(), []);
}

#[test]
fn nothing_is_touched_if_an_add_cannot_succeed() {
    let plugins = Plugins::new(&["a"]);
    plugins.put("a.ADD.result", &json!({}));
    let runtime = plugins.runtime();
    let error =
        runtime.add(&list("1.0.0", &json!({}), &["a", "absent"]), &request("c1")).unwrap_err();
    assert_eq!(error.code(), Code::INVALID_NETWORK_CONFIG);
    assert!(error.to_string().contains("\"absent\" was not found"), "{error}");
    let network = list("1.0.0", &json!({}), &["a"]);
    let mut nowhere = request("c1");
    nowhere.netns = None;
    let error = runtime.add(&network, &nowhere).unwrap_err();
    assert_eq!(error.code(), Code::INVALID_ENVIRONMENT_VARIABLES);
    assert_eq!(plugins.take_calls(), "");

    runtime.add(&network, &request("c1")).unwrap();
    plugins.take_calls();
    let error = runtime.add(&network, &request("c1")).unwrap_err();
    assert!(error.msg().contains("c1/eth0 is attached to dbnet already"), "{error}");
    assert_eq!(plugins.take_calls(), "", "the attachment that stands must not be undone");
}

#[test]
fn results_that_cannot_be_read_are_undone() {
    for result in [json!([]), json!({"cniVersion": "7.0.0"}), json!({"ips": [{"address": "x"}]})] {
        let plugins = Plugins::new(&["a"]);
        plugins.put("a.ADD.result", &result);
        let error =
            plugins.runtime().add(&list("1.0.0", &json!({}), &["a"]), &request("c1")).unwrap_err();
        assert_eq!(error.code(), Code::DECODING_FAILURE, "{result}: {error}");
        assert_eq!(plugins.take_calls(), "a ADD\na DEL\n");
    }
}

#[test]
fn results_of_another_version_are_converted_and_others_left_alone() {
    let plugins = Plugins::new(&["old", "new", "last"]);
    plugins.put(
        "old.ADD.result",
        &json!({"cniVersion": "0.3.1", "ips": [{"version": "4", "address": "10.0.0.5/32"}]}),
    );
    let own = json!({
        "cniVersion": "1.0.0", "ips": [{"address": "10.0.0.5/32", "x": 1}], "example.com/y": 2,
    });
    plugins.put("new.ADD.result", &own);
    plugins.put("last.ADD.result", &own);
    let network = list("1.0.0", &json!({}), &["old", "new", "last"]);
    let runtime = plugins.runtime();
    runtime.add(&network, &request("c1")).unwrap();
    assert_eq!(
        plugins.input("new", "ADD")["prevResult"],
        json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.5/32"}]})
    );
    assert_eq!(plugins.input("last", "ADD")["prevResult"], own);
    let entry = runtime.cache().entry(network.name(), &attachment("c1")).unwrap().unwrap();
    assert_eq!(entry.result, Some(own));
    // The configuration was changed since.
    let changed = list("0.4.0", &json!({}), &["old"]);
    runtime.check(&changed, &request("c1")).unwrap();
    assert_eq!(
        plugins.input("old", "CHECK")["prevResult"],
        json!({"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.0.0.5/32"}]})
    );
}

#[test]
fn del_and_check_have_the_parameters_of_the_add() {
    let plugins = Plugins::new(&["a"]);
    plugins.put("a.ADD.result", &json!({}));
    let plugin = json!([{"type": "a", "capabilities": {"mac": true, "ips": false}}]);
    let network = list("1.0.0", &json!({"plugins": plugin}), &[]);
    assert_eq!(network.capabilities().into_iter().collect::<Vec<_>>(), ["mac"]);
    let mut whole = request("c1");
    whole.args = Args::parse("A=1").unwrap();
    whole.capabilities = json!({"mac": "x", "ips": ["10.0.0.1"]}).as_object().unwrap().clone();
    let runtime = plugins.runtime();
    runtime.add(&network, &whole).unwrap();
    let asked = |command: &str| {
        assert!(plugins.environment("a", command).contains("CNI_ARGS=A=1\n"), "{command}");
        let input = plugins.input("a", command);
        assert_eq!(input["runtimeConfig"], json!({"mac": "x"}), "{command}");
        assert_eq!(input.get("capabilities"), None, "{command}");
    };
    asked("ADD");
    runtime.check(&network, &request("c1")).unwrap();
    asked("CHECK");
    let mut gone = request("c1");
    gone.netns = None;
    runtime.del(&network, &gone).unwrap();
    asked("DEL");
    assert!(!plugins.environment("a", "DEL").contains("CNI_NETNS"));
    // Again, with nothing remembered.
    runtime.del(&network, &gone).unwrap();
    assert!(!plugins.environment("a", "DEL").contains("CNI_ARGS"));
}

#[test]
fn a_del_that_fails_stops_and_can_be_repeated() {
    let plugins = Plugins::new(&["a", "b"]);
    plugins.put("a.ADD.result", &json!({}));
    plugins.put("b.ADD.result", &json!({}));
    plugins.put("b.DEL.error", &json!({"code": 11, "msg": "busy"}));
    let (runtime, network) = (plugins.runtime(), list("0.4.0", &json!({}), &["a", "b"]));
    runtime.add(&network, &request("c1")).unwrap();
    plugins.take_calls();
    assert_eq!(runtime.del(&network, &request("c1")).unwrap_err().code().get(), 11);
    assert_eq!(plugins.take_calls(), "b DEL\n");
    std::fs::remove_file(plugins.path().join("b.DEL.error")).unwrap();
    runtime.del(&network, &request("c1")).unwrap();
    assert_eq!(plugins.take_calls(), "b DEL\na DEL\n");
    assert!(plugins.input("a", "DEL").get("prevResult").is_some());
    assert_eq!(runtime.cache().entries().unwrap(), []);
}

#[test]
fn commands_that_the_version_or_the_configuration_does_not_have() {
    let plugins = Plugins::new(&["a"]);
    plugins.put("a.ADD.result", &json!({}));
    let runtime = plugins.runtime();
    let old = list("0.3.1", &json!({}), &["a"]);
    let error = runtime.check(&old, &request("c1")).unwrap_err();
    assert_eq!(error.code(), Code::INCOMPATIBLE_CNI_VERSION);
    assert_eq!(runtime.status(&list("1.0.0", &json!({}), &["a"])).unwrap(), Extent::NotInVersion);
    let disabled = json!({"disableCheck": true, "disableGC": "true"});
    let disabled = list("1.1.0", &disabled, &["a"]);
    assert_eq!(runtime.check(&disabled, &request("c1")).unwrap(), Extent::Disabled);
    runtime.add(&disabled, &request("c1")).unwrap();
    let collected = runtime.gc(&disabled, &[]).unwrap();
    assert_eq!((collected.extent, collected.removed), (Extent::Disabled, vec![]));
    assert_eq!(plugins.take_calls(), "a ADD\n");
    let error = runtime.check(&list("1.1.0", &json!({}), &["a"]), &request("c2")).unwrap_err();
    assert!(error.msg().contains("no ADD of c2/eth0 to dbnet is remembered"), "{error}");
}

#[test]
fn gc_removes_what_is_remembered_and_not_valid() {
    for (version, extent) in [("0.4.0", Extent::NotInVersion), ("1.1.0", Extent::Whole)] {
        let plugins = Plugins::new(&["a"]);
        plugins.put("a.ADD.result", &json!({}));
        let (runtime, network) = (plugins.runtime(), list(version, &json!({}), &["a"]));
        let other = list(version, &json!({"name": "other"}), &["a"]);
        for container in ["c1", "c2", "c3"] {
            runtime.add(&network, &request(container)).unwrap();
        }
        runtime.add(&other, &request("c4")).unwrap();
        plugins.take_calls();
        let collected = runtime.gc(&network, &[attachment("c2")]).unwrap();
        assert_eq!(collected.removed, [attachment("c1"), attachment("c3")]);
        assert_eq!(collected.extent, extent);
        let gc = if extent == Extent::Whole { "a GC\n" } else { "" };
        assert_eq!(plugins.take_calls(), format!("a DEL\na DEL\n{gc}"));
        let left: Vec<_> = runtime.cache().entries().unwrap();
        let left = left.into_iter().map(|found| found.content.unwrap().request.container_id);
        assert_eq!(left.map(|id| id.to_string()).collect::<Vec<_>>(), ["c2", "c4"]);
    }
}

#[test]
fn gc_tries_everything_and_tells_every_failure() {
    let plugins = Plugins::new(&["a", "b"]);
    plugins.put("a.ADD.result", &json!({}));
    plugins.put("b.ADD.result", &json!({}));
    let (runtime, network) = (plugins.runtime(), list("1.1.0", &json!({}), &["a", "b"]));
    runtime.add(&network, &request("c1")).unwrap();
    plugins.put("a.DEL.error", &json!({"code": 11, "msg": "busy"}));
    plugins.put("a.GC.error", &json!({"code": 5, "msg": "disk"}));
    plugins.take_calls();
    let error = runtime.gc(&network, &[]).unwrap_err();
    assert_eq!(error.to_string(), "plugin a: busy: plugin a: disk (code 5) (code 11)");
    assert_eq!(plugins.take_calls(), "b DEL\na DEL\na GC\nb GC\n");
}

#[test]
fn plugins_and_their_versions() {
    let plugins = Plugins::new(&["a", "old", "oldest", "odd"]);
    let versions = |list: Value| json!({"cniVersion": "1.1.0", "supportedVersions": list});
    plugins.put("a.VERSION.result", &versions(json!(["0.4.0", "1.0.0", "9.0.0"])));
    plugins.put("old.VERSION.result", &versions(json!(["0.3.1"])));
    plugins.put("oldest.VERSION.error", &json!({"code": 4, "msg": "unknown CNI_COMMAND: VERSION"}));
    plugins.put("odd.VERSION.result", &json!({}));
    let runtime = plugins.runtime();
    let of = |name: &str| runtime.versions(&runtime.find(name).unwrap());
    assert_eq!(of("a").unwrap(), [SpecVersion::V0_4_0, SpecVersion::V1_0_0]);
    assert_eq!(of("oldest").unwrap(), [SpecVersion::V0_1_0]);
    assert_eq!(of("odd").unwrap_err().code(), Code::DECODING_FAILURE);
    runtime.validate(&list("1.0.0", &json!({}), &["a"])).unwrap();
    let error = runtime.validate(&list("1.0.0", &json!({}), &["a", "old", "absent"])).unwrap_err();
    assert_eq!(error.code(), Code::INCOMPATIBLE_CNI_VERSION);
    assert_eq!(error.msg(), "plugin old does not support version 1.0.0");
    assert!(error.details().contains("it supports 0.3.1; plugin \"absent\" was not found"));
}

/// As the reference library writes it, from Go: null for empty, and its own escapes.
const LIBCNIS: &str = r#"{"kind":"cniCacheV1","containerId":"c1","config":"eyJjbmlWZXJzaW9uIjoiMS4wLjAiLCJuYW1lIjoiZGJuZXQiLCJwbHVnaW5zIjpbeyJ0eXBlIjoiYSJ9XX0=","ifName":"eth0","networkName":"dbnet","netns":"/var/run/netns/blue","cniArgs":[["IgnoreUnknown","1"],["K8S_POD_NAME","a\u003cb"]],"capabilityArgs":{"io.kubernetes.cri.pod-annotations":null,"portMappings":[{"HostPort":8080}]},"result":{"cniVersion":"1.0.0","dns":{},"ips":[{"address":"10.88.0.2/16","gateway":"10.88.0.1","interface":0}]}}"#;

#[test]
fn the_cache_is_the_reference_librarys() {
    let entry = Entry::parse(LIBCNIS.as_bytes()).unwrap();
    assert_eq!(entry.network.as_str(), "dbnet");
    assert_eq!(entry.request.attachment(), attachment("c1"));
    assert_eq!(entry.request.netns.as_ref().unwrap().as_str(), "/var/run/netns/blue");
    assert_eq!(entry.request.args.value("K8S_POD_NAME"), Some("a<b"));
    assert_eq!(entry.request.capabilities["portMappings"][0]["HostPort"], 8080);
    assert_eq!(Network::parse(&entry.config).unwrap().plugins().collect::<Vec<_>>(), ["a"]);
    let own: Value = serde_json::from_slice(&entry.to_json()).unwrap();
    assert_eq!(own, serde_json::from_str::<Value>(LIBCNIS).unwrap());

    // And an attachment that another runtime made can be removed.
    let plugins = Plugins::new(&["a"]);
    plugins.put_text("cache/results/dbnet-c1-eth0", LIBCNIS);
    plugins.put_text("cache/results/dbnet-c2-eth0", "{");
    plugins.put_text("cache/results/.draft", "{");
    plugins.put_text("cache/results/other", r#"{"kind": "cniCacheV2"}"#);
    plugins.put_text(
        "cache/results/dbnet-old-eth0",
        r#"{"cniVersion": "0.3.1", "ips": [{"version": "4", "address": "10.0.0.5/32"}]}"#,
    );
    let (runtime, network) = (plugins.runtime(), list("1.0.0", &json!({}), &["a"]));
    let entries = runtime.cache().entries().unwrap();
    assert_eq!(entries.len(), 4);
    assert_eq!(entries.iter().filter(|found| found.content.is_ok()).count(), 1);
    for container in ["c1", "c2"] {
        runtime.del(&network, &request(container)).unwrap();
    }
    // Before it had a kind, the file was the result.
    runtime.check(&network, &request("old")).unwrap();
    assert_eq!(
        plugins.input("a", "CHECK")["prevResult"],
        json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.5/32"}]})
    );
    assert!(!plugins.path().join("cache/results/dbnet-c1-eth0").exists());
    assert!(!plugins.path().join("cache/results/dbnet-c2-eth0").exists());
}

#[test]
fn attachments_that_share_a_file_do_not_take_each_others() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::new(folder.path());
    let network = list("1.0.0", &json!({"name": "a-b"}), &["x"]);
    cache.store(&Entry::new(&network, &request("c"), json!({}))).unwrap();
    let (other, its) = ("a".parse().unwrap(), attachment("b-c"));
    let error = cache.entry(&other, &its).unwrap_err();
    assert!(error.to_string().contains("it is about c/eth0 in a-b"), "{error}");
    cache.remove(&other, &its).unwrap();
    assert!(cache.entry(network.name(), &attachment("c")).unwrap().is_some());
    cache.remove(network.name(), &attachment("c")).unwrap();
    assert_eq!(cache.entry(&other, &its).unwrap(), None);
}
