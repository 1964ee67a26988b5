//! Netlink messages and attributes as bytes: a builder that appends to a buffer, and checked views
//! over what the kernel sent.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---------------------------------------------------------------+
//! |                 length, header included                       |
//! +-------------------------------+-------------------------------+
//! |             type              |             flags             |
//! +-------------------------------+-------------------------------+
//! |                           sequence                            |
//! +---------------------------------------------------------------+
//! |                     port of the sender                        |
//! +---------------------------------------------------------------+
//! | payload: a fixed struct, then attributes, each padded to four |
//! +---------------------------------------------------------------+
//! ```
//!
//! Numbers are in host order, except where an attribute says otherwise. The layout is that of
//! `include/uapi/linux/netlink.h`. Every parser here is a pure function over bytes and returns an
//! error, never a panic, whatever it is given.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::ParseError;

/// Bytes of a message header.
pub const HEADER_LEN: usize = 16;

/// Set in a nested attribute's type; the kernel demands it where it parses strictly.
pub const NESTED: u16 = 0x8000;
/// Set in the type of an attribute whose value is in network order.
pub const NET_BYTEORDER: u16 = 0x4000;
const TYPE_MASK: u16 = !(NESTED | NET_BYTEORDER);

const ATTRIBUTE_HEADER_LEN: usize = 4;

/// Appends one message to a buffer.
///
/// The header's length is kept up to date by [`finish`](Self::finish), which must be called last.
#[derive(Debug)]
pub struct MessageBuilder<'a> {
    buffer: &'a mut Vec<u8>,
    start: usize,
    oversized: bool,
}

impl<'a> MessageBuilder<'a> {
    /// Starts a message at the end of `buffer`.
    pub fn new(buffer: &'a mut Vec<u8>, kind: u16, flags: u16, sequence: u32) -> Self {
        let start = buffer.len();
        buffer.extend_from_slice(&[0; 4]);
        buffer.extend_from_slice(&kind.to_ne_bytes());
        buffer.extend_from_slice(&flags.to_ne_bytes());
        buffer.extend_from_slice(&sequence.to_ne_bytes());
        buffer.extend_from_slice(&[0; 4]);
        Self { buffer, start, oversized: false }
    }

    /// Appends the fixed struct that precedes the attributes. Its length is a multiple of four in
    /// every rtnetlink message; anything else is padded.
    pub fn fixed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        self.pad();
    }

    /// Appends an attribute.
    pub fn attr(&mut self, kind: u16, value: &[u8]) {
        let Ok(length) = u16::try_from(value.len() + ATTRIBUTE_HEADER_LEN) else {
            self.oversized = true;
            return;
        };
        self.buffer.extend_from_slice(&length.to_ne_bytes());
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer.extend_from_slice(value);
        self.pad();
    }

    /// Appends an attribute of one byte.
    pub fn attr_u8(&mut self, kind: u16, value: u8) {
        self.attr(kind, &[value]);
    }

    /// Appends an attribute of two bytes.
    pub fn attr_u16(&mut self, kind: u16, value: u16) {
        self.attr(kind, &value.to_ne_bytes());
    }

    /// Appends an attribute of four bytes.
    pub fn attr_u32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_ne_bytes());
    }

    /// Appends a signed attribute of four bytes.
    pub fn attr_i32(&mut self, kind: u16, value: i32) {
        self.attr(kind, &value.to_ne_bytes());
    }

    /// Appends a string with the NUL that the kernel expects.
    pub fn attr_str(&mut self, kind: u16, value: &[u8]) {
        let Ok(length) = u16::try_from(value.len() + 1 + ATTRIBUTE_HEADER_LEN) else {
            self.oversized = true;
            return;
        };
        self.buffer.extend_from_slice(&length.to_ne_bytes());
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer.extend_from_slice(value);
        self.buffer.push(0);
        self.pad();
    }

    /// Appends an address of four or sixteen bytes.
    pub fn attr_ip(&mut self, kind: u16, address: IpAddr) {
        match address {
            IpAddr::V4(v4) => self.attr(kind, &v4.octets()),
            IpAddr::V6(v6) => self.attr(kind, &v6.octets()),
        }
    }

    /// Appends an attribute that contains what `fill` appends. The type is used as given: with
    /// [`NESTED`] or, for the older families that do not expect it, without.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.buffer.len();
        self.buffer.extend_from_slice(&[0; 2]);
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        fill(self);
        match u16::try_from(self.buffer.len() - start) {
            Ok(length) => self.buffer[start..start + 2].copy_from_slice(&length.to_ne_bytes()),
            Err(_) => self.oversized = true,
        }
    }

    /// Appends raw bytes whose first two are their own length, as next hops and the peer's
    /// `ifinfomsg` have it.
    pub fn sized(&mut self, fixed: &[u8], fill: impl FnOnce(&mut Self)) {
        let start = self.buffer.len();
        self.buffer.extend_from_slice(fixed);
        fill(self);
        match u16::try_from(self.buffer.len() - start) {
            Ok(length) => self.buffer[start..start + 2].copy_from_slice(&length.to_ne_bytes()),
            Err(_) => self.oversized = true,
        }
    }

    /// Writes the message's length.
    ///
    /// # Errors
    ///
    /// [`ParseError::Oversized`] when an attribute, or the message, did not fit its length field;
    /// the buffer is then as it was before the message.
    pub fn finish(self) -> Result<(), ParseError> {
        let length = u32::try_from(self.buffer.len() - self.start);
        match length {
            Ok(length) if !self.oversized => {
                self.buffer[self.start..self.start + 4].copy_from_slice(&length.to_ne_bytes());
                Ok(())
            }
            _ => {
                self.buffer.truncate(self.start);
                Err(ParseError::Oversized)
            }
        }
    }

    fn pad(&mut self) {
        let length = self.buffer.len() - self.start;
        self.buffer.resize(self.start + align(length), 0);
    }
}

