//! The API on a real socket, byte for byte where clients depend on bytes: the requests are those that real clients
//! send, the expected answers those of a real Docker daemon.

mod common;

use common::Daemon;
use serde_json::json;

const CAT: &str = r#"{"Image":"busybox","OpenStdin":true,"StdinOnce":true,"AttachStdin":true}"#;
const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: tcp\r\n";

fn frame(stream: u8, text: &str) -> Vec<u8> {
    let [.., length] = text.len().to_be_bytes();
    [&[stream, 0, 0, 0, 0, 0, 0, length], text.as_bytes()].concat()
}

#[tokio::test]
async fn ping_and_negotiation() {
    let daemon = Daemon::start();
    let response = daemon.call("GET /_ping", "").await;
    assert_eq!((response.status, response.body.as_str()), (200, "OK"));
    for (name, value) in [
        ("api-version", "1.51"),
        ("builder-version", "1"),
        ("cache-control", "no-cache, no-store, must-revalidate"),
        ("docker-experimental", "false"),
        ("ostype", "linux"),
        ("pragma", "no-cache"),
        ("server", "Docker/1.2.3+skiff (linux)"),
        ("swarm", "inactive"),
        ("content-type", "text/plain; charset=utf-8"),
    ] {
        assert_eq!(response.header(name), value);
    }
    let mut client = daemon.connect().await;
    client.request("HEAD /v1.24/_ping", "", "").await;
    let head = client.head().await;
    assert_eq!(
        (head.status, head.header("content-length"), head.header("swarm")),
        (200, "0", "inactive")
    );

    for (path, message) in [
        (
            "/v9.99/version",
            "client version 9.99 is too new. Maximum supported API version is 1.51",
        ),
        (
            "/v1.10/version",
            "client version 1.10 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version",
        ),
    ] {
        let response = daemon.call(&format!("GET {path}"), "").await;
        assert_eq!(
            (response.status, response.json()),
            (400, json!({"message": message}))
        );
        assert_eq!(response.header("api-version"), "1.51");
        assert_eq!(response.header("docker-experimental"), "");
    }
    for request in ["GET /v1.45/nope", "PUT /v1.45/containers/json", "GET /"] {
        let response = daemon.call(request, "").await;
        assert_eq!(
            (response.status, response.body.as_str()),
            (404, "{\"message\":\"page not found\"}\n"),
            "{request}"
        );
        assert_eq!(
            response.header("api-version"),
            "",
            "the router's own 404 has no version headers"
        );
    }
}

