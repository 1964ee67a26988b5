//! The nodes that work is done on: one of podwire's, one of each peer's, alike in all else.

use std::{
    fs,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use podwire_lab::{Agent, AgentSpec, Attachment, Cni, CniOutput, Host, Pod, probe::Ping};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::links;
use crate::{Result, report};

/// Where Debian has the reference plugins.
pub const PEERS: &str = "/usr/lib/cni";

/// Of every link.
pub const MTU: u32 = 1500;
const CIDRS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/64"];

/// How many pods are added or deleted at a time.
pub const AT_ONCE: usize = 16;

/// The node's address towards the outside, and that of the host there.
const UPLINK: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// Who does the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Podwire,
    Ptp,
    Bridge,
}

/// Addresses that pods get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    V4,
    Both,
}

/// Whether pods reach what is outside, under their node's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Masquerade {
    Yes,
    No,
}

/// Where nodes get their programs and keep their state.
#[derive(Debug)]
pub struct Site {
    programs: PathBuf,
    /// On a disk, as `/var/lib` of a real node is: in a lab host that is memory, and who syncs what
    /// it writes would have that for nothing.
    state: TempDir,
    folders: AtomicUsize,
}

/// A node, and pods that stay on it.
#[derive(Debug)]
pub struct Node {
    pub kind: Kind,
    pub host: Host,
    pub agent: Option<Agent>,
    pub pods: Vec<Attached>,
    plugin: Cni,
}

/// A pod that was added.
#[derive(Debug)]
pub struct Attached {
    pub pod: Pod,
    pub attachment: Attachment,
    pub result: Value,
    pub addresses: Vec<IpAddr>,
}

impl Kind {
    /// As reports name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Podwire => "podwire",
            Self::Ptp => "ptp+host-local",
            Self::Bridge => "bridge+host-local",
        }
    }
}

impl Site {
    pub fn new(programs: &Path) -> Result<Self> {
        let state = tempfile::Builder::new().prefix("podwire-compare-").tempdir_in("/var/tmp");
        let state = state.map_err(|e| format!("make a folder for state in /var/tmp: {e}"))?;
        Ok(Self { programs: programs.to_owned(), state, folders: AtomicUsize::new(0) })
    }

    /// Starts one node of each kind, with two pods each that reach each other.
    pub fn nodes(
        &self,
        kinds: &[Kind],
        families: Families,
        masquerade: Masquerade,
    ) -> Result<Vec<Node>> {
        let node = |&kind: &Kind| -> Result<Node> {
            let mut node = self.node(kind, families, masquerade)?;
            node.grow(2)?;
            node.verify()?;
            if masquerade == Masquerade::No {
                node.verify_no_firewall()?;
            }
            Ok(node)
        };
        kinds.iter().map(node).collect()
    }

    /// Starts a node without pods.
    pub fn node(&self, kind: Kind, families: Families, masquerade: Masquerade) -> Result<Node> {
        let host = Host::new()?;
        // Those who route need it; ptp and bridge would set it with their first pod.
        set(&host, "net/ipv4/ip_forward")?;
        let state = self.folder()?;
        let cidrs = if families == Families::V4 { &CIDRS[..1] } else { &CIDRS[..] };
        let (agent, plugin) = match kind {
            Kind::Podwire => {
                if masquerade == Masquerade::Yes {
                    masquerade_node(&host)?;
                }
                let (agent, plugin) = self.podwire(&host, &state, cidrs)?;
                (Some(agent), plugin)
            }
            Kind::Ptp | Kind::Bridge => {
                let plugin = if kind == Kind::Ptp { "ptp" } else { "bridge" };
                let config = peer_config(plugin, &state, cidrs, masquerade);
                (None, Cni::new(&host, Path::new(PEERS).join(plugin), config))
            }
        };
        Ok(Node { kind, host, agent, plugin, pods: Vec::new() })
    }

    /// A new folder for the state of one side.
    pub fn folder(&self) -> Result<PathBuf> {
        let number = self.folders.fetch_add(1, Ordering::Relaxed);
        let folder = self.state.path().join(format!("side{number}"));
        fs::create_dir(&folder).map_err(|e| format!("make {}: {e}", folder.display()))?;
        Ok(folder)
    }

    /// One of podwire's programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    fn podwire(&self, host: &Host, state: &Path, cidrs: &[&str]) -> Result<(Agent, Cni)> {
        let mtu = MTU.to_string();
        let spec = AgentSpec::new(host, self.program("podwired"))
            .args(["--node-name", "compare", "--mtu", &mtu])
            .arg("--state-dir")
            .arg(state);
        let agent = spec.args(cidrs.iter().flat_map(|cidr| ["--pod-cidr", cidr])).start()?;
        let config = json!({ "cniVersion": "1.0.0", "name": "compare", "type": "podwire-cni" });
        Ok((agent, Cni::new(host, self.program("podwire-cni"), config)))
    }
}

