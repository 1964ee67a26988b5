//! `podwire-ipam` under Debian's ptp and bridge, with pods that talk to each other.

#![expect(clippy::unwrap_used, reason = "functions that tests share panic as tests do")]

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::{self, Stdio};
use std::thread;
use std::time::Duration;

use podwire_lab::probe::Ping;
use podwire_lab::{Attachment, Cni, Error, Host, Pod, allowed_missing, binary};
use serde_json::{Value, json};

const GUIDE: &str = include_str!("../../../docs/ipam.md");
const PLUGINS: &str = "/usr/lib/cni";

/// The plugin's own code.
const EXHAUSTED: u64 = 101;

fn has_plugins() -> bool {
    !allowed_missing("containernetworking-plugins", || Path::new(PLUGINS).join("ptp").exists())
}

/// A main plugin of Debian's with our IPAM, found as a runtime lets it be found.
fn network(host: &Host, config: Value) -> Cni {
    let main = Path::new(PLUGINS).join(config["type"].as_str().unwrap());
    let ours = binary("podwire-ipam").unwrap();
    let mut path = OsString::from(PLUGINS);
    path.push(":");
    path.push(ours.parent().unwrap());
    Cni::new(host, main, config).search_path(path)
}

/// The network of the guide, which has one block of JSON.
fn ptp(version: &str) -> Value {
    let block = GUIDE.split("```json").nth(1).unwrap().split("```").next().unwrap();
    let list: Value = serde_json::from_str(block).unwrap();
    let mut config = list["plugins"][0].clone();
    config["name"] = list["name"].clone();
    config["cniVersion"] = version.into();
    config
}

fn bridge(version: &str) -> Value {
    json!({
        "cniVersion": version, "name": "podnet", "type": "bridge", "bridge": "cni0",
        "isGateway": true, "ipam": ptp(version)["ipam"]
    })
}

fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().unwrap();
    let address = |ip: &Value| ip["address"].as_str()?.split('/').next()?.parse().ok();
    ips.iter().map(|ip| address(ip).unwrap()).collect()
}

/// What `podwire-ipam list` says in the host.
fn leases(host: &Host) -> Vec<String> {
    let output = host.command(binary("podwire-ipam").unwrap()).args(["list", "podnet"]).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter(|line| line.contains('\t')).map(str::to_owned).collect()
}

/// A pod with what its ADD resulted in.
struct Attached {
    pod: Pod,
    attachment: Attachment,
    result: Value,
}

fn add_pods(host: &Host, network: &Cni, count: usize) -> Vec<Attached> {
    let add = |number| {
        let name = format!("pod{number}");
        let pod = host.add_pod(&name).unwrap();
        let attachment = Attachment::new(&name, pod.path());
        let result = network.add(&attachment).unwrap();
        Attached { pod, attachment, result }
    };
    (0..count).map(add).collect()
}

/// ADD of four pods, traffic between all of them, CHECK, DEL; then the next four.
fn pods_live_and_go(config: &Value) {
    let host = Host::new().unwrap();
    let network = network(&host, config.clone());
    let pods = add_pods(&host, &network, 4);
    let all: BTreeSet<IpAddr> = pods.iter().flat_map(|pod| addresses(&pod.result)).collect();
    assert_eq!(all.len(), 8, "{all:?}");
    let last: Vec<String> = addresses(&pods[3].result).iter().map(IpAddr::to_string).collect();
    assert_eq!(last, ["10.85.0.5", "fd85::5"]);
    assert_eq!(leases(&host).len(), 8);
    for target in &all {
        // ptp does not wait until the kernel has found an IPv6 address to be the only one.
        let ping = || Ping::new(*target).count(1).patience(Duration::from_millis(200)).run();
        let answers = |_| pods[0].pod.run(ping).unwrap().is_complete();
        assert!((0..100).any(answers), "{target} does not answer");
    }
    for pod in &pods {
        for target in &all {
            let report = pod.pod.run(|| Ping::new(*target).count(2).run()).unwrap();
            assert!(report.is_complete(), "{} to {target}: {report}", pod.pod.name());
        }
    }
    let checks = config["cniVersion"].as_str().unwrap() >= "0.4.0";
    for pod in pods.iter().filter(|_| checks) {
        network.check(&pod.attachment, &pod.result).unwrap();
    }
    for pod in &pods {
        network.del(&pod.attachment, Some(&pod.result)).unwrap();
        // As containerd does it: without namespace, and without the result.
        network.del(&Attachment::new(&pod.attachment.container_id, ""), None).unwrap();
    }
    assert_eq!(leases(&host), [] as [&str; 0]);
    let again = network.add(&pods[0].attachment).unwrap();
    assert_eq!(addresses(&again)[0].to_string(), "10.85.0.6");
    network.del(&pods[0].attachment, Some(&again)).unwrap();
}

