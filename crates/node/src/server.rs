use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use ipnetwork::IpNetwork;
use podwire_api::{
    CheckRequest, CidrRequest, ConfigChange, EndpointId, EndpointRequest, ErrorBody, ErrorCode,
    GcRequest, IdentityRequest, LeaseRequest, MAX_BODY, Policy, PoolRequest, PrefixIdentity,
    Removal, Reservation,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use crate::Error;
use crate::agent::Shared;
use crate::choice::shown;

/// How long a client may take over a request's head, and so how long an idle connection is kept.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);

/// How long a client may take over a request's body.
const BODY_DEADLINE: Duration = Duration::from_secs(10);

/// How long requests under way get when the agent stops.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(10);

/// Connections at a time. A runtime adds a few dozen pods at once; each takes one.
const CONNECTIONS: usize = 512;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Answers requests until `stop` is done, and then those that are under way.
pub(crate) async fn serve(
    listener: UnixListener,
    shared: Arc<Shared>,
    stop: impl Future<Output = ()>,
) {
    let service = TowerToHyperService::new(router(shared));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_DEADLINE);
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let own = nix::unistd::geteuid().as_raw();
    tokio::pin!(stop);
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { break };
        let stream = tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match stream {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, say: waiting helps, spinning does not.
                tracing::warn!(%error, "accepting a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if !is_peer_allowed(&stream, own) {
            continue;
        }
        let connection = http.serve_connection(TokioIo::new(stream), service.clone());
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection");
            }
            drop(place);
        });
    }
    drop(listener);
    if tokio::time::timeout(SHUTDOWN_DEADLINE, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests were still under way after {SHUTDOWN_DEADLINE:?}");
    }
}

/// The folder keeps others out already; this holds also where somebody passed them a descriptor.
fn is_peer_allowed(stream: &UnixStream, own: u32) -> bool {
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == own => true,
        Ok(peer) => {
            tracing::warn!(
                uid = peer.uid(),
                pid = peer.pid(),
                "refused a client that is not {own}"
            );
            false
        }
        Err(error) => {
            tracing::warn!(%error, "refused a client that cannot be told");
            false
        }
    }
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/leases", get(leases).post(lease))
        .route("/v1/leases/{container_id}/{ifname}", axum::routing::delete(release))
        .route("/v1/endpoints", get(endpoints))
        .route("/v1/endpoints/{container_id}/{ifname}", get(endpoint).put(create).delete(delete))
        .route("/v1/endpoints/{container_id}/{ifname}/inspection", get(inspect))
        .route("/v1/endpoints/{container_id}/{ifname}/identity", axum::routing::put(set_identity))
        .route(
            "/v1/endpoints/{container_id}/{ifname}/policy",
            get(policy).put(set_policy).delete(delete_policy),
        )
        .route("/v1/ipcache", get(ipcache).put(set_ipcache).delete(forget_ipcache))
        .route("/v1/pools", get(pools))
        .route("/v1/pools/{name}", axum::routing::put(create_pool).delete(delete_pool))
        .route("/v1/pools/{name}/cidrs", axum::routing::post(edit_pool))
        .route("/v1/reservations", get(reservations).post(reserve))
        .route("/v1/reservations/{address}", axum::routing::delete(unreserve))
        .route("/v1/sticky", get(stickies))
        .route("/v1/sticky/{name}", axum::routing::delete(forget))
        .route("/v1/ipam/check", axum::routing::post(check))
        .route("/metrics", get(metrics))
        .route("/v1/gc", axum::routing::post(collect))
        .route("/v1/status", get(status))
        .route("/v1/config", get(config).patch(change_config))
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .with_state(shared)
}

type Names = Path<(String, String)>;

async fn lease(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let request: LeaseRequest = match body(request).await {
        Ok(request) => request,
        Err(refusal) => return refusal.into_response(),
    };
    answer(move || shared.node.lease(&request)).await
}

