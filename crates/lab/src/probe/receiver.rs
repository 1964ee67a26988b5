use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};

use super::{
    echo::{Arrivals, Token},
    ping::{Kind, bind, raw_icmp, receive},
};

/// The other end of a [`Ping`](super::Ping): notes every request that arrives.
///
/// Over UDP it answers as well; over ICMP the kernel does. Stops on drop.
#[derive(Debug)]
pub struct EchoReceiver {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    arrivals: Arc<Mutex<Arrivals>>,
}

impl EchoReceiver {
    /// Notes echo requests to this local address; the unspecified address stands for all.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn icmp(address: IpAddr) -> io::Result<Self> {
        let socket = raw_icmp(address)?;
        bind(&socket, address)?;
        let kind = Kind::of(address);
        let token = move |received: &[u8]| {
            let (found, payload) = kind.split(received)?;
            Token::parse(payload).filter(|_| found == kind.request)
        };
        Self::start(socket, SocketAddr::new(address, 0), token, |_, _, _| Ok(()))
    }

    /// Notes and answers datagrams to this local address; port 0 lets the kernel choose.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn udp(address: SocketAddr) -> io::Result<Self> {
        let socket = UdpSocket::bind(address)?;
        let address = socket.local_addr()?;
        let answer = |socket: &UdpSocket, to: SocketAddr, payload: &[u8]| {
            socket.send_to(payload, to).map(drop)
        };
        Self::start(socket, address, Token::parse, answer)
    }

    fn start(
        socket: UdpSocket,
        address: SocketAddr,
        token: impl Fn(&[u8]) -> Option<Token> + Send + 'static,
        answer: impl Fn(&UdpSocket, SocketAddr, &[u8]) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        // A receiver that is not scheduled for a while must not lose what it is there to count.
        setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20))?;
        let stop = Arc::new(AtomicBool::new(false));
        let arrivals = Arc::new(Mutex::new(Arrivals::default()));
        let (stopped, noted) = (Arc::clone(&stop), Arc::clone(&arrivals));
        thread::Builder::new().name("echo receiver".into()).spawn(move || {
            let mut buffer = [0; 65_536];
            while !stopped.load(Ordering::Relaxed) {
                // Errors are those of earlier answers, which the sender will miss.
                let Ok(Some((received, Some(from)))) =
                    receive(&socket, &mut buffer, Duration::from_millis(20))
                else {
                    continue;
                };
                if let Some(token) = token(received) {
                    noted.lock().unwrap_or_else(PoisonError::into_inner).note(token);
                    let _ = answer(&socket, from, received);
                }
            }
        })?;
        Ok(Self { address, stop, arrivals })
    }

    /// The address it listens on, with the port that the kernel chose.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What has arrived so far.
    #[must_use]
    pub fn arrivals(&self) -> Arrivals {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for EchoReceiver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