#[test]
#[ignore = "needs root: makes network namespaces and interfaces"]
fn pods_under_ptp() {
    if has_plugins() {
        for version in ["0.3.1", "1.0.0"] {
            pods_live_and_go(&ptp(version));
        }
    }
}

#[test]
#[ignore = "needs root: makes network namespaces and interfaces"]
fn pods_under_bridge() {
    if has_plugins() {
        for version in ["0.4.0", "1.0.0"] {
            pods_live_and_go(&bridge(version));
        }
    }
}

/// What two pods are told and have in the end: addresses, routes, DNS, and the kernel's routes.
fn outcome(main: &str, ipam: &Value, ipam_type: &str) -> Vec<Value> {
    let host = Host::new().unwrap();
    host.run(|| fs::write("/run/resolv.conf", "nameserver 192.0.2.53\nsearch a.example\n"))
        .unwrap();
    let mut config = json!({ "cniVersion": "1.0.0", "name": "podnet", "type": main });
    if main == "bridge" {
        (config["bridge"], config["isGateway"]) = ("cni0".into(), true.into());
    }
    config["ipam"] = ipam.clone();
    config["ipam"]["type"] = ipam_type.into();
    // Of the main plugin: ptp takes it for the result, with or without resolvConf.
    config["dns"] = json!({ "nameservers": ["192.0.2.54"], "domain": "b.example" });
    let network = network(&host, config);
    let pods = add_pods(&host, &network, 2);
    let outcomes = pods.iter().map(|Attached { pod, attachment, result }| {
        network.check(attachment, result).unwrap();
        let routes = ["-4", "-6"].map(|family| {
            let output =
                pod.command("ip").args([family, "route", "show", "proto", "boot"]).output();
            String::from_utf8(output.unwrap().stdout).unwrap()
        });
        assert!(routes[0].contains("10.1.0.254 dev eth0"), "{main} {ipam}: {routes:?}");
        json!([addresses(result), result["routes"], result["dns"], routes])
    });
    let outcomes = outcomes.collect();
    for Attached { attachment, result, .. } in &pods {
        network.del(attachment, Some(result)).unwrap();
    }
    outcomes
}

/// A configuration of host-local's, with nothing but the type changed.
#[test]
#[ignore = "needs root: makes network namespaces and interfaces"]
fn pods_are_as_those_of_host_local() {
    if !has_plugins() {
        return;
    }
    let routes = json!([
        { "dst": "0.0.0.0/0" }, { "dst": "192.168.0.0/16", "gw": "10.1.0.254" },
        { "dst": "2001:db8::/32" }
    ]);
    let lists = json!({
        "ranges": [
            [
                {
                    "subnet": "10.1.0.0/24", "rangeStart": "10.1.0.20", "rangeEnd": "10.1.0.20",
                    "gateway": "10.1.0.254"
                },
                { "subnet": "10.1.1.0/24", "gateway": "10.1.1.9" }
            ],
            [{ "subnet": "fd01::/64", "rangeStart": "fd01::10", "rangeEnd": "fd01::11" }]
        ],
        "routes": routes, "resolvConf": "/run/resolv.conf"
    });
    let old = json!({
        "subnet": "10.1.0.0/24", "rangeStart": "10.1.0.20", "rangeEnd": "10.1.0.30",
        "gateway": "10.1.0.254", "routes": [routes[0], routes[1]],
    });
    for main in ["ptp", "bridge"] {
        for ipam in [&lists, &old] {
            let [ours, theirs] = ["podwire-ipam", "host-local"].map(|of| outcome(main, ipam, of));
            assert_eq!(ours, theirs, "{main} {ipam}");
        }
    }
}