async fn leases(State(shared): State<Arc<Shared>>) -> Response {
    answer(move || shared.node.leases()).await
}

async fn release(State(shared): State<Arc<Shared>>, Path(names): Names) -> Response {
    answer(move || Ok(Removal { outcome: shared.node.release(&id(&names)?)? })).await
}

async fn create(
    State(shared): State<Arc<Shared>>,
    Path(names): Names,
    request: Request,
) -> Response {
    let request: EndpointRequest = match body(request).await {
        Ok(request) => request,
        Err(refusal) => return refusal.into_response(),
    };
    answer(move || shared.node.create(&id(&names)?, &request)).await
}

async fn delete(State(shared): State<Arc<Shared>>, Path(names): Names) -> Response {
    answer(move || Ok(Removal { outcome: shared.node.delete(&id(&names)?)? })).await
}

async fn endpoint(State(shared): State<Arc<Shared>>, Path(names): Names) -> Response {
    answer(move || {
        let id = id(&names)?;
        shared.node.endpoint(&id).ok_or(Error::NoEndpoint(id))
    })
    .await
}

async fn inspect(State(shared): State<Arc<Shared>>, Path(names): Names) -> Response {
    answer(move || shared.node.inspect(&id(&names)?)).await
}

async fn set_identity(
    State(shared): State<Arc<Shared>>,
    Path(names): Names,
    request: Request,
) -> Response {
    let request: IdentityRequest = match body(request).await {
        Ok(request) => request,
        Err(refusal) => return refusal.into_response(),
    };
    answer(move || shared.node.set_identity(&id(&names)?, request.identity)).await
}

async fn policy(State(shared): State<Arc<Shared>>, Path(names): Names) -> Response {
    answer(move || shared.node.policy(&id(&names)?)).await
}

async fn set_policy(
    State(shared): State<Arc<Shared>>,
    Path(names): Names,
    request: Request,
) -> Response {
    let policy: Policy = match body(request).await {
        Ok(policy) => policy,
        Err(refusal) => return refusal.into_response(),
    };
    answer(move || shared.node.set_policy(&id(&names)?, &policy)).await
}

async fn delete_policy(State(shared): State<Arc<Shared>>, Path(names): Names) -> Response {
    answer(move || Ok(Removal { outcome: shared.node.delete_policy(&id(&names)?)? })).await
}

async fn ipcache(State(shared): State<Arc<Shared>>) -> Response {
    answer(move || Ok(shared.node.prefix_identities())).await
}

async fn set_ipcache(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let entries: Vec<PrefixIdentity> = match body(request).await {
        Ok(entries) => entries,
        Err(refusal) => return refusal.into_response(),
    };
    answer(move || shared.node.set_prefix_identities(&entries)).await
}

async fn forget_ipcache(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let prefixes: Vec<IpNetwork> = match body(request).await {
        Ok(prefixes) => prefixes,
        Err(refusal) => return refusal.into_response(),
    };
    answer(move || shared.node.forget_prefix_identities(&prefixes)).await
}

async fn collect(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let request: GcRequest = match body(request).await {
        Ok(request) => request,
        Err(refusal) => return refusal.into_response(),
    };
    answer(move || shared.collect(&request)).await
}

async fn endpoints(State(shared): State<Arc<Shared>>) -> Response {
    answer(move || Ok(shared.node.list())).await
}

async fn status(State(shared): State<Arc<Shared>>) -> Response {
    answer(move || shared.status()).await
}

async fn config(State(shared): State<Arc<Shared>>) -> Response {
    answer(move || Ok(shared.config())).await
}

async fn change_config(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let change: ConfigChange = match body(request).await {
        Ok(change) => change,
        Err(refusal) => return refusal.into_response(),
    };
    answer(move || shared.change_config(&change)).await
}

async fn pools(State(shared): State<Arc<Shared>>) -> Response {
    answer(move || shared.node.pools()).await
}

