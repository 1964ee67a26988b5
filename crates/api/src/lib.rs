//! The podwire agent's API: its types and a small blocking client
