//! Every endpoint of the Engine API 1.56 is answered as what it is here: served, not yet, swarm, or unknown.

#[expect(dead_code, reason = "each test program uses its part")]
mod common;

use Class::{NotYet, Served, Swarm, Unknown};
use common::Daemon;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// By a handler.
    Served,
    /// 501 with a sentence that names the endpoint.
    NotYet,
    /// 503 "This node is not a swarm manager. …".
    Swarm,
    /// 404 "page not found", as in a Docker without experimental features.
    Unknown,
}

/// All operations of the API's description, and the routes the daemon serves outside it.
const ENDPOINTS: &[(&str, &str, Class)] = &[
    ("GET", "/containers/json", Served),
    ("POST", "/containers/create", Served),
    ("GET", "/containers/{id}/json", Served),
    ("GET", "/containers/{id}/top", NotYet),
    ("GET", "/containers/{id}/logs", Served),
    ("GET", "/containers/{id}/changes", Served),
    ("GET", "/containers/{id}/export", Served),
    ("GET", "/containers/{id}/stats", NotYet),
    ("POST", "/containers/{id}/resize", Served),
    ("POST", "/containers/{id}/start", Served),
    ("POST", "/containers/{id}/stop", Served),
    ("POST", "/containers/{id}/restart", Served),
    ("POST", "/containers/{id}/kill", Served),
    ("POST", "/containers/{id}/update", NotYet),
    ("POST", "/containers/{id}/rename", Served),
    ("POST", "/containers/{id}/pause", NotYet),
    ("POST", "/containers/{id}/unpause", NotYet),
    ("POST", "/containers/{id}/attach", Served),
    ("GET", "/containers/{id}/attach/ws", NotYet),
    ("POST", "/containers/{id}/wait", Served),
    ("DELETE", "/containers/{id}", Served),
    ("HEAD", "/containers/{id}/archive", NotYet),
    ("GET", "/containers/{id}/archive", NotYet),
    ("PUT", "/containers/{id}/archive", NotYet),
    ("POST", "/containers/prune", Served),
    ("GET", "/images/json", Served),
    ("POST", "/build", NotYet),
    ("POST", "/build/prune", NotYet),
    ("POST", "/images/create", Served),
    ("GET", "/images/{name}/json", Served),
    ("GET", "/images/{name}/attestations", NotYet),
    ("GET", "/images/{name}/history", Served),
    ("POST", "/images/{name}/push", NotYet),
    ("POST", "/images/{name}/tag", Served),
    ("DELETE", "/images/{name}", Served),
    ("GET", "/images/search", NotYet),
    ("POST", "/images/prune", NotYet),
    ("POST", "/auth", Served),
    ("GET", "/info", Served),
    ("GET", "/version", Served),
    ("GET", "/_ping", Served),
    ("HEAD", "/_ping", Served),
    ("POST", "/commit", Served),
    ("GET", "/events", Served),
    ("GET", "/system/df", Served),
    ("GET", "/images/{name}/get", Served),
    ("GET", "/images/get", Served),
    ("POST", "/images/load", Served),
    ("POST", "/containers/{id}/exec", NotYet),
    ("POST", "/exec/{id}/start", NotYet),
    ("POST", "/exec/{id}/resize", NotYet),
    ("GET", "/exec/{id}/json", NotYet),
    ("GET", "/volumes", Served),
    ("POST", "/volumes/create", NotYet),
    ("GET", "/volumes/{name}", Served),
    ("PUT", "/volumes/{name}", Swarm),
    ("DELETE", "/volumes/{name}", Served),
    ("POST", "/volumes/prune", NotYet),
    ("GET", "/networks", Served),
    ("GET", "/networks/{id}", Served),
    ("DELETE", "/networks/{id}", NotYet),
    ("POST", "/networks/create", NotYet),
    ("POST", "/networks/{id}/connect", NotYet),
    ("POST", "/networks/{id}/disconnect", NotYet),
    ("POST", "/networks/prune", NotYet),
    ("GET", "/plugins", NotYet),
    ("GET", "/plugins/privileges", NotYet),
    ("POST", "/plugins/pull", NotYet),
    ("GET", "/plugins/{name}/json", NotYet),
    ("DELETE", "/plugins/{name}", NotYet),
    ("POST", "/plugins/{name}/enable", NotYet),
    ("POST", "/plugins/{name}/disable", NotYet),
    ("POST", "/plugins/{name}/upgrade", NotYet),
    ("POST", "/plugins/create", NotYet),
    ("POST", "/plugins/{name}/push", NotYet),
    ("POST", "/plugins/{name}/set", NotYet),
    ("GET", "/nodes", Swarm),
    ("GET", "/nodes/{id}", Swarm),
    ("DELETE", "/nodes/{id}", Swarm),
    ("POST", "/nodes/{id}/update", Swarm),
    ("GET", "/swarm", Swarm),
    ("POST", "/swarm/init", NotYet),
    ("POST", "/swarm/join", NotYet),
    ("POST", "/swarm/leave", Swarm),
    ("POST", "/swarm/update", Swarm),
    ("GET", "/swarm/unlockkey", Swarm),
    ("POST", "/swarm/unlock", Swarm),
    ("GET", "/services", Swarm),
    ("POST", "/services/create", Swarm),
    ("GET", "/services/{id}", Swarm),
    ("DELETE", "/services/{id}", Swarm),
    ("POST", "/services/{id}/update", Swarm),
    ("GET", "/services/{id}/logs", Swarm),
    ("GET", "/tasks", Swarm),
    ("GET", "/tasks/{id}", Swarm),
    ("GET", "/tasks/{id}/logs", Swarm),
    ("GET", "/secrets", Swarm),
    ("POST", "/secrets/create", Swarm),
    ("GET", "/secrets/{id}", Swarm),
    ("DELETE", "/secrets/{id}", Swarm),
    ("POST", "/secrets/{id}/update", Swarm),
    ("GET", "/configs", Swarm),
    ("POST", "/configs/create", Swarm),
    ("GET", "/configs/{id}", Swarm),
    ("DELETE", "/configs/{id}", Swarm),
    ("POST", "/configs/{id}/update", Swarm),
    ("GET", "/distribution/{name}/json", NotYet),
    ("POST", "/session", NotYet),
    ("POST", "/grpc", NotYet),
    ("POST", "/build/cancel", NotYet),
    ("GET", "/networks/", Served),
    ("GET", "/containers/{id}/checkpoints", Unknown),
    ("POST", "/containers/{id}/checkpoints", Unknown),
    ("DELETE", "/containers/{id}/checkpoints/{checkpoint}", Unknown),
    ("GET", "/debug/vars", Unknown),
];

