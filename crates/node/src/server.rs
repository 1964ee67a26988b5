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
use podwire_api::{
    EndpointId, EndpointRequest, ErrorBody, ErrorCode, LeaseRequest, MAX_BODY, Removal,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use crate::Error;
use crate::agent::Shared;

/// How long a client may take over a request's head, and so how long an idle connection is kept.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);

/// How long a client may take over a request's body.
const BODY_DEADLINE: Duration = Duration::from_secs(10);

/// How long requests under way get when the agent stops.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(10);

/// Connections at a time. A runtime adds a few dozen pods at once; each takes one.
const CONNECTIONS: usize = 512;

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
        .route("/v1/status", get(status))
        .route("/v1/config", get(config))
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
    answer(move || Ok(shared.node.leases())).await
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

async fn endpoints(State(shared): State<Arc<Shared>>) -> Response {
    answer(move || Ok(shared.node.list())).await
}

async fn status(State(shared): State<Arc<Shared>>) -> Response {
    answer(move || Ok(shared.status())).await
}

async fn config(State(shared): State<Arc<Shared>>) -> Response {
    answer(move || Ok(shared.config.clone())).await
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
