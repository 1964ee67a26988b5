//! CNI calls: time and memory of the plugin's process.

use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use podwire_lab::{Attachment, Cni, CniOutput, Host, Pod, interface};
use podwire_netlink::{IfName, Netlink};
use serde_json::Value;

use super::{
    links,
    nodes::{AT_ONCE, Attached, MTU, Node, at_once},
    progress::Progress,
    report::Better,
    turns::{Series, take_turns},
};
use crate::Result;

/// Before each call that is measured, so that what the last one left to do is done: the kernel frees a
/// link for 20 ms after podwire's DEL has returned.
pub const PAUSE: Duration = Duration::from_millis(30);

/// Pods that are deleted in one run of [`concurrent_deletes`].
const BATCH: usize = 4 * AT_ONCE;

/// A program that does nothing.
const NOTHING: &str = "/usr/bin/true";

/// A plugin begins as a copy of this process, whose memory counts as its own: what is not larger
/// than that by this much is an upper bound.
const CLEARLY: f64 = 1.02;

/// ADD, CHECK and DEL of one more pod on each node; for each its time and its memory.
///
/// The pod's namespace is the same from run to run: making and removing namespaces is not the
/// plugin's work, and the kernel removes them in the background, in someone else's time.
pub fn lifecycle(
    nodes: &[Node],
    add: &str,
    runs: usize,
    note: &str,
    progress: &mut Progress,
) -> Result<Vec<Series>> {
    let peers: Vec<_> = nodes.iter().skip(1).map(|node| node.kind.name()).collect();
    let pods = nodes.iter().map(|node| node.host.add_pod("next"));
    let pods = pods.collect::<podwire_lab::Result<Vec<_>>>()?;
    let works = [add, "cni_check", "cni_del"];
    let mut times = works.map(|work| Series::new(work, "ms", Better::Less, &peers).note(note));
    let mut memory =
        Vec::from(works.map(|work| {
            Series::new(&format!("{work}/memory"), "MB", Better::Less, &peers).note(note)
        }));
    let mut bare = Series::new("deleting a pair", "ms", Better::Less, &[]);
    take_turns(runs, nodes.len(), |run, side| {
        progress.run(run, runs, &times[0]);
        if side == 0 {
            bare.push(0, milliseconds(delete_bare_pair(&nodes[0], &pods[0])?));
        }
        for (place, output) in life(&nodes[side], &pods[side])?.into_iter().enumerate() {
            times[place].push(side, milliseconds(output.elapsed));
            memory[place].push(side, megabytes(output.peak_bytes));
        }
        Ok(())
    })?;
    let (alone, del) = (bare.median(0), times[2].median(0));
    times[2].add_note(&format!(
        "a veth pair alone is gone in {alone:.1} ms, so {:.1} ms of podwire's are its own, the start of a \
         process included",
        del - alone
    ));
    for (side, node) in nodes.iter().enumerate() {
        node.host.remove_pod_netns("next")?;
        let floor = Nothing::call(&node.host)?.megabytes * CLEARLY;
        if side > 0 {
            // After many pods this process is larger than the peers: there is nothing to tell.
            memory.retain(|series| series.median(side) >= floor);
            continue;
        }
        for series in memory.iter_mut().filter(|series| series.median(side) < floor) {
            series.add_note("podwire's is an upper bound: no larger than the process it begins as");
        }
    }
    Ok(times.into_iter().chain(memory).collect())
}

/// What no DEL can do without: the time until a pod's veth pair is gone. The request to delete it
/// returns later, when the kernel has freed it.
fn delete_bare_pair(node: &Node, pod: &Pod) -> Result<Duration> {
    links::wire((node.host.netns(), "bare"), (pod.netns(), "eth0"), MTU)?;
    links::give(pod.netns(), "eth0", "10.245.0.2/32")?;
    let mut netlink = Netlink::open_in(node.host.netns())?;
    thread::sleep(PAUSE);
    let (name, mut watching) = ("bare".parse::<IfName>()?, Netlink::open_in(node.host.netns())?);
    thread::scope(|scope| {
        let start = Instant::now();
        let deletion = scope.spawn(|| netlink.remove_link(name));
        // Once for each time that the kernel lets go of its lock on links.
        while watching.find_link(name)?.is_some() {}
        let gone = start.elapsed();
        deletion.join().map_err(|_| "a thread panicked")??;
        Ok(gone)
    })
}

