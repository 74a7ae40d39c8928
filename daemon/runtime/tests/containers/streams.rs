//! Standard streams: attach, input, terminals, logs.

use std::time::{Duration, Instant};

use skiff_core::runtime::{LogRequest, LogTarget, Runtime, StdStream, TerminalSize};
use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;

use crate::Scenario;
use crate::harness::{ALL_STREAMS, Lab, OUTPUT, collect, read_until};

pub(crate) const ALL: &[Scenario] = &[
    (
        "streams_are_told_apart_and_complete",
        streams_are_told_apart_and_complete,
    ),
    (
        "input_reaches_the_container_and_ends",
        input_reaches_the_container_and_ends,
    ),
    (
        "input_stays_open_for_the_next_client",
        input_stays_open_for_the_next_client,
    ),
    (
        "input_that_is_not_read_blocks_nobody_else",
        input_that_is_not_read_blocks_nobody_else,
    ),
    (
        "a_slow_client_slows_the_container_and_a_gone_one_does_not",
        a_slow_client_slows_the_container_and_a_gone_one_does_not,
    ),
    (
        "output_can_be_dropped_while_input_goes_on",
        output_can_be_dropped_while_input_goes_on,
    ),
    ("terminal", terminal),
    (
        "terminal_with_a_command_that_ends_at_once",
        terminal_with_a_command_that_ends_at_once,
    ),
    ("logs_are_kept_and_followed", logs_are_kept_and_followed),
    ("log_none", log_none),
];

fn streams_are_told_apart_and_complete(lab: Lab) {
    let runtime = lab.runtime();
    lab.block(async {
        let spec = lab.script("a", "echo out; echo err >&2; seq 1 200000");
        runtime.create(&spec).await.unwrap();
        let mut io = runtime.attach("a", OUTPUT).await.unwrap();
        let mut second = runtime.attach("a", OUTPUT).await.unwrap();
        let drain = tokio::spawn(async move {
            let mut total = 0;
            while let Some(chunk) = second.output.recv().await {
                total += chunk.bytes.len();
            }
            total
        });
        runtime.start("a").await.unwrap();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        while let Some(chunk) = io.output.recv().await {
            match chunk.stream {
                StdStream::Stdout => out.extend_from_slice(&chunk.bytes),
                StdStream::Stderr => err.extend_from_slice(&chunk.bytes),
            }
        }
        let expected: String = std::iter::once("out\n".to_owned())
            .chain((1..=200_000).map(|n| format!("{n}\n")))
            .collect();
        assert!(out == expected.as_bytes() && err == b"err\n");
        assert_eq!(drain.await.unwrap(), out.len() + err.len());
        assert_eq!(runtime.wait("a").await.unwrap().code, 0);
        // The streams have ended; a late client is told so.
        let late = runtime.attach("a", OUTPUT).await.unwrap();
        assert_eq!(collect(late).await, "");
        runtime.delete("a").await.unwrap();
    });
}

fn input_reaches_the_container_and_ends(lab: Lab) {
    let runtime = lab.runtime();
    lab.block(async {
        let mut spec = lab.spec("a", &["/bin/sh", "-c", "wc -c; echo done"]);
        spec.process.open_stdin = true;
        spec.process.stdin_once = true;
        runtime.create(&spec).await.unwrap();
        let mut io = runtime.attach("a", ALL_STREAMS).await.unwrap();
        runtime.start("a").await.unwrap();
        let mut input = io.input.take().unwrap();
        // Far more than pipe and buffers hold.
        let block = vec![b'x'; 100_000];
        for _ in 0..50 {
            input.write_all(&block).await.unwrap();
        }
        input.shutdown().await.unwrap();
        assert_eq!(collect(io).await, "5000000\ndone\n");
        assert_eq!(runtime.wait("a").await.unwrap().code, 0);
        runtime.delete("a").await.unwrap();
        // Without an open standard input there is none to write to, and the container reads the end at once.
        let spec = lab.script("b", "cat; echo end");
        runtime.create(&spec).await.unwrap();
        let io = runtime.attach("b", ALL_STREAMS).await.unwrap();
        assert!(io.input.is_none());
        runtime.start("b").await.unwrap();
        assert_eq!(collect(io).await, "end\n");
        runtime.delete("b").await.unwrap();
    });
}

