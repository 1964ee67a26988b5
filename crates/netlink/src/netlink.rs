use std::num::NonZeroU32;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use crate::connection::Connection;
use crate::link::{Query, QueryIn, Remove, RemoveGroup};
use crate::socket::Socket;
use crate::wire::Message;
use crate::{
    Add, Address, Batch, Delete, Entity, Error, Family, IfIndex, Link, LinkChange, LinkId,
    Neighbour, NewLink, ParseError, Replace, Replies, Request, Route, RouteFilter, Rule, address,
    link, neighbour, route, rule,
};

/// A `NETLINK_ROUTE` socket.
///
/// It belongs to the network namespace in which it was opened, for as long as it lives, and keeps
/// that namespace alive. Nothing is left in the kernel when it is dropped.
///
/// Minimum kernel: 5.0 (strict checking, so that lists are filtered by the kernel). Reading needs no
/// privilege; changing needs `CAP_NET_ADMIN` in the namespace's user namespace.
#[doc(alias = "NETLINK_ROUTE")]
#[derive(Debug)]
pub struct Netlink {
    connection: Connection<Socket>,
}

impl Netlink {
    /// How long an answer is waited for unless [`set_timeout`](Self::set_timeout) says otherwise.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

    /// Opens a socket in the current thread's network namespace.
    ///
    /// # Errors
    ///
    /// [`Error::Open`].
    pub fn open() -> Result<Self, Error> {
        Ok(Self::over(Socket::open()?))
    }

    /// Opens a socket in another network namespace. A thread enters it, opens the socket and ends;
    /// the caller's thread stays where it is.
    ///
    /// # Errors
    ///
    /// [`Error::Enter`] when the descriptor is no network namespace or the privilege
    /// (`CAP_SYS_ADMIN` here and there) is missing; [`Error::Open`].
    pub fn open_in(netns: BorrowedFd<'_>) -> Result<Self, Error> {
        Ok(Self::over(Socket::open_in(netns)?))
    }

