use std::io;

/// Why a benchmark gives no figure.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused a map or a program.
    #[error(transparent)]
    Bpf(#[from] podwire_bpf::Error),
    /// The datapath refused an endpoint or a map.
    #[error(transparent)]
    Datapath(#[from] podwire_datapath::Error),
    /// The lab host that the datapath runs in could not be made.
    #[error(transparent)]
    Lab(#[from] podwire_lab::Error),
    /// A link of the lab host could not be made.
    #[error(transparent)]
    Netlink(#[from] podwire_netlink::Error),
    /// A packet socket of the lab host failed.
    #[error("{operation}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The thread could not be bound to one CPU.
    #[error("bind the thread to one CPU: {0}")]
    Pin(nix::Error),
    /// A program answered something else than it must.
    #[error("{what}: program {program} answered {found}, expected {expected}")]
    Answer {
        /// The benchmark.
        what: String,
        /// The program.
        program: String,
        /// The last repetition's answer.
        found: u32,
        /// The right one.
        expected: u32,
    },
    /// Lookups did not find what the table was filled with.
    #[error("{what}: of {expected} values {right} were right, {wrong} were wrong")]
    Tally {
        /// The benchmark.
        what: String,
        /// Values that were looked up or drawn.
        expected: u64,
        /// Those that were right.
        right: u64,
        /// Those that were another, or none.
        wrong: u64,
    },
    /// The datapath's counters do not say that every packet met the expected fate.
    #[error("{what}: {packets} packets are expected as {fate}, counted were {counted:?}")]
    Counters {
        /// The benchmark.
        what: String,
        /// Packets that were judged.
        packets: u64,
        /// Where and why all of them are to be counted.
        fate: String,
        /// Counters that grew, and by how much.
        counted: Vec<(String, u64)>,
    },
    /// The packet that a program left behind is not what it must be.
    #[error("{what}: the frame is {found:02x?}, expected {expected:02x?}")]
    Frame {
        /// The benchmark.
        what: String,
        /// The last repetition's frame.
        found: Vec<u8>,
        /// The right one.
        expected: Vec<u8>,
    },
    /// A frame that was really sent did not arrive, or arrived where it must not.
    #[error("{what}: sent over the real link, {problem}")]
    Path {
        /// The benchmark.
        what: String,
        /// What went wrong.
        problem: &'static str,
    },
}

/// What everything fallible here returns.
pub type Result<T> = std::result::Result<T, Error>;
