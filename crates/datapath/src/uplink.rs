//! Programs at the devices that lead out of the node.

use std::{collections::BTreeSet, fs, io, path::PathBuf};

use podwire_abi::{Address, Be32, NatDevice, program};
use podwire_bpf::{AttachMode, Attachment, Direction, IfIndex, Removal};

use crate::{
    attach::point,
    datapath::Datapath,
    error::{Error, Result},
    nat::{LinkHeader, PortRange, UplinkConfig},
};

impl Datapath {
    /// Tells the programs of an uplink, and attaches them; replaces, without a gap, what is attached
    /// there already. Programs of others at the device go on: ours come after theirs, and pass on
    /// what they do not drop.
    ///
    /// Pins are called by the interface's number, so that it may be renamed.
    ///
    /// # Errors
    ///
    /// If the map refuses or the programs cannot be attached.
    pub fn set_uplink(&self, ifindex: u32, uplink: &UplinkConfig) -> Result<()> {
        let index = IfIndex::new(ifindex).ok_or(Error::NoUplink { ifindex })?;
        // What is attached without an entry lets everything through, and replacing an entry is atomic.
        self.nat()?.devices.insert(&ifindex, &device(uplink))?;
        let mode = self.attach_mode();
        // What comes back first: nothing leaves whose answers nobody would know.
        for (name, direction) in
            [(program::FROM_NETDEV, Direction::Ingress), (program::TO_NETDEV, Direction::Egress)]
        {
            let pin = self.uplink_folder(ifindex).join(direction.to_string());
            Attachment::ensure(self.program(name)?, &point(index, direction, mode, &pin))?;
        }
        let other = match mode {
            AttachMode::Tcx => AttachMode::Clsact,
            AttachMode::Clsact => AttachMode::Tcx,
        };
        self.detach_uplink(index, other).map(drop)
    }

    /// Detaches the programs of an uplink and forgets it, whether the device still exists or not. Its
    /// mappings stay: answers may come by another.
    ///
    /// # Errors
    ///
    /// If a pin or filter cannot be removed, or the map refuses.
    pub fn remove_uplink(&self, ifindex: u32) -> Result<Removal> {
        let mut removal = Removal::Absent;
        if let Some(index) = IfIndex::new(ifindex) {
            for mode in [AttachMode::Tcx, AttachMode::Clsact] {
                if self.detach_uplink(index, mode)? == Removal::Removed {
                    removal = Removal::Removed;
                }
            }
        }
        let folder = self.uplink_folder(ifindex);
        match fs::remove_dir(&folder) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(Error::Folder { operation: "remove", path: folder, source });
            }
            _ => {}
        }
        let known = self.nat()?.devices.remove(&ifindex)?;
        Ok(if known == Removal::Removed { known } else { removal })
    }

    /// Interface indices of all uplinks that are told what to do or have pins: those of devices that are
    /// gone are among them.
    ///
    /// # Errors
    ///
    /// If the map or the folder cannot be read.
    pub fn uplinks(&self) -> Result<Vec<u32>> {
        let mut found: BTreeSet<u32> = self.nat()?.uplinks()?.into_iter().collect();
        let folder = self.uplinks_folder();
        match fs::read_dir(&folder) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::Folder { operation: "list", path: folder, source }),
            Ok(entries) => {
                let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
                found.extend(names.filter_map(|name| name.parse::<u32>().ok()));
            }
        }
        Ok(found.into_iter().collect())
    }

    fn detach_uplink(&self, index: IfIndex, mode: AttachMode) -> Result<Removal> {
        let mut removal = Removal::Absent;
        // What leaves first, as above.
        for direction in [Direction::Egress, Direction::Ingress] {
            let pin = self.uplink_folder(index.as_u32()).join(direction.to_string());
            match Attachment::remove(&point(index, direction, mode, &pin)) {
                Ok(Removal::Removed) => removal = Removal::Removed,
                Ok(Removal::Absent) => {}
                // Filters go with their device.
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(removal)
    }

    fn uplink_folder(&self, ifindex: u32) -> PathBuf {
        self.uplinks_folder().join(ifindex.to_string())
    }

    fn uplinks_folder(&self) -> PathBuf {
        self.bpffs().join("uplinks")
    }
}

fn device(uplink: &UplinkConfig) -> NatDevice {
    NatDevice {
        ipv6: uplink.ipv6.map_or(Address::UNSPECIFIED, |v6| Address::from_ipv6(v6.octets())),
        ipv4: uplink.ipv4.map_or(Be32::new(0), |v4| Be32::new(v4.into())),
        header: match uplink.header {
            LinkHeader::Ethernet => 14,
            LinkHeader::None => 0,
        },
        first_port: uplink.ports.first().into(),
        ports: uplink.ports.count(),
        step: step(uplink.ports),
    }
}

/// About 0.618 times the number of ports, so that ports tried in a row are spread over all of them, and
/// coprime to it, so that none is tried twice.
fn step(ports: PortRange) -> u32 {
    let count = ports.count();
    let golden = count * 618 / 1000;
    (golden.max(1)..=count.max(1)).find(|&step| gcd(step, count) == 1).unwrap_or(1)
}

const fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_port_is_tried_before_one_is_tried_again() {
        for (first, last) in [(1, 1), (5, 6), (1000, 1009), (40000, 40063), (32768, 65535)] {
            let ports = PortRange::new(first, last).unwrap();
            let step = step(ports);
            let tried: HashSet<u32> =
                (0..ports.count()).map(|i| (7 + i * step) % ports.count()).collect();
            assert_eq!(tried.len(), ports.count() as usize, "{ports:?} by {step}");
        }
        assert_eq!(PortRange::new(0, 7), None);
        assert_eq!(PortRange::new(8, 7), None);
    }
}
