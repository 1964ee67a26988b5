use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use podwire_api::{
    AgentConfig, ConfigChange, GcReply, GcRequest, MapUsage, MemoryUsage, Repair, Status,
    database_path, pending_del_dir, socket_path,
};
use podwire_cluster::{Directory, Source};
use podwire_datapath::{Attach, Datapath as Programs, NodeSetup, Options};
use tokio::net::UnixListener;
use tokio::runtime::{Builder, Runtime};
use tokio::time::MissedTickBehavior;

use crate::blocks::{self, Before};
use crate::choice::Chooser;
use crate::error::chain;
use crate::flows::Collector;
use crate::kernel::{Gone, KernelDatapath, KernelLinks};
use crate::mappings::{self, Sweeper};
use crate::masquerade::{self, Uplinks};
use crate::metrics::Measured;
use crate::node::pools::prefixes;
use crate::node::{Kernel, Node};
use crate::problem::{Facts, diagnose};
use crate::restore::{Restored, Sides, restore};
use crate::router::KernelRoutes;
use crate::seam::{Datapath, Flows, Links, Mappings};
use crate::settings::Settings;
use crate::store::Opened;
use crate::{
    AttachChoice, Config, Error, folder, metrics, node, notes, pools, router, server, store, watch,
};

/// How often leases that nobody used are looked for.
const EXPIRY: Duration = Duration::from_secs(15);

/// How often blocks are compared with what is asked for, and how long a second is to flows.
const TICK: Duration = Duration::from_secs(1);

/// How long nothing must have been asked for before many programs are attached for good.
const PAUSE: Duration = Duration::from_secs(2);

/// The node agent: set up and reconciled, its socket bound, ready to [`run`](Agent::run).
///
/// Dropping it closes the socket and leaves the datapath, the router pair and the endpoints as they
/// are: traffic goes on, and the next agent takes over.
#[derive(Debug)]
pub struct Agent {
    shared: Arc<Shared>,
    listener: StdListener,
    socket: PathBuf,
    gone: Arc<Gone>,
}

/// What every request may look at.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) node: Node,
    pub(crate) config: AgentConfig,
    flows: Collector,
    pub(crate) mappings: Sweeper,
    settings: Mutex<Settings>,
    repairs: Vec<Repair>,
    pub(crate) uplinks: Option<Uplinks>,
}

/// The runtime the agent is meant to run on: few threads with small stacks. Kernel and disk calls
/// block threads of their own, which end when they have been idle for a while.
///
/// # Errors
///
/// When the threads cannot be started.
pub fn runtime() -> io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(48)
        .thread_stack_size(512 << 10)
        .thread_keep_alive(Duration::from_secs(5))
        .thread_name("podwired")
        .enable_all()
        .build()
}

