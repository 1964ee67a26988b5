//! Closed loops: a transaction begins when the one before it has ended.

use std::{
    fmt,
    io::{self, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::socket::{Shutdown, setsockopt, shutdown, sockopt},
    unistd::Pid,
};

/// A datagram that is not answered by then is lost.
const DATAGRAM_PATIENCE: Duration = Duration::from_millis(500);

/// Longest silence on a connection before it counts as broken.
const PATIENCE: Duration = Duration::from_secs(10);

/// Keeps the calling thread on this processor, and the threads that it starts from now on.
///
/// # Errors
/// What the kernel says: `InvalidInput` when the thread may not run there.
pub fn pin_to_cpu(cpu: usize) -> io::Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &only)?)
}

/// The processors that the calling thread may run on.
///
/// # Errors
/// What the kernel says.
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap_or(false)).collect())
}

/// The other end of [`tcp_rr`], [`tcp_crr`] and [`udp_rr`]: one thread that sends every byte back.
///
/// Over TCP it serves one connection after another, over UDP the client that first sent. Serves no
/// more once dropped.
#[derive(Debug)]
pub struct Responder {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    socket: OwnedFd,
}

impl Responder {
    /// Listens for connections to this address; port 0 lets the kernel choose.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn tcp(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let socket = listener.try_clone()?.into();
        Self::start(listener.local_addr()?, socket, move |stop| {
            while let Ok((stream, _)) = listener.accept() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                // A client that has enough resets the connection; any other error is seen by it.
                let _ = answer(stream);
            }
        })
    }

    /// Waits for datagrams to this address; port 0 lets the kernel choose.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn udp(address: SocketAddr) -> io::Result<Self> {
        let server = UdpSocket::bind(address)?;
        let socket = server.try_clone()?.into();
        Self::start(server.local_addr()?, socket, move |stop| {
            // An error is that of a client that is gone.
            let _ = answer_datagrams(&server, stop);
        })
    }

    fn start(
        address: SocketAddr,
        socket: OwnedFd,
        serve: impl FnOnce(&AtomicBool) + Send + 'static,
    ) -> io::Result<Self> {
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        thread::Builder::new().name("responder".into()).spawn(move || serve(&stopped))?;
        Ok(Self { address, stop, socket })
    }

    /// The address it listens on, with the port that the kernel chose.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread; for a socket without connection the kernel says ENOTCONN, and does it.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
    }
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

fn answer_datagrams(server: &UdpSocket, stop: &AtomicBool) -> io::Result<()> {
    let mut byte = [0];
    let (mut length, client) = server.recv_from(&mut byte)?;
    if stop.load(Ordering::Relaxed) {
        return Ok(());
    }
    server.connect(client)?;
    while !stop.load(Ordering::Relaxed) {
        server.send(&byte[..length])?;
        length = server.recv(&mut byte)?;
    }
    Ok(())
}

/// Transactions over time.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Requests that were sent and answered.
    pub transactions: u64,
    /// From the first request to the last answer.
    pub elapsed: Duration,
}

impl Rate {
    /// Transactions in a second.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "nobody counts to 2^52")]
    pub fn per_second(&self) -> f64 {
        self.transactions as f64 / self.elapsed.as_secs_f64()
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0} transactions/s", self.per_second())
    }
}

/// One byte there and back, again and again over one connection to a [`Responder`].
///
/// # Errors
/// When the connection is refused, breaks, is silent for ten seconds, or brings another byte.
pub fn tcp_rr(responder: SocketAddr, time: Duration) -> io::Result<Rate> {
    let mut stream = connect(responder)?;
    repeat(time, |number| round_trip(&mut stream, number))
}

/// A connection to a [`Responder`], one byte there and back, and its end, again and again.
///
/// The client resets the connection: closed in order, each would keep its port for a minute, and
/// there are fewer ports than connections in a few seconds.
///
/// # Errors
/// As [`tcp_rr`].
pub fn tcp_crr(responder: SocketAddr, time: Duration) -> io::Result<Rate> {
    repeat(time, |number| {
        let mut stream = connect(responder)?;
        let reset = libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&stream, sockopt::Linger, &reset)?;
        round_trip(&mut stream, number)
    })
}

/// One byte there and back by datagrams between connected sockets, again and again.
///
/// # Errors
/// When the socket fails, or when datagrams were lost (not answered within half a second), with
/// their number.
pub fn udp_rr(responder: SocketAddr, time: Duration) -> io::Result<Rate> {
    let any = match responder {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(responder)?;
    socket.set_read_timeout(Some(DATAGRAM_PATIENCE))?;
    let (mut sent, mut lost) = (0u64, 0u64);
    let rate = repeat(time, |number| {
        let [request, ..] = number.to_le_bytes();
        socket.send(&[request])?;
        sent += 1;
        let mut answer = [0];
        loop {
            match socket.recv(&mut answer) {
                Ok(1) if answer == [request] => return Ok(()),
                // The late answer to a request that was given up.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    lost += 1;
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    })?;
    if lost > 0 {
        let what = format!("{lost} of {sent} datagrams not answered within {DATAGRAM_PATIENCE:?}");
        return Err(io::Error::new(io::ErrorKind::TimedOut, what));
    }
    Ok(rate)
}

/// Does it for this time, after a tenth of the time uncounted: neighbours, flows and caches are then
/// those of traffic that goes on.
fn repeat(time: Duration, mut transaction: impl FnMut(u64) -> io::Result<()>) -> io::Result<Rate> {
    let mut number = 0;
    let mut repeat_for = |time: Duration| -> io::Result<Rate> {
        let (first, start) = (number, Instant::now());
        loop {
            transaction(number)?;
            number += 1;
            let elapsed = start.elapsed();
            if elapsed >= time {
                return Ok(Rate { transactions: number - first, elapsed });
            }
        }
    };
    repeat_for(time / 10)?;
    repeat_for(time)
}

fn connect(responder: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(responder)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn round_trip(stream: &mut TcpStream, number: u64) -> io::Result<()> {
    let [request, ..] = number.to_le_bytes();
    stream.write_all(&[request])?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    if answer == [request] {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "another byte came back than was sent"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactions_are_counted_after_the_first_ones() {
        let mut numbers = Vec::new();
        let rate = repeat(Duration::from_millis(20), |number| {
            numbers.push(number);
            thread::sleep(Duration::from_millis(1));
            Ok(())
        })
        .unwrap();
        assert!(rate.transactions > 0 && rate.transactions < numbers.len() as u64, "{rate:?}");
        assert!(numbers.iter().copied().eq(0..numbers.len() as u64), "{numbers:?}");
    }

    #[test]
    fn a_failed_transaction_ends_it() {
        let mut count = 0;
        let outcome = repeat(Duration::from_secs(60), |_| {
            count += 1;
            if count == 3 { Err(io::Error::other("enough")) } else { Ok(()) }
        });
        assert_eq!(outcome.unwrap_err().to_string(), "enough");
    }

    #[test]
    fn a_pinned_thread_takes_those_it_starts_along_and_no_other() {
        let before = allowed_cpus().unwrap();
        let cpu = *before.last().unwrap();
        let pinned = thread::spawn(move || {
            pin_to_cpu(cpu).unwrap();
            thread::spawn(allowed_cpus).join().unwrap().unwrap()
        });
        assert_eq!(pinned.join().unwrap(), [cpu]);
        assert_eq!(allowed_cpus().unwrap(), before);
        assert!(pin_to_cpu(CpuSet::count()).is_err());
    }
}
