//! A list of plugins, and a configuration of one. The first line is what a runtime has for
//! capabilities; the rest is the file.
//!
//! What is accepted can be run: every plugin gets a configuration that the plugin side accepts, in
//! the list's version and name, with all its own keys, with the capabilities that it declares and no
//! others. What is kept of a list for its DEL is the same list.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podwire_cni::{Code, NetworkConfig, runtime::Network};
use serde_json::{Value, json};

fuzz_target!(|input: &[u8]| {
    let line = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
    let (capabilities, text) = input.split_at(line);
    let text = text.get(1..).unwrap_or_default();
    let capabilities = match serde_json::from_slice(capabilities) {
        Ok(Value::Object(object)) => object,
        _ => Default::default(),
    };
    let networks = [Network::parse(text), Network::parse_single(text)];
    for network in networks.into_iter().flatten() {
        let kept = Network::parse(network.text());
        let kept = kept.unwrap_or_else(|error| panic!("{error}: {text:?}"));
        assert_eq!(kept.version(), network.version());
        let whole: Value = serde_json::from_slice(network.text()).expect("it was accepted");
        let result = json!({"cniVersion": network.version()});
        for prev_result in [None, Some(&result)] {
            let executions = network.executions(prev_result, &capabilities);
            for (place, (plugin, object)) in executions.enumerate() {
                let own = whole["plugins"][place].as_object().expect("an accepted plugin");
                let declared = &whole["plugins"][place]["capabilities"];
                for (key, value) in own {
                    let ours =
                        ["cniVersion", "name", "capabilities", "prevResult", "runtimeConfig"];
                    if !ours.contains(&key.as_str()) {
                        assert_eq!(object.get(key), Some(value), "{key} was changed");
                    }
                }
                assert!(!object.contains_key("capabilities"));
                assert_eq!(object.get("prevResult"), prev_result);
                let inserted: Vec<_> = capabilities
                    .keys()
                    .filter(|key| declared.get(key.as_str()) == Some(&Value::Bool(true)))
                    .collect();
                if inserted.is_empty() {
                    assert_eq!(object.get("runtimeConfig"), own.get("runtimeConfig"));
                } else {
                    let given = object["runtimeConfig"].as_object().expect("an object");
                    assert_eq!(given.keys().collect::<Vec<_>>(), inserted);
                }
                assert_eq!(object["type"], plugin);
                match NetworkConfig::parse(&serde_json::to_vec(&object).expect("it is JSON")) {
                    Ok(config) => {
                        assert_eq!(config.name(), network.name());
                        assert_eq!(config.version(), network.version());
                    }
                    // The values are the plugin's to judge.
                    Err(error) => {
                        assert_eq!(error.code(), Code::INVALID_NETWORK_CONFIG, "{error}");
                        assert!(object.contains_key("runtimeConfig"), "{error}");
                    }
                }
            }
        }
    }
});
