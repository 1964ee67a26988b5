//! An endpoint is gone.

use std::path::Path;

use podwire_api::{Client, EndpointId, GcRequest, Removed, pending_del_dir};
use podwire_netns::Netns;

use crate::{
    adopt::unmark,
    error::{Error, Result},
    note,
    wire::unwire,
};

/// Removes an endpoint: programs, map entries, lease, interfaces. `Absent` if nothing was there.
///
/// Of an interface that was adopted only the mark goes; `netns`, where it still is, helps to find it.
///
/// If the agent is away, the interfaces are removed and a durable note below `run_dir` tells the
/// next agent to do its part before it accepts its first ADD.
///
/// # Errors
///
/// If the agent refuses, the kernel refuses, or the note cannot be written; the runtime repeats
/// the DEL then.
pub fn remove(
    agent: &Client,
    run_dir: &Path,
    id: &EndpointId,
    interface: Adopted<'_>,
) -> Result<Removed> {
    match agent.delete_endpoint(id) {
        Ok(removed) => {
            // The agent removes the links of endpoints; one that never became an endpoint is here.
            let here = remove_here(id, interface)?;
            Ok(if here == Removed::Removed { here } else { removed })
        }
        Err(error) if error.is_try_again() => {
            let path = note::leave(&pending_del_dir(run_dir), id)?;
            let here = remove_here(id, interface)?;
            // An agent that started meanwhile may have read the notes before this one was there.
            if agent.delete_endpoint(id).is_ok() {
                note::take_back(&path)?;
            }
            Ok(here)
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether the interface that is to be removed is another plugin's.
#[derive(Debug, Clone, Copy)]
pub enum Adopted<'n> {
    /// It is podwire's own.
    No,
    /// It was adopted, in this namespace if that is still there.
    In(Option<&'n Netns>),
}

/// Removes what belongs to `network` and is not among `valid`: endpoints, and what killed ADDs have
/// left; gives those removed.
///
/// # Errors
///
/// If the agent cannot be reached; otherwise all that could not be removed, after everything was
/// tried.
pub fn remove_others(
    agent: &Client,
    network: &str,
    valid: Vec<EndpointId>,
) -> Result<Vec<EndpointId>> {
    let reply = agent.gc(&GcRequest { network: network.to_owned(), valid })?;
    if reply.failed.is_empty() {
        return Ok(reply.removed);
    }
    Err(Error::Collection { network: network.to_owned(), failed: reply.failed })
}

fn remove_here(id: &EndpointId, interface: Adopted<'_>) -> Result<Removed> {
    match interface {
        Adopted::No => unwire_own(id),
        Adopted::In(Some(netns)) => unmark(netns, id),
        Adopted::In(None) => Ok(Removed::Absent),
    }
}

/// A link of that name that is not ours is none of DEL's business.
fn unwire_own(id: &EndpointId) -> Result<Removed> {
    match unwire(id) {
        Err(Error::HostLinkTaken { .. }) => Ok(Removed::Absent),
        unwired => unwired,
    }
}