impl Agent {
    /// Sets the node up: folders, database, programs, router pair and routes; brings records and
    /// kernel together; binds the socket last, so that who reaches it finds everything in place.
    ///
    /// It works on the network namespace of the calling thread, in which [`run`](Self::run) must be
    /// called as well. It blocks.
    ///
    /// # Errors
    ///
    /// When an option is wrong, another agent is running, or the kernel refuses something that the
    /// node cannot do without. What was set up until then stays, and is taken over by the next
    /// start.
    pub fn start(config: &Config) -> Result<Self, Error> {
        let config = &with_mtu(config)?;
        config.validate()?;
        let routers = config.routers()?;
        let chooser = chooser(config)?;

        folder::private(&config.run_dir)?;
        folder::private(&config.state_dir)?;
        let notes = pending_del_dir(&config.run_dir);
        folder::private(&notes)?;
        let socket = socket_path(&config.run_dir);
        folder::clear_socket(&socket)?;
        let boot_id = boot_id()?;
        let opened = store::open(&database_path(&config.state_dir), &config.node, &boot_id)?;
        let Opened {
            ipam, endpoints: recorded, policies, identities, options, cluster_pools, ..
        } = opened;
        let (settings, mut repairs, is_new) = (opened.settings, opened.repairs, opened.is_new);
        let (settings, unknown) = Settings::new(config.timeouts.clone(), &settings);
        repairs.extend(unknown.into_iter().map(|name| Repair {
            object: format!("setting {name}"),
            found: "is none of this version's".into(),
            done: "left alone".into(),
        }));
        pools::lift_former_routers(&ipam, routers)?;
        let (given_up, more) = pools::arrange(&ipam, config, &options)?;
        repairs.extend(more);
        let before = Before { pools: &cluster_pools, is_rebuilt: is_new };
        let blocks = blocks::arrange(&ipam, config, before, &mut repairs)?;

        let programs =
            Programs::open(&datapath_options(config)).map_err(|source| Error::Datapath {
                operation: "open",
                object: format!("the datapath at {}", config.bpffs.display()),
                source: source.into(),
            })?;
        let pair = router::set_up(config, routers, &ipam.read(prefixes)?)?;
        let setup = NodeSetup {
            router_ipv4: routers.v4,
            router_ipv6: routers.v6,
            host_ifindex: pair.host_index,
            host_mac: pair.host_mac.octets(),
            net_ifindex: pair.net_index,
            net_mac: pair.net_mac.octets(),
        };
        programs.set_node(&setup).map_err(|source| Error::Datapath {
            operation: "attach",
            object: "the router pair".into(),
            source: source.into(),
        })?;
        let programs = Arc::new(programs);
        let uplinks = Uplinks::new(programs.clone(), config);
        uplinks.arrange(&ipam.read(prefixes)?, &identities)?;
        let programs = Arc::new(KernelDatapath(programs));
        let flows = Collector::new(programs.clone() as Arc<dyn Flows>, settings.flow_timeouts());
        let mappings =
            Sweeper::new(programs.clone() as Arc<dyn Mappings>, settings.mapping_timeouts());
        let datapath: Arc<dyn Datapath> = programs;
        let links = KernelLinks::new().map_err(|source| Error::Kernel {
            operation: "start",
            object: "a thread".into(),
            source: source.into(),
        })?;
        let gone = links.gone();
        let links: Arc<dyn Links> = Arc::new(links);

        let sides =
            Sides { ipam: &ipam, datapath: &*datapath, links: &*links, policies: &policies };
        let recorded = (!is_new).then_some(&*recorded);
        let Restored { endpoints, policies, repairs: more } =
            restore(config, &notes, recorded, &sides)?;
        pools::set_routers_aside(&ipam, routers)?;
        repairs.extend(more);

        let agent = config.described(datapath.mode())?;
        let routes = Arc::new(KernelRoutes { config: config.clone(), routers });
        let kernel = Kernel { datapath, links, routes };
        let node = Node::new(config, chooser, ipam, endpoints, kernel)?;
        let node = node.with_blocks(blocks).giving_up(given_up);
        let before =
            if is_new { node::policy::Before::Unknown } else { node::policy::Before::OnRecord };
        let (node, more) = node.with_policies(policies, identities, before)?;
        repairs.extend(more);
        if is_new {
            node.keep(vec![store::put_restored(&boot_id)])?;
        }
        repairs.extend(node.fill_blocks()?);
        report(node.count(), &repairs);
        let listener = bind(&socket)?;
        let settings = Mutex::new(settings);
        let uplinks = Some(uplinks);
        let config = agent;
        let shared = Arc::new(Shared { node, config, flows, mappings, settings, repairs, uplinks });
        Ok(Self { shared, listener, socket, gone })
    }

    /// The socket that clients are answered on.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Answers requests and follows the kernel's changes until `stop` is done. Requests under way
    /// are finished, the socket is removed, the datapath stays.
    ///
    /// # Errors
    ///
    /// When the listener cannot be handed to the runtime.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), Error> {
        let failed = |operation| {
            let path = self.socket.clone();
            move |source| Error::Folder { operation, path, source }
        };
        self.listener.set_nonblocking(true).map_err(failed("prepare"))?;
        let listener = UnixListener::from_std(self.listener).map_err(failed("listen on"))?;
        let expiry = tokio::spawn(expire(self.shared.clone()));
        let ticking = tokio::spawn(tick(self.shared.clone()));
        let collecting = tokio::spawn(collect(self.shared.clone()));
        let attaching = tokio::spawn(attach(self.shared.clone()));
        let watcher = tokio::spawn(watch::follow(self.shared.clone()));
        let teller = tokio::spawn(watch::tell(self.gone));
        let uplinks = tokio::spawn(masquerade::follow(self.shared.clone()));
        let sweeper = tokio::spawn(mappings::sweep(self.shared.clone()));
        tracing::info!(socket = %self.socket.display(), "ready");
        server::serve(listener, self.shared, stop).await;
        expiry.abort();
        ticking.abort();
        collecting.abort();
        attaching.abort();
        watcher.abort();
        teller.abort();
        uplinks.abort();
        sweeper.abort();
        // Who finds no socket knows at once that nobody listens.
        if let Err(error) = fs::remove_file(&self.socket) {
            tracing::warn!(%error, "removing the socket");
        }
        tracing::info!("stopped; the datapath stays");
        Ok(())
    }
}

