//! `docker diff`.

use serde_json::{Value, json};

use crate::harness::{Engine, on_all_drivers, registry};

fn lines(engine: &Engine, container: &str) -> Vec<String> {
    let mut lines: Vec<_> = engine
        .docker(["diff", container])
        .ok()
        .lines()
        .map(str::to_owned)
        .collect();
    // dockerd's order is not ours, and older CLIs print what they get.
    lines.sort_by(|a, b| a[2..].cmp(&b[2..]));
    lines
}

on_all_drivers! {
    fn a_diff_names_what_was_added_changed_and_deleted(engine) {
        let script = "echo hi > /etc/new; echo x >> /etc/passwd; rm /bin/ls; mkdir -p /a/b; touch /a/b/f; chmod 700 /var; \
                      chown 0:0 /bin/cat; rm -r /home; mkdir /home; echo > /home/two; ln -s /nowhere /dangling; rm /etc/os-release";
        engine.docker(["run", "--name", "box", &registry().busybox(), "sh", "-c", script]).ok();
        assert_eq!(
            lines(engine, "box"),
            [
                "A /a", "A /a/b", "A /a/b/f", "C /bin", "D /bin/ls", "A /dangling", "C /etc", "A /etc/new", "D /etc/os-release",
                "C /etc/passwd", "C /home", "D /home/guest", "A /home/two", "C /var",
            ]
        );
        let changes = engine.get("/containers/box/changes").expect_status(200).json();
        assert!(changes.as_array().unwrap().contains(&json!({"Path": "/bin/ls", "Kind": 2})));
        assert!(changes.as_array().unwrap().contains(&json!({"Path": "/a/b/f", "Kind": 1})));
        assert!(changes.as_array().unwrap().contains(&json!({"Path": "/etc/passwd", "Kind": 0})));
    }
}

on_all_drivers! {
    fn a_container_that_did_nothing_has_no_diff(engine) {
        engine.docker(["create", "--name", "created", &registry().busybox(), "true"]).ok();
        engine.docker(["run", "--name", "ran", &registry().busybox(), "true"]).ok();
        for name in ["created", "ran"] {
            assert_eq!(engine.docker(["diff", name]).ok(), "", "{name}");
            assert_eq!(engine.get(&format!("/containers/{name}/changes")).expect_status(200).json(), Value::Null);
        }
    }
}

#[test]
fn a_running_container_shows_its_changes_as_they_come() {
    let engine = Engine::with_busybox("overlay2");
    let id = engine.detached(
        &["--name", "box", "-i"],
        &[
            "sh",
            "-c",
            "echo > /first; echo one; read line; echo > /second; echo two; sleep 1000",
        ],
    );
    engine.wait_for_output("box", "one");
    assert_eq!(lines(&engine, "box"), ["A /first"]);
    engine
        .docker(["attach", "--no-stdin=false", "box"])
        .stdin("go\n")
        .start();
    engine.wait_for_output("box", "two");
    assert_eq!(lines(&engine, "box"), ["A /first", "A /second"]);
    engine.docker(["rm", "-f", &id]).ok();
    assert_eq!(
        engine
            .get("/containers/nosuch/changes")
            .expect_status(404)
            .message(),
        "No such container: nosuch"
    );
}
