//! An endpoint is gone.

use std::path::Path;

use podwire_api::{Client, EndpointId, Removed, pending_del_dir};

use crate::{
    error::{Error, Result},
    note,
    wire::unwire,
};

/// Removes an endpoint: programs, map entries, lease, interfaces. `Absent` if nothing was there.
///
/// If the agent is away, the interfaces are removed and a durable note below `run_dir` tells the
/// next agent to do its part before it accepts its first ADD.
///
/// # Errors
///
/// If the agent refuses, the kernel refuses, or the note cannot be written; the runtime repeats
/// the DEL then.
pub fn remove(agent: &Client, run_dir: &Path, id: &EndpointId) -> Result<Removed> {
    match agent.delete_endpoint(id) {
        Ok(removed) => {
            // The agent removes the links of endpoints; one that never became an endpoint is here.
            let unwired = unwire_own(id)?;
            Ok(if unwired == Removed::Removed { unwired } else { removed })
        }
        Err(error) if error.is_try_again() => {
            let path = note::leave(&pending_del_dir(run_dir), id)?;
            let unwired = unwire_own(id)?;
            // An agent that started meanwhile may have read the notes before this one was there.
            if agent.delete_endpoint(id).is_ok() {
                note::take_back(&path)?;
            }
            Ok(unwired)
        }
        Err(error) => Err(error.into()),
    }
}

/// Removes the endpoints of `network` that are not among `valid`; gives those removed.
///
/// # Errors
///
/// If the agent cannot be reached; otherwise all that could not be removed, after everything was
/// tried.
pub fn remove_others(
    agent: &Client,
    run_dir: &Path,
    network: &str,
    valid: &[EndpointId],
) -> Result<Vec<EndpointId>> {
    let (mut removed, mut failed) = (Vec::new(), Vec::new());
    for endpoint in agent.endpoints()? {
        if endpoint.network.as_deref() != Some(network) || valid.contains(&endpoint.id) {
            continue;
        }
        match remove(agent, run_dir, &endpoint.id) {
            Ok(_) => removed.push(endpoint.id),
            Err(error) => failed.push((endpoint.id, error)),
        }
    }
    if failed.is_empty() { Ok(removed) } else { Err(Error::Several(failed)) }
}

/// A link of that name that is not ours is none of DEL's business.
fn unwire_own(id: &EndpointId) -> Result<Removed> {
    match unwire(id) {
        Err(Error::HostLinkTaken { .. }) => Ok(Removed::Absent),
        unwired => unwired,
    }
}
