use podwire_api::EndpointId;
use podwire_netlink::MacAddr;
use sha2::{Digest as _, Sha256};

/// The address of an endpoint's interface in the container.
///
/// It follows from the endpoint's name, so that a repeated attempt gives the pod the same one; it
/// is locally administered (IEEE 802, 8.4).
#[must_use]
pub fn container_mac(id: &EndpointId) -> MacAddr {
    derive(id, "container")
}

/// The address of an endpoint's host link, likewise.
#[must_use]
pub fn host_mac(id: &EndpointId) -> MacAddr {
    derive(id, "host")
}

fn derive(id: &EndpointId, end: &str) -> MacAddr {
    let digest = Sha256::digest(format!("mac/{end}/{id}"));
    let mut octets = [0; 6];
    octets.copy_from_slice(&digest[..6]);
    // Locally administered, and not a group address.
    octets[0] = octets[0] & !0x01 | 0x02;
    MacAddr(octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_local_distinct_and_stable() {
        let id = EndpointId::new("c1", "eth0").unwrap();
        let (a, b) = (container_mac(&id), host_mac(&id));
        assert_ne!(a, b);
        assert_eq!(a, container_mac(&id));
        for mac in [a, b] {
            assert_eq!(mac.octets()[0] & 3, 2, "{mac}");
        }
        assert_ne!(a, container_mac(&EndpointId::new("c1", "eth1").unwrap()));
    }
}