#[tokio::test]
async fn errors_have_docker_s_statuses_texts_and_headers() {
    let daemon = Daemon::start();
    daemon.create("p1", r#"{"Image":"busybox"}"#).await;
    for (request, body, status, message) in [
        (
            "GET /v1.45/containers/nope/json",
            "",
            404,
            "No such container: nope",
        ),
        (
            "GET /v1.45/images/nope/json",
            "",
            404,
            "No such image: nope:latest",
        ),
        ("GET /v1.45/networks/nope", "", 404, "network nope not found"),
        ("GET /v1.45/volumes/nope", "", 404, "get nope: no such volume"),
        (
            "POST /containers/create",
            r#"{"Image":"nosuch"}"#,
            404,
            "No such image: nosuch:latest",
        ),
        (
            "POST /containers/create",
            "",
            400,
            "invalid JSON: got EOF while reading request body",
        ),
        (
            "POST /containers/create",
            "{bad",
            400,
            "invalid JSON: invalid character 'b' looking for beginning of object key string",
        ),
        (
            "POST /containers/create",
            "{\"Image\":\"busybox\"} {}",
            400,
            "unexpected content after JSON",
        ),
        (
            "POST /containers/create?name=a/b",
            r#"{"Image":"busybox"}"#,
            400,
            "Invalid container name (a/b), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed",
        ),
        (
            "GET /containers/p1/logs",
            "",
            400,
            "Bad parameters: you must choose at least one stream",
        ),
        (
            "POST /containers/p1/wait?condition=x",
            "",
            400,
            "invalid condition: \"x\"",
        ),
        ("GET /containers/json?filters=x", "", 400, "invalid filter"),
        (
            "GET /containers/json?filters=%7B%22nope%22%3A%5B%22x%22%5D%7D",
            "",
            400,
            "invalid filter 'nope'",
        ),
        ("GET /events?filters=x", "", 400, "invalid filter"),
        (
            "POST /containers/p1/rename?name=",
            "",
            400,
            "Neither old nor new names may be empty",
        ),
        (
            "GET /images/search",
            "",
            501,
            "GET /images/search is not supported by skiff yet",
        ),
        (
            "GET /nodes",
            "",
            503,
            "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.",
        ),
    ] {
        let response = daemon.call(request, body).await;
        assert_eq!(
            (response.status, response.json()),
            (status, json!({"message": message})),
            "{request} {body}"
        );
        assert_eq!(response.header("docker-experimental"), "false", "{request}");
        assert_eq!(response.header("content-type"), "application/json");
    }
    let mut client = daemon.connect().await;
    client
        .request("POST /containers/create", "Content-Type: text/plain\r\n", "x")
        .await;
    assert_eq!(
        client.response().await.json()["message"],
        "unsupported Content-Type header (text/plain): must be 'application/json'"
    );
    let response = daemon.call("POST /containers/p1/stop", "").await;
    assert_eq!(
        (
            response.status,
            response.body.as_str(),
            response.header("content-type")
        ),
        (304, "", "")
    );
    assert_eq!(daemon.call("POST /containers/p1/kill", "").await.status, 409);
    assert_eq!(
        daemon
            .call("POST /containers/p1/resize?h=10&w=10", "")
            .await
            .status,
        409
    );
    assert_eq!(
        daemon
            .call("POST /containers/p1/resize?h=x&w=10", "")
            .await
            .status,
        400
    );
}

/// The calls of `docker run -i busybox cat`, in its order.
#[tokio::test]
async fn run() {
    let daemon = Daemon::start();
    let id = daemon.create("web", CAT).await;

    let mut attach = daemon.connect().await;
    attach
        .request(
            &format!("POST /v1.50/containers/{id}/attach?stream=1&stdin=1&stdout=1&stderr=1"),
            UPGRADE,
            "",
        )
        .await;
    let head = attach.head().await;
    assert_eq!((head.status, head.reason.as_str()), (101, "UPGRADED"));
    assert_eq!(
        head.header("content-type"),
        "application/vnd.docker.multiplexed-stream"
    );
    assert_eq!(
        (head.header("upgrade"), head.header("connection")),
        ("tcp", "Upgrade")
    );

    let mut wait = daemon.connect().await;
    wait.request(
        &format!("POST /v1.50/containers/{id}/wait?condition=next-exit"),
        "",
        "",
    )
    .await;
    let head = wait.head().await;
    assert_eq!(
        (head.status, head.header("content-type")),
        (200, "application/json"),
        "before the container runs"
    );

    assert_eq!(
        daemon.call("POST /v1.50/containers/web/start", "").await.status,
        204
    );
    assert_eq!(
        daemon.call("POST /v1.50/containers/web/start", "").await.status,
        304
    );
    let expected = [frame(1, "out\n"), frame(2, "err\n")].concat();
    assert_eq!(attach.exactly(expected.len()).await, expected);

    let listed = daemon.call("GET /containers/json", "").await.json();
    assert_eq!(
        (&listed[0]["State"], &listed[0]["Names"]),
        (&json!("running"), &json!(["/web"]))
    );
    assert!(
        listed[0]["Status"].as_str().unwrap().starts_with("Up "),
        "{listed}"
    );
    let inspected = daemon.call("GET /containers/web/json?size=1", "").await.json();
    assert_eq!(inspected["State"]["Pid"], 4711);
    assert_eq!(
        inspected["NetworkSettings"]["Networks"]["bridge"]["IPAddress"],
        "172.17.0.2"
    );
    assert_eq!(
        (&inspected["SizeRw"], &inspected["Config"]["Tty"]),
        (&json!(1), &json!(false))
    );
    let network = daemon.call("GET /networks/bridge", "").await.json();
    assert_eq!(network["Containers"][&id]["IPv4Address"], "172.17.0.2/16");
    assert_eq!(daemon.call("DELETE /containers/web", "").await.status, 409);

    attach.send(b"hello").await;
    attach.half_close().await;
    assert_eq!(
        attach.rest().await,
        frame(1, "hello"),
        "the input's end ends cat, its end the connection"
    );
    assert_eq!(wait.chunk().await, b"{\"StatusCode\":0}\n");
    assert_eq!(wait.chunk().await, b"");
    assert_eq!(daemon.call("DELETE /containers/web", "").await.status, 204);
    assert_eq!(
        daemon.call("GET /containers/json?all=1", "").await.json(),
        json!([])
    );
}

#[tokio::test]
async fn attach_without_upgrade_and_with_a_terminal() {
    let daemon = Daemon::start();
    daemon.create("plain", CAT).await;
    let mut attach = daemon.connect().await;
    attach
        .request(
            "POST /containers/plain/attach?stream=1&stdin=1&stdout=1&stderr=1",
            "",
            "",
        )
        .await;
    let head = attach.head().await;
    assert_eq!((head.status, head.reason.as_str()), (200, "OK"));
    assert_eq!(head.header("content-type"), "application/vnd.docker.raw-stream");
    assert_eq!(
        (
            head.header("upgrade"),
            head.header("content-length"),
            head.header("transfer-encoding")
        ),
        ("", "", "")
    );
    daemon.call("POST /containers/plain/start", "").await;
    let expected = [frame(1, "out\n"), frame(2, "err\n")].concat();
    assert_eq!(
        attach.exactly(expected.len()).await,
        expected,
        "framed all the same"
    );

    daemon
        .create("tty", r#"{"Image":"busybox","OpenStdin":true,"Tty":true}"#)
        .await;
    let mut attach = daemon.connect().await;
    attach
        .request(
            "POST /containers/tty/attach?stream=1&stdin=1&stdout=1&detachKeys=ctrl-x",
            UPGRADE,
            "",
        )
        .await;
    assert_eq!(
        attach.head().await.header("content-type"),
        "application/vnd.docker.raw-stream"
    );
    daemon.call("POST /containers/tty/start", "").await;
    assert_eq!(attach.exactly(4).await, b"out\n");
    assert_eq!(
        daemon
            .call("POST /containers/tty/resize?h=40&w=120", "")
            .await
            .status,
        200
    );
    attach.send(b"x\x18").await;
    let rest = attach.rest().await;
    assert!(rest == b"x" || rest.is_empty(), "detached: {rest:?}");
    // The connection is closed; the keys themselves did not reach the container.
    let mut missing = daemon.connect().await;
    missing
        .request("POST /containers/nope/attach?stream=1", "", "")
        .await;
    assert_eq!(missing.response().await.status, 404);
    missing
        .request("POST /containers/plain/attach?detachKeys=nope", "", "")
        .await;
    assert_eq!(
        missing.response().await.json()["message"],
        "Invalid detach keys (nope) provided"
    );
}

#[tokio::test]
async fn logs_of_every_version() {
    let daemon = Daemon::start();
    daemon.create("p1", CAT).await;
    daemon.call("POST /containers/p1/start", "").await;
    for (version, content_type) in [
        ("v1.45", "application/vnd.docker.multiplexed-stream"),
        ("v1.41", "application/vnd.docker.raw-stream"),
    ] {
        let response = daemon
            .call(
                &format!("GET /{version}/containers/p1/logs?stdout=1&stderr=1"),
                "",
            )
            .await;
        assert_eq!(response.header("content-type"), content_type);
        assert_eq!(
            response.body.as_bytes(),
            [frame(1, "out\n"), frame(2, "err\n")].concat()
        );
    }
    let response = daemon
        .call("GET /containers/p1/logs?stderr=1&timestamps=1", "")
        .await;
    assert_eq!(&response.body[8..], "2026-11-21T10:00:00.000000000Z err\n");
}

#[tokio::test]
async fn events_open_at_once_and_end_with_their_client() {
    let daemon = Daemon::start();
    let response = daemon.call("GET /events?since=1&until=2", "").await;
    assert_eq!((response.status, response.body.as_str()), (200, ""));
    let mut events = daemon.connect().await;
    events
        .request("GET /events?filters=%7B%22event%22%3A%5B%22die%22%5D%7D", "", "")
        .await;
    assert_eq!(events.head().await.header("content-type"), "application/json");
    daemon.publish("start");
    daemon.publish("die");
    let line = events.chunk().await;
    let event: serde_json::Value = serde_json::from_slice(&line).unwrap();
    assert_eq!(
        (&event["status"], &event["Type"], line.last()),
        (&json!("die"), &json!("container"), Some(&b'\n'))
    );
    // A client that half-closes has left: its stream ends without an event.
    events.half_close().await;
    assert_eq!(events.chunk().await, b"");
    let kept = daemon.call("GET /events?since=1&until=1h&type=x", "").await;
    assert_eq!(kept.body, "", "nothing is that old");
    let kept = daemon.call("GET /events?since=1&until=0.1s", "").await;
    assert_eq!(
        kept.body.lines().count(),
        0,
        "until is before the events: {}",
        kept.body
    );
}

#[tokio::test]
async fn a_failed_start_is_the_client_s_error() {
    let daemon = Daemon::start();
    daemon
        .create("p2", r#"{"Image":"busybox","Cmd":["nosuchcmd"]}"#)
        .await;
    let response = daemon.call("POST /containers/p2/start", "").await;
    assert_eq!(response.status, 400);
    assert!(
        response.json()["message"]
            .as_str()
            .unwrap()
            .contains("executable file not found in $PATH")
    );
    assert_eq!(
        daemon.call("GET /containers/p2/json", "").await.json()["State"]["ExitCode"],
        127
    );
    let response = daemon
        .call("POST /containers/create?name=p2", r#"{"Image":"busybox"}"#)
        .await;
    assert_eq!(response.status, 409);
    let pruned = daemon.call("POST /containers/prune", "").await.json();
    assert_eq!(pruned["ContainersDeleted"].as_array().unwrap().len(), 1);
    let response = daemon
        .call(
            "POST /containers/prune?filters=%7B%22label%22%3A%5B%22z%22%5D%7D",
            "",
        )
        .await;
    assert_eq!(
        response.body,
        "{\"ContainersDeleted\":null,\"SpaceReclaimed\":0}\n"
    );
}

#[tokio::test]
async fn system_and_networks() {
    let daemon = Daemon::start();
    daemon.create("p1", CAT).await;
    let info = daemon.call("GET /info", "").await.json();
    assert_eq!(
        (&info["Containers"], &info["ContainersStopped"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(info["Plugins"]["Network"], json!(["bridge", "host", "null"]));
    assert_eq!(info["RegistryConfig"]["IndexConfigs"]["r:5000"]["Secure"], false);
    assert_eq!(
        info["RegistryConfig"]["InsecureRegistryCIDRs"],
        json!(["127.0.0.0/8", "::1/128", "10.0.0.0/8"])
    );
    assert_eq!(info["Swarm"]["LocalNodeState"], "inactive");
    assert_eq!(info["DriverStatus"], json!([["Backing", "dir"]]));
    let version = daemon.call("GET /version", "").await.json();
    assert_eq!(
        (&version["ApiVersion"], &version["Arch"]),
        (&json!("1.51"), &json!("amd64"))
    );
    assert_eq!(version["Components"][0]["Details"]["MinAPIVersion"], "1.24");
    let networks = daemon
        .call(
            "GET /networks?filters=%7B%22driver%22%3A%5B%22bridge%22%5D%7D",
            "",
        )
        .await
        .json();
    assert_eq!(
        (&networks[0]["Name"], networks.as_array().unwrap().len()),
        (&json!("bridge"), 1)
    );
    assert_eq!(
        networks[0]["IPAM"]["Config"],
        json!([{"Subnet": "172.17.0.0/16", "Gateway": "172.17.0.1"}])
    );
    assert_eq!(
        daemon
            .call("GET /networks/", "")
            .await
            .json()
            .as_array()
            .unwrap()
            .len(),
        3
    );
    assert_eq!(
        daemon.call("GET /volumes", "").await.json(),
        json!({"Volumes": [], "Warnings": null})
    );
    assert_eq!(daemon.call("GET /images/json", "").await.json(), json!([]));
    let missing = daemon.call("DELETE /images/localhost:5000/a/b:1", "").await;
    assert_eq!(missing.status, 404, "{missing:?}");
    assert!(missing.body.contains("localhost:5000/a/b:1"), "{missing:?}");
}

#[tokio::test]
async fn shutdown_does_not_wait_for_open_streams() {
    let daemon = Daemon::start();
    daemon.create("p1", CAT).await;
    daemon.call("POST /containers/p1/start", "").await;
    let mut events = daemon.connect().await;
    events.request("GET /events", "", "").await;
    events.head().await;
    let mut attach = daemon.connect().await;
    attach
        .request("POST /containers/p1/attach?stream=1&stdout=1&stdin=1", "", "")
        .await;
    attach.head().await;
    let mut idle = daemon.connect().await;
    idle.request("GET /_ping", "", "").await;
    idle.response().await;
    let mut wait = daemon.connect().await;
    wait.request("POST /containers/p1/wait?condition=removed", "", "")
        .await;
    wait.head().await;
    daemon.stop().await;
    while !events.chunk().await.is_empty() {} // ended, not cut
    assert!(idle.rest().await.is_empty());
    attach.rest().await;
}
