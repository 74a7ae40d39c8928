//! [`HijackIo`] in front of a real hyper server, over an in-memory connection.

use std::convert::Infallible;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;

use super::*;

/// Attach echoes its input in capitals until the input ends, then says bye; `/containers/missing/attach` is a 404;
/// `/stream` sends nothing until the client is gone and then reports it; anything else answers with its own path and body.
async fn answer(
    mut request: Request<Incoming>,
    exchange: Arc<Exchange>,
    gone: mpsc::UnboundedSender<&'static str>,
) -> Response<Body> {
    let path = request.uri().path().to_owned();
    if path == "/containers/missing/attach" {
        return Response::builder()
            .status(StatusCode::NOT_FOUND)
            .body(Body::from("missing"))
            .unwrap();
    }
    if path.ends_with("/attach") || path.ends_with("/start") {
        let upgrade = hyper::upgrade::on(&mut request);
        let body = axum::body::to_bytes(Body::new(request.into_body()), 1024)
            .await
            .unwrap();
        tokio::spawn(async move {
            let mut client = TokioIo::new(upgrade.await.unwrap());
            client.write_all(&body).await.unwrap();
            let mut buffer = [0; 64];
            loop {
                match client.read(&mut buffer).await.unwrap() {
                    0 => break,
                    n => client.write_all(&buffer[..n].to_ascii_uppercase()).await.unwrap(),
                }
            }
            client.write_all(b"bye").await.unwrap();
            client.shutdown().await.unwrap();
        });
        return Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .extension(hyper::ext::ReasonPhrase::from_static(b"UPGRADED"))
            .header(
                header::CONTENT_TYPE,
                if exchange.is_bare() { "bare" } else { "framed" },
            )
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "tcp")
            .body(Body::empty())
            .unwrap();
    }
    if path == "/stream" {
        let token = exchange.gone().clone();
        let stream = futures_util::stream::once(async move {
            token.cancelled().await;
            gone.send("gone").unwrap();
            Ok::<_, Infallible>(Bytes::from_static(b"end"))
        });
        return Response::new(Body::from_stream(stream));
    }
    let body = axum::body::to_bytes(Body::new(request.into_body()), 1 << 20)
        .await
        .unwrap();
    Response::new(Body::from([path.as_bytes(), b":", &body].concat()))
}

/// A connected client and the reports of `/stream`.
fn connect() -> (DuplexStream, mpsc::UnboundedReceiver<&'static str>) {
    let (client, server) = tokio::io::duplex(64);
    let (send, receive) = mpsc::unbounded_channel();
    let exchange = Arc::new(Exchange::default());
    let io = TokioIo::new(HijackIo::new(server, Arc::clone(&exchange)));
    tokio::spawn(async move {
        let service = hyper::service::service_fn(move |request| {
            let (exchange, send) = (Arc::clone(&exchange), send.clone());
            async move {
                let guard = exchange.answering();
                let response = answer(request, Arc::clone(&exchange), send).await;
                Ok::<_, Infallible>(response.map(|body| Body::new(crate::serve::Guarded::new(body, guard))))
            }
        });
        let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
        let _ = builder.serve_connection_with_upgrades(io, service).await;
    });
    (client, receive)
}

async fn send(client: &mut DuplexStream, text: &str) {
    client.write_all(text.as_bytes()).await.unwrap();
}

/// Reads until `end` arrives.
async fn read_until(client: &mut DuplexStream, end: &str) -> String {
    let mut got = Vec::new();
    while !got.ends_with(end.as_bytes()) {
        let byte = client.read_u8().await.unwrap_or_else(|e| {
            panic!("{e} before {end:?}, got {:?}", String::from_utf8_lossy(&got));
        });
        got.push(byte);
    }
    String::from_utf8(got).unwrap()
}

async fn read_to_end(client: &mut DuplexStream) -> String {
    let mut got = String::new();
    client.read_to_string(&mut got).await.unwrap();
    got
}

#[tokio::test]
async fn attach_without_upgrade_is_answered_with_a_bare_200() {
    let (mut client, _) = connect();
    send(&mut client, "POST /v1.45/containers/x/attach?stdin=1 HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").await;
    let head = read_until(&mut client, "\r\n\r\n").await.to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 200 ok\r\n"), "{head}");
    assert!(head.contains("content-type: bare\r\n"), "{head}");
    assert!(
        !head.contains("upgrade") && !head.contains("connection") && !head.contains("length"),
        "{head}"
    );
    send(&mut client, "hello").await;
    assert_eq!(read_until(&mut client, "HELLO").await, "HELLO");
    client.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut client).await, "bye");
}

#[tokio::test]
async fn attach_with_upgrade_keeps_its_101() {
    let (mut client, _) = connect();
    send(
        &mut client,
        "POST /containers/x/attach HTTP/1.1\r\nHost: d\r\nUpgrade: tcp\r\nConnection: Upgrade\r\n\r\n",
    )
    .await;
    let head = read_until(&mut client, "\r\n\r\n").await.to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101 upgraded\r\n"), "{head}");
    assert!(
        head.contains("content-type: framed\r\n") && head.contains("upgrade: tcp\r\n"),
        "{head}"
    );
    send(&mut client, "x").await;
    assert_eq!(read_until(&mut client, "X").await, "X");
}

