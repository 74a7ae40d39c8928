//! Standard streams: attach, terminals, logs, and clients that vanish.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::Shutdown;

use serde_json::json;

use crate::harness::{
    Engine, PATIENCE, eventually, on_both_drivers, open_descriptors, registry, require, unix_time,
};

on_both_drivers! {
    fn stdin_reaches_the_command_and_its_end_too(engine) {
        engine.busybox(&["-i"], &["cat"]).stdin("hi\n").run().code(0).prints("hi\n");
        engine.busybox(&["-i"], &["wc", "-c"]).stdin(&"x".repeat(1_000_000)).run().code(0).prints("1000000\n");
        engine.busybox(&[], &["cat"]).run().code(0).prints("");
    }

    fn stdout_and_stderr_stay_apart(engine) {
        let done = engine.busybox(&[], &["sh", "-c", "echo out; echo err >&2; exit 2"]).run().code(2);
        assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("out\n", "err\n"));
        engine.detached(&["--name", "box"], &["sh", "-c", "echo out; echo err >&2"]);
        engine.docker(["wait", "box"]).ok();
        let logs = engine.docker(["logs", "box"]).run();
        assert_eq!((logs.stdout.as_str(), logs.stderr.as_str()), ("out\n", "err\n"));
    }
}

#[test]
fn much_output_arrives_whole_and_in_order() {
    let engine = Engine::with_busybox("overlay2");
    let done = engine
        .busybox(&["--name", "box"], &["seq", "1", "200000"])
        .run()
        .code(0);
    assert_eq!(done.stdout.lines().count(), 200_000);
    assert!(done.stdout.ends_with("199999\n200000\n"));
    let sum: u64 = done.stdout.lines().map(|line| line.parse::<u64>().unwrap()).sum();
    assert_eq!(sum, 200_000 * 200_001 / 2);
}

#[test]
fn a_terminal_is_a_terminal() {
    let engine = Engine::with_busybox("overlay2");
    // A terminal turns line ends into CR LF and joins the streams.
    let done = engine
        .busybox(
            &["-t"],
            &[
                "sh",
                "-c",
                "tty; echo err >&2; test -t 0 && test -t 1 && echo yes",
            ],
        )
        .run()
        .code(0);
    assert_eq!(done.stdout, "/dev/pts/0\r\nerr\r\nyes\r\n");
    assert_eq!(done.stderr, "");
    engine
        .docker(["run", "--rm", "-it", &registry().busybox(), "true"])
        .run()
        .fails()
        .says("the input device is not a TTY");
    let image = registry().busybox();
    let done = engine
        .docker_in_terminal(&[
            "run",
            "--rm",
            "-it",
            &image,
            "sh",
            "-c",
            "tty; echo $TERM; exit 9",
        ])
        .run();
    assert_eq!(done.status.code(), Some(9), "{done}");
    assert!(done.stdout.contains("/dev/pts/0\r\nxterm\r\n"), "{done}");
}

#[test]
fn a_terminal_can_be_resized() {
    let engine = Engine::with_busybox("overlay2");
    engine.create(
        "tty",
        json!({"Cmd": ["sh"], "Tty": true, "OpenStdin": true, "HostConfig": {"ConsoleSize": [24, 80]}}),
    );
    let mut shell = engine.open(
        "POST",
        "/containers/tty/attach?stream=1&stdin=1&stdout=1",
        &[("Connection", "Upgrade"), ("Upgrade", "tcp")],
        b"",
    );
    engine
        .post("/containers/tty/start", &json!(null))
        .expect_status(204);
    shell
        .stream()
        .write_all(b"stty size; echo at-$((20+3))\n")
        .unwrap();
    assert!(shell.until("at-23").contains("24 80"), "the first size");
    engine
        .post("/containers/tty/resize?h=33&w=111", &json!(null))
        .expect_status(200);
    shell
        .stream()
        .write_all(b"stty size; echo at-$((40+2))\n")
        .unwrap();
    assert!(shell.until("at-42").contains("33 111"), "the new size");
    shell.stream().write_all(b"exit 6\n").unwrap();
    let mut rest = String::new();
    shell.read_to_string(&mut rest).unwrap();
    assert_eq!(engine.docker(["wait", "tty"]).ok(), "6");
    engine
        .post("/containers/tty/resize?h=1&w=1", &json!(null))
        .expect_status(409);
    engine
        .post("/containers/tty/resize?h=x&w=1", &json!(null))
        .expect_status(400);
}

