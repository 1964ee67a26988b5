//! A file of a runtime's memory of attachments, as podwire, libcni or a full disk left it.
//!
//! What is read is written and read again the same; the configuration in it is a network or an
//! error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podwire_cni::{
    SpecVersion,
    runtime::{Entry, Network},
    types::Success,
};

fuzz_target!(|input: &[u8]| {
    let Ok(entry) = Entry::parse(input) else { return };
    let written = entry.to_json();
    let text = || String::from_utf8_lossy(&written);
    assert_eq!(Entry::parse(&written).as_ref(), Ok(&entry), "{}", text());
    let _ = Network::parse(&entry.config);
    if let Some(result) = entry.result {
        let _ = Success::from_value(result, SpecVersion::V1_1_0);
    }
});
