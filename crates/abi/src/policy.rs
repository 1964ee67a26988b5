//! What endpoints may send and receive.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::Protocol;

/// One direction of an endpoint's policy: a number and flags in one word, so that it is never read torn.
///
/// A packet is judged by the rules for its other side's identity ([`PolicyKey::identity`]), or, where
/// there are none, by those for everybody who has no row ([`PolicyKey::others`]); and by the rules for its narrowest
/// prefix ([`PolicyKey::cidr`]). User space has put into each row whatever holds for it: rules for everybody, for
/// wider prefixes. A denial by either counts, then a permission by either, then the default.
#[repr(transparent)]
#[derive(
    Clone, Copy, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct PolicyRef(u32);

impl PolicyRef {
    /// Numbers of policies are below it.
    pub const POLICIES: u32 = 1 << 28;

    /// Everything is permitted at once.
    pub const OPEN: Self = Self(0);

    /// From a policy's number, below [`POLICIES`](Self::POLICIES), and flags of [`policy_flag`].
    #[must_use]
    #[inline(always)]
    pub const fn new(policy: u32, flags: u32) -> Self {
        Self(policy << 4 | flags)
    }

    /// The policy's number.
    #[must_use]
    #[inline(always)]
    pub const fn policy(self) -> u32 {
        self.0 >> 4
    }

    /// Of [`policy_flag`]; 0 permits everything at once.
    #[must_use]
    #[inline(always)]
    pub const fn flags(self) -> u32 {
        self.0 & 0xf
    }

    /// Whether it has one of these flags.
    #[must_use]
    #[inline(always)]
    pub const fn has(self, flags: u32) -> bool {
        self.0 & flags != 0
    }

    /// As one number.
    #[must_use]
    #[inline(always)]
    pub const fn word(self) -> u32 {
        self.0
    }

    /// The one that has this [`word`](Self::word).
    #[must_use]
    #[inline(always)]
    pub const fn of_word(word: u32) -> Self {
        Self(word)
    }
}

impl core::fmt::Debug for PolicyRef {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("PolicyRef")
            .field("policy", &self.policy())
            .field("flags", &self.flags())
            .finish()
    }
}

/// Flags of a [`PolicyRef`].
pub mod policy_flag {
    /// What no rule speaks of is denied.
    pub const DENY_BY_DEFAULT: u32 = 1;
    /// There are rows for identities.
    pub const IDENTITIES: u32 = 2;
    /// There are rows for prefixes.
    pub const CIDRS: u32 = 4;
    /// There is a row for others.
    pub const OTHERS: u32 = 8;
}

/// Whom a row of a policy concerns.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct PolicyKey {
    /// The policy's number.
    pub policy: u32,
    /// An identity, a prefix's number with [`PolicyKey::CIDR`], or [`PolicyKey::OTHERS`].
    pub subject: u32,
}

impl PolicyKey {
    /// Tells prefixes from identities, which stay below it.
    pub const CIDR: u32 = 1 << 31;
    /// The subject of the row for everybody who has none: no prefix has number 0.
    pub const OTHERS: u32 = Self::CIDR;

    /// The row for an identity.
    #[must_use]
    #[inline(always)]
    pub const fn identity(policy: u32, identity: u32) -> Self {
        Self { policy, subject: identity & !Self::CIDR }
    }

    /// The row for everybody who has none.
    #[must_use]
    #[inline(always)]
    pub const fn others(policy: u32) -> Self {
        Self { policy, subject: Self::OTHERS }
    }

    /// The row for a prefix.
    #[must_use]
    #[inline(always)]
    pub const fn cidr(policy: u32, number: u32) -> Self {
        Self { policy, subject: number | Self::CIDR }
    }
}

/// Where a row's rules are in [`map::POLICY_RULES`](crate::map::POLICY_RULES).
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct PolicyRow {
    /// The first one's place.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// What holds for a range of ports. The rules of a row are in order and do not overlap.
///
/// A protocol and a port are one number, [`PortRule::place`]: a protocol without ports has port 0, and
/// a rule for all protocols is a range like any other.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct PortRule {
    /// The first place.
    pub first: u32,
    /// The last place in the lower 24 bits; [`PortRule::DENY`] or 0 above.
    pub last: u32,
}

impl PortRule {
    /// Places are below it.
    pub const PLACES: u32 = 1 << 24;
    /// The rule denies.
    pub const DENY: u32 = 1 << 31;
    /// Rules of a row at most.
    pub const MOST: u32 = 1 << 12;

    /// A protocol and a port as one number.
    #[must_use]
    #[inline(always)]
    pub const fn place(protocol: Protocol, port: u16) -> u32 {
        (protocol.0 as u32) << 16 | port as u32
    }

    /// The last place.
    #[must_use]
    #[inline(always)]
    pub const fn last_place(&self) -> u32 {
        self.last & (Self::PLACES - 1)
    }

    /// Whether it denies.
    #[must_use]
    #[inline(always)]
    pub const fn denies(&self) -> bool {
        self.last & Self::DENY != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_what_the_kernel_object_was_built_with() {
        assert_eq!(size_of::<PolicyRef>(), 4);
        assert_eq!(size_of::<PolicyKey>(), 8);
        assert_eq!(size_of::<PolicyRow>(), 8);
        assert_eq!(size_of::<PortRule>(), 8);
    }

    #[test]
    fn prefixes_and_identities_are_apart() {
        assert_ne!(PolicyKey::identity(1, 7), PolicyKey::cidr(1, 7));
        let policy = PolicyRef::new(PolicyRef::POLICIES - 1, policy_flag::CIDRS);
        assert_eq!(
            (policy.policy(), policy.flags()),
            (PolicyRef::POLICIES - 1, policy_flag::CIDRS)
        );
        assert!(PortRule::place(Protocol(255), 65535) < PortRule::PLACES);
        let rule = PortRule { first: 0, last: PortRule::place(Protocol::TCP, 80) | PortRule::DENY };
        assert!(rule.denies());
        assert_eq!(rule.last_place(), PortRule::place(Protocol::TCP, 80));
    }
}
