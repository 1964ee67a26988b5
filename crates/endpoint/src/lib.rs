//! The pod's side of an endpoint: wiring with undo, checking, removal
