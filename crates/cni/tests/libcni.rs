//! Beside the reference library, Debian's libcni: what one remembers, the other reads, and plugins
//! get the same from both.

#![expect(clippy::unwrap_used, reason = "functions that tests share panic as tests do")]

mod scripted;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use podwire_cni::Args;
use podwire_cni::runtime::{Network, Request, network};
use podwire_cni::types::{Interface, Ip, Route, Success};
use podwire_lab::allowed_missing;
use scripted::Plugins;
use serde_json::{Value, json};

const GO_CODE: &str = "/usr/share/gocode";
const ARGS: &str = "IgnoreUnknown=1;K8S_POD_NAME=web-0";

/// libcni, a folder of networks and one of plugins that note what they get.
struct Peers {
    program: PathBuf,
    plugins: Plugins,
}

impl Peers {
    /// `None` when something is missing that may be.
    fn new() -> Option<Self> {
        let sources = Path::new(GO_CODE).join("src/github.com/containernetworking/cni/libcni");
        if allowed_missing("golang-go", || Path::new("/usr/bin/go").exists())
            || allowed_missing("golang-github-appc-cni-dev", || sources.exists())
        {
            return None;
        }
        let plugins = Plugins::new(&["a", "b"]);
        let program = plugins.path().join("libcni");
        let built = Command::new("/usr/bin/go")
            .args(["build", "-o"])
            .arg(&program)
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/libcni/main.go"))
            .env("GO111MODULE", "off")
            .env("GOPATH", GO_CODE)
            // Kept from run to run: libcni is built once.
            .env("GOCACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("go"))
            .output()
            .unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        plugins.put(
            "net.d/1.conflist",
            &json!({
                "cniVersion": "1.0.0", "name": "net", "plugins": [
                    {"type": "a", "ipam": {"type": "x", "n": [1, 1.5, null]}, "<key>": "é & \"x\""},
                    {"type": "b", "capabilities": {"portMappings": true, "mac": false, "ips": true}},
                ],
            }),
        );
        plugins.put("net.d/2.conf", &json!({"cniVersion": "0.4.0", "name": "one", "type": "a"}));
        Some(Self { program, plugins })
    }

    fn network(&self, name: &str) -> Network {
        network(&self.plugins.path().join("net.d"), name).unwrap()
    }

    fn libcni(&self, verb: &str, network: &str, container: &str) -> String {
        let path = self.plugins.path();
        let output = Command::new(&self.program)
            .arg(verb)
            .args([path.join("net.d"), path.join("cache"), path.to_owned()])
            .args([network, container, "/run/netns/x", "eth0", ARGS])
            .arg(Value::Object(capabilities()).to_string())
            .output()
            .unwrap();
        assert!(output.status.success(), "{verb}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What the plugins got in a command: the calls, the inputs, the environments.
    fn got(&self, command: &str) -> Vec<(String, Value, String)> {
        let calls = self.plugins.take_calls();
        let plugins = calls.lines().map(|line| line.split_once(' ').unwrap().0);
        plugins
            .map(|plugin| {
                let mut input = self.plugins.input(plugin, command);
                // libcni leaves it, against the specification's text.
                input.as_object_mut().unwrap().remove("capabilities");
                (plugin.to_owned(), input, self.plugins.environment(plugin, command))
            })
            .collect()
    }
}

fn capabilities() -> serde_json::Map<String, Value> {
    let all = json!({"portMappings": [{"HostPort": 80}], "mac": "02:00:00:00:00:01", "x": null});
    all.as_object().unwrap().clone()
}

fn request(container: &str) -> Request {
    let mut request = Request::new(container.parse().unwrap(), "eth0".parse().unwrap());
    request.netns = Some("/run/netns/x".parse().unwrap());
    request.args = Args::parse(ARGS).unwrap();
    request.capabilities = capabilities();
    request
}

#[test]
#[ignore = "needs golang-go and golang-github-appc-cni-dev"]
fn plugins_get_the_same_and_the_cache_is_one() {
    let Some(peers) = Peers::new() else { return };
    let runtime = peers.plugins.runtime();
    for name in ["net", "one"] {
        let network = peers.network(name);
        let mut success = Success::default();
        success.interfaces.push(Interface::in_sandbox("eth0", "/run/netns/x"));
        let mut ip = Ip::new("10.0.0.5/24".parse().unwrap());
        ip.interface = Some(0);
        success.ips.push(ip);
        success.routes.push(Route::new("0.0.0.0/0".parse().unwrap()));
        success.dns.nameservers.push("10.0.0.1".into());
        let result = success.to_value(network.version());
        peers.plugins.put("a.ADD.result", &result);
        peers.plugins.put("b.ADD.result", &result);
        let theirs = peers.libcni("add", name, "c1");
        let got_theirs = peers.got("ADD");
        let file = peers.plugins.path().join(format!("cache/results/{name}-c1-eth0"));
        let their_file: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let their_entry =
            runtime.cache().entry(network.name(), &request("c1").attachment()).unwrap().unwrap();
        // libcni keeps the namespace since 1.2 only.
        let mut expected = request("c1");
        expected.netns = None;
        assert_eq!(their_entry.request, expected);
        let their_network = Network::parse(&their_entry.config).unwrap();
        assert!(their_network.plugins().eq(network.plugins()), "{name}");
        runtime.check(&network, &request("c1")).unwrap();
        let (check_ours, _) = (peers.got("CHECK"), peers.libcni("check", name, "c1"));
        assert_eq!(check_ours, peers.got("CHECK"), "{name}: CHECK");
        runtime.del(&network, &request("c1")).unwrap();
        let del_ours = peers.got("DEL");
        assert!(!file.exists());

        let ours = runtime.add(&network, &request("c1")).unwrap();
        assert_eq!(peers.got("ADD"), got_theirs, "{name}: ADD");
        let theirs: Value = serde_json::from_str(&theirs).unwrap();
        assert_eq!(ours.to_value(network.version()), theirs, "{name}");
        let mut our_file: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        assert_eq!(our_file.as_object_mut().unwrap().remove("netns").unwrap(), "/run/netns/x");
        // What is configured may be written in another way; all else is the same.
        for key in their_file.as_object().unwrap().keys().filter(|key| *key != "config") {
            assert_eq!(our_file[key], their_file[key], "{name}: {key}");
        }
        assert_eq!(our_file.as_object().unwrap().len(), their_file.as_object().unwrap().len());
        let read: Value = serde_json::from_str(&peers.libcni("cached", name, "c1")).unwrap();
        assert_eq!(read["capabilities"], Value::Object(capabilities()));
        assert_eq!(read["args"][1], json!(["K8S_POD_NAME", "web-0"]));
        assert_eq!(read["result"], theirs);
        assert_eq!(read["config"].as_str().unwrap().as_bytes(), network.text());
        peers.libcni("del", name, "c1");
        assert_eq!(peers.got("DEL"), del_ours, "{name}: DEL");
        assert!(!file.exists());
    }
}
