//! A plugin's whole input. The first line of the fuzzer's bytes are variables, parted by NUL; the
//! rest is standard input.
//!
//! Whatever comes: no panic, one JSON object as the answer or none, non-zero with an error object.
//! A configuration that is accepted, written and read again is the same.
#![no_main]

use std::{ffi::OsString, os::unix::ffi::OsStringExt};

use libfuzzer_sys::fuzz_target;
use podwire_cni::{
    Add, Check, Del, Environment, Error, NetworkConfig, Plugin, dispatch, types::Success,
};
use serde_json::Value;

struct Echo;

impl Plugin for Echo {
    fn add(&self, add: &Add) -> Result<Success, Error> {
        assert_eq!(add.ifname.as_str().parse().as_ref(), Ok(&add.ifname));
        assert_eq!(add.container_id.as_str().parse().as_ref(), Ok(&add.container_id));
        Ok(add.prev_result.clone().unwrap_or_default())
    }

    fn del(&self, _: &Del) -> Result<(), Error> {
        Ok(())
    }

    fn check(&self, _: &Check) -> Result<(), Error> {
        Ok(())
    }
}

fuzz_target!(|input: &[u8]| {
    let line = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
    let (variables, stdin) = input.split_at(line);
    let stdin = stdin.get(1..).unwrap_or_default();
    let variables = variables.split(|byte| *byte == 0).filter_map(|pair| {
        let middle = pair.iter().position(|byte| *byte == b'=')?;
        let text = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        Some((text(&pair[..middle]), text(&pair[middle + 1..])))
    });
    let mut stdout = Vec::new();
    let exit = dispatch(&Echo, &Environment::new(variables), stdin, &mut stdout);
    if stdout.is_empty() {
        assert!(exit.is_success(), "an error without an answer: {exit}");
    } else {
        let answer = serde_json::from_slice(&stdout);
        let Ok(Value::Object(answer)) = answer else { panic!("the answer is no object") };
        assert_eq!(answer.contains_key("code"), !exit.is_success(), "{exit}: {answer:?}");
        assert_ne!(answer.get("code"), Some(&999.into()), "{answer:?}");
    }

    let Ok(config) = NetworkConfig::parse(stdin) else { return };
    let text = Value::Object(config.object().clone()).to_string();
    assert_eq!(NetworkConfig::parse(text.as_bytes()).as_ref(), Ok(&config), "{text}");
    let _ = (config.valid_attachments(), config.dns(), config.ipam_plugin(), config.args());
});
