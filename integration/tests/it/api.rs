//! Answers that clients take apart: statuses, headers, texts. The requests and what Docker answers to them were recorded
//! from a real dockerd (26.1); texts that differ between versions are matched in part.

use serde_json::{Value, json};

use crate::harness::{Engine, Response, query, registry};

/// The newest version an older client asks for, and the one most of these requests use.
const V: &str = "/v1.45";

/// An error with its status, its exact text and the headers every handler sends.
fn is_error(answer: &Response, status: u16, message: &str) {
    assert_eq!((answer.status, answer.message().as_str()), (status, message));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert!(
        answer.header("api-version").is_some() && answer.header("server").is_some(),
        "{answer:?}"
    );
}

#[test]
fn ping_answers_get_and_head_with_everything_a_client_negotiates_by() {
    let engine = Engine::start();
    let get = engine.get("/_ping").expect_status(200);
    assert_eq!(get.text(), "OK");
    assert_eq!(get.header("content-type"), Some("text/plain; charset=utf-8"));
    let head = engine
        .open("HEAD", "/_ping", &[], b"")
        .finish()
        .unwrap()
        .expect_status(200);
    assert!(head.body.is_empty());
    for answer in [&get, &head] {
        for (name, value) in [
            ("ostype", "linux"),
            ("docker-experimental", "false"),
            ("swarm", "inactive"),
            ("cache-control", "no-cache, no-store, must-revalidate"),
            ("pragma", "no-cache"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{name}");
        }
        assert!(answer.header("builder-version").is_some());
        assert!(
            answer
                .header("api-version")
                .is_some_and(|version| version.starts_with("1."))
        );
        assert!(
            answer
                .header("server")
                .is_some_and(|server| server.ends_with("(linux)"))
        );
    }
    engine.get(&format!("{V}/_ping")).expect_status(200);
}

#[test]
fn versions_are_checked_in_docker_s_words() {
    let engine = Engine::start();
    let version = engine.get("/version").expect_status(200).json();
    let (newest, oldest) = (
        version["ApiVersion"].as_str().unwrap(),
        version["MinAPIVersion"].as_str().unwrap(),
    );
    assert_eq!(engine.get("/_ping").header("api-version"), Some(newest));
    let new = engine.get("/v9.99/version").expect_status(400);
    assert_eq!(
        new.message(),
        format!("client version 9.99 is too new. Maximum supported API version is {newest}")
    );
    let old = engine.get("/v1.10/version").expect_status(400);
    assert_eq!(
        old.message(),
        format!(
            "client version 1.10 is too old. Minimum supported API version is {oldest}, please upgrade your client to a newer version"
        )
    );
    for known in [newest, oldest, "1.41"] {
        engine.get(&format!("/v{known}/version")).expect_status(200);
    }
    for field in [
        "Version",
        "Os",
        "Arch",
        "KernelVersion",
        "GoVersion",
        "GitCommit",
        "BuildTime",
    ] {
        assert!(version[field].is_string(), "{field}: {version}");
    }
    let components = version["Components"].as_array().unwrap();
    assert_eq!(components[0]["Name"], "Engine");
    assert_eq!(components[0]["Details"]["ApiVersion"], newest);
}

#[test]
fn unknown_paths_and_methods_are_not_found() {
    let engine = Engine::start();
    for (method, path) in [
        ("GET", "/v1.45/nope"),
        ("GET", "/nope"),
        ("PUT", "/v1.45/containers/json"),
        ("DELETE", "/v1.45/info"),
    ] {
        let answer = engine
            .open(method, path, &[], b"")
            .finish()
            .unwrap()
            .expect_status(404);
        assert_eq!(answer.message(), "page not found", "{method} {path}");
        assert_eq!(
            answer.header("api-version"),
            None,
            "the router's own answer has no version headers"
        );
    }
}

#[test]
fn missing_objects_are_named() {
    let engine = Engine::start();
    for (path, message) in [
        ("/containers/nope/json", "No such container: nope"),
        ("/containers/nope/logs?stdout=1", "No such container: nope"),
        ("/images/nope/json", "No such image: nope:latest"),
        ("/images/nope:1/json", "No such image: nope:1"),
        ("/images/nope/history", "No such image: nope:latest"),
    ] {
        is_error(&engine.get(&format!("{V}{path}")), 404, message);
    }
    for action in [
        "start",
        "stop",
        "wait",
        "resize?h=1&w=1",
        "attach?stream=1&stdout=1",
    ] {
        is_error(
            &engine.post(&format!("{V}/containers/nope/{action}"), &json!(null)),
            404,
            "No such container: nope",
        );
    }
    is_error(
        &engine.delete(&format!("{V}/containers/nope")),
        404,
        "No such container: nope",
    );
    is_error(
        &engine.delete(&format!("{V}/images/nope")),
        404,
        "No such image: nope:latest",
    );
    is_error(
        &engine.post(&format!("{V}/containers/create"), &json!({"Image": "nosuch"})),
        404,
        "No such image: nosuch:latest",
    );
}

#[test]
fn a_create_request_is_read_strictly() {
    let engine = Engine::with_busybox("overlay2");
    let send = |content_type: &str, body: &str| {
        engine
            .open(
                "POST",
                &format!("{V}/containers/create"),
                &[("Content-Type", content_type)],
                body.as_bytes(),
            )
            .finish()
            .unwrap()
    };
    let json = "application/json";
    is_error(
        &send(json, ""),
        400,
        "invalid JSON: got EOF while reading request body",
    );
    is_error(
        &send("text/plain", "x"),
        400,
        "unsupported Content-Type header (text/plain): must be 'application/json'",
    );
    is_error(
        &send(json, "{\"Image\":\"x\"} {}"),
        400,
        "unexpected content after JSON",
    );
    let bad = send(json, "{bad").expect_status(400);
    assert!(bad.message().starts_with("invalid JSON: "), "{}", bad.message());
    let wrong_type = send(json, r#"{"Image": 5}"#).expect_status(400);
    assert!(
        wrong_type.message().starts_with("invalid JSON: "),
        "{}",
        wrong_type.message()
    );
    let name = engine.post(
        &format!("{V}/containers/create?name=a/b"),
        &json!({"Image": registry().busybox()}),
    );
    is_error(
        &name,
        400,
        "Invalid container name (a/b), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed",
    );

    let made = engine.post(
        &format!("{V}/containers/create?name=one"),
        &json!({"Image": registry().busybox(), "Unknown": 1}),
    );
    let made = made.expect_status(201).json();
    assert_eq!(made["Warnings"], json!([]), "an empty list, not absent");
    let id = made["Id"].as_str().unwrap();
    assert!(
        id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()),
        "{id}"
    );
    let taken = engine.post(
        &format!("{V}/containers/create?name=one"),
        &json!({"Image": registry().busybox()}),
    );
    is_error(
        &taken,
        409,
        &format!(
            "Conflict. The container name \"/one\" is already in use by container \"{id}\". \
             You have to remove (or rename) that container to be able to reuse that name."
        ),
    );
    let charset = engine.open(
        "POST",
        &format!("{V}/containers/create"),
        &[("Content-Type", "application/json; charset=utf-8")],
        json!({"Image": registry().busybox()}).to_string().as_bytes(),
    );
    assert_eq!(charset.status, 201);
}

#[test]
fn each_state_refuses_in_its_own_words() {
    let engine = Engine::with_busybox("overlay2");
    let id = engine.create(
        "box",
        json!({"Cmd": ["sh", "-c", "echo out; echo err >&2; read x; exit 3"], "OpenStdin": true}),
    );
    let at = |path: &str| format!("{V}/containers/box{path}");
    let none = json!(null);

    // Created.
    let empty = engine.get(&at("/logs?stdout=1")).expect_status(200);
    assert_eq!(
        empty.header("content-type"),
        Some("application/vnd.docker.multiplexed-stream")
    );
    assert!(empty.body.is_empty());
    is_error(
        &engine.get(&at("/logs")),
        400,
        "Bad parameters: you must choose at least one stream",
    );
    let kill = engine.post(&at("/kill"), &none).expect_status(409);
    assert!(
        kill.message()
            .ends_with(&format!("container {id} is not running")),
        "{}",
        kill.message()
    );
    engine.post(&at("/stop"), &none).expect_status(304);
    is_error(
        &engine.post(&at("/resize?h=10&w=10"), &none),
        409,
        &format!("container {id} is not running"),
    );
    is_error(
        &engine.post(&at("/wait?condition=x"), &none),
        400,
        "invalid condition: \"x\"",
    );

    // Running. The wait's headers come at once, its body at the end.
    let waiting = engine.open("POST", &at("/wait?condition=next-exit"), &[], b"");
    assert_eq!(
        (waiting.status, waiting.header("transfer-encoding")),
        (200, Some("chunked"))
    );
    engine.post(&at("/start"), &none).expect_status(204);
    engine.post(&at("/start"), &none).expect_status(304);
    is_error(
        &engine.delete(&at("")),
        409,
        "cannot remove container \"/box\": container is running: stop the container before removing or force remove",
    );
    engine.wait_for_output("box", "err");
    engine.docker(["attach", "box"]).stdin("go\n").run();
    assert_eq!(waiting.finish().unwrap().json(), json!({"StatusCode": 3}));

    // Exited.
    assert_eq!(
        engine.post(&at("/wait"), &none).expect_status(200).json(),
        json!({"StatusCode": 3})
    );
    let frames = engine.open("GET", &at("/logs?stdout=1&stderr=1"), &[], b"");
    assert_eq!(
        frames.header("content-type"),
        Some("application/vnd.docker.multiplexed-stream")
    );
    assert_eq!(frames.frames().unwrap(), ("out\n".to_owned(), "err\n".to_owned()));
    let old = engine.open("GET", "/v1.41/containers/box/logs?stdout=1", &[], b"");
    assert_eq!(
        old.header("content-type"),
        Some("application/vnd.docker.raw-stream"),
        "before 1.42, still with frames"
    );
    assert_eq!(old.frames().unwrap().0, "out\n");
    engine.delete(&at("")).expect_status(204);
    is_error(&engine.delete(&at("")), 404, "No such container: box");
}

#[test]
fn waiting_for_removal_ends_with_the_removal() {
    let engine = Engine::with_busybox("overlay2");
    engine.create(
        "box",
        json!({"Cmd": ["sh", "-c", "exit 6"], "HostConfig": {"AutoRemove": true}}),
    );
    let waiting = engine.open(
        "POST",
        &format!("{V}/containers/box/wait?condition=removed"),
        &[],
        b"",
    );
    engine
        .post(&format!("{V}/containers/box/start"), &json!(null))
        .expect_status(204);
    assert_eq!(waiting.finish().unwrap().json()["StatusCode"], 6);
    engine.get(&format!("{V}/containers/box/json")).expect_status(404);
}

#[test]
fn a_start_that_fails_is_a_client_s_error_and_leaves_nothing_running() {
    let engine = Engine::with_busybox("overlay2");
    engine.create("box", json!({"Cmd": ["nosuchcmd"]}));
    let answer = engine
        .post(&format!("{V}/containers/box/start"), &json!(null))
        .expect_status(400);
    let message = answer.message();
    assert!(
        message.starts_with("failed to create task for container: "),
        "{message}"
    );
    assert!(
        message.contains("exec: \"nosuchcmd\": executable file not found in $PATH"),
        "{message}"
    );
    assert_eq!(engine.container("box")["State"]["ExitCode"], 127);
}

#[test]
fn filters_are_checked() {
    let engine = Engine::start();
    let list = |filters: &str| engine.get(&format!("{V}/containers/json?all=1&filters={}", query(filters)));
    is_error(&list(r#"{"nope":["x"]}"#), 400, "invalid filter 'nope'");
    list("x").expect_status(400);
    list(r#"{"status":["nope"]}"#).expect_status(400);
    assert_eq!(
        list(r#"{"status":["running"]}"#).expect_status(200).json(),
        json!([])
    );
    assert_eq!(
        list(r#"{"status":{"running":true}}"#).expect_status(200).json(),
        json!([]),
        "the older form"
    );
    assert_eq!(
        engine.get(&format!("{V}/images/json")).json(),
        json!([]),
        "an empty list, not null"
    );
}

#[test]
fn events_open_at_once_and_end_when_told() {
    let engine = Engine::start();
    let past = engine
        .get(&format!("{V}/events?since=1&until=2"))
        .expect_status(200);
    assert_eq!(
        (past.header("content-type"), past.text().as_str()),
        (Some("application/json"), "")
    );
    let live = engine.open("GET", &format!("{V}/events"), &[], b"");
    assert_eq!(
        (live.status, live.header("transfer-encoding")),
        (200, Some("chunked"))
    );
}

#[test]
fn requests_may_come_in_any_http_shape() {
    let engine = Engine::start();
    // HTTP/1.0-like: no keep-alive; a chunked body; an absolute target; a Host with nothing in it (Go's client sends "docker").
    let body = b"10\r\n{\"Image\":\"nope\"}\r\n0\r\n\r\n";
    let chunked = engine.open(
        "POST",
        &format!("{V}/containers/create"),
        &[
            ("Content-Type", "application/json"),
            ("Transfer-Encoding", "chunked"),
        ],
        body,
    );
    assert_eq!(chunked.status, 404, "the body was read");
    for host in ["docker", "localhost", "", "%2Frun%2Fdocker.sock"] {
        assert_eq!(
            engine.open("GET", "/_ping", &[("Host", host)], b"").status,
            200,
            "Host: {host:?}"
        );
    }
    let long = format!("{V}/containers/{}/json", "x".repeat(20_000));
    assert!((400..500).contains(&engine.get(&long).status));
}

#[test]
fn a_thousand_requests_at_once_are_all_answered() {
    let engine = Engine::with_busybox("overlay2");
    engine.create("box", json!({"Cmd": ["true"]}));
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..20)
            .map(|_| {
                scope.spawn(|| {
                    (0..50)
                        .map(|_| engine.get("/containers/json?all=1").expect_status(200).json())
                        .collect::<Vec<Value>>()
                })
            })
            .collect();
        for list in workers.into_iter().flat_map(|worker| worker.join().unwrap()) {
            assert_eq!(list.as_array().unwrap().len(), 1);
        }
    });
}