/// With a default route in the pod and the host as its gateway, as podwire has it.
fn peer_config(plugin: &str, state: &Path, cidrs: &[&str], masquerade: Masquerade) -> Value {
    let ranges: Vec<_> = cidrs.iter().map(|cidr| json!([{ "subnet": cidr }])).collect();
    let routes: Vec<_> = ["0.0.0.0/0", "::/0"].into_iter().take(cidrs.len()).collect();
    let routes: Vec<_> = routes.iter().map(|route| json!({ "dst": route })).collect();
    json!({
        "cniVersion": "1.0.0",
        "name": "compare",
        "type": plugin,
        "mtu": MTU,
        // Of the bridge plugin alone; ptp knows nothing else.
        "isGateway": plugin == "bridge",
        "ipMasq": masquerade == Masquerade::Yes,
        "ipam": { "type": "host-local", "dataDir": state, "ranges": ranges, "routes": routes },
    })
}

impl Attached {
    /// Waits for an answer: the host's IPv6 addresses are of use only after duplicate address
    /// detection, on nodes of those who do not switch it off.
    fn wait_for(&self, address: IpAddr) -> Result<()> {
        let ping = Ping::new(address).count(1).patience(Duration::from_millis(500));
        for _ in 0..20 {
            if self.pod.run(|| ping.run())?.is_complete() {
                break;
            }
        }
        // Whether all is well is for the caller to find out.
        Ok(())
    }
}

impl Node {
    /// Adds pods until there are this many.
    pub fn grow(&mut self, pods: usize) -> Result<()> {
        let first = self.pods.len();
        if first >= pods {
            return Ok(());
        }
        // Alone: the first pod's ADD may make what all share, such as the bridge.
        let alone = usize::from(first == 0);
        for numbers in [first..first + alone, first + alone..pods] {
            let added = at_once(numbers.collect(), |number| {
                let pod = self.host.add_pod(&format!("pod{number}"))?;
                self.add(pod)
            })?;
            self.pods.extend(added);
        }
        Ok(())
    }

    /// How a runtime would call for a pod's `eth0`.
    pub fn attachment(pod: &Pod) -> Attachment {
        let args = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={}", pod.name());
        Attachment::new(format!("{}-container", pod.name()), pod.path()).args(args)
    }

    /// Adds a pod.
    pub fn add(&self, pod: Pod) -> Result<Attached> {
        let attachment = Self::attachment(&pod);
        let result = self.call("ADD", &attachment, None)?.json("ADD")?;
        let addresses = addresses(&result)?;
        Ok(Attached { pod, attachment, result, addresses })
    }

    /// Calls the plugin; a call that fails is an error that names it.
    pub fn call(
        &self,
        verb: &str,
        attachment: &Attachment,
        previous: Option<&Value>,
    ) -> Result<CniOutput> {
        let call = || {
            let output = self.plugin.verb(verb, attachment, previous)?;
            output.success(verb)?;
            Ok(output)
        };
        call().map_err(|e: podwire_lab::Error| {
            let id = &attachment.container_id;
            format!("{} of {id} by {}: {e}", verb, self.kind.name()).into()
        })
    }

    /// The first two pods reach each other on every family, nothing is lost, and both have the MTU
    /// that all nodes are to have.
    pub fn verify(&self) -> Result<()> {
        let [a, b, ..] = &self.pods[..] else { return Err("it takes two pods".into()) };
        for (from, to) in [(a, b), (b, a)] {
            let mtu = links::mtu(from.pod.netns(), "eth0")?;
            if mtu != MTU {
                return Err(format!("{}: MTU {mtu} and not {MTU}", self.kind.name()).into());
            }
            for &address in &to.addresses {
                from.wait_for(address)?;
                let ping = Ping::new(address).count(20).interval(Duration::from_millis(1));
                let report = from.pod.run(|| ping.run())?;
                if !report.is_complete() {
                    let what = format!("{} to {address}: {report}", from.pod.name());
                    return Err(format!("{}: ping from {what}", self.kind.name()).into());
                }
            }
        }
        Ok(())
    }

