//! Sockets of echoes: raw ones for ICMP, and waiting for what they receive.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::{
        socket::{
            self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage,
            setsockopt, sockopt,
        },
        time::TimeSpec,
    },
};

/// Request and answer types, and what precedes them in what a raw socket receives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    pub(super) request: u8,
    pub(super) reply: u8,
    pub(super) has_ip_header: bool,
}

impl Kind {
    pub(super) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self { request: 8, reply: 0, has_ip_header: true },
            IpAddr::V6(_) => Self { request: 128, reply: 129, has_ip_header: false },
        }
    }

    /// Type and payload of an echo message as received.
    pub(super) fn split(self, received: &[u8]) -> Option<(u8, &[u8])> {
        let header = if self.has_ip_header { usize::from(received.first()? & 0xf) * 4 } else { 0 };
        let message = received.get(header..)?;
        Some((*message.first()?, message.get(8..)?))
    }
}

/// A raw socket, which std's type for datagrams serves as well.
pub(super) fn raw_icmp(address: IpAddr) -> io::Result<UdpSocket> {
    let (family, protocol) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    Ok(socket::socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?.into())
}

pub(super) fn bind(socket: &UdpSocket, address: IpAddr) -> io::Result<()> {
    socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(address, 0)))?;
    Ok(())
}

/// Room for eight megabytes: who counts must lose nothing while not scheduled.
pub(super) fn make_room(socket: &UdpSocket) -> io::Result<()> {
    // Beyond the machine's limit only with CAP_NET_ADMIN, which a UDP probe may lack.
    setsockopt(socket, sockopt::RcvBufForce, &(8 << 20))
        .or_else(|_| setsockopt(socket, sockopt::RcvBuf, &(8 << 20)))?;
    Ok(())
}

/// Waits until there is something to receive, or an error, or until the time has passed.
pub(super) fn wait(socket: &UdpSocket, patience: Duration) -> io::Result<()> {
    let mut sockets = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    match ppoll(&mut sockets, Some(TimeSpec::from_duration(patience)), None) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What has been received, without waiting.
pub(super) fn take<'b>(
    socket: &UdpSocket,
    buffer: &'b mut [u8],
) -> io::Result<Option<(&'b [u8], SockaddrStorage)>> {
    match receive(socket.as_raw_fd(), buffer) {
        Ok((length, Some(from))) => Ok(Some((&buffer[..length], from))),
        Ok((_, None)) | Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn receive(socket: i32, buffer: &mut [u8]) -> nix::Result<(usize, Option<SockaddrStorage>)> {
    let mut parts = [io::IoSliceMut::new(buffer)];
    let message =
        socket::recvmsg::<SockaddrStorage>(socket, &mut parts, None, MsgFlags::MSG_DONTWAIT)?;
    Ok((message.bytes, message.address))
}

/// Of an IPv4 or IPv6 socket.
pub(super) fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|&a| SocketAddr::V4(a.into()));
    v4.or_else(|| address.as_sockaddr_in6().map(|&a| SocketAddr::V6(a.into())))
}
