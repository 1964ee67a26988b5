//! Programs at the sides of an interface.

mod tcx;

use std::fmt;

pub use tcx::{TcxLink, TcxLinkInfo, probe_tcx, reap_links, tcx_programs};

use crate::sys;

/// The side of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// Packets that come in by it.
    Ingress,
    /// Packets that go out by it.
    Egress,
}

impl Direction {
    fn tcx(self) -> u32 {
        match self {
            Self::Ingress => sys::BPF_TCX_INGRESS,
            Self::Egress => sys::BPF_TCX_EGRESS,
        }
    }

    fn from_tcx(number: u32) -> Option<Self> {
        match number {
            sys::BPF_TCX_INGRESS => Some(Self::Ingress),
            sys::BPF_TCX_EGRESS => Some(Self::Egress),
            _ => None,
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}
