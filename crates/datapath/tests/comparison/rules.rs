//! What may hold for ports: a few rules, and as many as a row may have.

use podwire_datapath::abi::{PortRule, Protocol};

/// What may hold for ports, row by row of [`ROWS`].
pub const RULES: &[PortRule] = &rules();

const TCP: Protocol = Protocol::TCP;
const UDP: Protocol = Protocol::UDP;
const LAST: (Protocol, u16) = (Protocol(255), u16::MAX);

/// The last row has as many rules as a row may have.
const SMALL_RULES: u32 = 13;
const ALL: usize = (SMALL_RULES + PortRule::MOST) as usize;

/// Rows of rules: the first one's place, and how many.
pub const ROWS: [(u32, u32); 9] = [
    (0, 0),
    (0, 1),
    (1, 1),
    (2, 1),
    (3, 1),
    (4, 5),
    (9, 3),
    (12, 1),
    (SMALL_RULES, PortRule::MOST),
];

const fn rules() -> [PortRule; ALL] {
    const fn range(first: (Protocol, u16), last: (Protocol, u16), deny: u32) -> PortRule {
        PortRule {
            first: PortRule::place(first.0, first.1),
            last: PortRule::place(last.0, last.1) | deny,
        }
    }
    const DENY: u32 = PortRule::DENY;
    let mut rules = [range((TCP, 80), (TCP, 80), 0); ALL];
    rules[1] = range((TCP, 80), (TCP, 80), DENY);
    rules[2] = range((Protocol(0), 0), LAST, 0);
    rules[3] = range((Protocol(0), 0), LAST, DENY);
    rules[4] = range((TCP, 0), (TCP, 79), DENY);
    rules[5] = range((TCP, 80), (TCP, 80), 0);
    rules[6] = range((TCP, 81), (TCP, u16::MAX), DENY);
    rules[7] = range((UDP, 50), (UDP, 53), 0);
    rules[8] = range((UDP, 54), LAST, DENY);
    rules[9] = range((Protocol::ICMP, 0), (Protocol::ICMP, 0), 0);
    rules[10] = range((UDP, 53), (UDP, 53), DENY);
    rules[11] = range((Protocol::ICMPV6, 0), (Protocol::ICMPV6, 0), 0);
    rules[12] = range((TCP, 80), (UDP, 53), 0);
    let (mut place, mut port) = (SMALL_RULES as usize, 0);
    while place < ALL {
        let deny = if port % 3 == 0 { DENY } else { 0 };
        rules[place] = range((TCP, port), (TCP, port), deny);
        place += 1;
        port += 2;
    }
    rules
}
