//! The IPAM plugin: a translation between the protocol and `podwire-ipam`'s store of leases, with
//! host-local's configuration.

#![forbid(unsafe_code)]

mod command;
mod config;
mod error;
mod plugin;
mod resolv_conf;

use std::fs;
use std::process::ExitCode;
use std::time::Duration;

/// How long a call waits for others that use the same network's file.
const PATIENCE: Duration = Duration::from_secs(10);

/// A runtime calls without arguments; with some, a person does.
fn main() -> ExitCode {
    let mut words = std::env::args().skip(1).peekable();
    match words.peek() {
        Some(_) => command::run(words),
        None => podwire_cni::run(&plugin::Ipam),
    }
}

/// What leases are bound to: no interface outlives its kernel.
fn life() -> Result<String, podwire_cni::Error> {
    const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
    match fs::read_to_string(BOOT_ID) {
        Ok(id) => Ok(id.trim().to_owned()),
        Err(error) => {
            let msg = format!("cannot read {BOOT_ID}: {error}");
            Err(podwire_cni::Error::new(podwire_cni::Code::IO_FAILURE, msg)
                .with_details("podwire-ipam needs /proc to tell this boot's leases from others"))
        }
    }
}
