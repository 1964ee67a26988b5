//! The shipped programs, per packet, on a node with pods behind real links.

mod case;
mod node;

pub use case::{Case, State, cases};
pub use node::Node;
