//! The blocks of `--cluster-pool`: where they are claimed, what was there before, and what is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use podwire_api::{Repair, blocks_path};
use podwire_ipam::blocks::{
    Block, Claim, ClusterPool, Error as BlocksError, FileRegistry, FileRegistryError, NodeBlocks,
    claims, release_node,
};
use podwire_ipam::{Family, PoolConfig};

use crate::cluster_pool::overlap;
use crate::error::chain;
use crate::store::{self, Records};
use crate::{Config, Error};

/// How often the claims are read again, which finds what somebody else did to them.
const RESYNC: Duration = Duration::from_secs(300);

type Failure = BlocksError<FileRegistryError>;

/// The node's part of the pools that it shares with others.
#[derive(Debug)]
pub(crate) struct Blocks {
    /// Those of the options.
    pub(crate) pools: Vec<ClusterPool>,
    state: Mutex<State>,
    troubles: Mutex<Vec<Trouble>>,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) blocks: NodeBlocks<Arc<FileRegistry>>,
    /// Pools that are no option any more, and of which there still is something.
    pub(crate) former: BTreeSet<String>,
    synced: Instant,
}

/// Something that keeps the node from claiming or giving back blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) what: String,
    pub(crate) fix: String,
}

/// What a start finds of earlier ones.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Before<'a> {
    /// The cluster pools that the allocator had.
    pub(crate) pools: &'a BTreeSet<String>,
    /// Whether the allocator has lost what it had.
    pub(crate) is_rebuilt: bool,
}

/// Brings the cluster pools of the options into being, without blocks, and opens the registry. `None` if
/// the node has none and never had.
pub(crate) fn arrange(
    ipam: &Records,
    config: &Config,
    before: Before<'_>,
    repairs: &mut Vec<Repair>,
) -> Result<Option<Blocks>, Error> {
    let path = blocks_path(&config.state_dir);
    let pools = &config.cluster_pools;
    if pools.is_empty() && before.pools.is_empty() && !path.exists() {
        return Ok(None);
    }
    let (registry, claims) = open(&path, repairs)?;
    let claims = release_others(&registry, &path, config, claims, repairs)?;
    let claimed = claims.iter().map(|claim| &claim.block.pool);
    let known: BTreeSet<String> = before.pools.iter().chain(claimed).cloned().collect();
    check_strangers(ipam, pools, &known)?;
    let is_option = |name: &String| pools.iter().any(|pool| pool.name == *name);
    let former: BTreeSet<String> = known.iter().filter(|name| !is_option(name)).cloned().collect();
    if let Some(pool) = config.default_pools.iter().find(|name| former.contains(*name)) {
        let why = format!("pool {pool} is no --cluster-pool any more");
        return Err(Error::Config { option: "--default-pool", why });
    }
    record(ipam, pools, &former)?;
    for pool in pools {
        let mut wanted = pool.of_node();
        (wanted.cooldown, wanted.pending_ttl) = (config.cooldown, config.pending_ttl);
        match ipam.read(|all| all.config(&pool.name).ok())? {
            None => ipam.add_pool(&wanted)?,
            Some(present) => {
                if (present.cooldown, present.pending_ttl) != (config.cooldown, config.pending_ttl)
                {
                    ipam.set_times(&pool.name, config.cooldown, config.pending_ttl)?;
                }
            }
        }
    }
    if before.is_rebuilt {
        take_over(ipam, &claims)?;
    }
    let blocks = NodeBlocks::new(registry, config.node.as_str(), pools.clone())
        .map_err(|error| of_option(error.to_string()))?;
    let state = State { blocks, former, synced: Instant::now() };
    let (state, troubles) = (Mutex::new(state), Mutex::default());
    Ok(Some(Blocks { pools: pools.clone(), state, troubles }))
}

