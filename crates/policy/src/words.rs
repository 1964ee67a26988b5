//! Rows in words.

use std::fmt;

use podwire_abi::PortRule;

use crate::{Ports, Protocol};

const PORTS: u32 = 1 << 16;

/// A rule of a row as people read it: `tcp 80`, `udp 8000-8099`, `any`, `0-5, tcp 0-21`.
#[derive(Debug, Clone, Copy)]
pub struct InWords<'a>(pub &'a PortRule);

impl fmt::Display for InWords<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = (self.0.first, self.0.last_place());
        if (first, last) == (0, PortRule::PLACES - 1) {
            return f.write_str("any");
        }
        let (mut protocol, end) = (first / PORTS, last / PORTS);
        let mut between = "";
        while protocol <= end {
            f.write_str(between)?;
            between = ", ";
            let from = if protocol == first / PORTS { first % PORTS } else { 0 };
            let to = if protocol == end { last % PORTS } else { PORTS - 1 };
            if (from, to) != (0, PORTS - 1) {
                write!(f, "{} {}", named(protocol), Ports { first: short(from), last: short(to) })?;
                protocol += 1;
                continue;
            }
            // As many whole protocols as there are.
            let whole_end = if last % PORTS == PORTS - 1 { end } else { end - 1 };
            if whole_end == protocol {
                f.write_str(&named(protocol))?;
            } else {
                write!(f, "{protocol}-{whole_end}")?;
            }
            protocol = whole_end + 1;
        }
        Ok(())
    }
}

fn named(protocol: u32) -> String {
    match u8::try_from(protocol) {
        Ok(1) => "icmp4".to_owned(),
        Ok(58) => "icmp6".to_owned(),
        Ok(number) => Protocol::of(number).to_string(),
        Err(_) => protocol.to_string(),
    }
}

fn short(port: u32) -> u16 {
    u16::try_from(port).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_told_in_words() {
        let told = |first: (u32, u32), last: (u32, u32)| {
            let place = |(protocol, port)| protocol << 16 | port;
            InWords(&PortRule { first: place(first), last: place(last) | PortRule::DENY })
                .to_string()
        };
        assert_eq!(told((6, 80), (6, 80)), "tcp 80");
        assert_eq!(told((17, 0), (17, 65535)), "udp");
        assert_eq!(told((0, 0), (255, 65535)), "any");
        assert_eq!(told((0, 0), (6, 21)), "0-5, tcp 0-21");
        assert_eq!(told((6, 23), (255, 65535)), "tcp 23-65535, 7-255");
        assert_eq!(told((6, 23), (17, 3)), "tcp 23-65535, 7-16, udp 0-3");
        assert_eq!(told((5, 23), (7, 3)), "5 23-65535, tcp, 7 0-3");
        assert_eq!(told((1, 0), (1, 65535)), "icmp4");
    }
}
