use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{
    datagram::{Kind, bind, make_room, raw_icmp, take, wait},
    echo::{Channel, EchoReport, SMALLEST, Schedule, Token, exchange},
};

/// Echo requests to one address, over ICMP, ICMPv6 or UDP.
#[derive(Clone, Debug)]
pub struct Ping {
    target: Target,
    source: Option<IpAddr>,
    schedule: Schedule,
    size: usize,
}

#[derive(Clone, Copy, Debug)]
enum Target {
    Icmp(IpAddr),
    Udp(SocketAddr),
}

impl Ping {
    /// ICMP or ICMPv6 echo requests: three, 10 ms apart, 56 bytes of payload.
    #[must_use]
    pub fn new(target: IpAddr) -> Self {
        Self::to(Target::Icmp(target))
    }

    /// The same over UDP, to an [`EchoReceiver`](super::EchoReceiver).
    #[must_use]
    pub fn udp(target: SocketAddr) -> Self {
        Self::to(Target::Udp(target))
    }

    fn to(target: Target) -> Self {
        let schedule = Schedule {
            count: Some(3),
            interval: Duration::from_millis(10),
            patience: Duration::from_secs(2),
        };
        Self { target, source: None, schedule, size: 56 }
    }

    /// The address to send from, instead of the one the kernel chooses.
    #[must_use]
    pub fn from(mut self, source: IpAddr) -> Self {
        self.source = Some(source);
        self
    }

    /// Number of requests that [`run`](Self::run) sends.
    #[must_use]
    pub fn count(mut self, count: u64) -> Self {
        self.schedule.count = Some(count);
        self
    }

    /// Time from one request to the next.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.schedule.interval = interval;
        self
    }

    /// How long to wait for missing answers after the last request: two seconds unless told.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.schedule.patience = patience;
        self
    }

    /// Bytes of payload behind the ICMP or UDP header, at least 16.
    #[must_use]
    pub fn size(mut self, size: usize) -> Self {
        self.size = size.max(SMALLEST);
        self
    }

    /// Sends all requests and waits for their answers.
    ///
    /// # Errors
    /// What the kernel says when the socket is made; later errors are in the report.
    pub fn run(&self) -> io::Result<EchoReport> {
        let sender = next_sender();
        let mut channel = self.open(sender)?;
        let report = exchange(channel.as_mut(), self.schedule, &AtomicBool::new(false));
        Ok(EchoReport { sender, ..report })
    }

    /// Sends requests until [`RunningPing::stop`], whatever the count.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn start(&self) -> io::Result<RunningPing> {
        let sender = next_sender();
        let mut channel = self.open(sender)?;
        let schedule = Schedule { count: None, ..self.schedule };
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new().name("ping".into()).spawn(move || EchoReport {
            sender,
            ..exchange(channel.as_mut(), schedule, &stopped)
        })?;
        Ok(RunningPing { sender, stop, thread: Some(thread) })
    }

    fn open(&self, sender: u32) -> io::Result<Box<dyn Channel>> {
        let target = match self.target {
            Target::Icmp(address) => SocketAddr::new(address, 0),
            Target::Udp(address) => address,
        };
        let _any: IpAddr = match target {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = match self.target {
            Target::Icmp(address) => raw_icmp(address)?,
            Target::Udp(_) => {
                let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                UdpSocket::bind(
                    self.source
                        .map_or_else(|| any.parse(), |s| Ok(SocketAddr::new(s, 0)))
                        .map_err(io::Error::other)?,
                )?
            }
        };
        if let (Target::Icmp(_), Some(source)) = (self.target, self.source) {
            bind(&socket, source)?;
        }
        make_room(&socket)?;
        socket.connect(target)?;
        let size = self.size;
        Ok(match self.target {
            Target::Icmp(address) => {
                Box::new(Icmp { socket, sender, size, kind: Kind::of(address) })
            }
            Target::Udp(_) => Box::new(Udp { socket, sender, size }),
        })
    }
}

/// Echo requests that go on until told to stop.
#[derive(Debug)]
pub struct RunningPing {
    sender: u32,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<EchoReport>>,
}

impl RunningPing {
    /// The number that marks its requests; see [`Arrivals`](super::Arrivals).
    #[must_use]
    pub fn sender(&self) -> u32 {
        self.sender
    }

    /// Sends no more, waits for missing answers, and reports.
    ///
    /// # Panics
    /// When the sender panicked.
    #[must_use]
    pub fn stop(mut self) -> EchoReport {
        self.stop.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else { unreachable!("taken here or on drop") };
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for RunningPing {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The next token that `parse` finds in what is received before the time has passed.
fn next_token(
    socket: &UdpSocket,
    patience: Duration,
    parse: impl Fn(&[u8]) -> Option<Token>,
) -> io::Result<Option<u64>> {
    let end = Instant::now() + patience;
    let mut buffer = [0; 65_536];
    loop {
        match take(socket, &mut buffer)? {
            Some((received, _)) => {
                if let Some(token) = parse(received) {
                    return Ok(Some(token.sequence));
                }
            }
            None => {
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(None);
                }
                wait(socket, left)?;
            }
        }
    }
}

struct Icmp {
    socket: UdpSocket,
    sender: u32,
    size: usize,
    kind: Kind,
}

impl Channel for Icmp {
    fn send(&mut self, sequence: u64) -> io::Result<()> {
        let payload = Token { sender: self.sender, sequence }.payload(self.size);
        let [.., a, b] = self.sender.to_be_bytes();
        let [.., c, d] = sequence.to_be_bytes();
        let mut message = vec![self.kind.request, 0, 0, 0, a, b, c, d];
        message.extend(payload);
        if self.kind.has_ip_header {
            let sum = super::frame::checksum(&[&message]);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        self.socket.send(&message).map(drop)
    }

    fn receive(&mut self, patience: Duration) -> io::Result<Option<u64>> {
        let Self { socket, sender, kind, .. } = self;
        next_token(socket, patience, |received| {
            let (found, payload) = kind.split(received)?;
            Token::parse(payload).filter(|token| found == kind.reply && token.sender == *sender)
        })
    }
}

struct Udp {
    socket: UdpSocket,
    sender: u32,
    size: usize,
}

impl Channel for Udp {
    fn send(&mut self, sequence: u64) -> io::Result<()> {
        let payload = Token { sender: self.sender, sequence }.payload(self.size);
        self.socket.send(&payload).map(drop)
    }

    fn receive(&mut self, patience: Duration) -> io::Result<Option<u64>> {
        let Self { socket, sender, .. } = self;
        next_token(socket, patience, |received| {
            Token::parse(received).filter(|token| token.sender == *sender)
        })
    }
}

/// Differs between senders of this process, and most likely between processes.
fn next_sender() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    (std::process::id() << 12).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed))
}