async fn create_pool(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    request: Request,
) -> Response {
    let request: PoolRequest = match body(request).await {
        Ok(request) => request,
        Err(refusal) => return refusal.into_response(),
    };
    answer(move || shared.node.create_pool(&name, &request)).await
}

async fn edit_pool(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    request: Request,
) -> Response {
    let request: CidrRequest = match body(request).await {
        Ok(request) => request,
        Err(refusal) => return refusal.into_response(),
    };
    answer(move || shared.node.edit_pool(&name, request)).await
}

async fn delete_pool(State(shared): State<Arc<Shared>>, Path(name): Path<String>) -> Response {
    answer(move || Ok(Removal { outcome: shared.node.delete_pool(&name)? })).await
}

async fn reservations(State(shared): State<Arc<Shared>>) -> Response {
    answer(move || shared.node.reservations()).await
}

async fn reserve(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let request: Reservation = match body(request).await {
        Ok(request) => request,
        Err(refusal) => return refusal.into_response(),
    };
    answer(move || shared.node.reserve(&request)).await
}

async fn unreserve(State(shared): State<Arc<Shared>>, Path(address): Path<String>) -> Response {
    answer(move || {
        let parsed = address.parse();
        let address =
            parsed.map_err(|_| Error::Invalid(format!("{} is no address", shown(&address))))?;
        Ok(Removal { outcome: shared.node.unreserve(address)? })
    })
    .await
}

async fn stickies(State(shared): State<Arc<Shared>>) -> Response {
    answer(move || shared.node.stickies()).await
}

async fn forget(State(shared): State<Arc<Shared>>, Path(name): Path<String>) -> Response {
    answer(move || Ok(Removal { outcome: shared.node.forget_sticky(&name)? })).await
}

async fn check(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let request: CheckRequest = match body(request).await {
        Ok(request) => request,
        Err(refusal) => return refusal.into_response(),
    };
    answer(move || shared.node.check(request.disagreements)).await
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    match tokio::task::spawn_blocking(move || shared.metrics()).await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Ok(Err(error)) => Refusal::from(&error).into_response(),
        Err(error) => {
            tracing::error!(%error, "the metrics");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn unknown_path(uri: Uri) -> Refusal {
    let message = format!("there is no {}", uri.path());
    let hint = Some("is the client another version than the agent?".into());
    Refusal(StatusCode::NOT_FOUND, ErrorBody { code: ErrorCode::NotFound, message, hint })
}

async fn unknown_method(method: Method, uri: Uri) -> Refusal {
    let message = format!("{} does not take {method}", uri.path());
    let body = ErrorBody { code: ErrorCode::Invalid, message, hint: None };
    Refusal(StatusCode::METHOD_NOT_ALLOWED, body)
}

/// A refused request.
struct Refusal(StatusCode, ErrorBody);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        json(self.0, &self.1)
    }
}

impl From<&Error> for Refusal {
    fn from(error: &Error) -> Self {
        let body = error.body();
        let status = StatusCode::from_u16(body.code.status());
        Self(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), body)
    }
}

/// Runs what blocks where it may, and turns its result into an answer.
async fn answer<T: Serialize + Send + 'static>(
    act: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Response {
    match tokio::task::spawn_blocking(act).await {
        Ok(Ok(value)) => json(StatusCode::OK, &value),
        Ok(Err(error)) => {
            let refusal = Refusal::from(&error);
            if refusal.0.is_server_error() {
                tracing::error!(error = refusal.1.message, "a request failed");
            }
            refusal.into_response()
        }
        Err(error) => {
            tracing::error!(%error, "a request panicked");
            let message = "the agent failed over this request; its log says why".into();
            let body = ErrorBody { code: ErrorCode::Internal, message, hint: None };
            Refusal(StatusCode::INTERNAL_SERVER_ERROR, body).into_response()
        }
    }
}

