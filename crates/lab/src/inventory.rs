use std::{collections::BTreeSet, fmt, fs, io, path::Path};

use crate::{Error, Result, interface};

/// What stands in a network namespace and a mount namespace, one line for each thing.
///
/// Two inventories show what came and what went between them. Numbers that differ from one listing
/// to the next (indices, counters, ages) are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    things: BTreeSet<String>,
}

impl Inventory {
    /// Lists the calling thread's namespaces: links, routes of all tables that procfs shows,
    /// IPv4 neighbours, pinned network namespaces, everything on the bpffs, mounts.
    ///
    /// # Errors
    /// [`Error::Namespace`] when one of them cannot be listed.
    pub fn here() -> Result<Self> {
        let mut things = BTreeSet::new();
        collect(&mut things).map_err(|e| Error::namespace("take an inventory", e))?;
        Ok(Self { things })
    }

    /// Everything here that `earlier` did not have.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Vec<String> {
        self.things.difference(&earlier.things).cloned().collect()
    }

    /// All lines that begin with `kind`: `link`, `route`, `neighbour`, `netns`, `pin` or `mount`.
    #[must_use]
    pub fn of_kind(&self, kind: &str) -> Vec<&str> {
        let start = format!("{kind} ");
        self.things.iter().filter_map(|thing| thing.strip_prefix(&start)).collect()
    }

    /// All lines.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.things.iter().map(String::as_str)
    }
}

impl fmt::Display for Inventory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.things.iter().try_for_each(|thing| writeln!(f, "{thing}"))
    }
}

fn collect(things: &mut BTreeSet<String>) -> io::Result<()> {
    things.extend(interface::names()?.into_iter().map(|name| format!("link {name}")));
    for line in lines("net/route")?.skip(1) {
        if let [device, target, gateway, _, _, _, metric, mask, ..] = fields(&line)[..] {
            things.insert(format!(
                "route {target}/{mask} via {gateway} dev {device} metric {metric}"
            ));
        }
    }
    for line in lines("net/ipv6_route")? {
        if let [target, length, _, _, gateway, metric, .., device] = fields(&line)[..] {
            things.insert(format!(
                "route {target}/{length} via {gateway} dev {device} metric {metric}"
            ));
        }
    }
    for line in lines("net/arp")?.skip(1) {
        if let [address, _, _, mac, _, device] = fields(&line)[..] {
            things.insert(format!("neighbour {address} {mac} dev {device}"));
        }
    }
    for line in lines("mountinfo")? {
        if let [_, _, _, root, target, ..] = fields(&line)[..] {
            things.insert(format!("mount {target} of {root}"));
        }
    }
    walk(things, "netns", Path::new("/run/netns"))?;
    walk(things, "pin", Path::new("/sys/fs/bpf"))
}

/// Of the thread: `/proc/net` would be that of the process's first thread.
fn lines(file: &str) -> io::Result<impl Iterator<Item = String>> {
    let text = match fs::read_to_string(Path::new("/proc/thread-self").join(file)) {
        // A kernel without IPv6 has no such file.
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        text => text?,
    };
    Ok(text.lines().map(str::to_owned).collect::<Vec<_>>().into_iter())
}

fn fields(line: &str) -> Vec<&str> {
    line.split_ascii_whitespace().collect()
}

fn walk(things: &mut BTreeSet<String>, kind: &str, folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        // No such folder, or removed while we were looking.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        things.insert(format!("{kind} {}", entry.path().display()));
        if entry.file_type()?.is_dir() {
            walk(things, kind, &entry.path())?;
        }
    }
    Ok(())
}
