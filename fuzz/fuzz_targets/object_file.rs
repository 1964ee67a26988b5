//! Compiled objects, damaged: an error, never a panic that leaves the crate. It catches those of the
//! ELF reader below it, which libFuzzer's own panic hook would not let it do.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podwire_bpf::ObjectSpec;

fuzz_target!(
    init: std::panic::set_hook(Box::new(|_| {})),
    |object: &[u8]| {
        let _ = ObjectSpec::parse(object);
    }
);
