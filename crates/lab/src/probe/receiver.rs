use std::{
    fmt, io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use super::{
    datagram::{Kind, bind, make_room, raw_icmp, socket_address, take, wait},
    echo::{Arrivals, Token},
};

/// The other end of a [`Ping`](super::Ping): notes every request that arrives.
///
/// Over UDP it answers as well; over ICMP the kernel does. Stops on drop.
#[derive(Debug)]
pub struct EchoReceiver {
    address: SocketAddr,
    shared: Arc<Shared>,
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
        Self::start(socket, SocketAddr::new(address, 0), Box::new(token), Answer::ByKernel)
    }

    /// Notes and answers datagrams to this local address; port 0 lets the kernel choose.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn udp(address: SocketAddr) -> io::Result<Self> {
        let socket = UdpSocket::bind(address)?;
        let address = socket.local_addr()?;
        Self::start(socket, address, Box::new(Token::parse), Answer::ByUs)
    }

    fn start(
        socket: UdpSocket,
        address: SocketAddr,
        token: Parser,
        answer: Answer,
    ) -> io::Result<Self> {
        make_room(&socket)?;
        let (stop, arrivals) = (AtomicBool::new(false), Mutex::default());
        let shared = Arc::new(Shared { socket, token, answer, stop, arrivals });
        let own = Arc::clone(&shared);
        thread::Builder::new().name("echo receiver".into()).spawn(move || own.serve())?;
        Ok(Self { address, shared })
    }

    /// The address it listens on, with the port that the kernel chose.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What has arrived by now.
    #[must_use]
    pub fn arrivals(&self) -> Arrivals {
        let mut arrivals = self.shared.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        // What the kernel has answered already may still wait in the socket.
        self.shared.drain(&mut arrivals);
        arrivals.clone()
    }
}

impl Drop for EchoReceiver {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

type Parser = Box<dyn Fn(&[u8]) -> Option<Token> + Send + Sync>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    ByKernel,
    ByUs,
}

struct Shared {
    socket: UdpSocket,
    token: Parser,
    answer: Answer,
    stop: AtomicBool,
    arrivals: Mutex<Arrivals>,
}

impl Shared {
    fn serve(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            if wait(&self.socket, Duration::from_millis(20)).is_err() {
                return;
            }
            self.drain(&mut self.arrivals.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    fn drain(&self, arrivals: &mut Arrivals) {
        let mut buffer = [0; 65_536];
        // An error is that of an earlier answer, whose loss its sender will notice.
        while let Ok(Some((received, from))) = take(&self.socket, &mut buffer) {
            let Some(token) = (self.token)(received) else { continue };
            arrivals.note(token);
            let to = socket_address(&from).filter(|_| self.answer == Answer::ByUs);
            // As above.
            let _ = to.map(|to| self.socket.send_to(received, to));
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("socket", &self.socket).finish_non_exhaustive()
    }
}