/// One message, its header decoded and its payload borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// `RTM_*`, or one of the control types below 16.
    pub kind: u16,
    /// `NLM_F_*`.
    pub flags: u16,
    /// The number of the request this answers.
    pub sequence: u32,
    /// The port of the socket that asked, or zero.
    pub port: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// Splits the payload after a fixed struct of `length` bytes.
    ///
    /// # Errors
    ///
    /// [`ParseError::Truncated`] when the payload is shorter.
    pub fn split(&self, length: usize) -> Result<(&'a [u8], Attributes<'a>), ParseError> {
        split(self.payload, length)
    }
}

/// Splits `payload` after a fixed struct of `length` bytes.
pub(crate) fn split(payload: &[u8], length: usize) -> Result<(&[u8], Attributes<'_>), ParseError> {
    match payload.split_at_checked(length) {
        Some((fixed, rest)) => Ok((fixed, Attributes::new(rest))),
        None => {
            Err(ParseError::Truncated { what: "message", needed: length, found: payload.len() })
        }
    }
}

/// Iterates over the messages of one datagram.
///
/// The iterator ends after the first error.
pub fn messages(datagram: &[u8]) -> Messages<'_> {
    Messages { rest: datagram }
}

/// See [`messages`].
#[derive(Debug, Clone)]
pub struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, ParseError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let found = self.rest.len();
        let truncated = |needed| ParseError::Truncated { what: "header", needed, found };
        let Some(header) = self.rest.first_chunk::<HEADER_LEN>() else {
            self.rest = &[];
            return Some(Err(truncated(HEADER_LEN)));
        };
        let length = read_u32(header, 0) as usize;
        let Some(payload) = self.rest.get(HEADER_LEN..length) else {
            self.rest = &[];
            return Some(Err(truncated(length.max(HEADER_LEN))));
        };
        let message = Message {
            kind: read_u16(header, 4),
            flags: read_u16(header, 6),
            sequence: read_u32(header, 8),
            port: read_u32(header, 12),
            payload,
        };
        self.rest = self.rest.get(align(length)..).unwrap_or(&[]);
        Some(Ok(message))
    }
}

/// Iterates over attributes. The iterator ends after the first error.
#[derive(Debug, Clone)]
pub struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    /// Attributes laid end to end in `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, ParseError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let found = self.rest.len();
        let truncated = |needed| ParseError::Truncated { what: "attribute", needed, found };
        let Some(header) = self.rest.first_chunk::<ATTRIBUTE_HEADER_LEN>() else {
            self.rest = &[];
            return Some(Err(truncated(ATTRIBUTE_HEADER_LEN)));
        };
        let length = usize::from(read_u16(header, 0));
        let Some(value) = self.rest.get(ATTRIBUTE_HEADER_LEN..length) else {
            self.rest = &[];
            return Some(Err(truncated(length.max(ATTRIBUTE_HEADER_LEN))));
        };
        let kind = read_u16(header, 2) & TYPE_MASK;
        self.rest = self.rest.get(align(length)..).unwrap_or(&[]);
        Some(Ok(Attribute { kind, value }))
    }
}

/// One attribute: its type without the nested and byte-order bits, and its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// What the value means; numbered by the enclosing message or attribute.
    pub kind: u16,
    /// The value, without padding.
    pub value: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// The value as one byte.
    ///
    /// # Errors
    ///
    /// [`ParseError::Attribute`] unless it is one byte long. The same holds for the other widths.
    pub fn u8(&self) -> Result<u8, ParseError> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// The value as two bytes.
    ///
    /// # Errors
    ///
    /// As [`u8`](Self::u8).
    pub fn u16(&self) -> Result<u16, ParseError> {
        self.array().map(u16::from_ne_bytes)
    }

    /// The value as four bytes.
    ///
    /// # Errors
    ///
    /// As [`u8`](Self::u8).
    pub fn u32(&self) -> Result<u32, ParseError> {
        self.array().map(u32::from_ne_bytes)
    }

    /// The value as a signed number of four bytes.
    ///
    /// # Errors
    ///
    /// As [`u8`](Self::u8).
    pub fn i32(&self) -> Result<i32, ParseError> {
        self.array().map(i32::from_ne_bytes)
    }

    /// The value as an address of four or sixteen bytes.
    ///
    /// # Errors
    ///
    /// As [`u8`](Self::u8).
    pub fn ip(&self) -> Result<IpAddr, ParseError> {
        if let Ok(v4) = <[u8; 4]>::try_from(self.value) {
            return Ok(IpAddr::V4(Ipv4Addr::from(v4)));
        }
        self.array::<16>().map(|v6| IpAddr::V6(Ipv6Addr::from(v6)))
    }

    /// The value up to its NUL, if it has one.
    pub fn bytes_until_nul(&self) -> &'a [u8] {
        self.value.split(|byte| *byte == 0).next().unwrap_or(&[])
    }

    /// The value up to its NUL as text; what is not UTF-8 is replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.bytes_until_nul()).into_owned()
    }

    /// The attributes inside the value.
    pub fn nested(&self) -> Attributes<'a> {
        Attributes::new(self.value)
    }

    pub(crate) fn array<const N: usize>(&self) -> Result<[u8; N], ParseError> {
        <[u8; N]>::try_from(self.value).map_err(|_| ParseError::Attribute {
            kind: self.kind,
            expected: N,
            found: self.value.len(),
        })
    }
}

