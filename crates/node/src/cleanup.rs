use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use podwire_api::{
    Client, Mark, ROUTE_PROTOCOL, ROUTER_HOST, ROUTER_NET, Timeouts, blocks_path, database_path,
    pending_del_dir, socket_path,
};
use podwire_datapath::abi::map;
use podwire_netlink::{
    IfIndex, Link, LinkChange, Netlink, Route, RouteFilter, RouteProtocol, Rule,
};

use crate::kernel::seen;
use crate::reconcile::is_unfinished;
use crate::router::trouble;
use crate::{Error, notes, store};

/// Where the agent that is to be cleaned up after kept its things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// `--state-dir`
    pub state_dir: PathBuf,
    /// `--run-dir`
    pub run_dir: PathBuf,
    /// `--bpffs`
    pub bpffs: PathBuf,
}

/// Something of podwire's that stands on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    kind: LeftoverKind,
    name: String,
    act: Act,
}

/// What kind of thing is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LeftoverKind {
    /// A network interface that bears a mark; of a pair, the other end goes with it.
    Link,
    /// The mark of an interface that is another plugin's.
    Mark,
    /// A route of our protocol number.
    Route,
    /// A policy rule of our protocol number.
    Rule,
    /// A pinned map or attachment.
    Pin,
    /// The database, or the registry of blocks.
    State,
    /// A DEL that waits for an agent.
    Note,
    /// The socket of an agent that was killed.
    Socket,
    /// A folder, removed if nothing else is in it.
    Folder,
}

impl LeftoverKind {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Link => "link",
            Self::Mark => "mark",
            Self::Route => "route",
            Self::Rule => "rule",
            Self::Pin => "pin",
            Self::State => "state",
            Self::Note => "note",
            Self::Socket => "socket",
            Self::Folder => "folder",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Act {
    Link(IfIndex),
    Unmark(IfIndex),
    Route(Box<Route>),
    Rule(Box<Rule>),
    File(PathBuf),
    Folder(PathBuf),
}

impl Leftover {
    /// What kind of thing it is.
    #[must_use]
    pub fn kind(&self) -> LeftoverKind {
        self.kind
    }