fn input_stays_open_for_the_next_client(lab: Lab) {
    let runtime = lab.runtime();
    lab.block(async {
        let mut spec = lab.script("a", "while read line; do echo got $line; done; echo end");
        spec.process.open_stdin = true;
        runtime.create(&spec).await.unwrap();
        runtime.start("a").await.unwrap();
        for word in ["first", "second"] {
            let mut io = runtime.attach("a", ALL_STREAMS).await.unwrap();
            let mut input = io.input.take().unwrap();
            input.write_all(format!("{word}\n").as_bytes()).await.unwrap();
            read_until(&mut io, &format!("got {word}\n")).await;
            if word == "first" {
                // Its input ends, but not the container's: StdinOnce was not asked for.
                input.shutdown().await.unwrap();
            }
        }
        runtime.delete("a").await.unwrap();
        // With StdinOnce the first client's leaving is the end, even without shutting down.
        spec.id = "b".to_owned();
        spec.process.stdin_once = true;
        runtime.create(&spec).await.unwrap();
        runtime.start("b").await.unwrap();
        let mut io = runtime.attach("b", ALL_STREAMS).await.unwrap();
        io.input.as_mut().unwrap().write_all(b"x\n").await.unwrap();
        read_until(&mut io, "got x\n").await;
        drop(io);
        assert_eq!(runtime.wait("b").await.unwrap().code, 0);
        runtime.delete("b").await.unwrap();
    });
}

fn input_that_is_not_read_blocks_nobody_else(lab: Lab) {
    let runtime = lab.runtime();
    lab.block(async {
        let mut spec = lab.script("a", "while :; do echo tick; sleep 0.01; done");
        spec.process.open_stdin = true;
        runtime.create(&spec).await.unwrap();
        let mut io = runtime.attach("a", ALL_STREAMS).await.unwrap();
        let mut input = io.input.take().unwrap();
        let writer = tokio::spawn(async move {
            let block = vec![0; 1 << 20];
            loop {
                if input.write_all(&block).await.is_err() {
                    break;
                }
            }
        });
        runtime.start("a").await.unwrap();
        for _ in 0..5 {
            read_until(&mut io, "tick\n").await;
            runtime
                .resize("a", TerminalSize { height: 1, width: 1 })
                .await
                .expect_err("it has no terminal");
        }
        runtime.signal("a", 9).await.unwrap();
        assert_eq!(runtime.wait("a").await.unwrap().code, 137);
        writer.abort();
        runtime.delete("a").await.unwrap();
    });
}

fn a_slow_client_slows_the_container_and_a_gone_one_does_not(lab: Lab) {
    let runtime = lab.runtime();
    lab.block(async {
        let mut spec = lab.script(
            "a",
            "dd if=/dev/zero bs=64k count=400 2>/dev/null; touch /tmp/through; echo; echo end",
        );
        spec.log = LogTarget::None;
        runtime.create(&spec).await.unwrap();
        let mut io = runtime.attach("a", OUTPUT).await.unwrap();
        runtime.start("a").await.unwrap();
        // Take some, then look away: 25 MB do not fit into the buffers on the way.
        io.output.recv().await.unwrap();
        tokio::select! {
            exit = runtime.wait("a") => panic!("it went on without its reader: {exit:?}"),
            () = tokio::time::sleep(Duration::from_millis(300)) => {}
        }
        assert!(!lab.rootfs.join("tmp/through").exists());
        drop(io);
        assert_eq!(runtime.wait("a").await.unwrap().code, 0);
        assert!(lab.rootfs.join("tmp/through").exists());
        runtime.delete("a").await.unwrap();
    });
}

fn output_can_be_dropped_while_input_goes_on(lab: Lab) {
    let runtime = lab.runtime();
    lab.block(async {
        let mut spec = lab.script(
            "a",
            "read x; dd if=/dev/zero bs=64k count=100 2>/dev/null; read y; exit $y",
        );
        spec.process.open_stdin = true;
        spec.log = LogTarget::None;
        runtime.create(&spec).await.unwrap();
        let mut io = runtime.attach("a", ALL_STREAMS).await.unwrap();
        runtime.start("a").await.unwrap();
        let mut input = io.input.take().unwrap();
        drop(io);
        input.write_all(b"go\n").await.unwrap();
        input.write_all(b"9\n").await.unwrap();
        assert_eq!(runtime.wait("a").await.unwrap().code, 9);
        runtime.delete("a").await.unwrap();
    });
}