#[tokio::test]
async fn every_endpoint_has_its_class() {
    let daemon = Daemon::start();
    for &(method, path, expected) in ENDPOINTS {
        // Names of images have slashes; an end keeps the events from going on.
        let name = if path.starts_with("/images/") || path.starts_with("/distribution/") {
            "a/b:1"
        } else {
            "x"
        };
        let path = path
            .replace("{name}", name)
            .replace("{id}", "x")
            .replace("{checkpoint}", "x");
        let query = if path == "/events" { "?until=1" } else { "" };
        for prefix in ["", "/v1.45"] {
            let mut client = daemon.connect().await;
            client
                .request(&format!("{method} {prefix}{path}{query}"), "", "")
                .await;
            let response = if method == "HEAD" {
                client.head().await
            } else {
                client.response().await
            };
            let message = if method == "HEAD" {
                String::new()
            } else {
                response.body.clone()
            };
            let class = match response.status {
                501 => NotYet,
                503 => Swarm,
                404 if message.contains("page not found") => Unknown,
                500 => panic!("{method} {path}: {message}"),
                _ => Served,
            };
            assert_eq!(
                class, expected,
                "{method} {prefix}{path}: {} {message}",
                response.status
            );
            if class == NotYet && method != "HEAD" {
                assert!(
                    message.contains(&format!("{method} {path} is not supported by skiff yet")),
                    "{message}"
                );
            }
        }
    }
}

#[tokio::test]
async fn options_are_answered_for_any_path() {
    let daemon = Daemon::start();
    let response = daemon.call("OPTIONS /whatever", "").await;
    assert_eq!((response.status, response.header("ostype")), (200, "linux"));
}
