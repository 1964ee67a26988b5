//! Records of the agent's store, as they are read at its start.
//!
//! A damaged one is an error, never a panic. A good one, written as the store writes it and read
//! again, is the same endpoint.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podwire_node::fuzzing::record;

fuzz_target!(|json: &[u8]| {
    let Ok(endpoint) = record("fuzzed", json) else { return };
    let written = serde_json::to_vec(&endpoint).expect("endpoints can be written");
    assert_eq!(record("fuzzed", &written), Ok(endpoint));
});