    /// No packet filter and no connection tracking that only one side would pay for.
    fn verify_no_firewall(&self) -> Result<()> {
        // Bridged packets pass the filters of IP where this module is loaded and not told otherwise.
        let bridged = "net/bridge/bridge-nf-call-iptables";
        let unset = || match fs::write(format!("/proc/sys/{bridged}"), "0") {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        self.host.run(unset).map_err(|e| format!("set {bridged}: {e}"))?;
        let output = self.host.command("nft").args(["list", "ruleset"]).output()?;
        let rules = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() && rules.trim().is_empty() {
            return Ok(());
        }
        Err(format!("{}: the node has a firewall: {rules}", self.kind.name()).into())
    }

    /// Connects the node to a host outside, and makes sure that this sees the node's address when a
    /// pod talks to it.
    pub fn verify_masquerade(&self) -> Result<()> {
        let outside = self.host.add_pod("outside")?;
        links::wire((self.host.netns(), "uplink"), (outside.netns(), "eth0"), MTU)?;
        links::give(self.host.netns(), "uplink", &format!("{UPLINK}/24"))?;
        links::give(outside.netns(), "eth0", &format!("{OUTSIDE}/24"))?;
        let listener = outside.run(|| TcpListener::bind((OUTSIDE, 0)))?;
        let target = listener.local_addr()?;
        for attached in &self.pods {
            let what = |e: io::Error| {
                format!("{}: {} to {target}: {e}", self.kind.name(), attached.pod.name())
            };
            let connect = || TcpStream::connect_timeout(&target, Duration::from_secs(5));
            let mut stream = attached.pod.run(connect).map_err(what)?;
            let (mut accepted, peer) = listener.accept()?;
            stream.write_all(b"x").map_err(what)?;
            io::Read::read_exact(&mut accepted, &mut [0]).map_err(what)?;
            if peer.ip() != IpAddr::V4(UPLINK) {
                let name = self.kind.name();
                return Err(format!("{name}: the outside sees {peer}, not {UPLINK}").into());
            }
        }
        Ok(())
    }
}

/// All of a result's addresses; an error if there is none.
fn addresses(result: &Value) -> Result<Vec<IpAddr>> {
    let ips = result["ips"].as_array().into_iter().flatten();
    let texts = ips.filter_map(|ip| ip["address"].as_str());
    let address = |text: &str| Ok(text.split('/').next().unwrap_or(text).parse()?);
    let addresses = texts.map(address).collect::<Result<Vec<_>>>()?;
    if addresses.is_empty() { Err(format!("no address in {result}").into()) } else { Ok(addresses) }
}

/// podwire has no masquerading of its own yet: one rule for the whole node stands in.
fn masquerade_node(host: &Host) -> Result<()> {
    let script = format!(
        "table ip compare {{
            chain leaving {{
                type nat hook postrouting priority srcnat;
                ip saddr {0} ip daddr != {0} masquerade
            }}
        }}",
        CIDRS[0]
    );
    let mut nft = host.command("nft");
    nft.args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = nft.spawn().map_err(|e| format!("start nft: {e}"))?;
    child.stdin.take().map(|mut input| input.write_all(script.as_bytes())).transpose()?;
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("nft -f -: {}", String::from_utf8_lossy(&output.stderr).trim_end()).into())
}

fn set(host: &Host, sysctl: &str) -> Result<()> {
    let path = format!("/proc/sys/{sysctl}");
    host.run(|| fs::write(&path, "1")).map_err(|e| format!("write {path}: {e}").into())
}

/// Does it with all of them, [`AT_ONCE`] at a time; the first failure is returned.
pub fn at_once<T: Send, R: Send>(
    items: Vec<T>,
    act: impl Fn(T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let items: Vec<_> = items.into_iter().map(|item| Mutex::new(Some(item))).collect();
    let next = AtomicUsize::new(0);
    let work = || -> std::result::Result<Vec<R>, String> {
        let mut done = Vec::new();
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            let item = item.lock().unwrap_or_else(PoisonError::into_inner).take();
            let outcome = item.map(&act).transpose();
            done.extend(outcome.map_err(|error| report::chain(error.as_ref()))?);
        }
        Ok(done)
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        let mut all = Vec::new();
        for thread in threads {
            all.extend(thread.join().map_err(|_| "a thread panicked")??);
        }
        Ok(all)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_done_and_a_failure_is_told() {
        let mut squares = at_once((0..100).collect(), |n: u32| Ok(n * n)).unwrap();
        squares.sort_unstable();
        assert!(squares.iter().copied().eq((0..100).map(|n| n * n)));
        let outcome = at_once((0..100).collect(), |n: u32| match n {
            42 => Err("42 failed".into()),
            n => Ok(n),
        });
        assert_eq!(outcome.unwrap_err().to_string(), "42 failed");
    }

    #[test]
    fn a_result_without_address_is_none() {
        let result = json!({ "ips": [{ "address": "10.1.0.2/24" }, { "address": "fd00::2/64" }] });
        let expected: [IpAddr; 2] = ["10.1.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        assert_eq!(addresses(&result).unwrap(), expected);
        assert!(addresses(&json!({ "ips": [] })).is_err());
        assert!(addresses(&json!({})).is_err());
    }

    #[test]
    fn peers_get_what_podwire_gets() {
        let config = peer_config("ptp", Path::new("/state"), &CIDRS, Masquerade::Yes);
        assert_eq!(config["ipMasq"], true);
        assert_eq!(config["ipam"]["ranges"][1][0]["subnet"], CIDRS[1]);
        assert_eq!(config["ipam"]["routes"].as_array().unwrap().len(), 2);
        let config = peer_config("bridge", Path::new("/state"), &CIDRS[..1], Masquerade::No);
        assert_eq!((&config["ipMasq"], &config["isGateway"]), (&json!(false), &json!(true)));
        assert_eq!(config["ipam"]["routes"], json!([{ "dst": "0.0.0.0/0" }]));
    }
}
