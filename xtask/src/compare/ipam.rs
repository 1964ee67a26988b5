//! The IPAM plugins alone, each a process of its own, beside leases that exist already.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use podwire_lab::{Attachment, Cni, Host};
use serde_json::{Value, json};

use super::{
    calls::{PAUSE, milliseconds},
    nodes::{PEERS, Site},
    progress::Progress,
    report::Better,
    turns::{Series, take_turns},
};
use crate::Result;

const VERBS: [&str; 2] = ["add", "del"];

/// The network's name, by which both plugins name what they keep.
const NETWORK: &str = "compare";

/// Room for more leases than there will be.
const SUBNET: &str = "10.244.0.0/16";
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 2);

/// Names of all works with these numbers of leases.
pub fn works(leases: &[u16]) -> impl Iterator<Item = String> {
    VERBS.into_iter().flat_map(|verb| leases.iter().map(move |n| format!("ipam_{verb}/{n}")))
}

/// An IPAM plugin with leases.
#[derive(Debug)]
struct Side {
    name: String,
    plugin: Cni,
}

/// ADD and DEL of one more attachment, for each number of leases; beside host-local, podwire's
/// plugin without any lease takes its turns, so that the table shows what leases cost.
pub fn grow(
    site: &Site,
    leases: &[u16],
    runs: usize,
    note: &str,
    progress: &mut Progress,
) -> Result<Vec<Series>> {
    let host = Host::new()?;
    let mut all = Vec::new();
    for &number in leases {
        progress.heading(&format!("IPAM plugins with {number} leases"));
        let mut sides = vec![
            Side::podwire(site, &host, number, "podwire-ipam".to_owned())?,
            Side::host_local(site, &host, number)?,
        ];
        if number > 0 {
            sides.push(Side::podwire(site, &host, 0, "podwire-ipam, 0 leases".to_owned())?);
        }
        let peers: Vec<_> = sides.iter().skip(1).map(|side| side.name.as_str()).collect();
        let mut series = VERBS.map(|verb| {
            Series::new(&format!("ipam_{verb}/{number}"), "ms", Better::Less, &peers).note(note)
        });
        take_turns(runs, sides.len(), |run, side| {
            progress.run(run, runs, &series[0]);
            for (series, time) in series.iter_mut().zip(sides[side].life(run)?) {
                series.push(side, milliseconds(time));
            }
            Ok(())
        })?;
        progress.done(runs, &series.iter().collect::<Vec<_>>());
        all.extend(series);
    }
    Ok(all)
}

impl Side {
    fn host_local(site: &Site, host: &Host, leases: u16) -> Result<Self> {
        let state = site.folder()?;
        write_leases(&state.join(NETWORK), leases)?;
        let program = Path::new(PEERS).join("host-local");
        let config = config("host-local", &state);
        Ok(Self { name: "host-local".to_owned(), plugin: Cni::new(host, program, config) })
    }

    /// Its leases are those that it takes over from host-local.
    fn podwire(site: &Site, host: &Host, leases: u16, name: String) -> Result<Self> {
        let (from, state) = (site.folder()?, site.folder()?);
        write_leases(&from.join(NETWORK), leases)?;
        let program = site.program("podwire-ipam");
        let import = host
            .command(&program)
            .args(["import", NETWORK])
            .args([&from, &state])
            .output()
            .map_err(|e| format!("start {}: {e}", program.display()))?;
        let said = String::from_utf8_lossy(&import.stdout);
        if !import.status.success() || !said.starts_with(&format!("{leases} attachments")) {
            let error = String::from_utf8_lossy(&import.stderr);
            return Err(format!("podwire-ipam import: {said}{error}").into());
        }
        let config = config("podwire-ipam", &state);
        Ok(Self { name, plugin: Cni::new(host, program, config) })
    }

    /// One attachment comes and goes.
    fn life(&self, run: usize) -> Result<[Duration; 2]> {
        let attachment = Attachment::new(format!("{run:064x}"), "/var/run/netns/next");
        let call = |verb: &str| {
            thread::sleep(PAUSE);
            let output = self.plugin.verb(verb, &attachment, None)?;
            output.success(verb)?;
            Ok(output)
        };
        let calls = || {
            let added = call("ADD")?;
            let result: Value = added.json("ADD")?;
            Ok((added, result, call("DEL")?))
        };
        let failed = |e: podwire_lab::Error| format!("{}: {e}", self.name);
        let (added, result, deleted) = calls().map_err(failed)?;
        // The next address from where the leases end: it is in no file yet.
        match result["ips"][0]["address"].as_str() {
            Some(address) if address.ends_with("/16") => Ok([added.elapsed, deleted.elapsed]),
            _ => Err(format!("{}: ADD succeeded and gives no address: {result}", self.name).into()),
        }
    }
}

fn config(plugin: &str, state: &Path) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": NETWORK, "type": "ptp",
        "ipam": { "type": plugin, "dataDir": state, "ranges": [[{ "subnet": SUBNET }]] },
    })
}

/// Leases as host-local keeps them: a file for each address with the owner in it, and one that says
/// which address was the last.
fn write_leases(folder: &PathBuf, leases: u16) -> Result<()> {
    let write = || {
        fs::create_dir_all(folder)?;
        for number in 0..leases {
            let address = address(number);
            let owner = format!("{number:060x}held\r\neth0");
            fs::write(folder.join(address.to_string()), owner)?;
        }
        match leases.checked_sub(1) {
            Some(last) => fs::write(folder.join("last_reserved_ip.0"), address(last).to_string()),
            None => Ok(()),
        }
    };
    write().map_err(|e| format!("write leases to {}: {e}", folder.display()).into())
}

fn address(number: u16) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(FIRST) + u32::from(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_written_as_host_local_writes_them() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("net");
        write_leases(&folder, 300).unwrap();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 301);
        let read = |name| fs::read_to_string(folder.join(name)).unwrap();
        assert_eq!(read("last_reserved_ip.0"), "10.244.1.45");
        assert!(read("10.244.1.45").ends_with("12bheld\r\neth0"));
        assert_eq!(read("10.244.0.2").len(), 64 + 6);
    }
}
