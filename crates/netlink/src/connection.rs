//! The exchange: sending requests, matching answers, retrying torn dumps.

use std::io;
use std::time::{Duration, Instant};

use crate::batch::{Entry, Fits, Reply};
use crate::request::{Answers, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST};
use crate::wire::{self, Attributes, Message, MessageBuilder};
use crate::{Batch, Error, Operation, ParseError, Replies, Request, Subject};

const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_OVERRUN: u16 = 4;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// The kernel builds answers of at most 32 KiB (`SKB_WITH_OVERHEAD(32768)` in `netlink_dump`), except
/// for virtual functions, which are not asked for.
const RECEIVE_BUFFER: usize = 32 * 1024;

/// A send carries at most this much. Every answer waits in the socket's receive buffer (212,992
/// bytes unless told otherwise) until the whole send is worked off, and what does not fit is lost:
/// an error takes about a kilobyte there, an object up to eight.
const CHUNK_WEIGHT: usize = 128;
const CHUNK_BYTES: usize = 64 * 1024;

/// How often a list is read before [`Error::TornDump`].
pub(crate) const DUMP_ATTEMPTS: u32 = 32;

/// How datagrams travel; scripted in tests.
pub(crate) trait Transport {
    fn send(&mut self, datagram: &[u8]) -> io::Result<()>;

    /// Receives one datagram of the kernel. Returns its length, which may exceed that of the buffer;
    /// `WouldBlock` when there is none until the deadline.
    fn receive(&mut self, buffer: &mut [u8], deadline: Option<Instant>) -> io::Result<usize>;
}

#[derive(Debug)]
pub(crate) struct Connection<T> {
    transport: T,
    sequence: u32,
    timeout: Duration,
    buffer: Vec<u8>,
    request: Vec<u8>,
    /// An exchange ended early; its answers may still come and must not be taken for others'.
    leftovers: bool,
}

impl<T: Transport> Connection<T> {
    pub(crate) fn new(transport: T, timeout: Duration) -> Self {
        Self {
            transport,
            sequence: 1,
            timeout,
            buffer: Vec::new(),
            request: Vec::new(),
            leftovers: false,
        }
    }

    pub(crate) fn transport(&self) -> &T {
        &self.transport
    }

    pub(crate) fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Sends all requests and collects what came of each.
    pub(crate) fn exchange(&mut self, batch: &mut Batch) -> Result<Replies, Error> {
        self.prepare();
        let mut replies = Replies { replies: Vec::with_capacity(batch.len()), bytes: Vec::new() };
        let mut from = 0;
        while from < batch.entries.len() {
            let to = chunk_end(batch, from);
            let sent = self.exchange_chunk(batch, from, to, &mut replies);
            self.leftovers = sent.is_err();
            sent?;
            from = to;
        }
        Ok(replies)
    }