/// Reads two bytes of a fixed struct whose length has been checked.
pub(crate) fn read_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

/// Reads four bytes of a fixed struct whose length has been checked.
pub(crate) fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(crate) const fn align(length: usize) -> usize {
    length.saturating_add(3) & !3
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_is_built_and_read_back() {
        let mut buffer = vec![0xff; 4];
        let mut builder = MessageBuilder::new(&mut buffer, 16, 0x0605, 7);
        builder.fixed(&[1, 2, 3, 4]);
        builder.attr_str(3, b"lo");
        builder.nest(18 | NESTED, |nest| nest.attr_u8(1, 9));
        builder.finish().unwrap();
        #[rustfmt::skip]
        let expected = [
            0xff, 0xff, 0xff, 0xff,
            40, 0, 0, 0, 16, 0, 0x05, 0x06, 7, 0, 0, 0, 0, 0, 0, 0,
            1, 2, 3, 4,
            7, 0, 3, 0, b'l', b'o', 0, 0,
            12, 0, 18, 0x80, 5, 0, 1, 0, 9, 0, 0, 0,
        ];
        assert_eq!(buffer, expected);

        let mut all = messages(&buffer[4..]);
        let message = all.next().unwrap().unwrap();
        assert_eq!((message.kind, message.flags, message.sequence), (16, 0x0605, 7));
        let (fixed, mut attributes) = message.split(4).unwrap();
        assert_eq!(fixed, [1, 2, 3, 4]);
        assert_eq!(attributes.next().unwrap().unwrap().text(), "lo");
        let nest = attributes.next().unwrap().unwrap();
        assert_eq!(nest.kind, 18);
        assert_eq!(nest.nested().next().unwrap().unwrap().u8(), Ok(9));
        assert!(attributes.next().is_none());
        assert!(all.next().is_none());
    }

    #[test]
    fn an_oversized_attribute_leaves_the_buffer_alone() {
        let mut buffer = vec![1, 2, 3, 4];
        let mut builder = MessageBuilder::new(&mut buffer, 16, 0, 0);
        builder.attr(1, &vec![0; 70_000]);
        assert_eq!(builder.finish(), Err(ParseError::Oversized));
        assert_eq!(buffer, [1, 2, 3, 4]);
    }

    #[test]
    fn lengths_that_lie_are_errors_and_end_the_iteration() {
        for length in [0_u32, 15, 17, u32::MAX] {
            let mut bytes = [0; HEADER_LEN];
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            let mut all = messages(&bytes);
            assert!(matches!(all.next(), Some(Err(ParseError::Truncated { .. }))), "{length}");
            assert!(all.next().is_none());
        }
        for length in [0_u16, 3, 9, u16::MAX] {
            let mut bytes = [0; 8];
            bytes[..2].copy_from_slice(&length.to_ne_bytes());
            let mut all = Attributes::new(&bytes);
            assert!(matches!(all.next(), Some(Err(ParseError::Truncated { .. }))), "{length}");
            assert!(all.next().is_none());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for message in messages(&bytes).flatten() {
                for attribute in Attributes::new(message.payload).flatten() {
                    let _ = (attribute.u8(), attribute.u16(), attribute.u32(), attribute.ip());
                    let _ = attribute.text();
                    let _ = attribute.nested().count();
                }
            }
        }

        #[test]
        fn attributes_round_trip(values in proptest::collection::vec(
            (0_u16..0x4000, proptest::collection::vec(any::<u8>(), 0..40)), 0..20,
        )) {
            let mut buffer = Vec::new();
            let mut builder = MessageBuilder::new(&mut buffer, 20, 1, 2);
            for (kind, value) in &values {
                builder.attr(*kind, value);
            }
            builder.finish().unwrap();
            let message = messages(&buffer).next().unwrap().unwrap();
            let read: Vec<_> = Attributes::new(message.payload)
                .map(|attribute| attribute.map(|a| (a.kind, a.value.to_vec())))
                .collect::<Result<_, _>>()
                .unwrap();
            prop_assert_eq!(read, values);
        }
    }
}
