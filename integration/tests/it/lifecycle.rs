//! A container's life: stop, kill, wait, rm, names, lists, inspect, events.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};

use serde_json::{Value, json};

use crate::harness::{Engine, PATIENCE, eventually, query, registry, unix_time};

const OBEDIENT: &str =
    "trap 'echo bye; exit 7' TERM; trap 'echo usr; exit 8' USR1; echo ready; while :; do sleep 0.05; done";

#[test]
fn stop_asks_first_and_kills_after_the_time() {
    let engine = Engine::with_busybox("overlay2");
    engine.detached(&["--name", "obedient"], &["sh", "-c", OBEDIENT]);
    engine.wait_for_output("obedient", "ready");
    // On a busy machine a shell may take long to wake up.
    assert_eq!(engine.docker(["stop", "-t", "60", "obedient"]).ok(), "obedient");
    assert_eq!(
        engine.inspect(
            "obedient",
            "{{.State.Status}} {{.State.ExitCode}} {{.State.Running}}"
        ),
        "exited 7 false"
    );
    assert_eq!(engine.docker(["logs", "obedient"]).ok(), "ready\nbye");
    engine.docker(["stop", "obedient"]).ok(); // nothing to do is no error

    engine.detached(&["--name", "deaf"], &["sleep", "1000"]); // PID 1 without a handler ignores SIGTERM
    let began = std::time::Instant::now();
    engine.docker(["stop", "-t", "1", "deaf"]).ok();
    assert!(began.elapsed().as_millis() >= 1000, "SIGKILL only after the time");
    assert_eq!(engine.inspect("deaf", "{{.State.ExitCode}}"), "137");
}

