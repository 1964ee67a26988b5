//! Changes as they happen, as an async stream.
//!
//! The stream tells what is there now, not what was asked for: an object that changed comes as
//! [`Event::Present`], whole. Open the watch first and list the objects then; what changes in between
//! comes twice, and nothing is missed. When the kernel had to drop messages because they were not
//! taken in time, the stream says [`Event::Lost`], once, and it is time to list again.
//!
//! ```no_run
//! use podwire_netlink::watch::{Event, Object, Topic, Watch};
//!
//! # async fn example() -> Result<(), podwire_netlink::Error> {
//! let mut watch = Watch::open(&[Topic::Links])?;
//! let links = podwire_netlink::Netlink::open()?.links()?;
//! println!("{} links", links.len());
//! while let Some(event) = watch.next().await {
//!     match event {
//!         Event::Present(Object::Link(link)) => println!("{} is there", link.name),
//!         Event::Absent(Object::Link(link)) => println!("{} is gone", link.name),
//!         Event::Lost => println!("list the links again"),
//!         _ => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{
    NetlinkDeserializable, NetlinkHeader, NetlinkPayload, NetlinkSerializable,
};
use rtnetlink::proto::{NetlinkCodec, NetlinkFramed};
use rtnetlink::sys::{AsyncSocket, SocketAddr, TokioSocket};

use crate::socket::Socket;
use crate::tc::{self, Filter, Qdisc};
use crate::{
    Address, Error, Link, Neighbour, ParseError, Route, Rule, address, link, neighbour, route, rule,
};

/// Messages wait here while nobody takes them. The kernel grants it as far as `net.core.rmem_max`
/// allows.
const RECEIVE_QUEUE: u32 = 1 << 20;

/// What to watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Topic {
    /// Interfaces.
    Links,
    /// Addresses of both families.
    Addresses,
    /// Routes of both families.
    Routes,
    /// Rules of both families.
    Rules,
    /// Neighbour entries of both families.
    Neighbours,
    /// Qdiscs and filters.
    TrafficControl,
}

impl Topic {
    fn groups(self) -> &'static [MulticastGroup] {
        match self {
            Self::Links => &[MulticastGroup::Link],
            Self::Addresses => &[MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr],
            Self::Routes => &[MulticastGroup::Ipv4Route, MulticastGroup::Ipv6Route],
            Self::Rules => &[MulticastGroup::Ipv4Rule, MulticastGroup::Ipv6Rule],
            Self::Neighbours => &[MulticastGroup::Neigh],
            Self::TrafficControl => &[MulticastGroup::Tc],
        }
    }
}

/// Something happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The object is new, or is now like this.
    Present(Object),
    /// The object is gone; this is what it was like.
    Absent(Object),
    /// There were more events than were taken, and some are lost.
    Lost,
}

/// What an event is about.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Object {
    /// An interface.
    Link(Box<Link>),
    /// An address.
    Address(Address),
    /// A route.
    Route(Box<Route>),
    /// A rule.
    Rule(Box<Rule>),
    /// A neighbour entry.
    Neighbour(Neighbour),
    /// A queueing discipline.
    Qdisc(Qdisc),
    /// A traffic filter.
    Filter(Filter),
}

/// A subscription. It belongs to the network namespace in which it was opened.
///
/// Needs a tokio runtime with I/O. No task runs in the background: while nobody asks for the next
/// event, events wait in the kernel.
pub struct Watch {
    messages: NetlinkFramed<Raw, TokioSocket, NetlinkCodec>,
}

impl Watch {
    /// Subscribes in the current thread's network namespace. Needs no privilege.
    ///
    /// # Errors
    ///
    /// [`Error::Open`], also outside of a tokio runtime.
    ///
    /// # Panics
    ///
    /// When the runtime was built without I/O.
    pub fn open(topics: &[Topic]) -> Result<Self, Error> {
        Self::over(Socket::open()?, topics)
    }

    /// Subscribes in another network namespace, without leaving a thread there.
    ///
    /// # Errors
    ///
    /// [`Error::Enter`] and as [`open`](Self::open).
    ///
    /// # Panics
    ///
    /// As [`open`](Self::open).
    pub fn open_in(netns: BorrowedFd<'_>, topics: &[Topic]) -> Result<Self, Error> {
        Self::over(Socket::open_in(netns)?, topics)
    }

    /// Subscribes to what happens in every network namespace that has a number in this one, this one
    /// included: those of the other ends of veth pairs, say. An event does not tell where it happened,
    /// and a link's number means nothing without that: take it for a hint, and look.
    ///
    /// Minimum kernel: 4.2. Needs `CAP_NET_BROADCAST` over those namespaces; of others nothing is told.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    ///
    /// # Panics
    ///
    /// As [`open`](Self::open).
    pub fn open_everywhere(topics: &[Topic]) -> Result<Self, Error> {
        let mut socket = Socket::open()?;
        socket.listen_everywhere()?;
        Self::over(socket, topics)
    }