impl Blocks {
    /// What the next tick works with.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.synced.elapsed() >= RESYNC {
            state.synced = Instant::now();
            state.blocks.resync();
        }
        state
    }

    /// Whether a pool is one of the options, or was and still has something.
    pub(crate) fn has(&self, pool: &str) -> bool {
        self.pool(pool).is_some() || self.state().former.contains(pool)
    }

    /// The pool of this name among those of the options.
    pub(crate) fn pool(&self, name: &str) -> Option<&ClusterPool> {
        self.pools.iter().find(|pool| pool.name == name)
    }

    /// Whether the options still have this block.
    pub(crate) fn wants(&self, block: &Block) -> bool {
        self.pool(&block.pool).is_some_and(|pool| pool.contains(block.cidr))
    }

    pub(crate) fn troubles(&self) -> Vec<Trouble> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes what is wrong now, and logs it if it was not before.
    pub(crate) fn note(&self, found: Vec<Trouble>) {
        let mut known = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        for trouble in found.iter().filter(|trouble| !known.contains(trouble)) {
            tracing::warn!(error = trouble.what, fix = trouble.fix, "blocks");
        }
        if found.is_empty() && !known.is_empty() {
            tracing::info!("blocks are claimed and given back again");
        }
        *known = found;
    }
}

impl Trouble {
    /// What the registry or the other nodes are in the way of.
    pub(crate) fn of_registry(error: &Failure) -> Self {
        let fix = match error {
            BlocksError::Registry { source: FileRegistryError::Damaged { .. }, .. } => {
                "restart podwired, which sets the file aside and claims its blocks again".into()
            }
            BlocksError::Full { pool, .. } => format!(
                "add a CIDR to --cluster-pool {pool} and restart podwired; until then, delete pods"
            ),
            BlocksError::BlockSize { pool, in_use, .. } => format!(
                "start podwired with /{in_use} blocks in --cluster-pool {pool}, or under another name"
            ),
            BlocksError::Lost { block, .. } => format!(
                "delete the pods that have addresses of {}: podwire ipam list names them",
                block.cidr
            ),
            BlocksError::Contended { .. } => "nothing: podwired tries again every second".into(),
            _ => "look at the disk of podwired's --state-dir; podwired tries again every second"
                .into(),
        };
        Self { what: chain(error), fix }
    }

    /// What the node itself is in the way of.
    pub(crate) fn of_node(error: &Error) -> Self {
        let fix = error.hint().unwrap_or_else(|| {
            "remove what is in the way; podwired tries again every second".into()
        });
        Self { what: chain(error), fix }
    }
}

/// Writes down which pools of the allocator are made of blocks.
pub(crate) fn record(
    ipam: &Records,
    pools: &[ClusterPool],
    former: &BTreeSet<String>,
) -> Result<(), Error> {
    let names = pools.iter().map(|pool| &pool.name).chain(former).cloned().collect();
    ipam.begin(vec![store::put_cluster_pools(&names)])?.wait()?;
    Ok(())
}

/// Whether a pool has blocks of a family, whether or not one is on this node.
pub(crate) fn has_family(pool: &ClusterPool, family: Family) -> bool {
    pool.cidrs.iter().any(|cidr| Family::of(cidr.ip()) == family)
}

/// Opens or creates the registry. One that is damaged is set aside: the blocks in use are known to the
/// allocator, and are claimed again.
fn open(path: &Path, repairs: &mut Vec<Repair>) -> Result<(Arc<FileRegistry>, Vec<Claim>), Error> {
    let damage = match open_whole(path) {
        Ok(opened) => return Ok(opened),
        Err(error @ Error::StoreDamaged { .. }) => error,
        Err(error) => return Err(error),
    };
    let aside = store::set_aside(path)?;
    repairs.push(Repair {
        object: path.display().to_string(),
        found: chain(&damage),
        done: format!("set aside as {}; the node's blocks are claimed again", aside.display()),
    });
    open_whole(path)
}

