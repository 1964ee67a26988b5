//! What `nf_tables` does to forwarded packets. iptables-nft keeps its chains there as well.

use std::fs;
use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use podwire_api::ROUTER_HOST;
use podwire_netlink::wire::{Attributes, MessageBuilder, messages};

/// `include/uapi/linux/netfilter/nfnetlink.h`: the subsystem is the upper byte of the type.
const NFTABLES: u16 = 10 << 8;
/// `include/uapi/linux/netfilter/nf_tables.h`
const NEW_CHAIN: u16 = NFTABLES | 3;
const GET_CHAIN: u16 = NFTABLES | 4;
const NEW_RULE: u16 = NFTABLES | 6;
const GET_RULE: u16 = NFTABLES | 7;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const HOOK_NUM: u16 = 1;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const NF_INET_FORWARD: u32 = 2;
const NF_DROP: u32 = 0;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `struct nfgenmsg`
const GENERIC_LEN: usize = 4;

/// A base chain at the forward hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForwardChain {
    pub(crate) family: ChainFamily,
    pub(crate) table: String,
    pub(crate) name: String,
    /// Whether what no rule has decided is dropped.
    pub(crate) drops: bool,
    /// Whether a rule of the chain names the router link, and so knows of pods.
    pub(crate) knows_router: bool,
}

/// Which packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChainFamily {
    Both,
    V4,
    V6,
}

impl ChainFamily {
    /// `NFPROTO_*`; families without a forward hook for IP are none.
    fn of(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Both),
            2 => Some(Self::V4),
            10 => Some(Self::V6),
            _ => None,
        }
    }

    /// As `nft` writes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Both => "inet",
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::Both => 1,
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }
}

/// The base chains at the forward hook of this namespace whose policy is to drop.
///
/// A kernel without `nf_tables` has none.
pub(crate) fn dropping_chains() -> io::Result<Vec<ForwardChain>> {
    let mut chains = Vec::new();
    let unspecified = [0_u8; GENERIC_LEN];
    let listed = dump(
        GET_CHAIN,
        unspecified,
        |_| {},
        |kind, payload| {
            if kind == NEW_CHAIN {
                chains.extend(parse_chain(payload).filter(|chain| chain.drops));
            }
        },
    );
    match listed {
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        other => other?,
    }
    for chain in &mut chains {
        let mut knows = false;
        let fill = |message: &mut MessageBuilder<'_>| {
            message.attr_str(RULE_TABLE, chain.table.as_bytes());
            message.attr_str(RULE_CHAIN, chain.name.as_bytes());
        };
        dump(GET_RULE, [chain.family.number(), 0, 0, 0], fill, |kind, payload| {
            knows |= kind == NEW_RULE && names_router(payload);
        })?;
        chain.knows_router = knows;
    }
    Ok(chains)
}

