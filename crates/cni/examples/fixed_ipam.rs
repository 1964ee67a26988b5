//! A whole plugin: an IPAM plugin that assigns the `address`, with its `gateway`, that stands in
//! its configuration under `ipam`.

use std::process::ExitCode;

use podwire_cni::types::{Ip, Success};
use podwire_cni::{Add, Check, Code, Del, Error, Plugin};

#[derive(serde::Deserialize)]
struct Settings {
    ipam: Ip,
}

struct FixedIpam;

impl Plugin for FixedIpam {
    fn add(&self, add: &Add) -> Result<Success, Error> {
        let mut success = Success::default();
        success.ips.push(add.config.settings::<Settings>()?.ipam);
        Ok(success)
    }

    fn del(&self, _: &Del) -> Result<(), Error> {
        Ok(()) // Nothing was stored.
    }

    fn check(&self, check: &Check) -> Result<(), Error> {
        let address = check.config.settings::<Settings>()?.ipam.address;
        if check.prev_result.ips.iter().any(|ip| ip.address == address) {
            return Ok(());
        }
        Err(Error::new(Code::plugin(100), format!("prevResult does not have {address}")))
    }
}

fn main() -> ExitCode {
    podwire_cni::run(&FixedIpam)
}