    /// The next event; `None` when the socket broke, which it does not do by itself. Events that are
    /// not taken because this future was dropped are not lost.
    pub async fn next(&mut self) -> Option<Event> {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    fn over(socket: Socket, topics: &[Topic]) -> Result<Self, Error> {
        let open = |source| Error::Open { source };
        // The conversion below would panic instead.
        tokio::runtime::Handle::try_current()
            .map_err(|error| open(io::Error::other(error.to_string())))?;
        let mut socket = socket.into_inner();
        // Refused beyond the limit of the system, which is as good a limit as any.
        let _ = socket.set_rx_buf_sz(RECEIVE_QUEUE);
        socket.bind_auto().map_err(open)?;
        for group in topics.iter().flat_map(|topic| topic.groups()) {
            socket.add_membership(*group as u32).map_err(open)?;
        }
        // SAFETY: the descriptor was just given up by its owner and is a netlink socket.
        let socket = unsafe { TokioSocket::from_raw_fd(socket.into_raw_fd()) };
        Ok(Self { messages: NetlinkFramed::new(socket) })
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        loop {
            let next = Pin::new(&mut self.messages).poll_next(context);
            let Some((message, from)) = std::task::ready!(next) else { return Poll::Ready(None) };
            if from.port_number() != SocketAddr::new(0, 0).port_number() {
                continue;
            }
            match message.payload {
                NetlinkPayload::Overrun(_) => return Poll::Ready(Some(Event::Lost)),
                NetlinkPayload::InnerMessage(Raw { kind, payload }) => {
                    match event(kind, &payload) {
                        Ok(None) => {}
                        Ok(Some(event)) => return Poll::Ready(Some(event)),
                        // Whoever relies on the stream must not miss what could not be understood.
                        Err(_) => return Poll::Ready(Some(Event::Lost)),
                    }
                }
                _ => {}
            }
        }
    }
}

impl Stream for Watch {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.poll(context)
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let socket: &rtnetlink::sys::Socket = self.messages.get_ref().socket_ref();
        f.debug_struct("Watch").field("socket", socket).finish()
    }
}

/// What a message says; `None` when it is about something that is not watched, such as the routes
/// that the kernel learns for single destinations, or the neighbours of bridges.
pub(crate) fn event(kind: u16, payload: &[u8]) -> Result<Option<Event>, ParseError> {
    const IPV4: u8 = 2;
    const IPV6: u8 = 10;
    let of_ip = matches!(payload.first(), Some(&(IPV4 | IPV6)));
    let object = match kind {
        // Bridges tell of their ports in the same type, under their own family.
        link::RTM_NEWLINK | link::RTM_DELLINK if payload.first() == Some(&0) => {
            Object::Link(Link::parse(payload)?.into())
        }
        address::RTM_NEWADDR | address::RTM_DELADDR if of_ip => {
            Object::Address(Address::parse(payload)?)
        }
        route::RTM_NEWROUTE | route::RTM_DELROUTE if of_ip && route::is_configured(payload) => {
            Object::Route(Route::parse(payload)?.into())
        }
        rule::RTM_NEWRULE | rule::RTM_DELRULE if of_ip => {
            Object::Rule(Rule::parse(payload)?.into())
        }
        neighbour::RTM_NEWNEIGH | neighbour::RTM_DELNEIGH if of_ip => {
            Object::Neighbour(Neighbour::parse(payload)?)
        }
        tc::RTM_NEWQDISC | tc::RTM_DELQDISC => Object::Qdisc(Qdisc::parse(payload)?),
        tc::RTM_NEWTFILTER | tc::RTM_DELTFILTER => Object::Filter(Filter::parse(payload)?),
        _ => return Ok(None),
    };
    let removed = [
        link::RTM_DELLINK,
        address::RTM_DELADDR,
        route::RTM_DELROUTE,
        rule::RTM_DELRULE,
        neighbour::RTM_DELNEIGH,
        tc::RTM_DELQDISC,
        tc::RTM_DELTFILTER,
    ];
    let event = if removed.contains(&kind) { Event::Absent } else { Event::Present };
    Ok(Some(event(object)))
}

/// A message as it came, for our own parsers: rtnetlink's drop what they do not understand.
#[derive(Debug)]
struct Raw {
    kind: u16,
    payload: Vec<u8>,
}

impl NetlinkDeserializable for Raw {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        Ok(Self { kind: header.message_type, payload: payload.to_vec() })
    }
}

impl NetlinkSerializable for Raw {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.payload.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.payload);
    }
}

#[cfg(test)]
#[path = "tests/watch.rs"]
mod tests;
