//! The probes count what really happens, on the loopback link of a host.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use podwire_lab::{
    Host,
    probe::{
        EchoReceiver, Ping, Responder, TcpEcho, TcpSink, TcpTransfer, tcp_crr, tcp_flood, tcp_rr,
        udp_rr,
    },
};

const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

#[test]
#[ignore = "needs root: network and mount namespaces, raw sockets"]
fn icmp_echoes_are_counted_at_both_ends() {
    let host = Host::new().unwrap();
    for address in LOOPBACK {
        let receiver = host.run(|| EchoReceiver::icmp(address)).unwrap();
        let ping = Ping::new(address).count(500).interval(Duration::from_micros(200)).size(1400);
        let report = host.run(|| ping.from(address).run()).unwrap();
        assert!(report.is_complete(), "{address}: {report}");
        assert_eq!(receiver.arrivals().received(report.sender), 500);
        assert_eq!(receiver.arrivals().missing(report.sender, 501), [500]);
    }
}

#[test]
#[ignore = "needs root: network and mount namespaces, raw sockets"]
fn senders_do_not_take_each_others_answers() {
    let host = Host::new().unwrap();
    host.run(|| {
        let pings: Vec<_> = (0..8).map(|_| Ping::new(LOOPBACK[0]).start().unwrap()).collect();
        for ping in pings {
            let report = ping.stop();
            assert!(report.is_complete(), "{report}");
        }
    });
}

#[test]
#[ignore = "needs root: network and mount namespaces, raw sockets"]
fn what_is_not_answered_is_lost() {
    let host = Host::new().unwrap();
    let ping = Ping::new([192, 0, 2, 1].into()).count(5).patience(Duration::from_millis(50));
    // No route: the socket cannot even be connected.
    assert!(host.run(|| ping.run()).is_err());
    host.run(|| std::fs::write("/proc/sys/net/ipv4/icmp_echo_ignore_all", "1")).unwrap();
    let ping = Ping::new(LOOPBACK[0]).count(5).patience(Duration::from_millis(50));
    let report = host.run(|| ping.run()).unwrap();
    assert_eq!((report.sent, report.received, &report.lost[..]), (5, 0, &[0, 1, 2, 3, 4][..]));
}

#[test]
#[ignore = "needs root: network and mount namespaces"]
fn datagrams_are_counted_at_both_ends() {
    let host = Host::new().unwrap();
    for address in LOOPBACK {
        let receiver = host.run(|| EchoReceiver::udp(SocketAddr::new(address, 0))).unwrap();
        let ping = Ping::udp(receiver.address()).interval(Duration::from_millis(1));
        let running = host.run(|| ping.start()).unwrap();
        while receiver.arrivals().received(running.sender()) < 100 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let report = running.stop();
        assert!(report.is_complete(), "{address}: {report}");
        assert_eq!(receiver.arrivals().received(report.sender), report.sent);
        assert_eq!(receiver.arrivals().duplicates(report.sender), 0);
    }
}

#[test]
#[ignore = "needs root: network and mount namespaces"]
fn a_port_without_a_listener_is_an_error_in_the_report() {
    let host = Host::new().unwrap();
    let target = SocketAddr::new(LOOPBACK[0], 9);
    let ping = Ping::udp(target).count(3).patience(Duration::from_millis(50));
    let report = host.run(|| ping.run()).unwrap();
    assert_eq!(report.received, 0);
    assert!(report.errors.iter().any(|e| e.contains("refused")), "{report}");
}

#[test]
#[ignore = "needs root: network and mount namespaces"]
fn transfers_come_back_whole_and_tell_when_they_do_not() {
    let host = Host::new().unwrap();
    for address in LOOPBACK {
        let echo = host.run(|| TcpEcho::start(SocketAddr::new(address, 0))).unwrap();
        let transfer = host.run(|| TcpTransfer::start(echo.address())).unwrap();
        while transfer.returned() < 8 << 20 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let report = transfer.stop();
        assert!(report.is_complete(), "{address}: {report}");
        assert_eq!(echo.received(), report.sent);
    }
    // A server that closes every connection.
    let listener = host.run(|| std::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let transfer = host.run(|| TcpTransfer::start(listener.local_addr().unwrap())).unwrap();
    drop(listener.accept().unwrap());
    let report = transfer.stop();
    assert!(!report.is_complete(), "{report}");
}

#[test]
#[ignore = "needs root: network and mount namespaces"]
fn throughput_is_counted_at_the_receiver() {
    let host = Host::new().unwrap();
    for address in LOOPBACK {
        let sink = host.run(|| TcpSink::start(SocketAddr::new(address, 0))).unwrap();
        let throughput =
            host.run(|| tcp_flood(sink.address(), Duration::from_millis(100))).unwrap();
        assert!(throughput.bytes > 0, "{throughput}");
        let address = sink.address();
        drop(sink);
        assert!(host.run(|| tcp_flood(address, Duration::from_millis(1))).is_err(), "it is gone");
    }
}

#[test]
#[ignore = "needs root: network and mount namespaces"]
fn transactions_are_answered_on_both_families() {
    const TIME: Duration = Duration::from_millis(50);
    let host = Host::new().unwrap();
    for address in LOOPBACK {
        let any = SocketAddr::new(address, 0);
        host.run(|| {
            let tcp = Responder::tcp(any).unwrap();
            for load in [tcp_rr, tcp_crr, tcp_rr] {
                let rate = load(tcp.address(), TIME).unwrap();
                assert!(rate.transactions > 0 && rate.elapsed >= TIME, "{address}: {rate:?}");
            }
            let udp = Responder::udp(any).unwrap();
            let rate = udp_rr(udp.address(), TIME).unwrap();
            assert!(rate.transactions > 0 && rate.elapsed >= TIME, "{address}: {rate:?}");
        });
    }
    // The four of tcp_rr ended in order and keep their ports for a while; the many of tcp_crr do not.
    let sockets = host.run(|| std::fs::read_to_string("/proc/thread-self/net/sockstat")).unwrap();
    let kept = sockets.split(" tw ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    assert!(kept.parse::<u32>().unwrap() <= 4, "{sockets}");
}

#[test]
#[ignore = "needs root: network and mount namespaces"]
fn transactions_that_are_not_answered_are_errors() {
    const TIME: Duration = Duration::from_millis(1);
    let host = Host::new().unwrap();
    for address in LOOPBACK {
        host.run(|| {
            let nobody = SocketAddr::new(address, 9);
            assert!(tcp_rr(nobody, TIME).is_err());
            assert!(tcp_crr(nobody, TIME).is_err());
            assert!(udp_rr(nobody, TIME).is_err());
            let silent = std::net::UdpSocket::bind(SocketAddr::new(address, 0)).unwrap();
            let error = udp_rr(silent.local_addr().unwrap(), TIME).unwrap_err().to_string();
            assert!(error.starts_with("2 of 2 datagrams not answered"), "{error}");
        });
    }
}

#[test]
#[ignore = "needs root: network and mount namespaces"]
fn a_responder_answers_no_more_once_dropped() {
    let host = Host::new().unwrap();
    host.run(|| {
        let tcp = Responder::tcp(SocketAddr::new(LOOPBACK[0], 0)).unwrap();
        let udp = Responder::udp(SocketAddr::new(LOOPBACK[0], 0)).unwrap();
        let addresses = [tcp.address(), udp.address()];
        drop((tcp, udp));
        assert!(tcp_rr(addresses[0], Duration::from_millis(1)).is_err());
        assert!(udp_rr(addresses[1], Duration::from_millis(1)).is_err());
    });
}
