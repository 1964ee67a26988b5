//! Which keys the tables hold: entry number `index` has the value `index`, and its key follows from
//! the number. Both sides compile this file: user space fills the tables, the programs draw numbers.
#![allow(dead_code, unreachable_pub, reason = "each side uses a part, as its own module")]

/// Prefixes that stand beside the exact addresses of a two-tier table.
pub const PREFIXES: u32 = 10_000;

/// A prefix as the kernel's tries take it, in network byte order.
#[derive(Clone, Copy)]
pub struct Prefix<const WORDS: usize> {
    pub length: u32,
    pub address: [u32; WORDS],
}

/// Spreads numbers over all 32 bits, without two becoming one.
#[inline(always)]
pub const fn spread(index: u32) -> u32 {
    index.wrapping_mul(0x9e37_79b1)
}

#[inline(always)]
pub const fn key4(index: u32) -> u32 {
    spread(index)
}

#[inline(always)]
pub const fn key16(index: u32) -> [u32; 4] {
    let a = spread(index);
    [a, a.rotate_left(9), index, !a]
}

#[inline(always)]
pub const fn key40(index: u32) -> [u32; 10] {
    let a = spread(index);
    let b = a.rotate_left(9);
    [a, b, index, !a, !index, a ^ 0x5555_5555, b ^ 0x3333_3333, !b, a, 0]
}

/// The words of a flow's key: a TCP flow of one endpoint.
#[inline(always)]
pub const fn flow(index: u32) -> [u64; 3] {
    let ports = index.wrapping_mul(0x9e37_79b1) as u64;
    [ports << 32 | 6 << 16 | 7, 0, (spread(!index) as u64) << 32 | 0xffff_0000]
}

/// What flows are hashed by.
pub const SEED: [u64; 7] = [
    0x9e37_79b9_7f4a_7c15,
    0xbf58_476d_1ce4_e5b9,
    0x94d0_49bb_1331_11eb,
    0xd6e8_feb8_6659_fd93,
    0xa076_1d64_78bd_642f,
    0xe703_7ed1_a0b4_28db,
    0x8ebc_6af0_9c88_c6e3,
];

/// A host's IPv4 address.
#[inline(always)]
pub const fn host4(index: u32) -> [u32; 1] {
    [spread(index).to_be()]
}

/// A host's IPv6 address.
#[inline(always)]
pub const fn host16(index: u32) -> [u32; 4] {
    let a = spread(index);
    [0xfd00_0000_u32.to_be(), a.to_be(), 0, a.rotate_left(9).to_be()]
}

/// An IPv4 prefix: every sixteenth is a /16, which covers the fifteen after it, of /21 to /28.
#[inline(always)]
pub const fn mixed4(index: u32) -> Prefix<1> {
    // Odd, so that no two of the 65,536 groups become one.
    let group = (index >> 4).wrapping_mul(0x9e3b) << 16;
    let member = index & 15;
    if member == 0 {
        return Prefix { length: 16, address: [group.to_be()] };
    }
    let address = group | 0x8000 | member << 11;
    Prefix { length: 21 + (member - 1) % 8, address: [address.to_be()] }
}

/// An address whose longest prefix is `mixed4(index)`.
#[inline(always)]
pub const fn within_mixed4(index: u32) -> [u32; 1] {
    [mixed4(index).address[0] | 1_u32.to_be()]
}

/// An IPv6 prefix: every sixteenth is a /64, which covers the fifteen after it, of /72 to /120.
#[inline(always)]
pub const fn mixed16(index: u32) -> Prefix<4> {
    let group = spread(index >> 4).to_be();
    let member = index & 15;
    let first = 0xfd00_0000_u32.to_be();
    if member == 0 {
        return Prefix { length: 64, address: [first, group, 0, 0] };
    }
    let third = 0x8000_0000 | member << 24;
    Prefix { length: 72 + (member - 1) % 7 * 8, address: [first, group, third.to_be(), 0] }
}

/// An address whose longest prefix is `mixed16(index)`.
#[inline(always)]
pub const fn within_mixed16(index: u32) -> [u32; 4] {
    let [a, b, c, _] = mixed16(index).address;
    [a, b, c, 1_u32.to_be()]
}
