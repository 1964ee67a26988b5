use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use podwire_api::Mac;
use podwire_netlink::IfIndex;
use podwire_netlink::watch::{Event, Object, Topic, Watch};

use tokio::time::Instant;

use crate::Error;
use crate::agent::Shared;
use crate::error::chain;

/// Changes come in bursts: a veth that is created and deleted tells a dozen, a shaper three.
const BURST: Duration = Duration::from_millis(20);

/// How long a watch that broke is left alone.
const PAUSE: Duration = Duration::from_secs(1);

/// Follows what others do to the endpoints' links, at both ends, until it is dropped.
pub(crate) async fn follow(shared: Arc<Shared>) {
    loop {
        let opened = Watch::open(&[Topic::Links, Topic::TrafficControl])
            .and_then(|own| Ok((own, Watch::open_everywhere(&[Topic::Links])?)));
        match opened {
            Ok((mut own, mut everywhere)) => {
                // What happened while nobody watched.
                work(&shared, Changes { all: true, ..Changes::default() }).await;
                while let Some(changes) = gather(&mut own, &mut everywhere, &shared).await {
                    work(&shared, changes).await;
                }
                tracing::warn!("the watch of links broke; opening another one");
            }
            Err(error) => {
                tracing::error!(error = chain(&error), "watching links: trying again");
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What a burst of events comes to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Changes {
    /// Links that are gone.
    gone: BTreeSet<u32>,
    /// Links on which something hangs that did not, or no longer.
    touched: BTreeSet<u32>,
    /// Links whose other ends may have another MAC.
    renamed: BTreeSet<u32>,
    /// Events were lost: anything may have changed.
    all: bool,
}

impl Changes {
    fn take(&mut self, event: &Event) {
        let number = |index: IfIndex| index.as_u32();
        match event {
            Event::Absent(Object::Link(link)) => {
                self.gone.insert(number(link.index));
            }
            Event::Present(Object::Qdisc(qdisc)) | Event::Absent(Object::Qdisc(qdisc)) => {
                self.touched.insert(number(qdisc.index));
            }
            Event::Present(Object::Filter(filter)) | Event::Absent(Object::Filter(filter)) => {
                self.touched.insert(number(filter.index));
            }
            Event::Lost => self.all = true,
            Event::Present(_) | Event::Absent(_) => {}
        }
    }

    /// An event from anywhere. The number that it names as the other end's may be one of another
    /// namespace than ours, so this is a hint; `Node::peers_changed` looks.
    fn take_hint(&mut self, event: &Event, is_news: impl Fn(u32, Mac) -> bool) {
        match event {
            Event::Present(Object::Link(link)) => {
                if let (Some(peer), Some(mac)) = (link.peer, link.mac)
                    && is_news(peer.as_u32(), Mac(mac.octets()))
                {
                    self.renamed.insert(peer.as_u32());
                }
            }
            Event::Lost => self.all = true,
            _ => {}
        }
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Waits for something that matters, and then a moment for what comes with it; a changed MAC is not kept
/// waiting, since the pod is cut off meanwhile. `None` when a watch broke.
async fn gather(own: &mut Watch, everywhere: &mut Watch, shared: &Shared) -> Option<Changes> {
    let is_news = |index, mac| shared.node.is_news(index, mac);
    let mut changes = Changes::default();
    let mut end = None;
    loop {
        if !changes.renamed.is_empty() {
            return Some(changes);
        }
        if end.is_none() && !changes.is_empty() {
            end = Some(Instant::now() + BURST);
        }
        let over = async {
            match end {
                Some(end) => tokio::time::sleep_until(end).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = over => return Some(changes),
            event = own.next() => changes.take(&event?),
            event = everywhere.next() => changes.take_hint(&event?, is_news),
        }
    }
}

async fn work(shared: &Arc<Shared>, changes: Changes) {
    let shared = shared.clone();
    let worked = tokio::task::spawn_blocking(move || apply(&shared, &changes)).await;
    if let Err(error) = worked {
        tracing::error!(%error, "following links");
    }
}

fn apply(shared: &Shared, changes: &Changes) {
    let node = &shared.node;
    let told = |result: Result<(), Error>| {
        if let Err(error) = result {
            tracing::error!(error = chain(&error), "following links");
        }
    };
    for &index in &changes.gone {
        match node.link_vanished(index) {
            Ok(Some(id)) => tracing::warn!(%id, index, "its link is gone; out of the datapath"),
            Ok(None) => {}
            Err(error) => told(Err(error)),
        }
    }
    let renamed: Vec<u32> = changes.renamed.difference(&changes.gone).copied().collect();
    told(node.peers_changed(&renamed));
    if changes.all {
        told(node.all_changed());
    } else {
        let touched: Vec<u32> = changes.touched.difference(&changes.gone).copied().collect();
        told(node.links_changed(&touched));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_events_mean_everything() {
        let mut changes = Changes::default();
        assert!(changes.is_empty());
        changes.take(&Event::Lost);
        assert!(changes.all && !changes.is_empty());
    }
}