    /// Lists objects: sends a dump request and parses every message of the answer, from the start
    /// again if the list changed meanwhile.
    pub(crate) fn dump<R: Request, O>(
        &mut self,
        request: &R,
        mut parse: impl FnMut(&Message<'_>) -> Result<Option<O>, ParseError>,
    ) -> Result<Vec<O>, Error> {
        self.prepare();
        let deadline = self.deadline();
        let mut objects = Vec::new();
        for _ in 0..DUMP_ATTEMPTS {
            objects.clear();
            let read = self.dump_once(request, deadline, &mut |message| {
                if let Some(object) = parse(message)? {
                    objects.push(object);
                }
                Ok(())
            });
            self.leftovers = read.is_err();
            match read? {
                Dump::Whole => return Ok(objects),
                Dump::Torn => {}
            }
        }
        Err(Error::TornDump { subject: request.subject(), attempts: DUMP_ATTEMPTS })
    }

    fn exchange_chunk(
        &mut self,
        batch: &mut Batch,
        from: usize,
        to: usize,
        replies: &mut Replies,
    ) -> Result<(), Error> {
        let entries = &batch.entries[from..to];
        for entry in entries {
            let Entry { operation, subject, .. } = *entry;
            replies.replies.push(match entry.fits {
                Fits::Yes => Ok(Reply { operation, subject, object: None }),
                Fits::No => {
                    Err(Error::Malformed { operation, subject, source: ParseError::Oversized })
                }
            });
        }
        let Some(last) = entries.iter().rposition(|entry| entry.fits == Fits::Yes) else {
            return Ok(());
        };

        // Only the last request asks for an acknowledgement. The kernel reports failures without
        // being asked, works requests off in order and queues its answers in that order: when the
        // last one's comes, silence about the others means success.
        let base = self.sequence;
        self.sequence = base.wrapping_add(numbered(to - from));
        for (place, entry) in entries.iter().enumerate().filter(|(_, e)| e.fits == Fits::Yes) {
            let header = &mut batch.bytes[entry.offset..entry.offset + wire::HEADER_LEN];
            let flags = wire::read_u16(header, 6);
            let flags = if place == last { flags | NLM_F_ACK } else { flags & !NLM_F_ACK };
            header[6..8].copy_from_slice(&flags.to_ne_bytes());
            let sequence = base.wrapping_add(numbered(place));
            header[8..12].copy_from_slice(&sequence.to_ne_bytes());
        }
        let end = batch.entries.get(to).map_or(batch.bytes.len(), |entry| entry.offset);
        let Entry { operation, subject, .. } = entries[0];
        let deadline = self.deadline();
        self.transport
            .send(&batch.bytes[entries[0].offset..end])
            .map_err(|source| Error::Send { operation, subject, source })?;

        loop {
            let Entry { operation, subject, .. } = entries[last];
            let length = self.receive(deadline, operation, subject)?;
            for message in wire::messages(&self.buffer[..length]) {
                let malformed = |source| Error::Malformed { operation, subject, source };
                let message = message.map_err(malformed)?;
                let place = message.sequence.wrapping_sub(base) as usize;
                let Some(entry) = entries.get(place) else { continue };
                let reply = &mut replies.replies[from + place];
                match message.kind {
                    NLMSG_NOOP | NLMSG_DONE => {}
                    NLMSG_OVERRUN => return Err(overrun(operation, subject)),
                    NLMSG_ERROR => {
                        let refusal = Refusal::parse(&message).map_err(malformed)?;
                        if let Some(refusal) = refusal {
                            *reply = Err(refusal.into_error(entry.operation, entry.subject));
                        }
                        if place == last {
                            return Ok(());
                        }
                    }
                    _ => {
                        if let Ok(Reply { object: object @ None, .. }) = reply {
                            let start = replies.bytes.len();
                            replies.bytes.extend_from_slice(message.payload);
                            *object = Some((start, replies.bytes.len()));
                        }
                    }
                }
            }
        }
    }

    fn dump_once<R: Request>(
        &mut self,
        request: &R,
        deadline: Instant,
        each: &mut dyn FnMut(&Message<'_>) -> Result<(), ParseError>,
    ) -> Result<Dump, Error> {
        let (operation, subject) = (request.operation(), request.subject());
        let malformed = |source| Error::Malformed { operation, subject, source };
        let sequence = self.sequence;
        self.sequence = sequence.wrapping_add(1);
        self.request.clear();
        let flags = request.flags() | NLM_F_REQUEST | NLM_F_DUMP;
        let mut message =
            MessageBuilder::new(&mut self.request, request.message_type(), flags, sequence);
        request.emit(&mut message);
        message.finish().map_err(malformed)?;
        self.transport.send(&self.request).map_err(|source| Error::Send {
            operation,
            subject,
            source,
        })?;

        // A torn dump is read to its end all the same: the kernel starts no other before.
        let mut dump = Dump::Whole;
        loop {
            let length = self.receive(deadline, operation, subject)?;
            for message in wire::messages(&self.buffer[..length]) {
                let message = message.map_err(malformed)?;
                if message.sequence != sequence {
                    continue;
                }
                if message.flags & NLM_F_DUMP_INTR != 0 {
                    dump = Dump::Torn;
                }
                match message.kind {
                    NLMSG_NOOP => {}
                    NLMSG_OVERRUN => return Err(overrun(operation, subject)),
                    NLMSG_ERROR | NLMSG_DONE => {
                        return match Refusal::parse(&message).map_err(malformed)? {
                            Some(refusal) => Err(refusal.into_error(operation, subject)),
                            None => Ok(dump),
                        };
                    }
                    _ if dump == Dump::Whole => each(&message).map_err(malformed)?,
                    _ => {}
                }
            }
        }
    }

    /// Receives into the buffer; the length of what is there.
    fn receive(
        &mut self,
        deadline: Instant,
        operation: Operation,
        subject: Subject,
    ) -> Result<usize, Error> {
        match self.transport.receive(&mut self.buffer, Some(deadline)) {
            Ok(length) if length > self.buffer.len() => {
                let source = ParseError::Datagram { length };
                Err(Error::Malformed { operation, subject, source })
            }
            Ok(length) => Ok(length),
            Err(source) if source.kind() == io::ErrorKind::WouldBlock => {
                Err(Error::Timeout { operation, subject, timeout: self.timeout })
            }
            Err(source) => Err(Error::Receive { operation, subject, source }),
        }
    }

    fn prepare(&mut self) {
        if self.buffer.is_empty() {
            self.buffer.resize(RECEIVE_BUFFER, 0);
        }
        if self.leftovers {
            // Also ends a dump that was given up, which would block the next one with EBUSY.
            // `ENOBUFS` is reported once and is about answers that nobody waits for any more.
            loop {
                match self.transport.receive(&mut self.buffer, None) {
                    Ok(_) => {}
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                    Err(_) => break,
                }
            }
            self.leftovers = false;
        }
    }

    fn deadline(&self) -> Instant {
        let now = Instant::now();
        // A timeout beyond what the clock can express means no hurry.
        now.checked_add(self.timeout).unwrap_or(now + Duration::from_secs(1 << 30))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dump {
    Whole,
    Torn,
}

/// A negative answer: `NLMSG_ERROR`, or `NLMSG_DONE` at the end of a dump that failed.
#[derive(Debug, PartialEq, Eq)]
struct Refusal {
    number: i32,
    message: Option<Box<str>>,
}

impl Refusal {
    /// `None` when the message says that all went well.
    fn parse(message: &Message<'_>) -> Result<Option<Self>, ParseError> {
        if message.kind == NLMSG_DONE && message.payload.is_empty() {
            return Ok(None);
        }
        let Some(code) = message.payload.first_chunk::<4>() else {
            let found = message.payload.len();
            return Err(ParseError::Truncated { what: "acknowledgement", needed: 4, found });
        };
        let number = i32::from_ne_bytes(*code).saturating_neg();
        if number <= 0 {
            return Ok(None);
        }
        Ok(Some(Self { number, message: extended_ack(message) }))
    }

    fn into_error(self, operation: Operation, subject: Subject) -> Error {
        let source = io::Error::from_raw_os_error(self.number);
        Error::Refused { operation, subject, source, message: self.message }
    }
}

/// The text of an extended ack. It follows the error number and, in an `NLMSG_ERROR`, the header of
/// the request, and the request's payload too unless that was capped.
fn extended_ack(message: &Message<'_>) -> Option<Box<str>> {
    if message.flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let mut skip = 4;
    if message.kind == NLMSG_ERROR {
        skip += if message.flags & NLM_F_CAPPED == 0 {
            wire::align(wire::read_u32(message.payload.get(4..8)?, 0) as usize)
        } else {
            wire::HEADER_LEN
        };
    }
    Attributes::new(message.payload.get(skip..)?)
        .flatten()
        .find(|attribute| attribute.kind == NLMSGERR_ATTR_MSG)
        .map(|attribute| attribute.text().into_boxed_str())
}

/// What an acknowledgement says: the error number and the kernel's own words.
#[cfg(fuzzing)]
pub fn kernel_words(message: &Message<'_>) -> Result<Option<(i32, Option<Box<str>>)>, ParseError> {
    Ok(Refusal::parse(message)?.map(|refusal| (refusal.number, refusal.message)))
}

fn overrun(operation: Operation, subject: Subject) -> Error {
    Error::Receive { operation, subject, source: io::Error::from_raw_os_error(libc::ENOBUFS) }
}

fn chunk_end(batch: &Batch, from: usize) -> usize {
    let start = batch.entries[from].offset;
    let mut weight = 0;
    for (place, entry) in batch.entries.iter().enumerate().skip(from) {
        weight += match entry.answers {
            Answers::Acknowledgement => 1,
            Answers::Object => 8,
        };
        let end = batch.entries.get(place + 1).map_or(batch.bytes.len(), |next| next.offset);
        if place > from && (weight > CHUNK_WEIGHT || end - start > CHUNK_BYTES) {
            return place;
        }
    }
    batch.entries.len()
}

fn numbered(place: usize) -> u32 {
    // A chunk has at most `CHUNK_WEIGHT` entries.
    u32::try_from(place).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[path = "tests/connection.rs"]
mod tests;
