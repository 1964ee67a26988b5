//! Traffic: what a test sends, and what it counts.
//!
//! Everything here works in the network namespace of the thread that calls it, and so do the
//! threads it starts: call it inside [`Host::run`](crate::Host::run) or
//! [`Pod::run`](crate::Pod::run). What is started there may be stopped anywhere. No external
//! program is used.
//!
//! - [`Ping`]: echo over ICMP, ICMPv6 or UDP. Each request carries the sender's number and a
//!   sequence number, and every one is accounted for: [`EchoReport`] at the sender,
//!   [`EchoReceiver`] and its [`Arrivals`] at the other end.
//! - [`TcpEcho`], [`TcpTransfer`]: a connection whose bytes come back and are compared.
//! - [`TcpSink`], [`tcp_flood`]: throughput, counted at the receiver.
//! - [`Responder`], [`tcp_rr`], [`tcp_crr`], [`udp_rr`]: closed loops of transactions, and their rate.
//! - [`FrameSocket`] and [`frame`]: raw frames, for what a well-behaved stack would not send.

mod datagram;
mod echo;
pub mod frame;
mod load;
mod packet_socket;
mod ping;
mod receiver;
mod tcp;

pub use echo::{Arrivals, EchoReport};
pub use load::{Rate, Responder, allowed_cpus, pin_to_cpu, tcp_crr, tcp_rr, udp_rr};
pub use packet_socket::FrameSocket;
pub use ping::{Ping, RunningPing};
pub use receiver::EchoReceiver;
pub use tcp::{TcpEcho, TcpSink, TcpTransfer, Throughput, TransferReport, tcp_flood};
