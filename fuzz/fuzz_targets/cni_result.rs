//! Results and `prevResult`, of every version. The first byte chooses the configuration's version.
//!
//! What is read can be written in every version; what a version can say survives being read and
//! written again, directly and by way of the newest version. The newest loses nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podwire_cni::{SpecVersion, types::Success};

fuzz_target!(|input: &[u8]| {
    let Some((choice, text)) = input.split_first() else { return };
    let stated = SpecVersion::ALL[usize::from(*choice) % SpecVersion::ALL.len()];
    let Ok(value) = serde_json::from_slice(text) else { return };
    let Ok(success) = Success::from_value(value, stated) else { return };
    for version in SpecVersion::ALL.iter().copied() {
        let value = success.to_value(version);
        let read = Success::from_value(value.clone(), stated);
        let read = read.unwrap_or_else(|error| panic!("{version}: {value}: {error}"));
        assert_eq!(read.to_value(version), value, "{version}");
        let newest = Success::from_value(read.to_value(SpecVersion::V1_1_0), stated);
        assert_eq!(newest.as_ref(), Ok(&read), "{version} by way of the newest");
        if version == SpecVersion::V1_1_0 {
            assert_eq!(read, success, "the newest version loses something");
        }
    }
});
