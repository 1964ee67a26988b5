//! Prefixes by which addresses are found.

use std::{collections::HashMap, net::IpAddr};

use ipnetwork::IpNetwork;

/// Values by prefix; the narrowest prefix that has an address is found by one hash for each length
/// that there is.
#[derive(Debug, Clone)]
pub(crate) struct Index<V> {
    by_prefix: HashMap<IpNetwork, V>,
    /// How many prefixes have which length, by family.
    lengths: [[u32; 129]; 2],
}

impl<V> Default for Index<V> {
    fn default() -> Self {
        Self { by_prefix: HashMap::new(), lengths: [[0; 129]; 2] }
    }
}

impl<V> Index<V> {
    pub(crate) fn get(&self, prefix: &IpNetwork) -> Option<&V> {
        self.by_prefix.get(prefix)
    }

    pub(crate) fn get_mut(&mut self, prefix: &IpNetwork) -> Option<&mut V> {
        self.by_prefix.get_mut(prefix)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&IpNetwork, &V)> {
        self.by_prefix.iter()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.by_prefix.is_empty()
    }

    pub(crate) fn insert(&mut self, prefix: IpNetwork, value: V) -> Option<V> {
        let last = self.by_prefix.insert(prefix, value);
        if last.is_none() {
            *self.length(&prefix) += 1;
        }
        last
    }

    pub(crate) fn remove(&mut self, prefix: &IpNetwork) -> Option<V> {
        let last = self.by_prefix.remove(prefix);
        if last.is_some() {
            *self.length(prefix) -= 1;
        }
        last
    }

    /// The narrowest prefix that covers this one, itself included.
    pub(crate) fn covering(&self, prefix: IpNetwork) -> Option<(&IpNetwork, &V)> {
        self.narrowest(prefix.network(), prefix.prefix())
    }

    fn narrowest(&self, address: IpAddr, longest: u8) -> Option<(&IpNetwork, &V)> {
        let lengths = &self.lengths[usize::from(address.is_ipv6())];
        (0..=longest)
            .rev()
            .filter(|&length| lengths[usize::from(length)] != 0)
            .find_map(|length| self.by_prefix.get_key_value(&cut(address, length)?))
    }

    fn length(&mut self, prefix: &IpNetwork) -> &mut u32 {
        &mut self.lengths[usize::from(prefix.is_ipv6())][usize::from(prefix.prefix())]
    }
}

/// The prefix of that length that an address is in.
fn cut(address: IpAddr, length: u8) -> Option<IpNetwork> {
    let inside = IpNetwork::new(address, length).ok()?;
    IpNetwork::new(inside.network(), length).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_is_found() {
        let mut index = Index::default();
        for text in ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "fd00::/8"] {
            assert_eq!(index.insert(text.parse().unwrap(), text), None);
        }
        let of = |index: &Index<&str>, address: &str| {
            index.covering(address.parse().unwrap()).map(|(_, value)| value.to_string())
        };
        assert_eq!(of(&index, "10.1.2.3").unwrap(), "10.1.2.3/32");
        assert_eq!(of(&index, "10.1.2.4").unwrap(), "10.1.0.0/16");
        assert_eq!(of(&index, "9.1.2.4").unwrap(), "0.0.0.0/0");
        assert_eq!(of(&index, "fe00::"), None);
        let prefix = "10.1.0.0/16".parse().unwrap();
        assert_eq!(index.covering(prefix).unwrap().1, &"10.1.0.0/16");
        assert_eq!(index.remove(&prefix), Some("10.1.0.0/16"));
        assert_eq!(index.covering(prefix).unwrap().1, &"10.0.0.0/8");
    }
}
