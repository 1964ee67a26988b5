//! What people call the program for.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use podwire_ipam::Owner;
use podwire_ipam::store::File;

use crate::config::default_data_dir;
use crate::error::{of_file, of_store};
use crate::{PATIENCE, life};

const USAGE: &str = "\
podwire-ipam is a CNI plugin: a runtime calls it without arguments. By hand:

  podwire-ipam list NETWORK [DATA_DIR]
      who holds which address
  podwire-ipam import NETWORK HOST_LOCAL_DIR [DATA_DIR]
      takes over the leases of host-local, of the folder NETWORK in HOST_LOCAL_DIR
      (/var/lib/cni/networks unless a configuration has a dataDir)

DATA_DIR is /var/lib/podwire-ipam unless the configuration has ipam.dataDir.
";

/// An interface name for leases of a host-local that did not write one yet.
const USUAL_IFNAME: &str = "eth0";

type Outcome = Result<(), Box<dyn std::error::Error>>;

pub(crate) fn run(words: impl Iterator<Item = String>) -> ExitCode {
    let words: Vec<String> = words.collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let folder = |rest: &[&str]| rest.first().map_or_else(default_data_dir, PathBuf::from);
    let outcome = match words.as_slice() {
        ["list", network, rest @ ..] if rest.len() < 2 => list(network, &folder(rest)),
        ["import", network, from, rest @ ..] if rest.len() < 2 => {
            import(network, &Path::new(from).join(network), &folder(rest))
        }
        ["help" | "--help" | "-h"] => say(USAGE),
        ["--version" | "-V"] => say(concat!("podwire-ipam ", env!("CARGO_PKG_VERSION"), "\n")),
        _ => Err(USAGE.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn list(network: &str, folder: &Path) -> Outcome {
    let file = File::open_existing(folder, network, &life()?, PATIENCE);
    let Some(file) = file.map_err(|error| of_file(&error))? else {
        return say(&format!("{network} has no leases in {}\n", folder.display()));
    };
    let leases = file.read(|ledger| ledger.leases()).map_err(of_store)?;
    let mut by_address: Vec<(IpAddr, Owner)> = leases
        .into_iter()
        .flat_map(|(owner, addresses)| addresses.into_iter().map(move |a| (a, owner.clone())))
        .collect();
    by_address.sort();
    let lines: String =
        by_address.iter().map(|(address, owner)| format!("{address}\t{owner}\n")).collect();
    say(&lines)
}

/// Every file named like an address is a lease: the container's id and, in a second line, the
/// interface.
fn import(network: &str, from: &Path, folder: &Path) -> Outcome {
    let mut leases: BTreeMap<Owner, Vec<IpAddr>> = BTreeMap::new();
    let at = |error: io::Error| format!("cannot read {}: {error}", from.display());
    for entry in fs::read_dir(from).map_err(at)? {
        let entry = entry.map_err(at)?;
        let Some(address) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let text = fs::read_to_string(entry.path()).map_err(at)?;
        let mut lines = text.lines().map(str::trim);
        let id = lines.next().unwrap_or_default();
        let owner = Owner::new(id, lines.next().unwrap_or(USUAL_IFNAME));
        leases.entry(owner).or_default().push(address);
    }
    let opened = File::open(folder, network, &life()?, PATIENCE);
    let (file, _) = opened.map_err(|error| of_file(&error))?;
    file.write(|ledger| {
        for (owner, addresses) in &mut leases {
            addresses.sort();
            ledger.restore(owner, addresses)?;
        }
        Ok(())
    })
    .map_err(of_store)?;
    say(&format!("{} attachments of {} are held\n", leases.len(), from.display()))
}

fn say(text: &str) -> Outcome {
    Ok(io::stdout().write_all(text.as_bytes())?)
}