#[test]
#[ignore = "needs root: makes network namespaces and interfaces"]
fn an_exhausted_pool_fails_the_add_and_leaves_nothing() {
    if !has_plugins() {
        return;
    }
    let host = Host::new().unwrap();
    let mut config = ptp("1.0.0");
    config["ipam"]["ranges"] = json!([[{ "subnet": "10.85.0.0/29" }], [{ "subnet": "fd85::/64" }]]);
    let network = network(&host, config);
    let pods = add_pods(&host, &network, 5);
    let before = host.inventory().unwrap();

    let one_more = host.add_pod("more").unwrap();
    let attachment = Attachment::new("more", one_more.path());
    match network.add(&attachment).unwrap_err() {
        Error::Cni { code: EXHAUSTED, msg, details, .. } => {
            assert!(msg.contains("podnet has no address left in 10.85.0.0/29"), "{msg}");
            assert!(details.contains("podwire-ipam list"), "{details}");
        }
        other => panic!("{other}"),
    }
    assert_eq!(leases(&host).len(), 10);
    let came = host.inventory().unwrap().since(&before);
    assert!(came.iter().all(|thing| thing.contains("/run/netns/more")), "{came:?}");

    network.del(&pods[2].attachment, Some(&pods[2].result)).unwrap();
    let result = network.add(&attachment).unwrap();
    assert_eq!(addresses(&result)[0].to_string(), "10.85.0.4");
}

#[test]
#[ignore = "needs root: makes network namespaces and interfaces"]
fn sixteen_pods_at_a_time_get_addresses_of_their_own() {
    if !has_plugins() {
        return;
    }
    let host = Host::new().unwrap();
    let network = network(&host, bridge("1.0.0"));
    let attachments: Vec<Attachment> = (0..16)
        .map(|number| {
            let name = format!("pod{number}");
            Attachment::new(&name, host.add_pod_netns(&name).unwrap())
        })
        .collect();
    let results: Vec<Value> = thread::scope(|scope| {
        let threads: Vec<_> =
            attachments.iter().map(|to| scope.spawn(|| network.add(to).unwrap())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let all: BTreeSet<IpAddr> = results.iter().flat_map(addresses).collect();
    assert_eq!(all.len(), 32, "{all:?}");
    thread::scope(|scope| {
        for (to, result) in attachments.iter().zip(&results) {
            let network = &network;
            scope.spawn(move || network.del(to, Some(result)).unwrap());
        }
    });
    assert_eq!(leases(&host), [] as [&str; 0]);
}

/// The main plugin is killed with our plugin under it or after it; the runtime's DEL cleans up.
#[test]
#[ignore = "needs root: makes network namespaces and interfaces"]
fn a_main_plugin_that_is_killed_keeps_no_address() {
    if !has_plugins() {
        return;
    }
    let host = Host::new().unwrap();
    let network = network(&host, ptp("1.0.0"));
    let pod = host.add_pod("pod").unwrap();
    let path = format!("{PLUGINS}:{}", binary("podwire-ipam").unwrap().parent().unwrap().display());
    for round in 0..40_u64 {
        let input = format!("/run/config-{round}");
        host.run(|| fs::write(&input, network.config().to_string())).unwrap();
        let mut command = host.command(Path::new(PLUGINS).join("ptp"));
        let id = format!("killed-{}-{round}", process::id());
        command.env("CNI_COMMAND", "ADD").env("CNI_CONTAINERID", &id);
        command.env("CNI_NETNS", pod.path()).env("CNI_IFNAME", "eth0").env("CNI_PATH", &path);
        command.stdin(host.run(|| fs::File::open(&input)).unwrap());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        thread::sleep(Duration::from_micros(round * 500));
        child.kill().unwrap();
        child.wait().unwrap();
        // Ours does not die with its caller.
        while is_at_work(&id) {
            thread::sleep(Duration::from_millis(1));
        }
        network.del(&Attachment::new(&id, pod.path()), None).unwrap();
        assert_eq!(leases(&host), [] as [&str; 0], "round {round}");
    }
    let result = network.add(&Attachment::new("last", pod.path())).unwrap();
    assert_eq!(addresses(&result).len(), 2);
    assert_eq!(leases(&host).len(), 2);
}

/// Whether a process runs for this container.
fn is_at_work(id: &str) -> bool {
    let variable = format!("CNI_CONTAINERID={id}");
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes.map(|process| fs::read(process.path().join("environ")).unwrap_or_default()).any(
        |variables| variables.split(|byte| *byte == 0).any(|entry| entry == variable.as_bytes()),
    )
}
