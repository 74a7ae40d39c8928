//! The life of a container on each storage driver: what it writes, what is left of it, what the daemon's death does to it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::{Engine, PATIENCE, eventually, is_root, on_every_driver, registry, require};

/// The driver's directory.
fn directory(engine: &Engine) -> PathBuf {
    let driver = engine.docker(["info", "--format", "{{.Driver}}"]).ok();
    engine.data_root().join(driver)
}

/// Containers' snapshots on disk, and what waits to be freed.
fn leftovers(engine: &Engine) -> Vec<String> {
    let names = |path: &Path| -> Vec<String> {
        fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    let root = directory(engine);
    let mut left = names(&root);
    left.retain(|name| name.starts_with("active-"));
    for place in ["staging", "trash"] {
        left.extend(names(&root.join(place)));
    }
    left
}

on_every_driver! {
    fn what_a_container_writes_is_its_own_and_goes_with_it(engine) {
        let script = "cat /written 2>/dev/null; echo again >> /written; rm /etc/passwd; mkdir /etc/passwd; \
                      ln /etc/group /etc/linked; mv /var/spool /var/moved 2>/dev/null || true; ls /etc/passwd";
        engine.docker(["create", "--name", "box", &registry().busybox(), "sh", "-c", script]).ok();
        for printed in ["", "again", "again\nagain"] {
            let shown = engine.docker(["start", "-a", "box"]).run().stdout;
            assert_eq!(shown.trim(), printed);
        }
        // The image is what it was.
        engine
            .busybox(&[], &["sh", "-c", "test -f /etc/passwd && test ! -e /written && test ! -e /etc/linked"])
            .run()
            .code(0);
        let size = engine.docker(["ps", "-as", "--format", "{{.Size}}"]).ok();
        assert!(!size.starts_with("0B"), "{size}");
        let changed = engine.docker(["diff", "box"]).ok();
        for line in ["A /written", "A /etc/linked"] {
            assert!(changed.lines().any(|l| l == line), "{line} in {changed}");
        }
        engine.docker(["rm", "box"]).ok();
        eventually("nothing is left on disk", PATIENCE, || leftovers(engine).is_empty().then_some(()));
        // Nor of an image.
        engine.docker(["rmi", &registry().busybox()]).ok();
        engine.docker(["pull", "-q", &registry().busybox()]).ok();
        engine.busybox(&[], &["true"]).run().code(0);
        eventually("nothing is left on disk", PATIENCE, || leftovers(engine).is_empty().then_some(()));
    }

    fn a_container_writes_on_when_the_daemon_is_killed(engine) {
        let script = "echo before; while read line; do echo $line >> /written; \
                      [ $line != show ] || cat /written; [ $line != quit ] || exit 5; done";
        engine.detached(&["--name", "box", "-i"], &["sh", "-c", script]);
        engine.wait_for_output("box", "before");
        let (parent, daemon) = (engine.parent_pid(), engine.daemon_pid());
        engine.kill_9(daemon);
        engine.wait_for_exit();
        engine.wait_until_gone(daemon);
        engine.wait_until_gone(parent);
        engine.start_again();
        engine.docker(["attach", "box"]).stdin("one\nshow\nquit\n").run().code(5).prints("one\nshow\n");
        // Stopped and started, it finds what it wrote.
        let again = engine.docker(["start", "-a", "-i", "box"]).stdin("show\nquit\n").run().code(5).stdout;
        assert_eq!(again, "before\none\nshow\nquit\nshow\n");
        engine.docker(["rm", "box"]).ok();
        eventually("nothing is left on disk", PATIENCE, || leftovers(engine).is_empty().then_some(()));
    }

    fn info_and_inspect_say_what_the_driver_is(engine) {
        let info = engine.get("/info").json();
        let driver = info["Driver"].as_str().unwrap().to_owned();
        let titles: Vec<&str> =
            info["DriverStatus"].as_array().unwrap().iter().map(|row| row[0].as_str().unwrap()).collect();
        let first = match driver.as_str() {
            "btrfs" => "Btrfs",
            _ => "Backing Filesystem",
        };
        assert_eq!(titles[0], first);
        let id = engine.create("box", serde_json::json!({"Cmd": ["true"]}));
        let container = &engine.container(&id)["GraphDriver"];
        let image = &engine.get(&format!("/images/{}/json", registry().busybox())).json()["GraphDriver"];
        for described in [container, image] {
            assert_eq!(described["Name"], driver.as_str());
            if matches!(driver.as_str(), "vfs" | "btrfs") {
                assert!(described["Data"].is_null(), "{described}");
            } else {
                let upper = described["Data"]["UpperDir"].as_str().unwrap();
                assert!(Path::new(upper).starts_with(directory(engine)) && Path::new(upper).is_dir(), "{described}");
            }
        }
        if !container["Data"].is_null() {
            let data = container["Data"].as_object().unwrap();
            let titles: Vec<&String> = data.keys().collect();
            assert_eq!(titles, ["LowerDir", "MergedDir", "UpperDir", "WorkDir"]);
        }
    }
}
