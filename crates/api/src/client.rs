use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnetwork::IpNetwork;
use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::http::{Method, Request};

use crate::name::push_segment;
use crate::transport::{NoResolver, NotConnected, UnixConnector};
use crate::{
    AgentConfig, CheckReply, CheckRequest, CidrRequest, ConfigChange, Endpoint, EndpointId,
    EndpointRequest, Error, ErrorBody, GcReply, GcRequest, IdentityRequest, Inspection, Lease,
    LeaseReply, LeaseRequest, Policy, Pool, PoolRequest, PrefixCount, PrefixIdentity, Removal,
    Removed, Reservation, Status, Sticky,
};

/// How long a [`Client`] waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection. A living agent takes one at once; this is for one that is overrun.
    pub connect: Duration,
    /// For a whole request, from connecting to the last byte of the answer.
    pub total: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(2), total: Duration::from_secs(20) }
    }
}

type Sent = Result<ureq::http::Response<ureq::Body>, ureq::Error>;

/// A blocking client of the agent.
///
/// It connects with its first request and keeps that connection for the next ones, as long as the
/// agent does. Shared between threads, it opens a connection for each request that is under way.
#[derive(Clone)]
pub struct Client {
    socket: PathBuf,
    agent: ureq::Agent,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl Client {
    /// A client of the agent that listens on this socket. Nothing is opened yet.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self::with_timeouts(socket, Timeouts::default())
    }

