//! Running a program on a packet that never was on a wire.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use crate::error::{Error, Result};
use crate::program::Program;
use crate::sys;

/// The parts of a packet's context (`struct __sk_buff`) that a test-run takes and answers.
///
/// Everything else of the context must be zero on the way in and is not answered: the packet's
/// length is that of its data, and it carries no VLAN tag beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SkbContext {
    /// The packet's mark.
    pub mark: u32,
    /// Its priority.
    pub priority: u32,
    /// The interface it came in by: as given.
    pub ingress_ifindex: u32,
    /// The interface it is at; it must exist in the network namespace of the calling thread. 0 and
    /// 1 are the loopback interface.
    pub ifindex: u32,
    /// The five control words.
    pub cb: [u32; 5],
    /// Its time stamp in nanoseconds.
    pub tstamp: u64,
    /// Bytes on the wire, with the headers of all segments; 0 is the length of the data.
    pub wire_len: u32,
    /// Number of segments.
    pub gso_segs: u32,
    /// Bytes of a segment.
    pub gso_size: u32,
    /// The hardware's time stamp.
    pub hwtstamp: u64,
}

/// `struct __sk_buff`
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct SkBuff {
    len: u32,
    pkt_type: u32,
    mark: u32,
    queue_mapping: u32,
    protocol: u32,
    vlan_present: u32,
    vlan_tci: u32,
    vlan_proto: u32,
    priority: u32,
    ingress_ifindex: u32,
    ifindex: u32,
    tc_index: u32,
    cb: [u32; 5],
    hash: u32,
    tc_classid: u32,
    data: u32,
    data_end: u32,
    napi_id: u32,
    family: u32,
    remote_ip4: u32,
    local_ip4: u32,
    remote_ip6: [u32; 4],
    local_ip6: [u32; 4],
    remote_port: u32,
    local_port: u32,
    data_meta: u32,
    flow_keys: u64,
    tstamp: u64,
    wire_len: u32,
    gso_segs: u32,
    sk: u64,
    gso_size: u32,
    tstamp_type: u8,
    padding: [u8; 3],
    hwtstamp: u64,
}

const _: () = assert!(size_of::<SkBuff>() == 192, "as in include/uapi/linux/bpf.h");

impl From<&SkbContext> for SkBuff {
    fn from(context: &SkbContext) -> Self {
        let mut skb = Self::new_zeroed();
        skb.mark = context.mark;
        skb.priority = context.priority;
        skb.ingress_ifindex = context.ingress_ifindex;
        skb.ifindex = context.ifindex;
        skb.cb = context.cb;
        skb.tstamp = context.tstamp;
        skb.wire_len = context.wire_len;
        skb.gso_segs = context.gso_segs;
        skb.gso_size = context.gso_size;
        skb.hwtstamp = context.hwtstamp;
        skb
    }
}

impl From<SkBuff> for SkbContext {
    fn from(skb: SkBuff) -> Self {
        Self {
            mark: skb.mark,
            priority: skb.priority,
            ingress_ifindex: skb.ingress_ifindex,
            ifindex: skb.ifindex,
            cb: skb.cb,
            tstamp: skb.tstamp,
            wire_len: skb.wire_len,
            gso_segs: skb.gso_segs,
            gso_size: skb.gso_size,
            hwtstamp: skb.hwtstamp,
        }
    }
}

/// A packet, its context, and how often to run.
///
/// The kernel does not restore packet and context between repetitions: the second run sees what the
/// first has left.
#[derive(Clone, Debug)]
pub struct TestRun<'d> {
    data: &'d [u8],
    context: SkbContext,
    repeat: u32,
    room: usize,
}

impl<'d> TestRun<'d> {
    /// A packet from its link-layer header on; at least 14 bytes.
    pub fn new(data: &'d [u8]) -> Self {
        Self { data, context: SkbContext::default(), repeat: 1, room: 4096 }
    }

    /// Gives the packet a context; otherwise all of it is zero.
    #[must_use]
    pub fn context(mut self, context: SkbContext) -> Self {
        self.context = context;
        self
    }

    /// Runs that often in one call.
    #[must_use]
    pub fn repeat(mut self, times: u32) -> Self {
        self.repeat = times;
        self
    }

    /// Bytes by which the packet may grow; otherwise 4096. A packet that has grown further is an
    /// error (`ENOSPC`).
    #[must_use]
    pub fn room(mut self, bytes: usize) -> Self {
        self.room = bytes;
        self
    }
}

/// What is left after the last repetition.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TestRunOutput {
    /// What the program answered.
    pub return_value: u32,
    /// The packet from its link-layer header on.
    pub data: Vec<u8>,
    /// Its context.
    pub context: SkbContext,
    /// How long one run took, on average over the repetitions.
    pub duration: Duration,
}

impl Program {
    /// Runs the program on a packet. Redirects are answered, not carried out; maps are written.
    ///
    /// For traffic control classifiers. Minimum kernel: 5.10. Privileges: `CAP_BPF` and
    /// `CAP_NET_ADMIN`.
    #[doc(alias("BPF_PROG_TEST_RUN", "BPF_PROG_RUN"))]
    pub fn test_run(&self, run: &TestRun<'_>) -> Result<TestRunOutput> {
        self.expect_classifier()?;
        let context = SkBuff::from(&run.context);
        let mut context_out = SkBuff::new_zeroed();
        let mut data = vec![0; run.data.len() + run.room];
        let input = sys::RunInput {
            data_in: run.data,
            ctx_in: context.as_bytes(),
            repeat: run.repeat.max(1),
        };
        let output = loop {
            let result =
                sys::program_test_run(self.as_fd(), &input, &mut data, context_out.as_mut_bytes());
            match result {
                // A signal between two repetitions ends the call.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        let output =
            output.map_err(|source| Error::TestRun { program: self.name().to_owned(), source })?;
        data.truncate(output.data_len);
        Ok(TestRunOutput {
            return_value: output.return_value,
            data,
            context: context_out.into(),
            duration: Duration::from_nanos(output.duration.into()),
        })
    }
}
