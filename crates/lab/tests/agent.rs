//! An agent is started, killed and started again; perl, which every Debian has, stands in for one.

use podwire_lab::{AgentSpec, Error, Host};

const LISTEN: &str = r#"
    use Socket;
    $| = 1;
    print "started\n";
    my $path = "/run/agent.sock";
    unlink $path;
    socket(my $socket, AF_UNIX, SOCK_STREAM, 0) or die $!;
    bind($socket, sockaddr_un($path)) or die $!;
    listen($socket, 5) or die $!;
    while (accept(my $client, $socket)) { close $client }
"#;

#[test]
#[ignore = "needs root: network and mount namespaces"]
fn an_agent_is_killed_and_started_again() {
    let host = Host::new().unwrap();
    let spec =
        AgentSpec::new(&host, "/usr/bin/perl").args(["-e", LISTEN]).socket("/run/agent.sock");
    let mut agent = spec.start().unwrap();
    let first = agent.pid();
    assert!(agent.open_files().unwrap() >= 3);
    assert!(agent.resident_bytes().unwrap() > 0);
    agent.kill().unwrap();
    assert!(agent.open_files().is_err());
    agent.start_again().unwrap();
    assert_ne!(agent.pid(), first);
    assert_eq!(agent.log(), "started\nstarted\n");
    agent.terminate().unwrap();
}

#[test]
#[ignore = "needs root: network and mount namespaces"]
fn an_agent_that_ends_at_once_is_quoted() {
    let host = Host::new().unwrap();
    let start =
        AgentSpec::new(&host, "/bin/sh").args(["-c", "echo no such option >&2; exit 2"]).start();
    let Err(Error::AgentEnded { status, log, .. }) = start else { panic!("{start:?}") };
    assert_eq!((status.code(), log.trim()), (Some(2), "no such option"));
}