    /// Which one, and of whom.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Removes it. What is gone already is no error.
    ///
    /// # Errors
    ///
    /// When the kernel or the file system refuses.
    pub fn remove(&self) -> Result<(), Error> {
        let mut netlink = Netlink::open().map_err(trouble("open", "a netlink socket"))?;
        let removed = match &self.act {
            Act::Link(index) => netlink.remove_link(*index),
            Act::Unmark(index) => netlink.change_link(&LinkChange::of(*index).alias("")),
            Act::Route(route) => netlink.remove(&**route),
            Act::Rule(rule) => netlink.remove(&**rule),
            Act::File(path) => return file_result("remove", path, fs::remove_file(path)),
            Act::Folder(path) => {
                return match fs::remove_dir(path) {
                    // Something else lives there: it is not ours to remove.
                    Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
                    result => file_result("remove", path, result),
                };
            }
        };
        match removed {
            Err(error) if !error.is_not_found() => Err(trouble("remove", &self.name)(error)),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.name(), self.name)
    }
}

/// Finds everything of podwire's in the calling thread's network namespace and in these places, in
/// the order in which it is to be removed: what takes pods off the network comes first, the records
/// last, so that a cleanup that was cut short can be repeated.
///
/// Only what bears a mark is found, whatever its name: links by their alias, routes and rules by
/// protocol number, pins, records and notes by their places and names.
///
/// # Errors
///
/// [`Error::AlreadyRunning`] while an agent answers, [`Error::StoreLocked`] while one has the database
/// open; and when something cannot be read.
pub fn leftovers(places: &Places) -> Result<Vec<Leftover>, Error> {
    refuse_while_running(places)?;
    let mut found = Vec::new();
    links_and_routes(&mut found)?;
    pins(&places.bpffs, &mut found)?;
    let notes_dir = pending_del_dir(&places.run_dir);
    if notes_dir.is_dir() {
        for note in notes::read(&notes_dir)?.notes {
            found.push(file(LeftoverKind::Note, note.path));
        }
        found.push(folder(notes_dir));
    }
    found.extend(existing(LeftoverKind::Socket, socket_path(&places.run_dir)));
    found.extend(existing(LeftoverKind::State, database_path(&places.state_dir)));
    found.extend(existing(LeftoverKind::State, blocks_path(&places.state_dir)));
    for path in [&places.run_dir, &places.state_dir] {
        if path.is_dir() {
            found.push(folder(path.clone()));
        }
    }
    Ok(found)
}

fn refuse_while_running(places: &Places) -> Result<(), Error> {
    let socket = socket_path(&places.run_dir);
    let quick = Timeouts {
        connect: std::time::Duration::from_secs(1),
        total: std::time::Duration::from_secs(2),
    };
    match Client::with_timeouts(&socket, quick).config() {
        Err(error) if error.is_unreachable() => {}
        // Any answer, and also silence: somebody has the socket open.
        _ => return Err(Error::AlreadyRunning { socket }),
    }
    let database = database_path(&places.state_dir);
    if database.exists() && store::is_locked(&database)? {
        return Err(Error::StoreLocked { path: database });
    }
    Ok(())
}

fn links_and_routes(found: &mut Vec<Leftover>) -> Result<(), Error> {
    let mut netlink = Netlink::open().map_err(trouble("open", "a netlink socket"))?;
    let mut router = BTreeSet::new();
    for link in netlink.links().map_err(trouble("list", "links"))? {
        let name = match mark(&link) {
            Some(Mark::Endpoint { id, .. }) => format!("{} of {id}", link.name),
            Some(mark @ Mark::Chained { .. }) => {
                let name = format!("{mark} on {}", link.name);
                let act = Act::Unmark(link.index);
                found.push(Leftover { kind: LeftoverKind::Mark, name, act });
                continue;
            }
            // Its other end goes with it.
            Some(Mark::Router { .. }) if link.name.as_bytes() == ROUTER_NET.as_bytes() => continue,
            Some(Mark::Router { .. }) => {
                router.insert(link.index);
                format!("{ROUTER_HOST}, {ROUTER_NET}")
            }
            None if is_unfinished(&seen(link.clone())) => format!("{} (unfinished)", link.name),
            None => continue,
        };
        found.push(Leftover { kind: LeftoverKind::Link, name, act: Act::Link(link.index) });
    }
    let ours = RouteProtocol(ROUTE_PROTOCOL);
    let routes = netlink.routes(&RouteFilter::protocol(ours)).map_err(trouble("list", "routes"))?;
    for route in routes {
        // Those of the router pair go with it.
        if route.protocol == ours && !route.output.is_some_and(|output| router.contains(&output)) {
            let name = format!("{} in table {}", route.destination, route.table.0);
            found.push(Leftover { kind: LeftoverKind::Route, name, act: Act::Route(route.into()) });
        }
    }
    for rule in netlink.rules(None).map_err(trouble("list", "rules"))? {
        if rule.protocol == ours {
            let name = format!("{} (IPv{})", rule.priority, rule.family.version());
            found.push(Leftover { kind: LeftoverKind::Rule, name, act: Act::Rule(rule.into()) });
        }
    }
    Ok(())
}

/// The mark of a link that is what its mark says. A mark alone, on some other link, is not enough.
fn mark(link: &Link) -> Option<Mark> {
    let mark: Mark = link.alias.as_deref()?.parse().ok()?;
    let fits = match &mark {
        Mark::Endpoint { id, .. } => link.name.as_bytes() == id.host_link().as_bytes(),
        Mark::Chained { .. } => true,
        Mark::Router { .. } => {
            [ROUTER_HOST, ROUTER_NET].iter().any(|name| link.name.as_bytes() == name.as_bytes())
        }
    };
    (fits && link.is_veth()).then_some(mark)
}

fn pins(bpffs: &Path, found: &mut Vec<Leftover>) -> Result<(), Error> {
    let links = bpffs.join("links");
    for path in list(&links)? {
        for side in ["ingress", "egress"] {
            found.extend(existing(LeftoverKind::Pin, path.join(side)));
        }
        found.push(folder(path));
    }
    let uplinks = bpffs.join("uplinks");
    for path in list(&uplinks)? {
        for side in ["ingress", "egress"] {
            found.extend(existing(LeftoverKind::Pin, path.join(side)));
        }
        found.push(folder(path));
    }
    let maps = bpffs.join("maps");
    for path in list(&maps)? {
        let name = path.file_name().unwrap_or_default();
        if map::ALL.iter().any(|known| name == *known) {
            found.push(file(LeftoverKind::Pin, path));
        }
    }
    for path in [links, uplinks, maps, bpffs.to_owned()] {
        if path.is_dir() {
            found.push(folder(path));
        }
    }
    Ok(())
}

fn list(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries,
    };
    let listed = entries
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>());
    let mut paths = listed.map_err(|source| Error::Folder {
        operation: "list",
        path: path.to_owned(),
        source,
    })?;
    paths.sort();
    Ok(paths)
}

fn existing(kind: LeftoverKind, path: PathBuf) -> Option<Leftover> {
    path.symlink_metadata().is_ok().then(|| file(kind, path))
}

fn file(kind: LeftoverKind, path: PathBuf) -> Leftover {
    Leftover { kind, name: path.display().to_string(), act: Act::File(path) }
}

fn folder(path: PathBuf) -> Leftover {
    let name = path.display().to_string();
    Leftover { kind: LeftoverKind::Folder, name, act: Act::Folder(path) }
}

fn file_result(operation: &'static str, path: &Path, result: io::Result<()>) -> Result<(), Error> {
    match result {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::Folder { operation, path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}