#[test]
fn a_hijack_works_with_and_without_an_upgrade_header() {
    let engine = Engine::with_busybox("overlay2");
    for (name, upgrade) in [("with", true), ("without", false)] {
        engine.create(name, json!({"Cmd": ["cat"], "OpenStdin": true, "StdinOnce": true, "AttachStdin": true, "AttachStdout": true}));
        let headers: &[_] = if upgrade {
            &[("Connection", "Upgrade"), ("Upgrade", "tcp")]
        } else {
            &[]
        };
        let mut attach = engine.open(
            "POST",
            &format!("/v1.45/containers/{name}/attach?stream=1&stdin=1&stdout=1"),
            headers,
            b"",
        );
        if upgrade {
            assert_eq!((attach.status, attach.reason.as_str()), (101, "UPGRADED"));
            assert_eq!(attach.header("upgrade"), Some("tcp"));
            assert_eq!(
                attach.header("content-type"),
                Some("application/vnd.docker.multiplexed-stream")
            );
        } else {
            assert_eq!(attach.status, 200);
            assert_eq!(
                attach.header("content-type"),
                Some("application/vnd.docker.raw-stream")
            );
        }
        engine
            .post(&format!("/containers/{name}/start"), &json!(null))
            .expect_status(204);
        attach.stream().write_all(b"through\n").unwrap();
        assert_eq!(
            attach.frame().unwrap(),
            Some((1, b"through\n".to_vec())),
            "{name}"
        );
        // Closing our half is the end of the command's input; its output still comes.
        attach.stream().write_all(b"last").unwrap();
        attach.stream().shutdown(Shutdown::Write).unwrap();
        assert_eq!(attach.frame().unwrap(), Some((1, b"last".to_vec())), "{name}");
        assert_eq!(
            attach.frame().unwrap(),
            None,
            "{name}: the stream ends with the container"
        );
        assert_eq!(engine.docker(["wait", name]).ok(), "0");
    }
}

#[test]
fn attach_joins_a_running_container() {
    let engine = Engine::with_busybox("overlay2");
    engine.detached(
        &["--name", "box", "-i"],
        &[
            "sh",
            "-c",
            "echo before; while read line && [ $line != quit ]; do echo got $line; done; exit 3",
        ],
    );
    engine.wait_for_output("box", "before");
    engine
        .docker(["attach", "box"])
        .stdin("one\ntwo\nquit\n")
        .run()
        .code(3)
        .prints("got one\ngot two\n");
    engine
        .docker(["attach", "box"])
        .run()
        .code(1)
        .says("cannot attach to a stopped container");
    // logs=1 plays back what was missed.
    let (out, _) = engine
        .open("POST", "/containers/box/attach?logs=1&stdout=1", &[], b"")
        .frames()
        .unwrap();
    assert_eq!(out, "before\ngot one\ngot two\n");
}

#[test]
fn a_client_that_vanishes_harms_nobody() {
    require!(Engine::own(), "counts the daemon's descriptors");
    let engine = Engine::with_busybox("overlay2");
    engine.detached(
        &["--name", "box", "-i"],
        &["sh", "-c", "while read line; do echo got $line; done"],
    );
    let daemon = engine.daemon_pid();
    let before = open_descriptors(daemon).len();
    for _ in 0..20 {
        let mut attach = engine.open(
            "POST",
            "/containers/box/attach?stream=1&stdin=1&stdout=1",
            &[("Connection", "Upgrade"), ("Upgrade", "tcp")],
            b"",
        );
        attach.stream().write_all(b"hello\n").unwrap();
        drop(attach); // without waiting for the answer
    }
    let killed = engine.docker(["attach", "box"]).start();
    killed.kill();
    killed.finish();
    eventually("the connections are given back", PATIENCE, || {
        // The way out may begin meanwhile; a connection that leaks does so twenty times.
        (open_descriptors(daemon).len() <= before + 8).then_some(())
    });
    let mut attach = engine.open(
        "POST",
        "/containers/box/attach?stream=1&stdin=1&stdout=1",
        &[("Connection", "Upgrade"), ("Upgrade", "tcp")],
        b"",
    );
    attach.stream().write_all(b"still-there\n").unwrap();
    let mut seen = String::new();
    while !seen.contains("got still-there\n") {
        seen.push_str(&String::from_utf8_lossy(&attach.frame().unwrap().unwrap().1));
    }
    assert_eq!(engine.inspect("box", "{{.State.Running}}"), "true");
}

