//! Bodies, names and marks that come over the agent's socket. The first byte chooses which.
//!
//! What is accepted is the same after it was written and read again; names of host links are those
//! that the kernel takes.
#![no_main]

use std::{fmt::Debug, str::FromStr};

use libfuzzer_sys::fuzz_target;
use podwire_api::{
    AgentConfig, Endpoint, EndpointId, EndpointRequest, ErrorBody, Lease, LeaseReply, LeaseRequest,
    Mac, Mark, NodeName, Removal, Status, host_link_name,
};
use serde::{Serialize, de::DeserializeOwned};

fuzz_target!(|input: &[u8]| {
    let Some((choice, bytes)) = input.split_first() else { return };
    match choice % 13 {
        0 => body::<LeaseRequest>(bytes),
        1 => body::<LeaseReply>(bytes),
        2 => body::<EndpointRequest>(bytes),
        3 => body::<Endpoint>(bytes),
        4 => body::<Lease>(bytes),
        5 => body::<Removal>(bytes),
        6 => body::<Status>(bytes),
        7 => body::<AgentConfig>(bytes),
        8 => drop(serde_json::from_slice::<ErrorBody>(bytes)),
        9 => text::<Mark>(bytes),
        10 => text::<Mac>(bytes),
        11 => text::<NodeName>(bytes),
        _ => id(bytes),
    }
});

fn body<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(bytes) else { return };
    let written = serde_json::to_vec(&value).expect("what was read can be written");
    let read = serde_json::from_slice::<T>(&written).expect("what was written can be read");
    assert_eq!(read, value);
}

fn text<T: FromStr + ToString + PartialEq + Debug>(bytes: &[u8]) {
    let Ok(Ok(value)) = std::str::from_utf8(bytes).map(str::parse::<T>) else { return };
    assert_eq!(value.to_string().parse().ok(), Some(value));
}

fn id(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (container, ifname) = text.split_once('/').unwrap_or((text, "eth0"));
    let link = host_link_name(container, ifname);
    assert!(link.parse::<podwire_netlink::IfName>().is_ok(), "{link}");
    if let Ok(id) = EndpointId::new(container, ifname) {
        assert_eq!(id.host_link(), link);
        assert_eq!(id.to_string(), text.to_owned() + if text.contains('/') { "" } else { "/eth0" });
    }
}