#[test]
fn a_stop_under_way_blocks_nothing() {
    let engine = Engine::with_busybox("overlay2");
    engine.detached(&["--name", "deaf"], &["sleep", "1000"]);
    let stop = engine.docker(["stop", "-t", "600", "deaf"]).start();
    // The stop is under way as soon as the signal has been logged as an event.
    eventually("SIGTERM was sent", PATIENCE, || {
        let events = format!("/events?since={}&until={}", unix_time() - 600, unix_time() + 1);
        engine
            .get(&events)
            .text()
            .contains(r#""Action":"kill""#)
            .then_some(())
    });
    assert_eq!(engine.inspect("deaf", "{{.State.Running}}"), "true");
    assert!(engine.docker(["ps"]).ok().contains("deaf"));
    engine.docker(["kill", "deaf"]).ok();
    stop.finish().code(0);
    assert_eq!(engine.inspect("deaf", "{{.State.ExitCode}}"), "137");
}

#[test]
fn kill_sends_the_signal_that_was_named() {
    let engine = Engine::with_busybox("overlay2");
    engine.detached(&["--name", "box"], &["sh", "-c", OBEDIENT]);
    engine.wait_for_output("box", "ready");
    engine.docker(["kill", "-s", "USR1", "box"]).ok();
    assert_eq!(engine.docker(["wait", "box"]).ok(), "8");
    engine
        .docker(["kill", "box"])
        .run()
        .code(1)
        .says("is not running");
    engine.docker(["start", "box"]).ok();
    engine
        .docker(["kill", "-s", "SIGNOSUCH", "box"])
        .run()
        .code(1)
        .says("nvalid signal: SIGNOSUCH");
    engine.docker(["kill", "-s", "9", "box"]).ok();
    assert_eq!(engine.docker(["wait", "box"]).ok(), "137");
}

#[test]
fn wait_returns_when_the_container_ends_and_at_once_afterwards() {
    let engine = Engine::with_busybox("overlay2");
    engine.detached(&["--name", "box", "-i"], &["sh", "-c", "read line; exit 5"]);
    let wait = engine.docker(["wait", "box"]).start();
    let attach = engine.docker(["attach", "box"]).stdin("go\n").start();
    wait.finish().code(0).prints("5\n");
    attach.finish().code(5);
    assert_eq!(engine.docker(["wait", "box"]).ok(), "5");
}

#[test]
fn removal_is_refused_while_running_unless_forced() {
    let engine = Engine::with_busybox("overlay2");
    engine.detached(&["--name", "box"], &["sleep", "1000"]);
    engine
        .docker(["rm", "box"])
        .run()
        .code(1)
        .says("container is running: stop the container before removing or force remove");
    engine.docker(["rm", "-f", "box"]).ok();
    assert_eq!(engine.docker(["ps", "-aq"]).ok(), "");
    engine
        .docker(["rm", "box"])
        .run()
        .code(1)
        .says("No such container: box");
    engine
        .docker(["rm", "-f", "box"])
        .run()
        .says("No such container: box");
}

#[test]
fn a_name_can_be_used_once() {
    let engine = Engine::with_busybox("overlay2");
    let id = engine.detached(&["--name", "taken"], &["true"]);
    let conflict = format!(
        "Conflict. The container name \"/taken\" is already in use by container \"{id}\". \
         You have to remove (or rename) that container to be able to reuse that name."
    );
    engine
        .docker(["create", "--name", "taken", &registry().busybox()])
        .run()
        .code(1)
        .says(&conflict);
    engine.docker(["rm", "-f", "taken"]).ok();
    engine
        .docker(["create", "--name", "taken", &registry().busybox()])
        .ok();

    let bad = "Invalid container name (a/b), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed";
    engine
        .docker(["create", "--name", "a/b", &registry().busybox()])
        .run()
        .code(1)
        .says(bad);
}

#[test]
fn containers_are_found_by_name_id_and_beginning_of_id() {
    let engine = Engine::with_busybox("overlay2");
    let id = engine.detached(&["--name", "box"], &["true"]);
    for name in ["box", "/box", &id, &id[..12], &id[..4]] {
        assert_eq!(engine.inspect(name, "{{.Id}}"), id, "{name}");
    }
    let generated = engine.detached(&[], &["true"]);
    let name = engine.inspect(&generated, "{{.Name}}");
    assert!(
        name.starts_with('/') && name.contains('_'),
        "an adjective and a surname: {name}"
    );
}

#[test]
fn ps_filters_and_columns() {
    let engine = Engine::with_busybox("overlay2");
    let running = engine.detached(&["--name", "up", "-l", "tier=web"], &["sleep", "1000"]);
    let exited = engine.detached(&["--name", "down", "-l", "tier=db"], &["sh", "-c", "exit 3"]);
    engine.docker(["wait", "down"]).ok();
    let created = engine
        .docker(["create", "--name", "made", &registry().busybox()])
        .ok();
    let names = |filters: &[&str]| -> BTreeSet<String> {
        let words = ["ps", "-a", "--format", "{{.Names}}"]
            .iter()
            .chain(filters)
            .copied()
            .collect::<Vec<_>>();
        engine.docker(words).ok().lines().map(str::to_owned).collect()
    };
    let set = |names: &[&str]| {
        names
            .iter()
            .map(|name| (*name).to_owned())
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(engine.docker(["ps", "-q", "--no-trunc"]).ok(), running);
    assert_eq!(names(&[]), set(&["up", "down", "made"]));
    assert_eq!(names(&["-f", "status=running"]), set(&["up"]));
    assert_eq!(
        names(&["-f", "status=exited", "-f", "status=created"]),
        set(&["down", "made"])
    );
    assert_eq!(names(&["-f", "exited=3"]), set(&["down"]));
    assert_eq!(names(&["-f", "name=o"]), set(&["down"]));
    assert_eq!(names(&["-f", "name=^u"]), set(&["up"]));
    assert_eq!(names(&["-f", "label=tier"]), set(&["up", "down"]));
    assert_eq!(names(&["-f", "label=tier=db"]), set(&["down"]));
    assert_eq!(names(&["-f", &format!("id={}", &created[..12])]), set(&["made"]));
    assert_eq!(names(&["-f", "before=made", "-f", "since=up"]), set(&["down"]));
    assert_eq!(
        names(&["-f", &format!("ancestor={}", registry().busybox())]).len(),
        3
    );
    assert_eq!(names(&["-n", "1"]), set(&["made"]));
    engine
        .docker(["ps", "-f", "nope=1"])
        .run()
        .code(1)
        .says("invalid filter 'nope'");

    let row = |name: &str, column: &str| {
        engine
            .docker(["ps", "-a", "-f", &format!("name={name}"), "--format", column])
            .ok()
    };
    assert!(
        row("up", "{{.Status}}").starts_with("Up "),
        "{}",
        row("up", "{{.Status}}")
    );
    assert!(
        row("down", "{{.Status}}").starts_with("Exited (3) "),
        "{}",
        row("down", "{{.Status}}")
    );
    assert_eq!(row("made", "{{.Status}}"), "Created");
    assert_eq!(row("up", "{{.Command}}"), "\"sleep 1000\"");
    assert_eq!(row("up", "{{.Image}}"), registry().busybox());
    assert_eq!(row("down", "{{.ID}}"), exited[..12]);
}

#[test]
fn inspect_gives_back_what_was_asked_and_what_became_of_it() {
    let engine = Engine::with_busybox("overlay2");
    let id = engine.detached(
        &[
            "--name", "box", "-e", "A=1", "-l", "k=v", "-h", "ahost", "--tmpfs", "/t",
        ],
        &["sleep", "1000"],
    );
    let c = engine.container("box");
    assert_eq!(c["Id"], id);
    assert_eq!(c["Name"], "/box");
    assert_eq!((&c["Path"], &c["Args"]), (&json!("sleep"), &json!(["1000"])));
    assert_eq!(c["Config"]["Hostname"], "ahost");
    assert_eq!(c["Config"]["Labels"]["k"], "v");
    assert_eq!(c["Config"]["Image"], registry().busybox());
    assert!(c["Config"]["Env"].as_array().unwrap().contains(&json!("A=1")));
    assert_eq!(c["HostConfig"]["Tmpfs"]["/t"], "");
    assert_eq!(c["Driver"], "overlay2");
    assert_eq!(c["Platform"], "linux");
    assert!(c["Image"].as_str().unwrap().starts_with("sha256:"));
    let state = &c["State"];
    assert_eq!(
        (&state["Status"], &state["Running"]),
        (&json!("running"), &json!(true))
    );
    assert!(state["Pid"].as_i64().unwrap() > 0);
    assert_eq!(state["FinishedAt"], "0001-01-01T00:00:00Z");
    assert!(state["StartedAt"].as_str().unwrap() > c["Created"].as_str().unwrap());
    assert_eq!(c["RestartCount"], 0);
    // The address is shown both ways clients look for it.
    let address = c["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
        .as_str()
        .unwrap();
    assert!(address.starts_with("172.17."), "{address}");
    assert_eq!(c["NetworkSettings"]["IPAddress"], address);

    engine.docker(["kill", "box"]).ok();
    let state = &engine.container("box")["State"];
    assert_eq!(
        (&state["Pid"], &state["ExitCode"], &state["Status"]),
        (&json!(0), &json!(137), &json!("exited"))
    );
    engine.docker(["inspect", "nosuch"]).run().code(1).says("nosuch");
}

#[test]
fn events_tell_the_story_in_order() {
    let engine = Engine::start();
    let start = (unix_time() - 1).to_string();
    let (live, output) = engine
        .docker(["events", "--since", &start, "--format", "{{json .}}"])
        .start_reading();
    let mut lines = BufReader::new(output)
        .lines()
        .map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    engine.docker(["pull", "-q", &registry().busybox()]).ok();
    let pull = lines.find(|event| event["Type"] == "image" && event["Action"] == "pull");
    assert_eq!(
        pull.unwrap()["Actor"]["ID"],
        format!("{}:latest", registry().busybox())
    );

    let began = unix_time();
    engine
        .docker([
            "run",
            "--rm",
            "--name",
            "story",
            "-l",
            "k=v",
            &registry().busybox(),
            "sh",
            "-c",
            "exit 4",
        ])
        .run()
        .code(4);
    let mut story = Vec::new();
    while story.last().is_none_or(|action| action != "destroy") {
        let event = lines.next().unwrap();
        if event["Type"] == "container" {
            assert_eq!(event["Actor"]["Attributes"]["name"], "story");
            assert_eq!(event["Actor"]["Attributes"]["k"], "v");
            assert_eq!(event["Actor"]["Attributes"]["image"], registry().busybox());
            if event["Action"] == "die" {
                assert_eq!(event["Actor"]["Attributes"]["exitCode"], "4");
            }
            story.push(event["Action"].as_str().unwrap().to_owned());
        }
    }
    let wanted = ["create", "attach", "start", "die", "destroy"];
    assert_eq!(story, wanted);
    live.interrupt();
    live.finish();

    // The same again from the buffer, filtered.
    let filters = query(r#"{"type":["container"],"event":["start","die"]}"#);
    let past = engine
        .get(&format!(
            "/events?since={began}&until={}&filters={filters}",
            unix_time() + 1
        ))
        .text();
    let actions: Vec<_> = past
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).unwrap()["Action"].clone())
        .collect();
    assert_eq!(actions, ["start", "die"], "{past}");
}

#[test]
fn created_containers_can_be_removed_without_ever_starting() {
    let engine = Engine::with_busybox("overlay2");
    let id = engine.docker(["create", &registry().busybox(), "true"]).ok();
    assert_eq!(
        engine.inspect(&id, "{{.State.Status}} {{.State.StartedAt}}"),
        "created 0001-01-01T00:00:00Z"
    );
    engine.docker(["rm", &id]).ok();
    assert_eq!(engine.docker(["ps", "-aq"]).ok(), "");
}
