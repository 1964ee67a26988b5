//! The one place where system calls are made.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Instant;

use netlink_sys::protocols::NETLINK_ROUTE;

use crate::Error;
use crate::connection::Transport;

#[derive(Debug)]
pub(crate) struct Socket(netlink_sys::Socket);

impl Socket {
    pub(crate) fn open() -> Result<Self, Error> {
        let socket =
            netlink_sys::Socket::new(NETLINK_ROUTE).map_err(|source| Error::Open { source })?;
        let set_up = || {
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            socket.set_netlink_get_strict_chk(true)
        };
        set_up().map_err(|source| Error::Open { source })?;
        // The kernel binds the socket at its first send.
        Ok(Self(socket))
    }

    /// A socket belongs to the namespace in which it was opened, whatever its threads do later.
    pub(crate) fn open_in(netns: BorrowedFd<'_>) -> Result<Self, Error> {
        // Started by name so that a debugger shows what it is; the stack is small because the thread
        // does four system calls.
        let thread = std::thread::Builder::new().name("netlink-open".into()).stack_size(64 * 1024);
        std::thread::scope(|scope| {
            let opened = thread
                .spawn_scoped(scope, || {
                    enter(netns).map_err(|source| Error::Enter { source })?;
                    Self::open()
                })
                .map_err(|source| Error::Enter { source })?;
            match opened.join() {
                Ok(socket) => socket,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

#[cfg(feature = "watch")]
impl Socket {
    pub(crate) fn listen_everywhere(&mut self) -> Result<(), Error> {
        self.0.set_listen_all_namespaces(true).map_err(|source| Error::Open { source })
    }

    pub(crate) fn into_inner(self) -> netlink_sys::Socket {
        self.0
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Transport for Socket {
    fn send(&mut self, datagram: &[u8]) -> io::Result<()> {
        loop {
            match self.0.send(datagram, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn receive(&mut self, buffer: &mut [u8], deadline: Option<Instant>) -> io::Result<usize> {
        loop {
            // The kernel answers within the send, so that there is hardly ever anything to wait for.
            let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
            match self.0.recv_from(&mut &mut *buffer, flags) {
                // Another process may send to our port, if it is privileged.
                Ok((_, from)) if from.port_number() != 0 => {}
                Ok((length, _)) => return Ok(length),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    match deadline {
                        Some(deadline) => wait_readable(self.as_fd(), deadline)?,
                        None => return Err(error),
                    };
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Returns when there is something to read; `WouldBlock` when the deadline passed.
fn wait_readable(fd: BorrowedFd<'_>, deadline: Instant) -> io::Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // Rounded up, so that the last millisecond is not spent turning.
        let milliseconds = i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX);
        let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: `poll` is one valid pollfd, and the count says so.
        let ready = unsafe { libc::poll(&raw mut poll, 1, milliseconds) };
        match ready {
            0 => {}
            1.. => return Ok(()),
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

fn enter(netns: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is open as long as it is borrowed; only this thread changes namespace.
    let entered = unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) };
    if entered == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