    /// How long the answer to one send, or to one list with all its repetitions, is waited for.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.connection.set_timeout(timeout);
    }

    /// Sends the requests of a batch, in one `sendmsg` for up to 128 of them (an answer with an
    /// object counts for eight), and tells what came of each.
    ///
    /// # Errors
    ///
    /// When requests cannot be sent or answers received. What the kernel refuses is in the replies.
    pub fn send(&mut self, batch: &mut Batch) -> Result<Replies, Error> {
        self.connection.exchange(batch)
    }

    /// Sends one request.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it, or the exchange fails.
    pub fn execute(&mut self, request: &impl Request) -> Result<(), Error> {
        let mut batch = Batch::new();
        batch.push(request);
        self.send(&mut batch)?.all_ok()
    }

    /// Adds an address, route, rule or neighbour.
    ///
    /// # Errors
    ///
    /// When it is there already ([`Error::is_exists`]), or the kernel refuses for another reason.
    pub fn add<E: Entity>(&mut self, object: &E) -> Result<(), Error> {
        self.execute(&Add(object))
    }

    /// Adds an address, route or neighbour, or replaces the one with the same key, whoever made it.
    /// Not for rules, which the kernel then duplicates.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn replace<E: Entity>(&mut self, object: &E) -> Result<(), Error> {
        self.execute(&Replace(object))
    }

    /// Removes an address, route, rule or neighbour.
    ///
    /// # Errors
    ///
    /// When it is not there ([`Error::is_not_found`]), or the kernel refuses for another reason.
    pub fn remove<E: Entity>(&mut self, object: &E) -> Result<(), Error> {
        self.execute(&Delete(object))
    }

    /// Creates an interface.
    ///
    /// # Errors
    ///
    /// When a name is taken ([`Error::is_exists`]), or the kernel refuses for another reason.
    pub fn create_link(&mut self, link: &NewLink<'_>) -> Result<(), Error> {
        self.execute(link)
    }

    /// Changes an interface.
    ///
    /// # Errors
    ///
    /// When there is none ([`Error::is_not_found`]), or the kernel refuses for another reason.
    pub fn change_link(&mut self, change: &LinkChange) -> Result<(), Error> {
        self.execute(change)
    }

    /// Removes an interface; of a pair, both ends go.
    ///
    /// # Errors
    ///
    /// When there is none ([`Error::is_not_found`]), or the kernel refuses for another reason.
    pub fn remove_link(&mut self, link: impl Into<LinkId>) -> Result<(), Error> {
        self.execute(&Remove(link.into()))
    }

    /// Removes interfaces, all at once if there are several, which takes hardly longer than one: they
    /// are put into `group` first ([`RemoveGroup`]), which nothing else may be in.
    /// Those that are gone are no error.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; some may be gone then, and what stays may be in the group.
    pub fn remove_links(&mut self, links: &[IfIndex], group: NonZeroU32) -> Result<(), Error> {
        let mut batch = Batch::new();
        match links {
            [] => return Ok(()),
            [link] => drop(batch.push(&Remove((*link).into()))),
            links => {
                for &link in links {
                    batch.push(&LinkChange::of(link).group(group.get()));
                }
                batch.push(&RemoveGroup(group));
            }
        }
        let outcomes = self.send(&mut batch)?.into_outcomes();
        let mut refused = outcomes.filter_map(Result::err).filter(|error| !error.is_not_found());
        refused.next().map_or(Ok(()), Err)
    }

    /// Looks at one interface.
    ///
    /// # Errors
    ///
    /// When there is none ([`Error::is_not_found`]).
    pub fn link(&mut self, link: impl Into<LinkId>) -> Result<Link, Error> {
        let mut batch = Batch::new();
        let asked = batch.push(&Query(link.into()));
        self.send(&mut batch)?.take_link(asked)
    }

    /// Looks at one interface, which may not exist.
    ///
    /// # Errors
    ///
    /// When the exchange fails.
    pub fn find_link(&mut self, link: impl Into<LinkId>) -> Result<Option<Link>, Error> {
        match self.link(link) {
            Err(error) if error.is_not_found() => Ok(None),
            other => other.map(Some),
        }
    }

    /// Looks at the other end of a veth pair, wherever it is; `None` if it is gone.
    ///
    /// # Errors
    ///
    /// When the exchange fails, or the other namespace is not this process's to look into.
    pub fn peer_of(&mut self, link: &Link) -> Result<Option<Link>, Error> {
        let Some(peer) = link.peer else { return Ok(None) };
        let Some(netns) = link.peer_netns else { return self.find_link(peer) };
        let mut batch = Batch::new();
        let asked = batch.push(&QueryIn(netns, peer));
        match self.send(&mut batch)?.take_link(asked) {
            Err(error) if error.is_not_found() => Ok(None),
            other => other.map(Some),
        }
    }

    /// Lists the interfaces.
    ///
    /// # Errors
    ///
    /// [`Error::TornDump`] when there is no end of changes, as for all lists.
    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        self.dump(&link::List, |message| Link::parse(message.payload).map(Some))
    }

    /// Lists the addresses of both families, of one interface or of all.
    ///
    /// # Errors
    ///
    /// As [`links`](Self::links).
    pub fn addresses(&mut self, index: impl Into<Option<IfIndex>>) -> Result<Vec<Address>, Error> {
        let index = index.into();
        let listed = self.dump(&address::List(index), |message| {
            let address = Address::parse(message.payload)?;
            Ok(Some(address).filter(|address| index.is_none_or(|index| index == address.index)))
        });
        match listed {
            // An interface that is gone has no addresses.
            Err(error) if index.is_some() && error.is_not_found() => Ok(Vec::new()),
            other => other,
        }
    }

    /// Lists routes of both families. The kernel's caches are left out.
    ///
    /// # Errors
    ///
    /// As [`links`](Self::links).
    pub fn routes(&mut self, filter: &RouteFilter) -> Result<Vec<Route>, Error> {
        let mut routes = Vec::new();
        for family in Family::ALL {
            if filter.family.is_some_and(|wanted| wanted != family) {
                continue;
            }
            let listed = self.dump(&route::List { family, filter: *filter }, |message| {
                if !route::is_configured(message.payload) {
                    return Ok(None);
                }
                Ok(Some(Route::parse(message.payload)?).filter(|route| filter.matches(route)))
            });
            match listed {
                // A table that nobody has used, or an interface that is gone.
                Err(error) if error.is_not_found() => {}
                other => routes.append(&mut other?),
            }
        }
        Ok(routes)
    }

    /// Lists the rules of one family, or of both.
    ///
    /// # Errors
    ///
    /// As [`links`](Self::links).
    pub fn rules(&mut self, family: impl Into<Option<Family>>) -> Result<Vec<Rule>, Error> {
        let wanted = family.into();
        let mut rules = Vec::new();
        for family in Family::ALL.into_iter().filter(|f| wanted.is_none_or(|wanted| wanted == *f)) {
            let listed = self.dump(&rule::List(family), |message| {
                Ok(Some(Rule::parse(message.payload)?).filter(|rule| rule.family == family))
            });
            match listed {
                // The kernel has no rules for this family.
                Err(error) if error.is_unsupported() => {}
                other => rules.append(&mut other?),
            }
        }
        Ok(rules)
    }

    /// Lists the neighbour entries of both families, of one interface or of all.
    ///
    /// # Errors
    ///
    /// As [`links`](Self::links).
    pub fn neighbours(
        &mut self,
        index: impl Into<Option<IfIndex>>,
    ) -> Result<Vec<Neighbour>, Error> {
        let index = index.into();
        let mut neighbours = Vec::new();
        for family in Family::ALL {
            let listed = self.dump(&neighbour::List { family, index }, |message| {
                let neighbour = Neighbour::parse(message.payload)?;
                Ok(Some(neighbour).filter(|n| index.is_none_or(|index| index == n.index)))
            });
            match listed {
                Err(error) if index.is_some() && error.is_not_found() => {}
                other => neighbours.append(&mut other?),
            }
        }
        Ok(neighbours)
    }

    /// Sends a request that is answered with a list. Every message of the answer is parsed; those
    /// for which `parse` gives `None` are left out. When the list changed while it was read
    /// (`NLM_F_DUMP_INTR`), all is forgotten and it is read again.
    ///
    /// # Errors
    ///
    /// [`Error::TornDump`] when it changed every time; otherwise as [`execute`](Self::execute).
    pub fn dump<R: Request, O>(
        &mut self,
        request: &R,
        parse: impl FnMut(&Message<'_>) -> Result<Option<O>, ParseError>,
    ) -> Result<Vec<O>, Error> {
        self.connection.dump(request, parse)
    }

    fn over(socket: Socket) -> Self {
        Self { connection: Connection::new(socket, Self::DEFAULT_TIMEOUT) }
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.transport().as_fd()
    }
}