fn open_whole(path: &Path) -> Result<(Arc<FileRegistry>, Vec<Claim>), Error> {
    let registry = FileRegistry::open(path).map_err(|error| match error {
        FileRegistryError::Locked { path } => Error::StoreLocked { path },
        FileRegistryError::Damaged { path, source } => Error::StoreDamaged { path, source },
        error => failed("open the blocks", path)(error),
    })?;
    let registry = Arc::new(registry);
    let claims = claims(&registry).map_err(|error| match error {
        BlocksError::Registry { source, .. } => failed("read the blocks", path)(source),
        error => Error::StoreDamaged { path: path.to_owned(), source: error.into() },
    })?;
    Ok((registry, claims))
}

/// The registry is in this node's folder, so no other node uses it: claims of another name are of the
/// time when this node had that one.
fn release_others(
    registry: &Arc<FileRegistry>,
    path: &Path,
    config: &Config,
    claims: Vec<Claim>,
    repairs: &mut Vec<Repair>,
) -> Result<Vec<Claim>, Error> {
    let is_own = |claim: &Claim| claim.node == config.node.as_str();
    let (own, others): (Vec<_>, Vec<_>) = claims.into_iter().partition(is_own);
    let names: BTreeSet<String> = others.into_iter().map(|claim| claim.node).collect();
    for name in names {
        let released =
            release_node(registry, &name).map_err(|error| failed("release blocks", path)(error))?;
        repairs.push(Repair {
            object: path.display().to_string(),
            found: format!("{} blocks are claimed by node {name}", released.len()),
            done: format!("released: this is node {}", config.node),
        });
    }
    Ok(own)
}

/// Pools that were made by hand share neither names nor addresses with those of the options.
fn check_strangers(
    ipam: &Records,
    pools: &[ClusterPool],
    known: &BTreeSet<String>,
) -> Result<(), Error> {
    let present: Vec<PoolConfig> =
        ipam.read(|all| all.pools().filter_map(|name| all.config(name).ok()).collect())?;
    for other in present.iter().filter(|other| !known.contains(&other.name)) {
        for cidr in &other.cidrs {
            if let Some(pool) = pools.iter().find(|pool| pool.name == other.name) {
                let why = format!(
                    "there is a pool {} with {cidr}, which was made by hand: delete it, or choose \
                     another name",
                    pool.name
                );
                return Err(of_option(why));
            }
            for pool in pools {
                if let Some(own) = pool.cidrs.iter().find(|own| overlap(**own, *cidr)) {
                    let (name, other) = (&pool.name, &other.name);
                    let why = format!("{own} of pool {name} overlaps with {cidr} of pool {other}");
                    return Err(of_option(why));
                }
            }
        }
    }
    Ok(())
}

/// Gives the allocator the blocks that it has forgotten, before the leases in them are restored.
fn take_over(ipam: &Records, claims: &[Claim]) -> Result<(), Error> {
    let mut cidrs = BTreeMap::<&str, Vec<_>>::new();
    for claim in claims {
        cidrs.entry(&claim.block.pool).or_default().push(claim.block.cidr);
    }
    for (pool, cidrs) in cidrs {
        if ipam.read(|all| all.config(pool).is_err())? {
            ipam.add_pool(&PoolConfig::new(pool, Vec::new()))?;
        }
        for cidr in cidrs {
            match ipam.add_cidr(pool, cidr) {
                // The options have given it to another pool meanwhile.
                Err(error) if error.refusal().is_some() => {
                    tracing::warn!(pool, %cidr, error = chain(&error), "a block is not taken over");
                }
                done => done?,
            }
        }
    }
    Ok(())
}

fn of_option(why: String) -> Error {
    Error::Config { option: "--cluster-pool", why }
}

fn failed<E: Into<crate::error::Source>>(
    operation: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> Error {
    let path = path.to_owned();
    move |source| Error::Store { operation, path, source: source.into() }
}
