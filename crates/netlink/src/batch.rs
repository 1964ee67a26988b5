//! Several requests in one send, and what came of each.

use crate::request::{Answers, NLM_F_REQUEST};
use crate::wire::MessageBuilder;
use crate::{Error, Link, Operation, ParseError, Request, Subject};

/// Requests that go to the kernel in one `sendmsg`.
///
/// The kernel works them off in order and **goes on after a failure**: a request must not rely on an
/// earlier one of the same batch having succeeded, unless its own failure is then harmless. In
/// particular, do not create a link and address it by name in one batch: if the name is taken, the
/// second request changes somebody else's link.
///
/// A batch can be sent again, and [`clear`](Self::clear)ed to use its memory for another.
///
/// ```no_run
/// use podwire_netlink::{Add, Address, Batch, IfIndex, Netlink, Neighbour, Replace};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut netlink = Netlink::open()?;
/// let eth0 = IfIndex::new(2).unwrap();
/// let mut batch = Batch::new();
/// batch.push(&Add(&Address::new(eth0, "10.0.0.1/32".parse()?)));
/// batch.push(&Replace(&Neighbour::permanent(eth0, "10.0.0.2".parse()?, "02:00:00:00:00:01".parse()?)));
/// netlink.send(&mut batch)?.all_ok()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
pub struct Batch {
    pub(crate) bytes: Vec<u8>,
    pub(crate) entries: Vec<Entry>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) offset: usize,
    pub(crate) operation: Operation,
    pub(crate) subject: Subject,
    pub(crate) answers: Answers,
    /// Whether the request did not fit a message; it is answered without being sent.
    pub(crate) fits: Fits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fits {
    Yes,
    No,
}

impl Batch {
    /// A batch without requests.
    pub fn new() -> Self {
        Self::default()
    }

    /// Encodes a request and appends it. The ticket is good for this batch's [`Replies`].
    pub fn push(&mut self, request: &impl Request) -> Ticket {
        let offset = self.bytes.len();
        let mut message = MessageBuilder::new(
            &mut self.bytes,
            request.message_type(),
            request.flags() | NLM_F_REQUEST,
            0,
        );
        request.emit(&mut message);
        let fits = if message.finish().is_ok() { Fits::Yes } else { Fits::No };
        self.entries.push(Entry {
            offset,
            operation: request.operation(),
            subject: request.subject(),
            answers: request.answers(),
            fits,
        });
        Ticket(self.entries.len() - 1)
    }

    /// How many requests there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Forgets the requests and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.entries.clear();
    }
}

/// The place of a request in its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub(crate) usize);

impl Ticket {
    /// The number of the request, from zero.
    pub fn number(self) -> usize {
        self.0
    }
}

/// What came of each request of a batch.
#[derive(Debug)]
#[must_use = "a request may have failed"]
pub struct Replies {
    pub(crate) replies: Vec<Result<Reply, Error>>,
    pub(crate) bytes: Vec<u8>,
}

/// A request that succeeded, with the place of the object it was answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) operation: Operation,
    pub(crate) subject: Subject,
    pub(crate) object: Option<(usize, usize)>,
}

impl Replies {
    /// Succeeds if every request did; otherwise the error of the first that failed.
    ///
    /// # Errors
    ///
    /// The first [`Error::Refused`].
    pub fn all_ok(self) -> Result<(), Error> {
        for reply in self.replies {
            reply?;
        }
        Ok(())
    }

    /// What came of one request.
    ///
    /// # Errors
    ///
    /// Why the request failed.
    ///
    /// # Panics
    ///
    /// When the ticket is of a longer batch.
    pub fn outcome(&self, ticket: Ticket) -> Result<(), &Error> {
        self.replies[ticket.0].as_ref().map(|_| ())
    }

    /// The errors, with the tickets of their requests, in order.
    pub fn errors(&self) -> impl Iterator<Item = (Ticket, &Error)> {
        self.replies
            .iter()
            .enumerate()
            .filter_map(|(number, reply)| Some((Ticket(number), reply.as_ref().err()?)))
    }

    /// All outcomes, in the order of the requests.
    pub fn into_outcomes(self) -> impl Iterator<Item = Result<(), Error>> {
        self.replies.into_iter().map(|reply| reply.map(|_| ()))
    }

    /// The link with which a [`link::Query`](crate::link::Query) was answered.
    ///
    /// # Errors
    ///
    /// Why the query failed; its place then holds [`ParseError::NoAnswer`].
    ///
    /// # Panics
    ///
    /// When the ticket is of a longer batch.
    pub fn take_link(&mut self, ticket: Ticket) -> Result<Link, Error> {
        self.take(ticket, Link::parse)
    }

    /// The object with which a query was answered, parsed from the payload of its message.
    ///
    /// # Errors
    ///
    /// Why the query failed; its place then holds [`ParseError::NoAnswer`].
    ///
    /// # Panics
    ///
    /// When the ticket is of a longer batch.
    pub fn take<T>(
        &mut self,
        ticket: Ticket,
        parse: impl FnOnce(&[u8]) -> Result<T, ParseError>,
    ) -> Result<T, Error> {
        let Reply { operation, subject, object } = self.take_reply(ticket)?;
        object
            .ok_or(ParseError::NoAnswer)
            .and_then(|(from, to)| parse(&self.bytes[from..to]))
            .map_err(|source| Error::Malformed { operation, subject, source })
    }

    /// As [`take`](Self::take), but success without an object is `None`.
    ///
    /// # Errors
    ///
    /// As [`take`](Self::take).
    ///
    /// # Panics
    ///
    /// When the ticket is of a longer batch.
    pub fn take_optional<T>(
        &mut self,
        ticket: Ticket,
        parse: impl FnOnce(&[u8]) -> Result<T, ParseError>,
    ) -> Result<Option<T>, Error> {
        let Reply { operation, subject, object } = self.take_reply(ticket)?;
        object
            .map(|(from, to)| parse(&self.bytes[from..to]))
            .transpose()
            .map_err(|source| Error::Malformed { operation, subject, source })
    }

    fn take_reply(&mut self, ticket: Ticket) -> Result<Reply, Error> {
        match &mut self.replies[ticket.0] {
            Ok(reply) => Ok(*reply),
            Err(error) => Err(std::mem::replace(
                error,
                Error::Malformed {
                    operation: Operation::Query,
                    subject: Subject::Named("an answer that was taken before"),
                    source: ParseError::NoAnswer,
                },
            )),
        }
    }
}