fn terminal(lab: Lab) {
    let runtime = lab.runtime();
    lab.block(async {
        let mut spec = lab.script("a", "stty size; trap 'stty size; exit 5' WINCH; tty; echo ready; while :; do read x; echo read $x; done");
        spec.process.tty = true;
        spec.process.open_stdin = true;
        spec.process.user = "web".to_owned();
        spec.process.console_size = Some(TerminalSize { height: 33, width: 77 });
        runtime.create(&spec).await.unwrap();
        let mut io = runtime.attach("a", ALL_STREAMS).await.unwrap();
        runtime.start("a").await.unwrap();
        let seen = read_until(&mut io, "ready\r\n").await;
        assert_eq!(seen, "33 77\r\n/dev/pts/0\r\nready\r\n");
        io.input.as_mut().unwrap().write_all(b"hello\n").await.unwrap();
        read_until(&mut io, "read hello\r\n").await;
        runtime.resize("a", TerminalSize { height: 50, width: 132 }).await.unwrap();
        // The shell runs its trap when read is interrupted, or at the next line.
        io.input.as_mut().unwrap().write_all(b"\n").await.unwrap();
        read_until(&mut io, "50 132\r\n").await;
        assert_eq!(collect(io).await.trim(), "");
        assert_eq!(runtime.wait("a").await.unwrap().code, 5);
        runtime.delete("a").await.unwrap();
    });
}

fn terminal_with_a_command_that_ends_at_once(lab: Lab) {
    let runtime = lab.runtime();
    lab.block(async {
        for round in 0..10 {
            let mut spec = lab.script("a", "echo the last words");
            spec.process.tty = true;
            let (output, exit) = lab.run(&runtime, &spec).await;
            assert_eq!(
                (output.as_str(), exit.code),
                ("the last words\r\n", 0),
                "round {round}"
            );
        }
        let mut spec = lab.spec("b", &["nosuchcmd"]);
        spec.process.tty = true;
        assert_eq!(runtime.create(&spec).await.unwrap_err().exit_code, 127);
    });
}

fn logs_are_kept_and_followed(lab: Lab) {
    let runtime = lab.runtime();
    lab.block(async {
        let mut spec = lab.script("a", "echo one; echo two >&2; read x; echo three; printf end");
        spec.process.open_stdin = true;
        runtime.create(&spec).await.unwrap();
        runtime.start("a").await.unwrap();
        let token = CancellationToken::new();
        let request = LogRequest {
            target: spec.log.clone(),
            stdout: true,
            stderr: true,
            since: None,
            until: None,
            tail: None,
            follow: Some(token.clone()),
        };
        let mut log = runtime.logs(request.clone()).await.unwrap();
        let mut seen = Vec::new();
        for _ in 0..2 {
            let entry = log.recv().await.unwrap().unwrap();
            seen.push((entry.stream, String::from_utf8(entry.line.to_vec()).unwrap()));
        }
        seen.sort_by_key(|(stream, _)| *stream as u8);
        assert_eq!(
            seen,
            [
                (StdStream::Stdout, "one\n".to_owned()),
                (StdStream::Stderr, "two\n".to_owned())
            ]
        );
        let mut io = runtime.attach("a", ALL_STREAMS).await.unwrap();
        io.input.as_mut().unwrap().write_all(b"\n").await.unwrap();
        assert_eq!(runtime.wait("a").await.unwrap().code, 0);
        token.cancel();
        let mut rest = Vec::new();
        while let Some(entry) = log.recv().await {
            rest.extend_from_slice(&entry.unwrap().line);
        }
        assert_eq!(
            rest, b"three\nend",
            "all that was written before the end is in the log when the end is told"
        );
        runtime.delete("a").await.unwrap();
    });
}

fn log_none(lab: Lab) {
    let runtime = lab.runtime();
    lab.block(async {
        let mut spec = lab.script("a", "seq 1 100000; echo end");
        spec.log = LogTarget::None;
        let started = Instant::now();
        runtime.create(&spec).await.unwrap();
        runtime.start("a").await.unwrap();
        assert_eq!(
            runtime.wait("a").await.unwrap().code,
            0,
            "nobody reads, and nobody waits"
        );
        assert!(started.elapsed() < Duration::from_secs(30));
        runtime.delete("a").await.unwrap();
        assert!(!lab.log_path("a").exists());
    });
}
