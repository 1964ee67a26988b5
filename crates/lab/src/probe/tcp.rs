use std::{
    fmt,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::echo::pattern;

const CHUNK: usize = 64 * 1024;

/// Longest silence on a connection before it counts as broken.
const PATIENCE: Duration = Duration::from_secs(30);

/// A TCP server that sends every byte back. Accepts no more once dropped.
#[derive(Debug)]
pub struct TcpEcho {
    server: Server,
}

/// A TCP server that counts bytes, and tells the sender how many came when it has sent all.
#[derive(Debug)]
pub struct TcpSink {
    server: Server,
}

impl TcpEcho {
    /// Listens on this address; port 0 lets the kernel choose.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn start(address: SocketAddr) -> io::Result<Self> {
        Ok(Self { server: Server::start(address, echo)? })
    }

    /// The address it listens on, with the port that the kernel chose.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.server.address
    }

    /// Bytes received on all connections.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.server.received.load(Ordering::Relaxed)
    }
}

impl TcpSink {
    /// Listens on this address; port 0 lets the kernel choose.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn start(address: SocketAddr) -> io::Result<Self> {
        Ok(Self { server: Server::start(address, count)? })
    }

    /// The address it listens on, with the port that the kernel chose.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.server.address
    }
}

#[derive(Debug)]
struct Server {
    address: SocketAddr,
    received: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    listener: TcpListener,
}

impl Server {
    fn start(
        address: SocketAddr,
        serve: fn(TcpStream, &AtomicU64) -> io::Result<()>,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let server = Self {
            address: listener.local_addr()?,
            received: Arc::default(),
            stop: Arc::default(),
            listener: listener.try_clone()?,
        };
        let (received, stop) = (Arc::clone(&server.received), Arc::clone(&server.stop));
        thread::Builder::new().name("tcp server".into()).spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let received = Arc::clone(&received);
                // A broken connection is seen at its other end.
                thread::spawn(move || serve(stream, &received));
            }
        })?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        use std::os::fd::AsRawFd;

        use nix::sys::socket::{Shutdown, shutdown};
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread in accept(), which then returns EINVAL.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
    }
}

fn echo(mut stream: TcpStream, received: &AtomicU64) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; CHUNK];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return stream.shutdown(Shutdown::Write);
        }
        received.fetch_add(length as u64, Ordering::Relaxed);
        stream.write_all(&buffer[..length])?;
    }
}

fn count(mut stream: TcpStream, received: &AtomicU64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK * 4];
    let mut total = 0;
    loop {
        let length = stream.read(&mut buffer)? as u64;
        if length == 0 {
            return stream.write_all(&u64::to_be_bytes(total));
        }
        total += length;
        received.fetch_add(length, Ordering::Relaxed);
    }
}

/// Bytes over time, counted at the receiver.
#[derive(Clone, Copy, Debug)]
pub struct Throughput {
    /// Bytes that arrived.
    pub bytes: u64,
    /// From the first byte sent to the receiver's word that all came.
    pub elapsed: Duration,
}

impl Throughput {
    /// In bits per second.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "it is shown with three digits")]
    pub fn bits_per_second(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.elapsed.as_secs_f64()
    }
}

impl fmt::Display for Throughput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} Gbit/s", self.bits_per_second() / 1e9)
    }
}

/// Sends as much as goes through one connection to a [`TcpSink`] in the given time.
///
/// # Errors
/// When the connection is refused, breaks, or is silent for half a minute.
pub fn tcp_flood(sink: SocketAddr, time: Duration) -> io::Result<Throughput> {
    let mut stream = connect(sink)?;
    let chunk = vec![0x5a; CHUNK * 4];
    let start = Instant::now();
    while start.elapsed() < time {
        stream.write_all(&chunk)?;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut total = [0; 8];
    stream.read_exact(&mut total)?;
    Ok(Throughput { bytes: u64::from_be_bytes(total), elapsed: start.elapsed() })
}

/// A connection to a [`TcpEcho`] that sends without pause and compares what comes back.
#[derive(Debug)]
pub struct TcpTransfer {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    returned: Arc<AtomicU64>,
    writer: JoinHandle<io::Result<()>>,
    reader: JoinHandle<io::Result<()>>,
}

/// What became of a [`TcpTransfer`].
#[derive(Clone, Debug)]
pub struct TransferReport {
    /// Bytes sent.
    pub sent: u64,
    /// Bytes that came back, as they were sent and in order.
    pub returned: u64,
    /// Why the connection broke, or what was wrong with the bytes.
    pub broken: Option<String>,
}

impl TransferReport {
    /// All bytes came back, and there were some.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.broken.is_none() && self.sent > 0 && self.sent == self.returned
    }
}

impl fmt::Display for TransferReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes came back", self.returned, self.sent)?;
        self.broken.iter().try_for_each(|why| write!(f, "; broken: {why}"))
    }
}

impl TcpTransfer {
    /// Connects, and sends until [`stop`](Self::stop).
    ///
    /// # Errors
    /// When the connection is refused; later errors are in the report.
    pub fn start(echo: SocketAddr) -> io::Result<Self> {
        let stream = connect(echo)?;
        let (stop, sent, returned) = (
            Arc::<AtomicBool>::default(),
            Arc::<AtomicU64>::default(),
            Arc::<AtomicU64>::default(),
        );
        let writer = {
            let (stream, stop, sent) = (stream.try_clone()?, Arc::clone(&stop), Arc::clone(&sent));
            thread::spawn(move || send_pattern(stream, &stop, &sent))
        };
        let reader = {
            let returned = Arc::clone(&returned);
            thread::spawn(move || compare_pattern(stream, &returned))
        };
        Ok(Self { stop, sent, returned, writer, reader })
    }

    /// Bytes that have come back so far.
    #[must_use]
    pub fn returned(&self) -> u64 {
        self.returned.load(Ordering::Relaxed)
    }

    /// Sends no more, waits for the rest to come back, and reports.
    #[must_use]
    pub fn stop(self) -> TransferReport {
        self.stop.store(true, Ordering::Relaxed);
        let end = |thread: JoinHandle<io::Result<()>>, side: &str| match thread.join() {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("{side}: {error}")),
            Err(_) => Some(format!("{side}: panicked")),
        };
        let writer = end(self.writer, "send");
        let reader = end(self.reader, "receive");
        TransferReport {
            sent: self.sent.load(Ordering::Relaxed),
            returned: self.returned.load(Ordering::Relaxed),
            broken: writer.or(reader),
        }
    }
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn send_pattern(mut stream: TcpStream, stop: &AtomicBool, sent: &AtomicU64) -> io::Result<()> {
    let chunk: Vec<u8> = (0..CHUNK).map(pattern).collect();
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(&chunk)?;
        sent.fetch_add(CHUNK as u64, Ordering::Relaxed);
    }
    stream.shutdown(Shutdown::Write)
}

fn compare_pattern(mut stream: TcpStream, returned: &AtomicU64) -> io::Result<()> {
    let expected: Vec<u8> = (0..2 * CHUNK).map(|at| pattern(at % CHUNK)).collect();
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        if buffer[..length] != expected[at..at + length] {
            return Err(io::Error::other("bytes came back changed"));
        }
        at = (at + length) % CHUNK;
        returned.fetch_add(length as u64, Ordering::Relaxed);
    }
}