#[tokio::test]
async fn input_and_half_close_sent_with_the_request_reach_the_tunnel() {
    for headers in ["", "Upgrade: tcp\r\nConnection: Upgrade\r\n"] {
        let (client, _) = connect();
        let request =
            format!("POST /containers/x/attach HTTP/1.1\r\nHost: d\r\n{headers}\r\nGET / early input");
        // The connection holds 64 bytes: sending and receiving must overlap.
        let (mut reader, mut writer) = tokio::io::split(client);
        let sending = async move {
            writer.write_all(request.as_bytes()).await.unwrap();
            writer.shutdown().await.unwrap();
        };
        let mut got = String::new();
        let (received, ()) = tokio::join!(reader.read_to_string(&mut got), sending);
        received.unwrap();
        assert!(got.ends_with("\r\n\r\nGET / EARLY INPUTbye"), "{got}");
    }
}

#[tokio::test]
async fn exec_start_reads_its_body_first_and_survives_any_split() {
    let request = "POST /exec/x/start HTTP/1.1\r\nHost: d\r\nContent-Length: 2\r\n\r\n{}in";
    for step in [1, 2, 3, 7, 50] {
        let (mut client, _) = connect();
        for piece in request.as_bytes().chunks(step) {
            client.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        let head = read_until(&mut client, "\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        assert_eq!(read_until(&mut client, "IN").await, "{}IN");
    }
}

#[tokio::test]
async fn errors_pass_unchanged_and_the_connection_lives_on() {
    let (mut client, _) = connect();
    send(&mut client, "GET /first HTTP/1.1\r\nHost: d\r\n\r\n").await;
    assert!(
        read_until(&mut client, "/first:")
            .await
            .starts_with("HTTP/1.1 200 OK")
    );
    send(
        &mut client,
        "POST /containers/missing/attach HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n\r\n",
    )
    .await;
    assert!(
        read_until(&mut client, "\r\n\r\nmissing")
            .await
            .starts_with("HTTP/1.1 404 Not Found")
    );
    send(
        &mut client,
        "POST /second HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    )
    .await;
    assert!(
        read_until(&mut client, "/second:abc")
            .await
            .starts_with("HTTP/1.1 200 OK")
    );
    send(
        &mut client,
        "POST /containers/x/attach HTTP/1.1\r\nHost: d\r\n\r\n",
    )
    .await;
    assert!(
        read_until(&mut client, "\r\n\r\n")
            .await
            .starts_with("HTTP/1.1 200 OK")
    );
    client.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut client).await, "bye");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_turn_even_when_the_client_closes_early() {
    let (client, _) = connect();
    let (mut reader, mut writer) = tokio::io::split(client);
    let sending = async move {
        writer
            .write_all(b"GET /a HTTP/1.1\r\nHost: d\r\n\r\nGET /b HTTP/1.1\r\nHost: d\r\n\r\n")
            .await
            .unwrap();
        writer.shutdown().await.unwrap();
    };
    let mut got = String::new();
    let (received, ()) = tokio::join!(reader.read_to_string(&mut got), sending);
    received.unwrap();
    assert!(
        got.contains("\r\n\r\n/a:HTTP/1.1 200 OK") && got.ends_with("\r\n\r\n/b:"),
        "{got}"
    );
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_stream() {
    let (mut client, mut gone) = connect();
    send(&mut client, "GET /stream HTTP/1.1\r\nHost: d\r\n\r\n").await;
    let head = read_until(&mut client, "\r\n\r\n").await;
    assert!(
        head.starts_with("HTTP/1.1 200 OK"),
        "headers come before the first chunk: {head}"
    );
    drop(client);
    assert_eq!(gone.recv().await, Some("gone"));
}

#[tokio::test]
async fn http_2_with_prior_knowledge_passes_through() {
    let (client, server) = tokio::io::duplex(1024);
    let io = TokioIo::new(HijackIo::new(server, Arc::new(Exchange::default())));
    tokio::spawn(async move {
        let service = hyper::service::service_fn(|request: Request<Incoming>| async move {
            Ok::<_, Infallible>(Response::new(Body::from(format!("{:?}", request.version()))))
        });
        let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
        let _ = builder.serve_connection_with_upgrades(io, service).await;
    });
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(client))
            .await
            .unwrap();
    tokio::spawn(connection);
    let request = Request::post("http://d/containers/x/attach")
        .body(Body::empty())
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let body = axum::body::to_bytes(Body::new(response.into_body()), 64)
        .await
        .unwrap();
    assert_eq!(&body[..], b"HTTP/2.0");
}

#[tokio::test]
async fn garbage_is_hyper_s_to_refuse() {
    let (mut client, _) = connect();
    send(&mut client, "\x00\x01 nonsense\r\n\r\n").await;
    assert!(
        read_to_end(&mut client).await.starts_with("HTTP/1.1 400"),
        "a bad request is answered and closed"
    );
}
