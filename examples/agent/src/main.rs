//! The node agent, and what puts the plugin that calls it on the node.

#![forbid(unsafe_code)]

mod install;

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnetwork::IpNetwork;
use podwire_api::{DEFAULT_BPFFS, DEFAULT_RUN_DIR, DEFAULT_STATE_DIR, NodeName};
use podwire_node::{
    Agent, AttachChoice, ClusterPool, Config, DevicePattern, Error, Families, IdleTimeout,
    PortRange, explain, parse_cluster_pool, runtime,
};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::filter::LevelFilter;

/// The podwire node agent: gives addresses to pods and connects them over eBPF.
///
/// It serves podwire-cni on a unix socket and is ready as soon as that accepts connections. Traffic
/// does not need it: it may be stopped, killed, restarted and upgraded while pods run. To take a
/// node's podwire away altogether, stop the agent and run `podwire cleanup`.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Cli {
    #[command(flatten)]
    agent: Options,
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Puts podwire-cni and its network configuration where a container runtime finds them.
    ///
    /// Every file is replaced at once, the configuration last: whenever this is interrupted, a runtime
    /// finds the old files or the new ones. Files that are right already are left alone.
    InstallCni(install::Options),
}

#[derive(Debug, Args)]
struct Options {
    /// This node's name; all links that podwire creates carry it. The host name if not given.
    #[arg(long, value_name = "NAME")]
    node_name: Option<NodeName>,
    /// Prefix that pods get their addresses from, such as 10.1.0.0/24, of either family. Repeatable.
    #[arg(long = "pod-cidr", value_name = "CIDR", required = true)]
    pod_cidrs: Vec<IpNetwork>,
    /// The pods' gateway; the first address of each family's first prefix if not given. Repeatable.
    #[arg(long = "router-ip", value_name = "ADDRESS")]
    router: Vec<IpAddr>,
    /// MTU of the pods' interfaces; that of the interface with the default route if not given.
    #[arg(long, value_name = "BYTES")]
    mtu: Option<u32>,
    /// MTU of the pods' default route; that of the interfaces if not given.
    #[arg(long, value_name = "BYTES")]
    route_mtu: Option<u32>,
    /// Pools of pods for which neither they nor their namespace name others, in the order in which they
    /// are tried.
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "default")]
    default_pool: Vec<String>,
    /// Pool of which the node claims blocks of that prefix length as it needs them, such as
    /// `blue=10.64.0.0/12@26,fd64::/48@80`. Repeatable. Made for pools that the nodes of a cluster share; but
    /// claims are kept in --state-dir so far, so that nodes do not see each other's: give each its own CIDRs.
    #[arg(long = "cluster-pool", value_name = "NAME=CIDR@LENGTH[,..]", value_parser = parse_cluster_pool)]
    cluster_pools: Vec<ClusterPool>,
    /// Seconds that a block must have been empty, and one too many, before it is given back.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    block_idle: u64,
    /// Seconds that a released address rests before it is given out again, unless no other is left.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    cooldown: u64,
    /// Seconds that a lease waits for its endpoint before it is taken back.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pending_ttl: u64,
    /// Folder of Kubernetes manifests, watched: annotations of namespaces are learnt from it, and those
    /// of pods where the runtime does not pass them.
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// Folder of the database.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE_DIR)]
    state_dir: PathBuf,
    /// Folder of the socket, and of the notes that podwire-cni leaves while no agent runs.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_RUN_DIR)]
    run_dir: PathBuf,
    /// Folder of pinned maps and links, on a bpffs.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_BPFFS)]
    bpffs: PathBuf,
    /// How programs are attached: by TCX links (Linux 6.6), by clsact filters, or by whichever costs
    /// less: filters, but TCX at the router pair and where other plugins need the disciplines.
    #[arg(long, value_enum, default_value_t = Attach::Auto)]
    attach: Attach,
    /// How many endpoints there is room for. The maps of a node keep their size: to change it, run
    /// `podwire cleanup` first.
    #[arg(long, value_name = "NUMBER", default_value_t = 4096)]
    slots: u32,
    /// How many directions of flows are remembered in which both sides have spoken, two a flow: so many
    /// or the next power of two. Kept as --slots is.
    #[arg(long, value_name = "NUMBER", default_value_t = 262_144)]
    flows: u32,
    /// How many identities and prefixes policies have room for, counted once for each policy that speaks of
    /// them.
    #[arg(long, value_name = "NUMBER", default_value_t = 65_536)]
    policy_rows: u32,
    /// How many ranges of ports policies have room for; equal ones share it.
    #[arg(long, value_name = "NUMBER", default_value_t = 65_536)]
    policy_rules: u32,
    /// How many flows are remembered in which only one side has spoken, or that have ended: so
    /// many or the next power of two. When there is no room, a new one takes the place of an idle one. Kept as --slots is.
    #[arg(long, value_name = "NUMBER", default_value_t = 65_536)]
    pending_flows: u32,
    /// How many seconds flows may be idle, as in tcp-established=8000, or masqueraded conversations, as in
    /// nat-udp-replied=300. Repeatable. `podwire config` shows all timeouts, and changes them while the agent
    /// runs.
    #[arg(long = "timeout", value_name = "NAME=SECONDS", value_parser = parse_timeout)]
    timeouts: Vec<(IdleTimeout, u32)>,
    /// Of which families pods' packets leave the node under its address. Say it on a node whose pods'
    /// addresses are unknown outside.
    #[arg(long, value_enum, value_name = "FAMILIES", default_value_t = Masqueraded::Off)]
    masquerade: Masqueraded,
    /// Destinations that pods' packets reach under their own addresses, such as 10.0.0.0/8. Repeatable.
    #[arg(long, value_name = "CIDR")]
    masquerade_exclude: Vec<IpNetwork>,
    /// The ports that masqueraded conversations may get; a pod's own is kept if it is one of them and free.
    #[arg(long, value_name = "FIRST-LAST", value_parser = port_range, default_value = "32768-65535")]
    masquerade_ports: PortRange,
    /// How many conversations can be masqueraded at a time.
    #[arg(long, value_name = "NUMBER", default_value_t = 65_536)]
    masquerade_mappings: u32,
    /// Device that leads out of the node although no default route leads over it, such as eth1 or `wlan*`;
    /// with ! before it, one that does not although one does. Repeatable.
    #[arg(long = "device", value_name = "PATTERN")]
    devices: Vec<DevicePattern>,
    /// How much is logged: off, error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: LevelFilter,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Masqueraded {
    Off,
    Ipv4,
    Ipv6,
    Both,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Attach {
    Auto,
    Tcx,
    Tc,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match &cli.task {
        Some(Task::InstallCni(options)) => install::main(options),
        None => serve(cli.agent),
    }
}

