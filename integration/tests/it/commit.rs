//! `docker commit`: a container's changes as an image.

use serde_json::{Value, json};

use crate::harness::{Engine, on_all_drivers, registry};

on_all_drivers! {
    fn a_container_becomes_an_image(engine) {
        let script = "echo hi > /etc/new; rm /bin/ls; mkdir -p /a/b; echo deep > /a/b/c; ln /a/b/c /a/link; chown 5:6 /a/link; \
                      rm -rf /home; mkdir /home; echo again > /home/one";
        engine.docker(["run", "--name", "made", "-e", "OWN=1", &registry().busybox(), "sh", "-c", script]).ok();
        let words = ["commit", "-a", "me <me@example.org>", "-m", "why", "-c", "ENV A=b", "-c", "CMD [\"cat\", \"/a/link\"]", "-c",
            "LABEL made=here", "made", "committed:1"];
        let id = engine.docker(words).ok();
        assert!(id.starts_with("sha256:"));
        assert_eq!(engine.docker(["run", "--rm", "committed:1"]).ok(), "deep");
        let look = "cat /etc/new /home/one; echo $A $OWN; stat -c '%u:%g %h' /a/b/c; [ ! -e /bin/ls ]; ls -A /home; find / -xdev -name '.wh.*'";
        let seen = engine.docker(["run", "--rm", "committed:1", "/bin/busybox", "sh", "-c", look]).run().stdout;
        assert!(seen.starts_with("hi\nagain\nb 1\n5:6 2\n"), "{seen}");
        assert!(!seen.contains(".wh."), "{seen}");

        let base = engine.inspect(&registry().busybox(), "{{.Id}}");
        let image = engine.get("/images/committed:1/json").json();
        assert_eq!(image["Parent"], base);
        assert_eq!((&image["Author"], &image["Comment"]), (&json!("me <me@example.org>"), &json!("why")));
        assert_eq!(image["Config"]["Cmd"], json!(["cat", "/a/link"]));
        assert_eq!(image["Config"]["Labels"]["made"], "here");
        assert_eq!(image["RootFS"]["Layers"].as_array().unwrap().len(), 2);
        let history = engine.get("/images/committed:1/history").json();
        assert_eq!(history[0]["Id"], id);
        assert_eq!(history[0]["CreatedBy"], format!("sh -c {script}"));
        assert_eq!(history[0]["Comment"], "why");
        assert_eq!(history[1]["Id"], base, "the parent is known by its id");
        let size = history[0]["Size"].as_u64().unwrap();
        assert!((10..100).contains(&size), "the layer holds the changes and nothing else: {size}");
    }
}

on_all_drivers! {
    fn nothing_of_what_was_mounted_gets_into_the_image(engine) {
        let dir = engine.shared_dir("host");
        std::fs::write(dir.join("secret"), "x").unwrap();
        let host = dir.display();
        // Mounted on what the image has, on what it does not have, a file on a file, and what every container has mounted.
        let volumes = [
            format!("{host}:/mnt/host"),
            format!("{host}/secret:/opt/app/file"),
            format!("{host}/secret:/etc/passwd"),
            format!("{host}:/home/guest"),
        ];
        let mut words = vec!["run", "--name", "box", "--tmpfs", "/scratch", "--tmpfs", "/var/spool"];
        words.extend(volumes.iter().flat_map(|volume| ["-v", volume.as_str()]));
        let busybox = registry().busybox();
        let script = "echo > /scratch/x; echo > /mnt/host/y; echo z >> /etc/passwd; echo > /home/guest/z; \
                      echo 'nameserver 192.0.2.1' >> /etc/resolv.conf; echo 192.0.2.2 other >> /etc/hosts; echo own > /own";
        words.extend([busybox.as_str(), "sh", "-c", script]);
        engine.docker(words).ok();

        // As with dockerd: places that had to be made are changes, what is mounted on them is not, and what is mounted in
        // every container is not even that.
        let mut changed: Vec<_> = engine.docker(["diff", "box"]).ok().lines().map(str::to_owned).collect();
        changed.sort_by(|a, b| a[2..].cmp(&b[2..]));
        let expected = [
            "A /mnt", "A /mnt/host", "A /opt", "A /opt/app", "A /opt/app/file", "A /own", "A /scratch", "C /var",
            "A /var/spool",
        ];
        assert_eq!(changed, expected);

        engine.docker(["commit", "box", "clean:1"]).ok();
        let size = engine.get("/images/clean:1/history").json()[0]["Size"].clone();
        assert_eq!(size, "own\n".len(), "the layer holds one small file");
        let file = engine.path().join("e.tar");
        engine.docker(["create", "--name", "of-it", "clean:1", "sh"]).ok();
        engine.docker(["export", "-o", &file.display().to_string(), "of-it"]).ok();
        let mut archive = tar::Archive::new(std::fs::File::open(&file).unwrap());
        let mut passwd = String::new();
        let mut names = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            if name == "etc/passwd" {
                std::io::Read::read_to_string(&mut entry, &mut passwd).unwrap();
            }
            names.push(name);
        }
        for unwanted in [
            "mnt/host/secret",
            "mnt/host/y",
            "home/guest/z",
            "scratch/x",
            "etc/hosts",
            "etc/resolv.conf",
            "etc/hostname",
            "dev/console",
        ] {
            assert!(!names.iter().any(|name| name == unwanted), "{unwanted} in {names:?}");
        }
        assert!(names.iter().any(|name| name == "own") && passwd.contains("root"), "{names:?} {passwd}");
    }
}