/// A pod is added, checked and deleted, and is wired and unwired by that.
fn life(node: &Node, pod: &Pod) -> Result<[CniOutput; 3]> {
    let attachment = Node::attachment(pod);
    let has_link = || pod.run(|| interface::index("eth0").is_ok());
    let call = |verb, previous| {
        thread::sleep(PAUSE);
        node.call(verb, &attachment, previous)
    };
    let added = call("ADD", None)?;
    let result: Value = added.json("ADD")?;
    let failed = |what: &str| Err(format!("{} {what}", node.kind.name()).into());
    if result["ips"][0]["address"].as_str().is_none() || !has_link() {
        return failed(&format!("ADD succeeded, and the pod has no link or address: {result}"));
    }
    let checked = call("CHECK", Some(&result))?;
    let deleted = call("DEL", Some(&result))?;
    if has_link() {
        return failed("DEL succeeded, and the pod still has its link");
    }
    Ok([added, checked, deleted])
}

/// Deletes many pods at a time: how many in a second.
pub fn concurrent_deletes(nodes: &[&Node], runs: usize, progress: &mut Progress) -> Result<Series> {
    let peers: Vec<_> = nodes.iter().skip(1).map(|node| node.kind.name()).collect();
    let mut series = Series::new("cni_del_concurrent", "DEL/s", Better::More, &peers)
        .note(format!("{BATCH} pods, {AT_ONCE} at a time"));
    let names: Vec<_> = (0..BATCH).map(|number| format!("batch{number}")).collect();
    let pods = |node: &&Node| names.iter().map(|name| node.host.add_pod(name)).collect();
    let pods = nodes.iter().map(pods).collect::<podwire_lab::Result<Vec<Vec<_>>>>()?;
    take_turns(runs, nodes.len(), |run, side| {
        progress.run(run, runs, &series);
        let node = nodes[side];
        let attached = at_once(pods[side].clone(), |pod| node.add(pod))?;
        thread::sleep(10 * PAUSE);
        let start = Instant::now();
        at_once(attached.iter().collect(), |attached: &Attached| {
            node.call("DEL", &attached.attachment, Some(&attached.result)).map(drop)
        })?;
        #[expect(clippy::cast_precision_loss, reason = "a small number")]
        series.push(side, BATCH as f64 / start.elapsed().as_secs_f64());
        let wired = |one: &&Attached| one.pod.run(|| interface::index("eth0").is_ok());
        match attached.iter().find(wired) {
            None => Ok(()),
            Some(left) => {
                let (name, pod) = (node.kind.name(), left.pod.name());
                Err(format!("{name} DEL succeeded, and {pod} still has its link").into())
            }
        }
    })?;
    for node in nodes {
        names.iter().try_for_each(|name| node.host.remove_pod_netns(name))?;
    }
    Ok(series)
}

/// What starting any program at all takes, measured as plugins are.
#[derive(Clone, Copy, Debug)]
pub struct Nothing {
    milliseconds: f64,
    megabytes: f64,
}

impl Nothing {
    /// The medians of this many calls.
    pub fn measure(runs: usize) -> Result<Self> {
        let host = Host::new()?;
        let mut series = Series::new("nothing", "ms", Better::Less, &["memory"]);
        for _ in 0..runs {
            thread::sleep(PAUSE);
            let Self { milliseconds, megabytes } = Self::call(&host)?;
            series.push(0, milliseconds);
            series.push(1, megabytes);
        }
        Ok(Self { milliseconds: series.median(0), megabytes: series.median(1) })
    }

    fn call(host: &Host) -> Result<Self> {
        let attachment = Attachment::new("none", PathBuf::new());
        let output = Cni::new(host, NOTHING, Value::Null).verb("ADD", &attachment, None)?;
        output.success("ADD")?;
        let (milliseconds, megabytes) =
            (milliseconds(output.elapsed), megabytes(output.peak_bytes));
        Ok(Self { milliseconds, megabytes })
    }

    /// As a note to calls.
    pub fn note(self) -> String {
        let Self { milliseconds, megabytes } = self;
        format!(
            "a program that does nothing, called likewise, takes {milliseconds:.1} ms and {megabytes:.1} MB"
        )
    }
}

pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[expect(clippy::cast_precision_loss, reason = "it is shown with three digits")]
pub fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