fn serve(options: Options) -> ExitCode {
    tracing_subscriber::fmt()
        .with_max_level(options.log_level)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .init();
    match run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            for line in message.lines() {
                tracing::error!("{line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> Result<(), String> {
    let config = config(options)?;
    let agent = Agent::start(&config).map_err(|error| explain(&error))?;
    let runtime = runtime().map_err(|error| format!("start the runtime: {error}"))?;
    let done = runtime.block_on(async {
        let stop = stopped().map_err(|error| format!("listen for signals: {error}"))?;
        agent.run(stop).await.map_err(|error: Error| explain(&error))
    });
    // Requests that outlived their deadline do not keep the process.
    runtime.shutdown_background();
    done
}

fn config(options: Options) -> Result<Config, String> {
    let node = match options.node_name {
        Some(name) => name,
        None => host_name()?,
    };
    let mut config = Config::new(node, options.pod_cidrs);
    config.router = options.router;
    config.mtu = options.mtu;
    config.route_mtu = options.route_mtu;
    config.default_pools = options.default_pool;
    config.cluster_pools = options.cluster_pools;
    for pool in &mut config.cluster_pools {
        pool.idle = Duration::from_secs(options.block_idle);
    }
    config.manifests = options.manifests;
    config.cooldown = Duration::from_secs(options.cooldown);
    config.pending_ttl = Duration::from_secs(options.pending_ttl);
    config.state_dir = options.state_dir;
    config.run_dir = options.run_dir;
    config.bpffs = options.bpffs;
    config.attach = match options.attach {
        Attach::Auto => AttachChoice::Auto,
        Attach::Tcx => AttachChoice::Tcx,
        Attach::Tc => AttachChoice::Tc,
    };
    config.masquerade.families = match options.masquerade {
        Masqueraded::Off => Families::None,
        Masqueraded::Ipv4 => Families::V4,
        Masqueraded::Ipv6 => Families::V6,
        Masqueraded::Both => Families::Both,
    };
    config.masquerade.exclude = options.masquerade_exclude;
    config.masquerade.ports = options.masquerade_ports;
    config.masquerade.devices = options.devices;
    config.mappings = options.masquerade_mappings;
    config.slots = options.slots;
    config.flows = options.flows;
    config.policy_rows = options.policy_rows;
    config.policy_rules = options.policy_rules;
    config.pending_flows = options.pending_flows;
    config.timeouts = options.timeouts.into_iter().collect();
    Ok(config)
}

fn parse_timeout(text: &str) -> Result<(IdleTimeout, u32), String> {
    let (name, seconds) =
        text.split_once('=').ok_or("there is no \"=\"; write NAME=SECONDS, as in icmp=30")?;
    let timeout = name.parse::<IdleTimeout>().map_err(|error| error.to_string())?;
    let seconds = seconds.parse().map_err(|_| format!("{seconds:?} is no number of seconds"))?;
    Ok((timeout, seconds))
}

fn port_range(text: &str) -> Result<PortRange, String> {
    let port = |text: &str| text.parse::<u16>().map_err(|error| format!("{text:?}: {error}"));
    let (first, last) = text.split_once('-').ok_or("is to be FIRST-LAST")?;
    PortRange::new(port(first)?, port(last)?).ok_or_else(|| format!("{text} names no ports"))
}

fn host_name() -> Result<NodeName, String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_err(|error| format!("read the host name: {error}; give a --node-name"))?;
    let name = name.trim();
    name.parse().map_err(|error| format!("{error}; give a --node-name"))
}

/// Is done when the process is told to end.
fn stopped() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use podwire_node::Timeout;

    use super::*;

    #[test]
    fn the_options_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_become_a_configuration() {
        let cli = Cli::parse_from([
            "podwired",
            "--node-name=n1",
            "--pod-cidr=10.1.0.0/24",
            "--pod-cidr=fd00:1::/64",
            "--attach=tc",
            "--mtu=1400",
            "--default-pool=blue,red",
            "--manifests=/m",
            "--cluster-pool=blue=10.64.0.0/12@26,fd64::/48@80",
            "--cluster-pool=red=10.8.0.0/16@28",
            "--block-idle=9",
            "--timeout=tcp-established=3600",
            "--timeout=nat-icmp=5",
            "--pending-flows=2048",
            "--masquerade=ipv4",
            "--masquerade-exclude=192.168.0.0/16",
            "--masquerade-ports=40000-50000",
            "--device=eth*",
            "--device=!eth7",
        ]);
        let config = config(cli.agent).unwrap();
        config.validate().unwrap();
        assert_eq!(config.pod_cidrs.len(), 2);
        assert_eq!(config.masquerade.families, Families::V4);
        assert_eq!(config.masquerade.exclude, ["192.168.0.0/16".parse().unwrap()]);
        assert_eq!(config.masquerade.ports.count(), 10_001);
        assert_eq!(config.masquerade.devices.len(), 2);
        for wrong in ["7", "9-8", "0-9", "1-65536"] {
            assert!(port_range(wrong).is_err(), "{wrong}");
        }
        assert_eq!((config.attach, config.mtu), (AttachChoice::Tc, Some(1400)));
        assert_eq!(config.default_pools, ["blue", "red"]);
        assert_eq!(config.manifests, Some("/m".into()));
        let [blue, red] = &config.cluster_pools[..] else { panic!("{config:?}") };
        assert_eq!((blue.name.as_str(), blue.block_v4, blue.block_v6), ("blue", 26, 80));
        assert_eq!((red.block_v4, red.idle), (28, Duration::from_secs(9)));
        assert_eq!(config.pending_flows, 2048);
        let timeouts = [
            (IdleTimeout::Flow(Timeout::TcpEstablished), 3600),
            (IdleTimeout::Mapping(Timeout::Icmp), 5),
        ];
        assert_eq!(config.timeouts, timeouts.into());
        let refused = Cli::try_parse_from(["podwired", "--timeout=tcp=5"]).unwrap_err().to_string();
        assert!(refused.contains("tcp-opening") && refused.contains("nat-icmp"), "{refused}");
        let refused = Cli::try_parse_from(["podwired", "--cluster-pool=blue=10.64.0.0/12"]);
        let said = refused.unwrap_err().to_string();
        assert!(said.contains("--cluster-pool") && said.contains("has no \"@\""), "{said}");
        assert!(Cli::try_parse_from(["podwired"]).is_err());
        assert!(Cli::try_parse_from(["podwired", "--pod-cidr=nonsense"]).is_err());
        assert!(Cli::try_parse_from(["podwired", "install-cni"]).is_ok());
        assert!(Cli::try_parse_from(["podwired", "--mtu=1400", "install-cni"]).is_err());
    }
}