/// Whether the older `ip_tables` or `ip6_tables` filter table exists here; its policies can only be
/// read through its own interface.
pub(crate) fn has_legacy_filter() -> bool {
    // thread-self: /proc/net is the namespace of the process's first thread.
    ["/proc/thread-self/net/ip_tables_names", "/proc/thread-self/net/ip6_tables_names"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .any(|names| names.lines().any(|name| name == "filter"))
}

fn parse_chain(payload: &[u8]) -> Option<ForwardChain> {
    let (generic, attributes) = payload.split_at_checked(GENERIC_LEN)?;
    let family = ChainFamily::of(generic[0])?;
    let mut chain = ForwardChain {
        family,
        table: String::new(),
        name: String::new(),
        drops: false,
        knows_router: false,
    };
    let mut hook = None;
    for attribute in Attributes::new(attributes).map_while(Result::ok) {
        match attribute.kind {
            CHAIN_TABLE => chain.table = attribute.text(),
            CHAIN_NAME => chain.name = attribute.text(),
            CHAIN_POLICY => chain.drops = attribute.u32().ok().map(u32::from_be) == Some(NF_DROP),
            CHAIN_HOOK => {
                let mut nested = attribute.nested().map_while(Result::ok);
                let number = nested.find(|inner| inner.kind == HOOK_NUM)?;
                hook = number.u32().ok().map(u32::from_be);
            }
            _ => {}
        }
    }
    (hook == Some(NF_INET_FORWARD)).then_some(chain)
}

/// An interface's name stands in a rule as it is. Whether the rule accepts cannot be told without
/// running it, but somebody who wrote it knew of pods.
fn names_router(payload: &[u8]) -> bool {
    payload.windows(ROUTER_HOST.len()).any(|window| window == ROUTER_HOST.as_bytes())
}

/// No `nf_tables` in this kernel, or nothing in this namespace.
fn is_absent(error: &io::Error) -> bool {
    use nix::libc::{EAFNOSUPPORT, EINVAL, ENOENT, EOPNOTSUPP, EPROTONOSUPPORT};
    let absent = [EAFNOSUPPORT, EINVAL, ENOENT, EOPNOTSUPP, EPROTONOSUPPORT];
    error.raw_os_error().is_some_and(|errno| absent.contains(&errno))
}

/// Sends one dump request and hands out the messages of its answer.
fn dump(
    kind: u16,
    generic: [u8; GENERIC_LEN],
    fill: impl FnOnce(&mut MessageBuilder<'_>),
    mut each: impl FnMut(u16, &[u8]),
) -> io::Result<()> {
    let socket = Socket::new(NETLINK_NETFILTER)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(5, 0))?;
    let mut request = Vec::new();
    let mut message = MessageBuilder::new(&mut request, kind, NLM_F_REQUEST | NLM_F_DUMP, 1);
    message.fixed(&generic);
    fill(&mut message);
    message.finish().map_err(io::Error::other)?;
    socket.send_to(&request, &SocketAddr::new(0, 0), 0)?;
    loop {
        let (datagram, sender) = socket.recv_from_full()?;
        if sender.port_number() != 0 {
            continue;
        }
        for message in messages(&datagram) {
            let message = message.map_err(io::Error::other)?;
            match message.kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    let code =
                        message.payload.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
                    return match code {
                        0 => Ok(()),
                        code => Err(io::Error::from_raw_os_error(-code)),
                    };
                }
                kind => each(kind, message.payload),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use podwire_netlink::wire::HEADER_LEN;

    use super::*;

    fn chain(family: u8, hook: Option<u32>, policy: u32) -> Vec<u8> {
        let mut buffer = Vec::new();
        let mut message = MessageBuilder::new(&mut buffer, NEW_CHAIN, 0, 1);
        message.fixed(&[family, 0, 0, 0]);
        message.attr_str(CHAIN_TABLE, b"filter");
        message.attr_str(CHAIN_NAME, b"FORWARD");
        if let Some(hook) = hook {
            message.nest(CHAIN_HOOK, |nested| nested.attr_u32(HOOK_NUM, hook.to_be()));
            message.attr_u32(CHAIN_POLICY, policy.to_be());
        }
        message.finish().unwrap();
        buffer.split_off(HEADER_LEN)
    }

    #[test]
    fn chains_are_told_apart() {
        let found = parse_chain(&chain(2, Some(2), 0)).unwrap();
        assert_eq!((found.table.as_str(), found.name.as_str()), ("filter", "FORWARD"));
        assert_eq!((found.family, found.drops), (ChainFamily::V4, true));
        assert!(!parse_chain(&chain(1, Some(2), 1)).unwrap().drops);
        assert_eq!(parse_chain(&chain(2, Some(1), 0)), None, "the input hook");
        assert_eq!(parse_chain(&chain(2, None, 0)), None, "no base chain");
        assert_eq!(parse_chain(&chain(7, Some(2), 0)), None, "a bridge's forward hook");
        assert_eq!(parse_chain(&[]), None);
        assert_eq!(parse_chain(&[2, 0, 0, 0, 9, 9]), None);
    }

    #[test]
    fn rules_that_name_the_router_are_seen() {
        assert!(names_router(b"....podwire_host\0\0\0\0...."));
        assert!(!names_router(b"....podwire_hos"));
    }
}
