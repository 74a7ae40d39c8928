//! Another `--storage-driver` on the same data root: images stay, containers stay where their files are.

use crate::harness::{Engine, PATIENCE, Writer, eventually, layered_image, require};

fn restart_with(engine: &mut Engine, driver: &str) {
    engine.stop();
    engine.set_args(&["--storage-driver", driver]);
    engine.start_again();
    assert_eq!(engine.docker(["info", "--format", "{{.Driver}}"]).ok(), driver);
}

#[test]
fn images_are_the_same_under_every_driver() {
    require!(Engine::own(), "starts the daemon with another driver");
    let mut engine = Engine::with_busybox("overlay2");
    let image = layered_image("switched");
    engine.docker(["pull", "-q", &image]).ok();
    let list = |engine: &Engine| {
        let mut list = engine.get("/images/json?digests=1").json();
        list.as_array_mut().unwrap().iter_mut().for_each(|image| {
            // Of a layer that is not unpacked the size is not known.
            image["Size"].take();
        });
        list
    };
    let before = list(&engine);
    assert_eq!(before.as_array().unwrap().len(), 2);
    let sizes = engine.docker(["images", "--format", "{{.ID}} {{.Size}}"]).ok();
    let look = "find /kept /replaced /hidden | sort | tr '\\n' ' '; cat /hidden/above; ls /gone || true";
    let run = |engine: &Engine| {
        let words = [
            "run",
            "--rm",
            "--network",
            "none",
            "--pull",
            "never",
            &image,
            "sh",
            "-c",
            look,
        ];
        engine.docker(words).ok()
    };
    let seen = run(&engine);
    for driver in ["vfs", "overlay2", "vfs"] {
        restart_with(&mut engine, driver);
        assert_eq!(list(&engine), before, "{driver}");
        assert_eq!(run(&engine), seen, "{driver}");
        assert_eq!(
            engine.docker(["images", "--format", "{{.ID}} {{.Size}}"]).ok(),
            sizes,
            "{driver}"
        );
    }
}

#[test]
fn a_container_of_another_driver_is_listed_untouched_and_says_how_to_go_on() {
    require!(Engine::own(), "starts the daemon with another driver");
    let mut engine = Engine::with_busybox("overlay2");
    let image = layered_image("foreign");
    engine.docker(["pull", "-q", &image]).ok();
    let writer = Writer::new(&engine, "writer", &image);
    engine
        .docker(["create", "--name", "never-started", &image, "true"])
        .ok();
    let before = engine.container("writer");

    restart_with(&mut engine, "vfs");
    assert_eq!(
        engine.docker(["ps", "-a", "--format", "{{.Names}}"]).ok(),
        "never-started\nwriter"
    );
    let refused = engine.docker(["start", "writer"]).run().fails();
    for text in [
        "overlay2",
        "vfs",
        "skiffd storage migrate --to vfs",
        "--storage-driver overlay2",
    ] {
        assert!(refused.stderr.contains(text), "{refused}");
    }
    assert_eq!(
        engine
            .post("/containers/writer/start", &serde_json::Value::Null)
            .status,
        409
    );
    engine
        .docker(["restart", "writer"])
        .run()
        .fails()
        .says("skiffd storage migrate");
    for words in [
        &["diff", "writer"][..],
        &["export", "writer"],
        &["commit", "writer"],
    ] {
        engine
            .docker(words)
            .run()
            .fails()
            .says("skiffd storage migrate --to vfs");
    }
    let now = engine.container("writer");
    assert_eq!(now["State"], before["State"], "a refused start is no start");
    assert_eq!(now["Driver"], "overlay2");
    // Lists with sizes are of use all the same, and so are new containers of the image.
    assert_eq!(engine.docker(["ps", "-asq"]).ok().lines().count(), 2);
    engine
        .docker(["run", "--rm", "--network", "none", &image, "true"])
        .ok();
    // The image is in use, whoever holds the container's files.
    engine.docker(["rmi", &image]).run().fails();

    restart_with(&mut engine, "overlay2");
    writer.has_its_files(&engine);
    engine.docker(["start", "-a", "never-started"]).ok();
}

#[test]
fn a_container_removed_under_another_driver_leaves_nothing_when_its_own_comes_back() {
    require!(Engine::own(), "starts the daemon with another driver");
    let mut engine = Engine::with_busybox("overlay2");
    let writer = Writer::new(&engine, "writer", &busybox_with_places(&engine));
    let id = engine.inspect("writer", "{{.Id}}");
    let place = engine
        .data_root()
        .join("overlay2")
        .join(format!("active-rw-{id}"));
    assert!(place.exists());
    restart_with(&mut engine, "vfs");
    engine.docker(["rm", &writer.name]).ok();
    restart_with(&mut engine, "overlay2");
    eventually("its files are swept", PATIENCE, || {
        (!place.exists()).then_some(())
    });
}

fn busybox_with_places(engine: &Engine) -> String {
    let image = layered_image("places");
    engine.docker(["pull", "-q", &image]).ok();
    image
}

#[test]
fn two_drivers_with_state_ask_for_a_choice() {
    require!(Engine::own(), "starts the daemon with another driver");
    let mut engine = Engine::with_busybox("overlay2");
    engine.stop();
    // vfs never counts; anything else does.
    std::fs::create_dir_all(engine.data_root().join("fuse-overlayfs/something")).unwrap();
    let refused = engine.run_daemon(|command| {
        command.env_remove("DOCKER_DRIVER").arg("--storage-driver=");
    });
    let refused = refused.fails().says("several valid graphdrivers: ");
    assert!(
        refused.stderr.contains("skiffd storage migrate --to"),
        "{refused}"
    );
    engine.start_again();
    assert_eq!(engine.busybox(&["--network", "none"], &["echo", "x"]).ok(), "x");
}