fn json(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(bytes) => (status, [(header::CONTENT_TYPE, "application/json")], Bytes::from(bytes))
            .into_response(),
        // Only maps with keys that are no strings fail, and there are none.
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn body<T: DeserializeOwned>(request: Request) -> Result<T, Refusal> {
    let invalid = |status, message: String| {
        Refusal(status, ErrorBody { code: ErrorCode::Invalid, message, hint: None })
    };
    let read = axum::body::to_bytes(Body::new(request.into_body()), MAX_BODY);
    let bytes = match tokio::time::timeout(BODY_DEADLINE, read).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) if is_too_long(&error) => {
            let message = format!("the body has more than {MAX_BODY} bytes");
            return Err(invalid(StatusCode::PAYLOAD_TOO_LARGE, message));
        }
        Ok(Err(error)) => {
            return Err(invalid(
                StatusCode::BAD_REQUEST,
                format!("the body is cut short: {error}"),
            ));
        }
        Err(_) => {
            let message = format!("the body did not arrive within {BODY_DEADLINE:?}");
            return Err(invalid(StatusCode::REQUEST_TIMEOUT, message));
        }
    };
    serde_json::from_slice(&bytes).map_err(|error| {
        invalid(StatusCode::BAD_REQUEST, format!("the body is not as documented: {error}"))
    })
}

fn is_too_long(error: &axum::Error) -> bool {
    // axum boxes http-body-util's LengthLimitError, whose type it does not pass on.
    std::error::Error::source(error)
        .is_some_and(|source| source.to_string().contains("length limit"))
}

