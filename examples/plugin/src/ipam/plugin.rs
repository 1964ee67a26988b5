use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use podwire_cni::types::{Dns, Ip, Success};
use podwire_cni::{Add, Attachment, Check, Code, Del, Error, Gc, NetworkConfig, Plugin, Status};
use podwire_ipam::Owner;
use podwire_ipam::store::{File, Opened};

use crate::config::{Settings, asked_in_args, data_dir};
use crate::error::{DIFFERENT, of_file, of_store};
use crate::{PATIENCE, life, resolv_conf};

/// The plugin: everything it knows is in the file of the network.
pub(crate) struct Ipam;

impl Plugin for Ipam {
    fn add(&self, add: &Add) -> Result<Success, Error> {
        let settings = Settings::read(&add.config)?;
        let mut asked: Vec<IpAddr> = asked_in_args(&add.args)?.into_iter().collect();
        asked.extend(&settings.asked);
        let dns = settings.resolv_conf.as_deref().map(read_resolv_conf).transpose()?;

        let owner = owner(&add.attachment());
        let grants = in_store(&add.config, || {
            let file = open(&add.config)?;
            file.write(|ledger| ledger.allocate(&owner, &settings.plan, &asked)).map_err(of_store)
        })?;

        let mut success = Success::default();
        for grant in grants {
            let mut ip = Ip::new(grant.address);
            ip.gateway = Some(grant.gateway);
            success.ips.push(ip);
        }
        success.routes = settings.routes;
        success.dns = dns.unwrap_or_default();
        Ok(success)
    }

    /// Looks at nothing but the network's name and `dataDir`: what was granted under another
    /// configuration is released, too.
    fn del(&self, del: &Del) -> Result<(), Error> {
        let owner = owner(&del.attachment());
        in_store(&del.config, || {
            let Some(file) = open_existing(&del.config)? else { return Ok(()) };
            file.write(|ledger| ledger.release(&owner)).map(|_| ()).map_err(of_store)
        })
    }

    fn check(&self, check: &Check) -> Result<(), Error> {
        let settings = Settings::read(&check.config)?;
        let attachment = check.attachment();
        let owner = owner(&attachment);
        let stated: BTreeSet<IpAddr> =
            check.prev_result.ips.iter().map(|ip| ip.address.ip()).collect();
        let mut differences = Vec::new();
        let mut held = Vec::new();
        in_store(&check.config, || {
            let Some(file) = open_existing(&check.config)? else { return Ok(()) };
            file.read(|ledger| {
                held = ledger.held(&owner)?;
                for address in stated.iter().filter(|address| !held.contains(address)) {
                    match ledger.holder(*address)? {
                        Some(other) => differences.push(format!("{other} holds {address}")),
                        // Another plugin of the list may have assigned it.
                        None if settings.plan.range_of(*address).is_none() => {}
                        None => differences.push(format!("nobody holds {address}")),
                    }
                }
                Ok(())
            })
            .map_err(of_store)
        })?;
        for address in held.iter().filter(|address| !stated.contains(address)) {
            differences.push(format!("{address} is held but not in prevResult"));
        }
        if held.is_empty() {
            differences.insert(0, format!("{attachment} holds no address"));
        }
        if differences.is_empty() {
            return Ok(());
        }
        let msg = format!("the leases are not as in prevResult: {}", differences.join("; "));
        Err(Error::new(Code::plugin(DIFFERENT), msg)
            .with_details("the attachment must be deleted and added again"))
    }

    fn status(&self, status: &Status) -> Result<(), Error> {
        let settings = Settings::read(&status.config)?;
        in_store(&status.config, || {
            let file = open(&status.config)?;
            file.read(|ledger| ledger.available(&settings.plan)).map_err(of_store)
        })
        .map_err(|error| {
            Error::new(Code::PLUGIN_NOT_AVAILABLE, error.msg()).with_details(error.details())
        })
    }

    fn gc(&self, gc: &Gc) -> Result<(), Error> {
        let valid: BTreeSet<(&str, &str)> = gc
            .valid_attachments
            .iter()
            .map(|attachment| (attachment.container_id.as_str(), attachment.ifname.as_str()))
            .collect();
        let keep = |owner: &Owner| valid.contains(&(owner.container_id(), owner.ifname()));
        in_store(&gc.config, || {
            let Some(file) = open_existing(&gc.config)? else { return Ok(()) };
            file.write(|ledger| ledger.retain(keep)).map(|_| ()).map_err(of_store)
        })
    }
}

fn owner(attachment: &Attachment) -> Owner {
    Owner::new(attachment.container_id.as_str(), attachment.ifname.as_str())
}

/// Calls what uses the store. Of a damaged file the database finds much out by itself, but panics
/// at some of it.
fn in_store<R>(config: &NetworkConfig, act: impl FnOnce() -> Result<R, Error>) -> Result<R, Error> {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|_| {
        let msg = format!("the store of network {} is damaged", config.name());
        let folder = data_dir(config)?;
        let hint = "when no pod of this network runs any more, remove its file in";
        Err(Error::new(Code::IO_FAILURE, msg).with_details(format!("{hint} {}", folder.display())))
    })
}

fn open(config: &NetworkConfig) -> Result<File, Error> {
    let (name, folder) = (config.name().as_str(), data_dir(config)?);
    let (file, opened) =
        File::open(&folder, name, &life()?, PATIENCE).map_err(|error| of_file(&error))?;
    if opened == Opened::Renewed {
        // For whoever reads the runtime's log; nothing depends on it.
        let _ = writeln!(
            io::stderr(),
            "podwire-ipam: leases of {name} from before the last boot of the machine were dropped"
        );
    }
    Ok(file)
}

fn open_existing(config: &NetworkConfig) -> Result<Option<File>, Error> {
    let (name, folder) = (config.name().as_str(), data_dir(config)?);
    File::open_existing(&folder, name, &life()?, PATIENCE).map_err(|error| of_file(&error))
}

fn read_resolv_conf(path: &Path) -> Result<Dns, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(resolv_conf::parse(&text)),
        Err(error) => {
            let msg = format!("cannot read ipam.resolvConf {}: {error}", path.display());
            Err(Error::new(Code::IO_FAILURE, msg).with_details("name a file that can be read"))
        }
    }
}
