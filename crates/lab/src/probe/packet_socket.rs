use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::sys::{
    socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt},
    time::TimeVal,
};

use crate::interface;

/// Sends and receives whole Ethernet frames on one interface (`AF_PACKET`).
///
/// It sees what others send to the interface, not what is sent from it. A VLAN tag that the kernel
/// keeps beside the frame is not seen.
#[derive(Debug)]
pub struct FrameSocket {
    socket: File,
}

impl FrameSocket {
    /// Opens the interface with this name.
    ///
    /// # Errors
    /// What the kernel says; needs `CAP_NET_RAW`.
    pub fn open(interface: &str) -> io::Result<Self> {
        let index = interface::index(interface)?;
        // Without a protocol it receives nothing until it is bound to the interface.
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
        ignore_outgoing(&socket)?;
        bind(&socket, index)?;
        Ok(Self { socket: socket.into() })
    }

    /// Sends a frame, Ethernet header first.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        let written = self.socket.write(frame)?;
        if written == frame.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// The first frame that `wanted` accepts, if one comes in time; others are dropped.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn receive(
        &mut self,
        patience: Duration,
        mut wanted: impl FnMut(&[u8]) -> bool,
    ) -> io::Result<Option<Vec<u8>>> {
        let end = Instant::now() + patience;
        let mut buffer = vec![0; 65_536];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let left = i64::try_from(left.as_micros()).unwrap_or(i64::MAX);
            let timeout = TimeVal::new(left / 1_000_000, left % 1_000_000);
            setsockopt(&self.socket, sockopt::ReceiveTimeout, &timeout)?;
            match self.socket.read(&mut buffer) {
                Ok(length) if wanted(&buffer[..length]) => {
                    return Ok(Some(buffer[..length].to_vec()));
                }
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// The frames among all that came by `patience` from now that `wanted` accepts.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn receive_all(
        &mut self,
        patience: Duration,
        mut wanted: impl FnMut(&[u8]) -> bool,
    ) -> io::Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        self.receive(patience, |frame| {
            if wanted(frame) {
                frames.push(frame.to_vec());
            }
            false
        })?;
        Ok(frames)
    }
}

fn ignore_outgoing(socket: &OwnedFd) -> io::Result<()> {
    const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
    let one: libc::c_int = 1;
    // SAFETY: the option's value is an int of the length given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            PACKET_IGNORE_OUTGOING,
            (&raw const one).cast(),
            length_of(&one),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn bind(socket: &OwnedFd, index: u32) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET.try_into().map_err(io::Error::other)?,
        sll_protocol: u16::try_from(libc::ETH_P_ALL).map_err(io::Error::other)?.to_be(),
        sll_ifindex: index.try_into().map_err(io::Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the address is of the length given.
    let result =
        unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length_of(&address)) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[expect(clippy::cast_possible_truncation, reason = "socket addresses and options are short")]
fn length_of<T>(value: &T) -> libc::socklen_t {
    size_of_val(value) as libc::socklen_t
}