#[test]
fn a_running_container_is_committed_without_being_stopped() {
    let engine = Engine::with_busybox("overlay2");
    let id = engine.detached(
        &["--name", "runs"],
        &["sh", "-c", "echo 1 > /one; echo ready; sleep 1000"],
    );
    engine.wait_for_output("runs", "ready");
    let started = engine.inspect("runs", "{{.State.StartedAt}}");
    engine.docker(["commit", "runs", "snapshot:1"]).ok();
    assert_eq!(
        engine.inspect("runs", "{{.State.Running}} {{.State.StartedAt}}"),
        format!("true {started}")
    );
    assert_eq!(
        engine.docker(["run", "--rm", "snapshot:1", "cat", "/one"]).ok(),
        "1"
    );
    engine.docker(["rm", "-f", &id]).ok();
}

#[test]
fn a_container_without_changes_adds_no_layer() {
    let engine = Engine::with_busybox("overlay2");
    engine
        .docker(["run", "--name", "idle", &registry().busybox(), "true"])
        .ok();
    engine
        .docker(["commit", "-c", "ENV ONLY=config", "idle", "same:1"])
        .ok();
    let layers = |name: &str| engine.get(&format!("/images/{name}/json")).json()["RootFS"]["Layers"].clone();
    assert_eq!(
        layers("same:1"),
        layers(&crate::harness::query(&registry().busybox()))
    );
    assert_eq!(
        engine
            .docker(["run", "--rm", "same:1", "sh", "-c", "echo $ONLY"])
            .ok(),
        "config"
    );
    assert_eq!(engine.get("/images/same:1/history").json()[0]["Size"], 0);
}

#[test]
fn commits_stack_and_are_found_in_each_other() {
    let engine = Engine::with_busybox("overlay2");
    let mut below = registry().busybox();
    for n in 1..=3 {
        let name = format!("c{n}");
        engine
            .docker([
                "run",
                "--name",
                &name,
                &below,
                "sh",
                "-c",
                &format!("echo {n} > /f{n}"),
            ])
            .ok();
        below = format!("stack:{n}");
        engine.docker(["commit", &name, &below]).ok();
        engine.docker(["rm", &name]).ok();
    }
    assert_eq!(
        engine
            .docker(["run", "--rm", "stack:3", "cat", "/f1", "/f2", "/f3"])
            .ok(),
        "1\n2\n3"
    );
    let history = engine.get("/images/stack:3/history").json();
    for (line, name) in ["stack:3", "stack:2", "stack:1"].iter().enumerate() {
        assert_eq!(history[line]["Id"], engine.inspect(name, "{{.Id}}"));
        assert_eq!(history[line]["Tags"], json!([name]));
    }
    // What is below may go; the layers stay as long as they are needed.
    engine
        .docker(["rmi", "stack:1", "stack:2", &registry().busybox()])
        .ok();
    assert_eq!(engine.docker(["run", "--rm", "stack:3", "cat", "/f1"]).ok(), "1");
    let file = engine.path().join("s.tar").display().to_string();
    engine.docker(["save", "-o", &file, "stack:3"]).ok();
    engine.docker(["rmi", "stack:3"]).ok();
    engine.docker(["load", "-i", &file]).ok();
    assert_eq!(engine.docker(["run", "--rm", "stack:3", "cat", "/f2"]).ok(), "2");
}

#[test]
fn the_api_takes_a_configuration_and_tells_of_the_commit() {
    let engine = Engine::with_busybox("overlay2");
    let id = engine.create(
        "box",
        json!({"Cmd": ["sh"], "Env": ["A=1"], "Labels": {"l": "1"}}),
    );
    let begin = crate::harness::unix_time();
    let answer = engine
        .post(
            "/commit?container=box&repo=with-config&tag=1&comment=x&pause=0&changes=ENV%20B%3D2",
            &json!({"Cmd": ["other"], "Env": ["C=3"]}),
        )
        .expect_status(201);
    let image = answer.json()["Id"].as_str().unwrap().to_owned();
    let config = engine.get("/images/with-config:1/json").json()["Config"].clone();
    assert_eq!(config["Cmd"], json!(["other"]));
    let env: Vec<&str> = config["Env"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    for entry in ["A=1", "B=2", "C=3"] {
        assert!(env.contains(&entry), "{env:?}");
    }
    assert_eq!(config["Labels"], json!({"l": "1"}));
    let until = crate::harness::unix_time() + 1;
    let events = engine.get(&format!("/events?since={begin}&until={until}")).text();
    let events: Vec<Value> = events
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of = |action: &str| {
        events
            .iter()
            .find(|event| event["Action"] == action)
            .unwrap_or_else(|| panic!("{action} in {events:?}"))
    };
    assert_eq!(
        (
            &of("tag")["Actor"]["ID"],
            &of("tag")["Actor"]["Attributes"]["name"]
        ),
        (&json!(image), &json!("with-config:1"))
    );
    let commit = &of("commit")["Actor"];
    assert_eq!(commit["ID"], id.as_str());
    assert_eq!(
        (
            &commit["Attributes"]["imageID"],
            &commit["Attributes"]["imageRef"],
            &commit["Attributes"]["comment"]
        ),
        (&json!(image), &json!("with-config:1"), &json!("x"))
    );

    for (target, status, message) in [
        ("/commit?container=nosuch", 404, "No such container: nosuch"),
        (
            "/commit?container=box&repo=UPPER",
            400,
            "invalid reference format: repository name (library/UPPER) must be lowercase",
        ),
        (
            "/commit?container=box&changes=RUN%20x",
            400,
            "RUN is not a valid change command",
        ),
        (
            "/commit?container=box&changes=STOPSIGNAL%20foo",
            400,
            "invalid signal: foo",
        ),
    ] {
        let answer = engine.post(target, &Value::Null).expect_status(status);
        assert!(
            answer.message().contains(message),
            "{target}: {}",
            answer.message()
        );
    }
}