#[test]
fn a_client_that_stops_reading_and_leaves_lets_the_container_go_on() {
    let engine = Engine::with_busybox("overlay2");
    engine.create(
        "box",
        json!({"Cmd": ["sh", "-c", "seq 1 300000; echo done >&2"], "AttachStdout": true}),
    );
    // Attached, and never read.
    let idle = engine.open(
        "POST",
        "/containers/box/attach?stream=1&stdout=1",
        &[("Connection", "Upgrade"), ("Upgrade", "tcp")],
        b"",
    );
    engine
        .post("/containers/box/start", &json!(null))
        .expect_status(204);
    let logs = engine.docker(["logs", "-f", "box"]).start();
    drop(idle);
    let done = logs.finish().code(0);
    assert!(done.stdout.ends_with("300000\n"));
    assert_eq!(engine.docker(["wait", "box"]).ok(), "0");
}

#[test]
fn logs_can_be_cut_stamped_and_followed() {
    let engine = Engine::with_busybox("overlay2");
    // The next line is written when the one before it has been logged, so that each has a time of its own.
    let gate = engine.shared_dir("gate");
    let script = "after() { until [ -e /gate/$1 ]; do usleep 1000; done; }; \
                  echo one; after one; echo two; after two; echo three; read x; echo four; printf five";
    let bind = format!("{}:/gate:ro", gate.display());
    engine.detached(&["--name", "box", "-i", "-v", &bind], &["sh", "-c", script]);
    for line in ["one", "two"] {
        engine.wait_for_output("box", line);
        std::fs::write(gate.join(line), "").unwrap();
    }
    engine.wait_for_output("box", "three");
    let logs = |options: &[&str]| engine.docker([&["logs"], options, &["box"]].concat()).ok();
    assert_eq!(logs(&[]), "one\ntwo\nthree");
    assert_eq!(logs(&["--tail", "1"]), "three");
    assert_eq!(logs(&["--tail", "0"]), "");
    assert_eq!(logs(&["--tail", "all"]), "one\ntwo\nthree");
    assert_eq!(logs(&["-n", "99"]), "one\ntwo\nthree");
    let stamped = logs(&["-t"]);
    for (line, text) in stamped.lines().zip(["one", "two", "three"]) {
        let (stamp, rest) = line.split_once(' ').unwrap();
        assert_eq!(rest, text);
        assert!(
            stamp.len() == 30 && stamp.ends_with('Z') && stamp.as_bytes()[10] == b'T',
            "RFC 3339 with nanoseconds: {stamp}"
        );
    }
    let last = stamped
        .lines()
        .last()
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .to_owned();
    assert_eq!(logs(&["--since", &last]), "three", "since includes its instant");
    assert_eq!(logs(&["--until", &last]), "one\ntwo\nthree");
    assert_eq!(logs(&["--since", "1h"]), "one\ntwo\nthree");
    assert_eq!(logs(&["--since", &(unix_time() + 3600).to_string()]), "");

    let (follow, output) = engine
        .docker(["logs", "-f", "--tail", "1", "box"])
        .start_reading();
    let mut output = BufReader::new(output);
    let mut followed = String::new();
    // "The last line" is another one as soon as the container is told to go on.
    output.read_line(&mut followed).unwrap();
    engine.docker(["attach", "box"]).stdin("go\n").run();
    output.read_to_string(&mut followed).unwrap();
    assert_eq!(followed, "three\nfour\nfive");
    follow.finish().code(0);
    assert_eq!(
        logs(&[]),
        "one\ntwo\nthree\nfour\nfive",
        "a last line without an end is kept as it is"
    );
    engine
        .docker(["logs", "nosuch"])
        .run()
        .code(1)
        .says("No such container: nosuch");
}

#[test]
fn a_background_child_does_not_keep_the_container_alive() {
    let engine = Engine::with_busybox("overlay2");
    // The child holds stdout open beyond its parent's end; PID 1's end is the container's.
    engine
        .busybox(&[], &["sh", "-c", "sleep 1000 & echo started"])
        .run()
        .code(0)
        .prints("started\n");
}