    /// The same with other deadlines.
    #[must_use]
    pub fn with_timeouts(socket: impl Into<PathBuf>, timeouts: Timeouts) -> Self {
        let socket = socket.into();
        let config = ureq::config::Config::builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(timeouts.total))
            .user_agent(concat!("podwire/", env!("CARGO_PKG_VERSION")))
            // ureq's own 128 KiB each would be zeroed for messages of a few hundred bytes.
            .input_buffer_size(16 << 10)
            .output_buffer_size(4 << 10)
            .build();
        let connector = UnixConnector { socket: socket.clone(), timeout: timeouts.connect };
        Self { socket, agent: ureq::Agent::with_parts(config, connector, NoResolver) }
    }

    /// The socket this client speaks to.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Says who an endpoint is to others.
    ///
    /// # Errors
    ///
    /// [`Error::is_not_found`] when there is none by that name,
    /// [`ErrorCode::Invalid`](crate::ErrorCode::Invalid) when the number is no identity.
    pub fn set_identity(&self, id: &EndpointId, identity: u32) -> Result<Endpoint, Error> {
        let path = format!("{}/identity", path("endpoints", id));
        self.send(&Method::PUT, &path, &IdentityRequest { identity })
    }

    /// What an endpoint may send and receive.
    ///
    /// # Errors
    ///
    /// [`Error::is_not_found`] when there is no endpoint by that name.
    pub fn policy(&self, id: &EndpointId) -> Result<Policy, Error> {
        self.call(&Method::GET, &format!("{}/policy", path("endpoints", id)))
    }

    /// Says what an endpoint may send and receive, in the place of what it might before.
    ///
    /// # Errors
    ///
    /// [`Error::is_not_found`] when there is no endpoint by that name,
    /// [`ErrorCode::Invalid`](crate::ErrorCode::Invalid) when a rule cannot be meant so,
    /// [`ErrorCode::Conflict`](crate::ErrorCode::Conflict) when another plugin made the interface,
    /// [`ErrorCode::Exhausted`](crate::ErrorCode::Exhausted) when a map of the datapath is full.
    pub fn set_policy(&self, id: &EndpointId, policy: &Policy) -> Result<Policy, Error> {
        self.send(&Method::PUT, &format!("{}/policy", path("endpoints", id)), policy)
    }

    /// Lets an endpoint send and receive everything.
    ///
    /// # Errors
    ///
    /// [`Error::is_not_found`] when there is no endpoint by that name.
    pub fn delete_policy(&self, id: &EndpointId) -> Result<Removed, Error> {
        let path = format!("{}/policy", path("endpoints", id));
        let removal: Removal = self.call(&Method::DELETE, &path)?;
        Ok(removal.outcome)
    }

    /// Who was said to be behind which prefix, in order.
    ///
    /// # Errors
    ///
    /// When the agent does not answer.
    pub fn ipcache(&self) -> Result<Vec<PrefixIdentity>, Error> {
        self.call(&Method::GET, "/v1/ipcache")
    }

    /// Says who is behind prefixes; others stay as they are.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::Conflict`](crate::ErrorCode::Conflict) when an endpoint of the node has an address,
    /// [`ErrorCode::Invalid`](crate::ErrorCode::Invalid) when a number is no identity. Nothing is changed then.
    pub fn set_ipcache(&self, entries: &[PrefixIdentity]) -> Result<PrefixCount, Error> {
        self.send(&Method::PUT, "/v1/ipcache", &entries)
    }

    /// Forgets who is behind prefixes. Those of which nothing was said are no error.
    ///
    /// # Errors
    ///
    /// When the agent does not answer.
    pub fn forget_ipcache(&self, prefixes: &[IpNetwork]) -> Result<PrefixCount, Error> {
        let (method, path) = (&Method::DELETE, "/v1/ipcache");
        let body = serde_json::to_vec(prefixes).map_err(|error| Error::NoAnswer {
            request: format!("{method} {path}"),
            source: error.into(),
        })?;
        let request = self.agent.delete(format!("http://podwire{path}"));
        let request = request.header("content-type", "application/json").force_send_body();
        self.finish(method, path, Ok(request.send(&body[..])))
    }

    /// Asks for a pending lease: `POST /v1/leases`.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::Exhausted`](crate::ErrorCode::Exhausted) when no address is left, [`ErrorCode::Conflict`](crate::ErrorCode::Conflict) when a wanted one
    /// is taken, [`ErrorCode::Invalid`](crate::ErrorCode::Invalid) when it is not this node's.
    pub fn lease(&self, request: &LeaseRequest) -> Result<LeaseReply, Error> {
        self.send(&Method::POST, "/v1/leases", request)
    }

    /// Gives a pending lease back. A confirmed one goes with its endpoint and is refused here.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::Conflict`](crate::ErrorCode::Conflict) when an endpoint stands behind it.
    pub fn release(&self, id: &EndpointId) -> Result<Removed, Error> {
        let removal: Removal = self.call(&Method::DELETE, &path("leases", id))?;
        Ok(removal.outcome)
    }

    /// Makes a wired interface an endpoint, and confirms its lease.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::Denied`](crate::ErrorCode::Denied) when the link is not as described or bears no mark,
    /// [`ErrorCode::Conflict`](crate::ErrorCode::Conflict) when an address went to another endpoint meanwhile.
    pub fn create_endpoint(
        &self,
        id: &EndpointId,
        request: &EndpointRequest,
    ) -> Result<Endpoint, Error> {
        self.send(&Method::PUT, &path("endpoints", id), request)
    }

    /// Removes an endpoint, its host link and its lease.
    ///
    /// # Errors
    ///
    /// An endpoint that is not there is no error.
    pub fn delete_endpoint(&self, id: &EndpointId) -> Result<Removed, Error> {
        let removal: Removal = self.call(&Method::DELETE, &path("endpoints", id))?;
        Ok(removal.outcome)
    }

    /// One endpoint.
    ///
    /// # Errors
    ///
    /// [`Error::is_not_found`] when there is none by that name.
    pub fn endpoint(&self, id: &EndpointId) -> Result<Endpoint, Error> {
        self.call(&Method::GET, &path("endpoints", id))
    }

    /// One endpoint, and how programs and maps differ from what it should be.
    ///
    /// # Errors
    ///
    /// [`Error::is_not_found`] when there is none by that name.
    pub fn inspect(&self, id: &EndpointId) -> Result<Inspection, Error> {
        self.call(&Method::GET, &format!("{}/inspection", path("endpoints", id)))
    }

    /// Removes everything of a network but what is valid: endpoints, and what killed ADDs have left.
    ///
    /// # Errors
    ///
    /// When the agent does not answer; what could not be removed is in the answer.
    pub fn gc(&self, request: &GcRequest) -> Result<GcReply, Error> {
        self.send(&Method::POST, "/v1/gc", request)
    }

    /// All endpoints, sorted by id.
    ///
    /// # Errors
    ///
    /// When the agent does not answer.
    pub fn endpoints(&self) -> Result<Vec<Endpoint>, Error> {
        self.call(&Method::GET, "/v1/endpoints")
    }

    /// All leases, sorted by owner.
    ///
    /// # Errors
    ///
    /// When the agent does not answer.
    pub fn leases(&self) -> Result<Vec<Lease>, Error> {
        self.call(&Method::GET, "/v1/leases")
    }

    /// All pools, in the order in which they were made.
    ///
    /// # Errors
    ///
    /// When the agent does not answer.
    pub fn pools(&self) -> Result<Vec<Pool>, Error> {
        self.call(&Method::GET, "/v1/pools")
    }

    /// Makes a pool.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::Conflict`](crate::ErrorCode::Conflict) when there is one of that name,
    /// [`ErrorCode::Invalid`](crate::ErrorCode::Invalid) when a CIDR cannot be used, or overlaps another.
    pub fn create_pool(&self, name: &str, request: &PoolRequest) -> Result<Pool, Error> {
        self.send(&Method::PUT, &named("pools", name), request)
    }

    /// Takes a pool away of which nothing is held.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::Conflict`](crate::ErrorCode::Conflict) when something is,
    /// [`ErrorCode::NotFound`](crate::ErrorCode::NotFound) when there is none of that name.
    pub fn delete_pool(&self, name: &str) -> Result<Removed, Error> {
        let removal: Removal = self.call(&Method::DELETE, &named("pools", name))?;
        Ok(removal.outcome)
    }

    /// Changes what a pool is made of, and gives the pool as it is then.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::Conflict`](crate::ErrorCode::Conflict) when a CIDR to be removed is in use,
    /// [`ErrorCode::NotFound`](crate::ErrorCode::NotFound) when pool or CIDR are not there,
    /// [`ErrorCode::Invalid`](crate::ErrorCode::Invalid) when a CIDR cannot be used, or overlaps another.
    pub fn edit_pool(&self, name: &str, request: &CidrRequest) -> Result<Pool, Error> {
        self.send(&Method::POST, &format!("{}/cidrs", named("pools", name)), request)
    }

    /// The addresses that are leased to nobody.
    ///
    /// # Errors
    ///
    /// When the agent does not answer.
    pub fn reservations(&self) -> Result<Vec<Reservation>, Error> {
        self.call(&Method::GET, "/v1/reservations")
    }

    /// Sets an address aside.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::Conflict`](crate::ErrorCode::Conflict) when somebody has it,
    /// [`ErrorCode::Invalid`](crate::ErrorCode::Invalid) when no pool does.
    pub fn reserve(&self, reservation: &Reservation) -> Result<Reservation, Error> {
        self.send(&Method::POST, "/v1/reservations", reservation)
    }

    /// Lifts a reservation.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::Denied`](crate::ErrorCode::Denied) for the router's.
    pub fn unreserve(&self, address: IpAddr) -> Result<Removed, Error> {
        let path = named("reservations", &address.to_string());
        let removal: Removal = self.call(&Method::DELETE, &path)?;
        Ok(removal.outcome)
    }

    /// The sticky names and their addresses, sorted by name.
    ///
    /// # Errors
    ///
    /// When the agent does not answer.
    pub fn stickies(&self) -> Result<Vec<Sticky>, Error> {
        self.call(&Method::GET, "/v1/sticky")
    }

    /// Keeps the addresses of a name for it no longer. Its lease, if it has one, stays.
    ///
    /// # Errors
    ///
    /// A name that has none is no error.
    pub fn forget(&self, name: &str) -> Result<Removed, Error> {
        let removal: Removal = self.call(&Method::DELETE, &named("sticky", name))?;
        Ok(removal.outcome)
    }

    /// Compares leases, endpoints and kernel.
    ///
    /// # Errors
    ///
    /// When the agent cannot look; what it could not repair is in the answer.
    pub fn check(&self, request: CheckRequest) -> Result<CheckReply, Error> {
        self.send(&Method::POST, "/v1/ipam/check", &request)
    }

    /// The agent's metrics, in the text format that Prometheus servers read.
    ///
    /// # Errors
    ///
    /// When the agent does not answer.
    pub fn metrics(&self) -> Result<String, Error> {
        let (method, path) = (&Method::GET, "/metrics");
        let request = self.request(method, path).body(());
        let body = self.body(method, path, request.map(|request| self.agent.run(request)))?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// How the node is.
    ///
    /// # Errors
    ///
    /// When the agent does not answer.
    pub fn status(&self) -> Result<Status, Error> {
        self.call(&Method::GET, "/v1/status")
    }

    /// What the agent runs with.
    ///
    /// # Errors
    ///
    /// When the agent does not answer.
    pub fn config(&self) -> Result<AgentConfig, Error> {
        self.call(&Method::GET, "/v1/config")
    }

    /// Changes settings, all of them or none, and gives the configuration as it is then.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::Invalid`](crate::ErrorCode::Invalid) when one is not known, cannot be changed while the
    /// agent runs, or cannot have that value.
    pub fn change_config(&self, change: &ConfigChange) -> Result<AgentConfig, Error> {
        self.send(&Method::PATCH, "/v1/config", change)
    }

    fn call<T: DeserializeOwned>(&self, method: &Method, path: &str) -> Result<T, Error> {
        let request = self.request(method, path).body(());
        self.finish(method, path, request.map(|request| self.agent.run(request)))
    }

    fn send<T: DeserializeOwned>(
        &self,
        method: &Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Error> {
        let described = || format!("{method} {path}");
        let body = serde_json::to_vec(body)
            .map_err(|error| Error::NoAnswer { request: described(), source: error.into() })?;
        let request =
            self.request(method, path).header("content-type", "application/json").body(body);
        self.finish(method, path, request.map(|request| self.agent.run(request)))
    }

    fn request(&self, method: &Method, path: &str) -> ureq::http::request::Builder {
        Request::builder().method(method).uri(format!("http://podwire{path}"))
    }

    fn finish<T: DeserializeOwned>(
        &self,
        method: &Method,
        path: &str,
        answer: Result<Sent, ureq::http::Error>,
    ) -> Result<T, Error> {
        let body = self.body(method, path, answer)?;
        serde_json::from_slice(&body).map_err(|source| Error::Malformed {
            request: format!("{method} {path}"),
            status: 200,
            source,
        })
    }

    /// The body of an answer that is a success.
    fn body(
        &self,
        method: &Method,
        path: &str,
        answer: Result<Sent, ureq::http::Error>,
    ) -> Result<Vec<u8>, Error> {
        let described = || format!("{method} {path}");
        let failed = |error: ureq::Error| self.failure(described(), error);
        let mut answer = answer.map_err(ureq::Error::Http).and_then(|sent| sent).map_err(failed)?;
        let status = answer.status();
        let limit = 64 << 20;
        let body = answer.body_mut().with_config().limit(limit).read_to_vec().map_err(failed)?;
        if status.is_success() {
            return Ok(body);
        }
        let malformed =
            |source| Error::Malformed { request: described(), status: status.as_u16(), source };
        let body: ErrorBody = serde_json::from_slice(&body).map_err(malformed)?;
        Err(Error::Refused { status: status.as_u16(), body })
    }

    fn failure(&self, request: String, error: ureq::Error) -> Error {
        match error {
            ureq::Error::Io(error) => match error.downcast::<NotConnected>() {
                Ok(NotConnected(source)) => {
                    Error::Unreachable { socket: self.socket.clone(), source }
                }
                Err(error) => Error::NoAnswer { request, source: error.into() },
            },
            error => Error::NoAnswer { request, source: error.into() },
        }
    }
}

fn named(collection: &str, name: &str) -> String {
    let mut path = String::with_capacity(64);
    path.push_str("/v1");
    push_segment(&mut path, collection);
    push_segment(&mut path, name);
    path
}

fn path(collection: &str, id: &EndpointId) -> String {
    let mut path = String::with_capacity(128);
    path.push_str("/v1");
    push_segment(&mut path, collection);
    push_segment(&mut path, id.container_id.as_str());
    push_segment(&mut path, id.ifname.as_str());
    path
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// Answers each request of one connection with the next of `answers`, then closes it; hands
    /// back what it was sent.
    fn serve(listener: &UnixListener, answers: &[(u16, &str)]) -> Vec<(String, String)> {
        let (stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(stream);
        let mut seen = Vec::new();
        for (status, body) in answers {
            let mut head = String::new();
            let mut length = 0;
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                if line == "\r\n" {
                    break;
                }
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                if head.is_empty() {
                    head = line.trim().to_owned();
                }
            }
            let mut sent = vec![0; length];
            reader.read_exact(&mut sent).unwrap();
            seen.push((head, String::from_utf8(sent).unwrap()));
            let length = body.len();
            let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n\r\n{body}");
            reader.get_mut().write_all(answer.as_bytes()).unwrap();
        }
        seen
    }

    fn id() -> EndpointId {
        EndpointId::new("c1", "eth0").unwrap()
    }

    fn socket() -> (tempfile::TempDir, PathBuf, UnixListener) {
        let folder = tempfile::tempdir().unwrap();
        let path = crate::socket_path(folder.path());
        let listener = UnixListener::bind(&path).unwrap();
        (folder, path, listener)
    }

    #[test]
    fn requests_share_one_connection() {
        let (_folder, path, listener) = socket();
        let server = thread::spawn(move || {
            let removed = r#"{"outcome":"removed"}"#;
            let absent = r#"{"outcome":"absent"}"#;
            // A second connection would never be accepted.
            serve(&listener, &[(200, removed), (200, absent), (200, "[]")])
        });
        let client = Client::new(path);
        assert_eq!(client.delete_endpoint(&id()).unwrap(), Removed::Removed);
        assert_eq!(client.release(&id()).unwrap(), Removed::Absent);
        assert_eq!(client.endpoints().unwrap(), []);
        let seen = server.join().unwrap();
        assert_eq!(seen[0].0, "DELETE /v1/endpoints/c1/eth0 HTTP/1.1");
        assert_eq!(seen[1].0, "DELETE /v1/leases/c1/eth0 HTTP/1.1");
        assert_eq!(seen[2].0, "GET /v1/endpoints HTTP/1.1");
    }

    #[test]
    fn bodies_are_sent_and_refusals_kept() {
        let (_folder, path, listener) = socket();
        let refusal = r#"{"code":"exhausted","message":"no address left","hint":"more"}"#;
        let server = thread::spawn(move || serve(&listener, &[(507, refusal)]));
        let request = LeaseRequest::new(id());
        let error = Client::new(path).lease(&request).unwrap_err();
        assert!(error.is_exhausted() && !error.is_try_again());
        assert_eq!((error.to_string().as_str(), error.hint()), ("no address left", Some("more")));
        let seen = server.join().unwrap();
        assert_eq!(seen[0].0, "POST /v1/leases HTTP/1.1");
        assert_eq!(seen[0].1, r#"{"container_id":"c1","ifname":"eth0"}"#);
    }

    #[test]
    fn a_restarted_agent_is_reached_again() {
        let (_folder, path, listener) = socket();
        let client = Client::new(path);
        for _ in 0..2 {
            thread::scope(|scope| {
                let server = scope.spawn(|| serve(&listener, &[(200, "[]")]));
                assert_eq!(client.leases().unwrap(), []);
                server.join().unwrap();
            });
        }
    }

    #[test]
    fn nobody_there_is_unreachable() {
        let (_folder, path, listener) = socket();
        drop(listener);
        let refused = Client::new(&path).status().unwrap_err();
        assert!(refused.is_unreachable() && refused.is_try_again(), "{refused:?}");
        let missing = Client::new("/nonexistent/podwire.sock").status().unwrap_err();
        assert!(missing.is_unreachable(), "{missing:?}");
        let long = Client::new(format!("/{}", "x".repeat(200))).status().unwrap_err();
        assert!(long.is_unreachable(), "{long:?}");
    }

    #[test]
    fn a_silent_agent_is_no_answer() {
        let (_folder, path, listener) = socket();
        // Accepted by the backlog, never read.
        let timeouts = Timeouts { total: Duration::from_millis(50), ..Timeouts::default() };
        let error = Client::with_timeouts(path, timeouts).status().unwrap_err();
        assert!(matches!(error, Error::NoAnswer { .. }), "{error:?}");
        assert!(error.is_try_again() && !error.is_unreachable());
        drop(listener);
    }

    #[test]
    fn an_agent_that_hangs_up_is_no_answer() {
        let (_folder, path, listener) = socket();
        let server = thread::spawn(move || drop(listener.accept()));
        let error = Client::new(path).config().unwrap_err();
        assert!(matches!(error, Error::NoAnswer { .. }), "{error:?}");
        server.join().unwrap();
    }

    #[test]
    fn nonsense_is_malformed() {
        let (_folder, path, listener) = socket();
        let server = thread::spawn(move || serve(&listener, &[(200, "<html>"), (502, "")]));
        let client = Client::new(path);
        for _ in 0..2 {
            let error = client.status().unwrap_err();
            assert!(matches!(error, Error::Malformed { .. }), "{error:?}");
        }
        server.join().unwrap();
    }
}