fn id(names: &(String, String)) -> Result<EndpointId, Error> {
    EndpointId::new(&names.0, &names.1).map_err(|error| Error::Invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream as Client;
    use std::path::{Path, PathBuf};
    use std::thread;

    use podwire_api::{AttachMode, EndpointId};
    use podwire_datapath::Timeouts;
    use tokio::sync::oneshot;

    use super::*;
    use crate::choice::Chooser;
    use crate::flows::Collector;
    use crate::mappings::Sweeper;
    use crate::memory::{MemoryDatapath, MemoryFlows, MemoryLinks, MemoryMappings, MemoryRoutes};
    use crate::node::{Kernel, Node};
    use crate::settings::Settings;
    use crate::{Config, runtime, store};

    fn shared(folder: &Path) -> Arc<Shared> {
        let cidrs = vec!["10.1.0.0/30".parse().unwrap()];
        let config = Config::new("n1".parse().unwrap(), cidrs.clone());
        let ipam = store::open(&folder.join("podwire.redb"), &config.node, "boot").unwrap().ipam;
        crate::pools::arrange(&ipam, &config, &store::PodCidrs::default()).unwrap();
        let kernel = Kernel {
            datapath: Arc::new(MemoryDatapath::default()),
            links: Arc::new(MemoryLinks::default()),
            routes: Arc::new(MemoryRoutes::default()),
        };
        let chooser = Chooser::new(config.default_pools.clone(), None);
        let node = Node::new(&config, chooser, ipam, Vec::new(), kernel).unwrap();
        let agent = config.described(AttachMode::Tcx).unwrap();
        let flows = Collector::new(Arc::new(MemoryFlows::default()), Timeouts::default());
        let settings = Settings::default();
        let mappings = Arc::new(MemoryMappings::default());
        let mappings = Sweeper::new(mappings, settings.mapping_timeouts());
        Arc::new(Shared::new(node, agent, flows, mappings, settings))
    }

    /// Serves on a socket while `test` runs.
    fn serving(test: impl FnOnce(&Path)) {
        let folder = tempfile::tempdir().unwrap();
        let socket: PathBuf = folder.path().join("podwire.sock");
        let shared = shared(folder.path());
        let (stop, stopped) = oneshot::channel::<()>();
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let server = thread::spawn(move || {
            runtime().unwrap().block_on(async {
                let listener = UnixListener::from_std(listener).unwrap();
                serve(listener, shared, async { drop(stopped.await) }).await;
            });
        });
        test(&socket);
        drop(stop);
        server.join().unwrap();
    }

    /// What a client does when it has sent its request.
    enum Then {
        Wait,
        HangUp,
    }

    /// Sends bytes as they are, and gives status and body of the answer.
    fn raw(socket: &Path, request: &[u8], then: &Then) -> (u16, String) {
        let mut stream = Client::connect(socket).unwrap();
        stream.write_all(request).unwrap();
        if matches!(then, Then::HangUp) {
            stream.shutdown(std::net::Shutdown::Write).unwrap();
        }
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).map_or(0, |status| status.parse().unwrap());
        (status, answer.split_once("\r\n\r\n").unwrap_or_default().1.to_owned())
    }

    fn request(socket: &Path, line: &str, body: &str) -> (u16, ErrorCode) {
        let length = body.len();
        let head = format!(
            "{line} HTTP/1.1\r\nhost: podwire\r\nconnection: close\r\n\
             content-length: {length}\r\n\r\n"
        );
        let (status, answer) = raw(socket, format!("{head}{body}").as_bytes(), &Then::Wait);
        let body: ErrorBody = serde_json::from_str(&answer).unwrap();
        (status, body.code)
    }

    #[test]
    fn every_refusal_is_told_in_one_form() {
        serving(|socket| {
            let told = |line, body| request(socket, line, body);
            assert_eq!(told("GET /v1/nothing", ""), (404, ErrorCode::NotFound));
            assert_eq!(told("GET /v1/endpoints/c1/eth0", ""), (404, ErrorCode::NotFound));
            assert_eq!(told("PATCH /v1/leases", ""), (405, ErrorCode::Invalid));
            assert_eq!(told("POST /v1/leases", "{"), (400, ErrorCode::Invalid));
            assert_eq!(told("POST /v1/leases", "{}"), (400, ErrorCode::Invalid));
            assert_eq!(told("DELETE /v1/leases/-c1/eth0", ""), (400, ErrorCode::Invalid));
            assert_eq!(told("DELETE /v1/endpoints/c1/a%2Fb", ""), (400, ErrorCode::Invalid));
            let long = " ".repeat(MAX_BODY + 1);
            assert_eq!(told("POST /v1/leases", &long), (413, ErrorCode::Invalid));
        });
    }

    #[test]
    fn a_client_is_served() {
        serving(|socket| {
            let client = podwire_api::Client::new(socket);
            let lease = |container: &str| {
                let id = EndpointId::new(container, "eth0").unwrap();
                client.lease(&LeaseRequest::new(id))
            };
            let reply = lease("c1").unwrap();
            assert_eq!(reply.addresses[0].to_string(), "10.1.0.1/32");
            lease("c2").unwrap();
            assert!(lease("c3").unwrap_err().is_exhausted());
            assert_eq!(client.leases().unwrap().len(), 2);
            assert_eq!(client.endpoints().unwrap(), []);
            assert_eq!(client.config().unwrap().node, reply.node);
            assert_eq!(client.status().unwrap().pools[0].cidrs[0].pending, 2);
        });
    }

    #[test]
    fn pools_are_served() {
        serving(|socket| {
            let client = podwire_api::Client::new(socket);
            let cidr = "10.9.0.0/30".parse().unwrap();
            let request = PoolRequest { cidrs: vec![cidr], ..PoolRequest::default() };
            assert_eq!(client.create_pool("blue", &request).unwrap().cidrs[0].size, 2);
            let drain = CidrRequest { edit: podwire_api::CidrEdit::Drain, cidr };
            assert!(client.edit_pool("blue", &drain).unwrap().cidrs[0].drained);
            assert_eq!(client.pools().unwrap().len(), 2);
            let address = "10.1.0.2".parse().unwrap();
            let reservation = Reservation { address, why: "printer".into() };
            assert_eq!(client.reserve(&reservation).unwrap(), reservation);
            assert_eq!(client.reservations().unwrap(), [reservation]);
            assert_eq!(client.unreserve(address).unwrap(), podwire_api::Removed::Removed);
            assert_eq!(client.forget("shop/web-0").unwrap(), podwire_api::Removed::Absent);
            assert_eq!(client.stickies().unwrap(), []);
            assert_eq!(client.check(CheckRequest::default()).unwrap().disagreements, []);
            let metrics = client.metrics().unwrap();
            assert!(metrics.contains("podwire_ipam_addresses{pool=\"blue\""), "{metrics}");
            assert_eq!(client.delete_pool("blue").unwrap(), podwire_api::Removed::Removed);
        });
    }

    #[test]
    fn prefixes_and_policies_are_served() {
        serving(|socket| {
            let client = podwire_api::Client::new(socket);
            let entry = PrefixIdentity { prefix: "10.9.0.0/16".parse().unwrap(), identity: 900 };
            assert_eq!(client.set_ipcache(&[entry]).unwrap().prefixes, 1);
            assert_eq!(client.ipcache().unwrap(), [entry]);
            assert_eq!(client.forget_ipcache(&[entry.prefix]).unwrap().prefixes, 1);
            assert_eq!(client.ipcache().unwrap(), []);
            let nobody = EndpointId::new("c1", "eth0").unwrap();
            assert!(client.policy(&nobody).unwrap_err().is_not_found());
            assert!(client.set_policy(&nobody, &Policy::default()).unwrap_err().is_not_found());
            assert!(client.delete_policy(&nobody).unwrap_err().is_not_found());
            assert!(client.set_identity(&nobody, 7).unwrap_err().is_not_found());
        });
    }

    #[test]
    fn settings_are_served() {
        serving(|socket| {
            let client = podwire_api::Client::new(socket);
            let config = client.config().unwrap();
            assert_eq!(config.settings["timeout.tcp-established"].value, "8000");
            assert_eq!((config.flows, config.pending_flows), (1 << 18, 1 << 16));
            let set = |name: &str, value: &str| ConfigChange {
                set: [(name.to_owned(), value.to_owned())].into(),
                ..ConfigChange::default()
            };
            let config = client.change_config(&set("timeout.icmp", "9")).unwrap();
            assert_eq!(config.settings["timeout.icmp"].value, "9");
            assert_eq!(client.config().unwrap(), config);
            let config = client.change_config(&set("timeout.nat-udp-replied", "300")).unwrap();
            assert_eq!(config.settings["timeout.nat-udp-replied"].value, "300");
            assert_eq!(config.settings["timeout.udp-replied"].value, "120");
            let error = client.change_config(&set("flows", "9")).unwrap_err().to_string();
            assert!(error.contains("option of podwired"), "{error}");
            let status = client.status().unwrap();
            assert!(status.memory.agent > 0 && status.memory.maps_total == 8192);
            let metrics = client.metrics().unwrap();
            assert!(
                metrics.contains("podwire_flow_capacity{table=\"confirmed\"} 100"),
                "{metrics}"
            );
        });
    }

    #[test]
    fn nonsense_ends_the_connection_and_nothing_else() {
        serving(|socket| {
            raw(socket, b"\x16\x03\x01 not http at all\r\n\r\n", &Then::HangUp);
            let cut = b"POST /v1/leases HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{";
            raw(socket, cut, &Then::HangUp);
            assert_eq!(podwire_api::Client::new(socket).endpoints().unwrap(), []);
        });
    }

    #[test]
    fn only_our_own_user_is_served() {
        runtime().unwrap().block_on(async {
            let (one, _other) = UnixStream::pair().unwrap();
            let own = nix::unistd::geteuid().as_raw();
            assert!(is_peer_allowed(&one, own));
            assert!(!is_peer_allowed(&one, own + 1));
        });
    }
}
