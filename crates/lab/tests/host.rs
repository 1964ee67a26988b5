//! A host is a world of its own, and leaves nothing however it ends.

use std::{
    collections::HashSet,
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use podwire_lab::{Host, Inventory, interface};

/// Network namespaces with at least one process in them.
fn inhabited_namespaces() -> HashSet<String> {
    fs::read_dir("/proc")
        .expect("procfs")
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok())
        .filter_map(|entry| fs::read_link(entry.path().join("ns/net")).ok())
        .map(|link| link.to_string_lossy().into_owned())
        .collect()
}

#[test]
#[ignore = "needs root: network and mount namespaces"]
fn a_host_sees_only_its_own_links_and_folders() {
    let host = Host::new().unwrap();
    host.run(|| {
        assert_eq!(interface::names().unwrap(), ["lo"]);
        assert!(interface::addresses("lo").unwrap().contains(&[127, 0, 0, 1].into()));
        for folder in ["/var/lib/podwire", "/var/lib/cni", "/var/lib/containers"] {
            assert_eq!(fs::read_dir(folder).unwrap().count(), 0, "{folder}");
            fs::create_dir(Path::new(folder).join("made")).unwrap();
        }
        fs::create_dir("/sys/fs/bpf/made").unwrap();
        fs::write("/etc/cni/net.d/10-made.conf", "{}").unwrap();
        fs::write("/etc/made-by-a-lab-host", "").unwrap();
        fs::create_dir("/run/podwire").unwrap();
        assert!(fs::exists("/etc/passwd").unwrap(), "the machine's own files are there to read");
    });
    for path in [
        "/etc/made-by-a-lab-host",
        "/var/lib/podwire/made",
        "/sys/fs/bpf/made",
        "/etc/cni/net.d/10-made.conf",
    ] {
        assert!(!fs::exists(path).unwrap(), "{path} was made on the machine");
    }
}

#[test]
#[ignore = "needs root: network and mount namespaces"]
fn commands_run_inside_and_keep_their_working_folder() {
    let host = Host::new().unwrap();
    let pod = host.add_pod("a").unwrap();
    let namespace = |mut command: Command| {
        let output = command.args(["/proc/self/ns/net"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(namespace(pod.command("readlink")), format!("net:[{}]", pod.inode().unwrap()));
    assert_ne!(namespace(host.command("readlink")), namespace(pod.command("readlink")));

    let here = std::env::current_dir().unwrap();
    let output = host.command("pwd").output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), here.to_str().unwrap());
    assert_eq!(host.run(|| std::env::current_dir().unwrap()), here);

    let folder = tempfile::tempdir().unwrap();
    let output = host.command("pwd").current_dir(&folder).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), folder.path().to_str().unwrap());
}

#[test]
#[ignore = "needs root: network and mount namespaces"]
fn hundreds_of_pods_come_and_go() {
    let host = Host::new().unwrap();
    let before = host.inventory().unwrap();
    let pods: Vec<_> = (0..300).map(|n| host.add_pod(&format!("pod{n}")).unwrap()).collect();
    let inodes: HashSet<_> = pods.iter().map(|pod| pod.inode().unwrap()).collect();
    assert_eq!(inodes.len(), 300);
    assert_eq!(host.pod_names().unwrap().len(), 300);
    assert_eq!(host.inventory().unwrap().of_kind("netns").len(), 300);
    assert!(host.add_pod_netns("pod7").is_err(), "the name is taken");
    assert_eq!(host.pod("pod7").unwrap().inode().unwrap(), pods[7].inode().unwrap());
    for pod in &pods {
        host.remove_pod_netns(pod.name()).unwrap();
    }
    assert!(host.pod("pod7").is_err());
    assert_eq!(host.inventory().unwrap().since(&before), Vec::<String>::new());
}

#[test]
fn pod_names_are_file_names() {
    // Refused before anything is tried, so this needs no root; a host cannot be made without it.
    for name in ["", "a/b", "..", ".hidden"] {
        assert!(Host::check_pod_name(name).is_err(), "{name:?}");
    }
}

#[test]
#[ignore = "needs root: network and mount namespaces"]
fn dropping_a_host_ends_what_its_programs_left_behind() {
    let host = Host::new().unwrap();
    let pod = host.add_pod("a").unwrap();
    // A daemon: its parent ends at once, it has a session of its own.
    let status = pod.command("setsid").args(["--fork", "sleep", "600"]).status().unwrap();
    assert!(status.success());
    let namespace = format!("net:[{}]", pod.inode().unwrap());
    while !inhabited_namespaces().contains(&namespace) {
        thread::sleep(Duration::from_millis(1));
    }
    drop((host, pod));
    assert!(!inhabited_namespaces().contains(&namespace));
}

#[test]
#[ignore = "needs root: network and mount namespaces"]
fn nothing_is_left_when_the_owner_is_killed() {
    let machine = Inventory::here().unwrap();
    let mut owner = Command::new(env!("CARGO_BIN_EXE_podwire-lab"))
        .args(["--pods", "3"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = BufReader::new(owner.stdout.take().unwrap());
    let namespaces: Vec<String> = stdout
        .lines()
        .take(4)
        .map(|line| line.unwrap().split_once(' ').unwrap().1.to_owned())
        .collect();
    // One process that its owner knows nothing of in the host's own, and one in a pod's namespace.
    let inside = |namespace: &str| {
        let keeper = fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .map(|entry| entry.path())
            .find(|p| {
                fs::read_link(p.join("ns/net")).is_ok_and(|l| l.to_str() == Some(&namespaces[0]))
            })
            .expect("the keeper lives in the host");
        let pod = format!("--net={}", keeper.join("root/run/netns").join(namespace).display());
        let mount = format!("--mount={}", keeper.join("ns/mnt").display());
        let net = format!("--net={}", keeper.join("ns/net").display());
        let net = if namespace.is_empty() { net } else { pod };
        Command::new("nsenter").args([&net, &mount, "sleep", "600"]).spawn().unwrap()
    };
    let mut strangers = [inside(""), inside("pod2")];
    while !inhabited_namespaces().contains(&namespaces[2]) {
        thread::sleep(Duration::from_millis(1));
    }

    owner.kill().unwrap();
    owner.wait().unwrap();
    for stranger in &mut strangers {
        // Ended by the keeper; the test would hang here otherwise.
        assert!(!stranger.wait().unwrap().success());
    }
    while !inhabited_namespaces().is_disjoint(&namespaces.iter().cloned().collect()) {
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(Inventory::here().unwrap().since(&machine), Vec::<String>::new());
}
