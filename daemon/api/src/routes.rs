//! The routing table: every path of the Engine API has exactly one line here, served or not.

use axum::Router;
use axum::extract::OriginalUri;
use axum::handler::Handler;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, delete, get, on, post};
use http::Method;
use skiff_core::Error;

use crate::error::{ApiError, page_not_found};
use crate::{
    App, attach, commit, containers, disk_usage, events, images, logs, networks, system, tarballs, volumes,
};

/// Marks the answer to a path or method that no line knows; Docker's router sends no version headers with it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unrouted;

/// Paths that are part of the API and not served yet: 501.
const NOT_YET: &[&str] = &[
    "GET /containers/{id}/top",
    "GET /containers/{id}/stats",
    "POST /containers/{id}/update",
    "POST /containers/{id}/pause",
    "POST /containers/{id}/unpause",
    "GET /containers/{id}/attach/ws",
    "HEAD /containers/{id}/archive",
    "GET /containers/{id}/archive",
    "PUT /containers/{id}/archive",
    "POST /containers/{id}/exec",
    "POST /exec/{id}/start",
    "POST /exec/{id}/resize",
    "GET /exec/{id}/json",
    "POST /build",
    "POST /build/prune",
    "POST /build/cancel",
    "POST /session",
    "POST /grpc",
    "GET /images/{name}/attestations",
    "GET /images/search",
    "POST /images/prune",
    "POST /images/{name}/push",
    "GET /distribution/{name}/json",
    "POST /volumes/create",
    "POST /volumes/prune",
    "POST /networks/create",
    "POST /networks/prune",
    "POST /networks/{id}/connect",
    "POST /networks/{id}/disconnect",
    "DELETE /networks/{id}",
    "GET /plugins",
    "GET /plugins/privileges",
    "POST /plugins/pull",
    "POST /plugins/create",
    "GET /plugins/{name}/json",
    "DELETE /plugins/{name}",
    "POST /plugins/{name}/enable",
    "POST /plugins/{name}/disable",
    "POST /plugins/{name}/upgrade",
    "POST /plugins/{name}/push",
    "POST /plugins/{name}/set",
    // Answered like the rest of swarm, these two would tell the user to run the very command they come from.
    "POST /swarm/init",
    "POST /swarm/join",
];

/// Paths of swarm mode: 503, as any engine answers that is in no swarm.
const SWARM: &[&str] = &[
    "GET /swarm",
    "POST /swarm/leave",
    "POST /swarm/update",
    "GET /swarm/unlockkey",
    "POST /swarm/unlock",
    "GET /nodes",
    "GET /nodes/{id}",
    "DELETE /nodes/{id}",
    "POST /nodes/{id}/update",
    "GET /services",
    "POST /services/create",
    "GET /services/{id}",
    "DELETE /services/{id}",
    "POST /services/{id}/update",
    "GET /services/{id}/logs",
    "GET /tasks",
    "GET /tasks/{id}",
    "GET /tasks/{id}/logs",
    "GET /secrets",
    "POST /secrets/create",
    "GET /secrets/{id}",
    "DELETE /secrets/{id}",
    "POST /secrets/{id}/update",
    "GET /configs",
    "POST /configs/create",
    "GET /configs/{id}",
    "DELETE /configs/{id}",
    "POST /configs/{id}/update",
    "PUT /volumes/{name}",
];

const NOT_A_MANAGER: &str = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" \
                             to connect this node to swarm and try again.";

/// All paths.
pub(crate) fn router() -> Router<App> {
    served()
        .merge(table(NOT_YET, not_yet))
        .merge(table(SWARM, swarm))
        .method_not_allowed_fallback(unrouted)
        .fallback(unrouted)
}

fn served() -> Router<App> {
    Router::new()
        .route("/_ping", get(system::ping))
        .route("/version", get(system::version))
        .route("/info", get(system::info))
        .route("/auth", post(system::auth))
        .route("/system/df", get(disk_usage::df))
        .route("/events", get(events::events))
        .route("/images/json", get(images::list))
        .route("/images/create", post(images::create))
        .route("/images/load", post(tarballs::load))
        .route("/images/get", get(tarballs::save_many))
        .route("/images/{name}/get", get(tarballs::save_one))
        .route("/images/{name}/json", get(images::inspect))
        .route("/images/{name}/history", get(images::history))
        .route("/images/{name}/tag", post(images::tag))
        .route("/images/{name}", delete(images::remove))
        .route("/containers/json", get(containers::list))
        .route("/containers/create", post(containers::create))
        .route("/containers/prune", post(containers::prune))
        .route("/containers/{id}/json", get(containers::inspect))
        .route("/commit", post(commit::commit))
        .route("/containers/{id}/changes", get(commit::changes))
        .route("/containers/{id}/export", get(tarballs::export))
        .route("/containers/{id}/start", post(containers::start))
        .route("/containers/{id}/stop", post(containers::stop))
        .route("/containers/{id}/restart", post(containers::restart))
        .route("/containers/{id}/kill", post(containers::kill))
        .route("/containers/{id}/resize", post(containers::resize))
        .route("/containers/{id}/rename", post(containers::rename))
        .route("/containers/{id}/wait", post(containers::wait))
        .route("/containers/{id}/attach", post(attach::attach))
        .route("/containers/{id}/logs", get(logs::logs))
        .route("/containers/{id}", delete(containers::remove))
        .route("/networks", get(networks::list))
        .route("/networks/", get(networks::list))
        .route("/networks/{id}", get(networks::inspect))
        .route("/volumes", get(volumes::list))
        .route("/volumes/{name}", get(volumes::inspect).delete(volumes::remove))
}

/// One route for each line of `lines`, all answered by `handler`.
fn table<H, T>(lines: &[&str], handler: H) -> Router<App>
where
    H: Handler<T, App>,
    T: 'static,
{
    lines.iter().fold(Router::new(), |router, line| {
        let (method, path) = line.split_once(' ').unwrap_or(("GET", line));
        let filter = method
            .parse::<Method>()
            .ok()
            .and_then(|method| MethodFilter::try_from(method).ok());
        router.route(path, on(filter.unwrap_or(MethodFilter::GET), handler.clone()))
    })
}

async fn not_yet(method: Method, OriginalUri(uri): OriginalUri) -> ApiError {
    // Slashes in names were encoded for the router's sake.
    let path = uri.path().replace("%2F", "/");
    Error::not_implemented(format!("{method} {path} is not supported by skiff yet")).into()
}

async fn swarm() -> ApiError {
    Error::unavailable(NOT_A_MANAGER).into()
}

async fn unrouted() -> Response {
    let mut response = page_not_found().await.into_response();
    response.extensions_mut().insert(Unrouted);
    response
}