impl Shared {
    #[cfg(test)]
    pub(crate) fn new(
        node: Node,
        config: AgentConfig,
        flows: Collector,
        mappings: Sweeper,
        settings: Settings,
    ) -> Self {
        let (settings, repairs) = (Mutex::new(settings), Vec::new());
        Self { node, config, flows, mappings, settings, repairs, uplinks: None }
    }

    /// What the agent runs with.
    pub(crate) fn config(&self) -> AgentConfig {
        AgentConfig { settings: self.settings().describe(), ..self.config.clone() }
    }

    /// Changes settings, on disk first.
    pub(crate) fn change_config(&self, change: &ConfigChange) -> Result<AgentConfig, Error> {
        {
            let mut settings = self.settings();
            let (changed, kept) = settings.changed(change)?;
            if !kept.is_empty() {
                self.node.keep(kept)?;
            }
            self.flows.set_timeouts(changed.flow_timeouts());
            self.mappings.set_timeouts(changed.mapping_timeouts());
            *settings = changed;
        }
        tracing::info!(set = ?change.set, unset = ?change.unset, "settings changed");
        Ok(self.config())
    }

    fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes what is of no valid attachment of a network. Notes of DELs that met no agent, should
    /// one have come while this one started, are honoured first.
    pub(crate) fn collect(&self, request: &GcRequest) -> Result<GcReply, Error> {
        let folder = pending_del_dir(&self.config.run_dir);
        let waiting = notes::read(&folder)?.notes;
        for note in &waiting {
            self.node.delete(&note.id)?;
        }
        if !waiting.is_empty() {
            notes::remove(&folder, &waiting)?;
        }
        let valid = request.valid.iter().cloned().collect();
        let (removed, failed) = self.node.collect(&request.network, &valid);
        Ok(GcReply { removed, failed: failed.iter().map(|error| chain(error)).collect() })
    }

    /// The node's state of health. It blocks: it looks at sysctls, routes and firewall.
    pub(crate) fn status(&self) -> Result<Status, Error> {
        let AgentConfig { node, attach, slots, .. } = &self.config;
        let prefixes = self.node.prefixes()?;
        let endpoints = self.node.count() as u64;
        let maps = self.maps(endpoints)?;
        let mut problems = diagnose(&Facts {
            source: self.node.source_problems(),
            blocks: self.node.block_troubles(),
            ..Facts::gather(node.router, &prefixes, self.node.count_by_link())
        });
        problems.extend(self.flows.problem());
        problems.extend(self.mappings.problem());
        Ok(Status {
            node: node.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime: self.node.uptime().as_secs(),
            endpoints,
            slots: *slots,
            pools: self.node.pools()?,
            default_pools: self.node.default_pools().to_vec(),
            attach: *attach,
            flows: self.flows.usage().map_err(of_maps)?,
            memory: MemoryUsage {
                agent: resident_bytes(),
                maps_total: maps.iter().map(|map| map.bytes).sum(),
                maps,
            },
            problems,
            repairs: self.repairs.clone(),
        })
    }

    /// The metrics, as a Prometheus server reads them.
    pub(crate) fn metrics(&self) -> Result<String, Error> {
        let endpoints = self.node.count() as u64;
        let measured = Measured {
            pools: self.node.pools()?,
            endpoints,
            counts: self.node.counts(),
            flows: self.flows.usage().map_err(of_maps)?,
            events: self.flows.events().map_err(of_maps)?,
            totals: self.flows.totals(),
            mappings: self.mappings.usage(),
            nat_dropped: self.mappings.dropped().map_err(of_maps)?,
            maps: self.maps(endpoints)?,
            resident: resident_bytes(),
        };
        metrics::text(measured).map_err(|error| Error::Invalid(error.to_string()))
    }

    fn maps(&self, endpoints: u64) -> Result<Vec<MapUsage>, Error> {
        let mappings = self.mappings.usage().left.map(|(mappings, _)| mappings.into());
        self.flows.maps(endpoints, mappings).map_err(of_maps)
    }
}

async fn expire(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(EXPIRY).await;
        let working = shared.clone();
        let look = move || {
            working.node.expire()?;
            working.node.reclaim()?;
            working.node.tidy()?;
            working.node.retire()
        };
        match tokio::task::spawn_blocking(look).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(error = chain(&error), "taking back leases"),
            Err(error) => tracing::error!(%error, "taking back leases"),
        }
    }
}

async fn tick(shared: Arc<Shared>) {
    while shared.node.has_blocks() {
        tokio::time::sleep(TICK).await;
        let working = shared.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || working.node.tick_blocks(&[])).await
        {
            tracing::error!(%error, "claiming and giving back blocks");
        }
    }
}

