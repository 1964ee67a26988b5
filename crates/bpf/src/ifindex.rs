//! Placeholder until podwire-netlink exports it.
use std::fmt;
use std::num::NonZeroU32;
/// The number of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IfIndex(NonZeroU32);
impl IfIndex {
    /// The loopback interface, which has this number in every namespace.
    pub const LOOPBACK: Self = Self(NonZeroU32::MIN);
    /// Takes a number.
    pub const fn new(number: u32) -> Option<Self> {
        match NonZeroU32::new(number) {
            Some(index) if number <= i32::MAX.unsigned_abs() => Some(Self(index)),
            _ => None,
        }
    }
    /// The number.
    pub const fn as_u32(self) -> u32 {
        self.0.get()
    }
}
impl fmt::Display for IfIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
