use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use podwire_api::Mac;
use podwire_netlink::IfIndex;
use podwire_netlink::tc::Qdisc;
use podwire_netlink::watch::{Event, Object, Topic, Watch};

use tokio::time::Instant;

use crate::Error;
use crate::agent::Shared;
use crate::error::chain;
use crate::kernel::Gone;

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
                let mut known = Known::default();
                while let Some(changes) =
                    gather(&mut own, &mut everywhere, &mut known, &shared).await
                {
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

/// Tells those who wait for links to go, until it is dropped. Apart from [`follow`], which is busy at
/// times and lets events gather.
pub(crate) async fn tell(gone: Arc<Gone>) {
    loop {
        match Watch::open(&[Topic::Links]) {
            Ok(mut watch) => {
                while let Some(event) = watch.next().await {
                    if let Event::Absent(Object::Link(link)) = event {
                        gone.tell(link.index);
                    }
                }
            }
            // Deletions take longer meanwhile, and are told by the threads that make them.
            Err(error) => tracing::error!(error = chain(&error), "watching links: trying again"),
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

/// The qdiscs that were told of, by link.
///
/// Asking the kernel for one qdisc makes it tell everybody who watches (`tc_get_qdisc` in
/// `net/sched/sch_api.c`), so looking at a link that was touched would touch it, without end.
#[derive(Debug, Default)]
struct Known(HashMap<u32, Vec<Qdisc>>);

impl Known {
    /// Takes in an event, and tells whether it says something new.
    fn is_news(&mut self, event: &Event) -> bool {
        match event {
            Event::Present(Object::Qdisc(qdisc)) => {
                let known = self.0.entry(qdisc.index.as_u32()).or_default();
                if known.contains(qdisc) {
                    return false;
                }
                known.retain(|other| other.parent != qdisc.parent);
                known.push(qdisc.clone());
            }
            Event::Absent(Object::Qdisc(qdisc)) => {
                if let Some(known) = self.0.get_mut(&qdisc.index.as_u32()) {
                    known.retain(|other| other.parent != qdisc.parent);
                }
            }
            Event::Absent(Object::Link(link)) => {
                self.0.remove(&link.index.as_u32());
            }
            Event::Lost => self.0.clear(),
            Event::Present(_) | Event::Absent(_) => {}
        }
        true
    }
}

/// Waits for something that matters, and then a moment for what comes with it; a changed MAC is not kept
/// waiting, since the pod is cut off meanwhile. `None` when a watch broke.
async fn gather(
    own: &mut Watch,
    everywhere: &mut Watch,
    known: &mut Known,
    shared: &Shared,
) -> Option<Changes> {
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
            event = own.next() => {
                let event = event?;
                if known.is_news(&event) {
                    changes.take(&event);
                }
            }
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

    /// As in `struct tcmsg`, with the kind as the only attribute.
    fn qdisc(index: u32, parent: u32, handle: u32, kind: &[u8; 4]) -> Object {
        const TCA_KIND: u16 = 1;
        let mut payload = vec![0; 4];
        for word in [index, handle, parent, 0] {
            payload.extend(word.to_ne_bytes());
        }
        payload.extend(8_u16.to_ne_bytes());
        payload.extend(TCA_KIND.to_ne_bytes());
        payload.extend(kind);
        Object::Qdisc(Qdisc::parse(&payload).unwrap())
    }

    #[test]
    fn a_qdisc_that_is_told_of_again_is_no_news() {
        const ROOT: u32 = u32::MAX;
        let mut known = Known::default();
        let shaper = qdisc(7, ROOT, 0x1_0000, b"tbf\0");
        assert!(known.is_news(&Event::Present(shaper.clone())));
        assert!(!known.is_news(&Event::Present(shaper.clone())));
        assert!(known.is_news(&Event::Present(qdisc(8, ROOT, 0x1_0000, b"tbf\0"))));
        let other = qdisc(7, ROOT, 0x2_0000, b"htb\0");
        assert!(known.is_news(&Event::Present(other.clone())));
        assert!(!known.is_news(&Event::Present(other.clone())));
        assert!(known.is_news(&Event::Present(shaper.clone())), "it took the other one's place");
        assert!(known.is_news(&Event::Absent(shaper.clone())));
        assert!(known.is_news(&Event::Present(shaper.clone())));
        assert!(known.is_news(&Event::Lost));
        assert!(known.is_news(&Event::Present(shaper)));
    }
}