/// Keeps the flows' clock, and forgets flows that are over. A second that was missed stays so: nobody
/// saw the packets of it.
async fn collect(shared: Arc<Shared>) {
    let mut clock = tokio::time::interval(TICK);
    clock.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut failed = false;
    loop {
        clock.tick().await;
        let working = shared.clone();
        let outcome = tokio::task::spawn_blocking(move || working.flows.second()).await;
        match outcome {
            Ok(Ok(())) => failed = false,
            // Once, and not every second.
            Ok(Err(_)) if failed => {}
            Ok(Err(error)) => {
                failed = true;
                tracing::warn!(error = chain(&*error), "collecting flows");
            }
            Err(error) => tracing::error!(%error, "collecting flows"),
        }
    }
}

/// Attaches programs for good: as many as there are while nobody asks for anything, and otherwise
/// one at a time, so that a node that is never idle gets there as well.
async fn attach(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(PAUSE).await;
        loop {
            let working = shared.clone();
            match tokio::task::spawn_blocking(move || working.node.attach_one()).await {
                Ok(Ok(true)) if shared.node.idle() >= PAUSE => {}
                Ok(Ok(_)) => break,
                // The provisional attachment stays, and does the same.
                Ok(Err(error)) => tracing::warn!(error = chain(&error), "attaching for good"),
                Err(error) => tracing::error!(%error, "attaching for good"),
            }
        }
    }
}

fn with_mtu(config: &Config) -> Result<Config, Error> {
    let mut config = config.clone();
    if config.mtu.is_none() {
        let found = router::uplink_mtu()?;
        config.mtu = found.map(|mtu| mtu.clamp(config.least_mtu(), 65_535));
    }
    Ok(config)
}

fn chooser(config: &Config) -> Result<Chooser, Error> {
    let source = match &config.manifests {
        Some(folder) => Some(Directory::watch(folder)?),
        None => None,
    };
    let source = source.map(|directory| {
        for problem in directory.snapshot().problems() {
            tracing::warn!(%problem, "manifests");
        }
        Arc::new(directory) as Arc<dyn Source>
    });
    Ok(Chooser::new(config.default_pools.clone(), source))
}

fn datapath_options(config: &Config) -> Options {
    let attach = match config.attach {
        AttachChoice::Auto => Attach::Auto,
        AttachChoice::Tcx => Attach::Tcx,
        AttachChoice::Tc => Attach::Clsact,
    };
    Options {
        slots: config.slots,
        flows: config.flows,
        policy_rows: config.policy_rows,
        policy_rules: config.policy_rules,
        pending: config.pending_flows,
        mappings: config.mappings,
        attach,
        ..Options::new(&config.bpffs)
    }
}

fn of_maps(source: crate::error::Source) -> Error {
    Error::Datapath { operation: "read", object: "the maps".into(), source }
}

/// Of this process, without the tables that it shares with the programs, which are counted as maps; 0 if it cannot
/// be told.
fn resident_bytes() -> u64 {
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let (mut kilobytes, mut is_of_a_map) = (0, false);
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("Rss:") if !is_of_a_map => {
                kilobytes += words.next().and_then(|size| size.parse::<u64>().ok()).unwrap_or(0);
            }
            Some(field) if field.ends_with(':') => {}
            // The head of a mapping.
            _ => is_of_a_map = line.ends_with(":bpf-map"),
        }
    }
    kilobytes * 1024
}

fn boot_id() -> Result<String, Error> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let id = fs::read_to_string(path).map_err(|source| Error::Folder {
        operation: "read",
        path: path.to_owned(),
        source,
    })?;
    Ok(id.trim().to_owned())
}

fn bind(socket: &Path) -> Result<StdListener, Error> {
    let failed =
        |operation| move |source| Error::Folder { operation, path: socket.to_owned(), source };
    let listener = StdListener::bind(socket).map_err(failed("bind"))?;
    // The folder is what protects it; this is for whoever opens the folder by mistake.
    fs::set_permissions(socket, Permissions::from_mode(0o600)).map_err(failed("tighten"))?;
    Ok(listener)
}

fn report(endpoints: usize, repairs: &[Repair]) {
    for Repair { object, found, done } in repairs {
        tracing::warn!(object, found, done, "repaired");
    }
    tracing::info!(endpoints, repairs = repairs.len(), "restored");
}

/// An error as the log and the command line tell it: all reasons, then what to do.
#[must_use]
pub fn explain(error: &Error) -> String {
    match error.hint() {
        Some(hint) => format!("{}\n{hint}", chain(error)),
        None => chain(error),
    }
}
