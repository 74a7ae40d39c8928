//! `docker images`, `docker inspect` of images, `docker rmi`, `docker tag`.

use serde_json::json;

use crate::harness::{Engine, Image, Layer, on_both_drivers, query, registry};

on_both_drivers! {
    fn removing_an_image_frees_its_layers_and_keeps_shared_ones(engine) {
        let image = Image::busybox().layer(Layer::new().file("mine", b"1")).push("own-layer");
        engine.docker(["pull", "-q", &image]).ok();
        let id = engine.inspect(&image, "{{.Id}}");
        let done = engine.docker(["rmi", &image]).run().code(0).stdout;
        let lines: Vec<_> = done.lines().collect();
        assert_eq!(lines[0], format!("Untagged: {image}"));
        assert!(lines[1].starts_with(&format!("Untagged: {}@sha256:", image.trim_end_matches(":latest"))), "{done}");
        assert_eq!(lines[2], format!("Deleted: {id}"));
        assert!(lines[3].starts_with("Deleted: sha256:"), "{done}");
        assert_eq!(lines.len(), 4, "the busybox layer is still in use: {done}");
        assert_eq!(engine.busybox(&[], &["echo", "still", "there"]).ok(), "still there");
    }
}

#[test]
fn the_list_shows_names_ids_and_sizes() {
    let engine = Engine::with_busybox("overlay2");
    let row = engine
        .docker([
            "images",
            "--no-trunc",
            "--format",
            "{{.Repository}}|{{.Tag}}|{{.ID}}",
        ])
        .ok();
    let id = engine.inspect(&registry().busybox(), "{{.Id}}");
    assert_eq!(row, format!("{}|latest|{id}", registry().busybox()));
    let list = engine.get("/images/json").json();
    let size = list[0]["Size"].as_u64().unwrap();
    assert!(
        (500_000..10_000_000).contains(&size),
        "the unpacked size, hard links once: {size}"
    );
    assert_eq!(
        list[0]["RepoTags"],
        json!([format!("{}:latest", registry().busybox())])
    );
    assert!(
        list[0]["RepoDigests"][0]
            .as_str()
            .unwrap()
            .starts_with(&format!("{}@sha256:", registry().busybox()))
    );
    assert_eq!(list[0]["Containers"], -1);

    assert_eq!(
        engine.docker(["images", "-q", &registry().busybox()]).ok().len(),
        12
    );
    assert_eq!(engine.docker(["images", "-q", "nosuch"]).ok(), "");
    let filters = query(r#"{"reference":["*/busy*"]}"#);
    assert_eq!(
        engine
            .get(&format!("/images/json?filters={filters}"))
            .json()
            .as_array()
            .unwrap()
            .len(),
        1
    );
    engine
        .get("/images/json?filters=%7B%22nope%22%3A%5B%22x%22%5D%7D")
        .expect_status(400);
}

#[test]
fn inspect_shows_the_configuration() {
    let engine = Engine::start();
    let image = Image::busybox()
        .layer(Layer::new().file("x", b"x"))
        .with("Entrypoint", json!(["/bin/sh", "-c"]))
        .with("Labels", json!({"maker": "test"}))
        .with("ExposedPorts", json!({"80/tcp": {}}))
        .push("inspected");
    engine.docker(["pull", "-q", &image]).ok();
    let seen = engine
        .get(&format!("/images/{image}/json"))
        .expect_status(200)
        .json();
    assert_eq!(seen["Config"]["Entrypoint"], json!(["/bin/sh", "-c"]));
    assert_eq!(seen["Config"]["Labels"]["maker"], "test");
    assert_eq!(seen["Config"]["ExposedPorts"], json!({"80/tcp": {}}));
    assert_eq!(seen["Os"], "linux");
    assert_eq!(seen["RootFS"]["Type"], "layers");
    assert_eq!(seen["RootFS"]["Layers"].as_array().unwrap().len(), 2);
    assert_eq!(seen["Created"], "2025-01-01T00:00:00Z");
    let id = seen["Id"].as_str().unwrap();
    for name in [id, &id[7..], &id[7..19], &id[7..13]] {
        assert_eq!(engine.inspect(name, "{{.Id}}"), id, "{name}");
    }
    engine.get("/images/nope/json").expect_status(404);
    assert_eq!(
        engine.get("/images/nope/json").message(),
        "No such image: nope:latest"
    );
}

#[test]
fn an_image_in_use_is_not_removed() {
    let engine = Engine::with_busybox("overlay2");
    let image = registry().busybox();
    let running = engine.detached(&["--name", "user"], &["sleep", "1000"]);
    let done = engine.docker(["rmi", &image]).run().code(1);
    assert!(
        done.stderr
            .contains("conflict: unable to remove repository reference"),
        "{done}"
    );
    assert!(
        done.stderr.contains(&running[..12]),
        "it says who uses it: {done}"
    );
    engine.docker(["kill", "user"]).ok();
    engine.docker(["rmi", &image]).run().code(1).says("conflict");
    // Forced, the name goes; the stopped container keeps its layers and can start again.
    engine.docker(["rmi", "-f", &image]).ok();
    engine.docker(["start", "user"]).ok();
    assert_eq!(engine.inspect("user", "{{.State.Running}}"), "true");
    engine.docker(["rm", "-f", "user"]).ok();
    engine
        .docker(["rmi", "nosuch"])
        .run()
        .code(1)
        .says("No such image: nosuch");
}

#[test]
fn a_second_name_keeps_the_image() {
    let engine = Engine::with_busybox("overlay2");
    engine.docker(["tag", &registry().busybox(), "mine:2"]).ok();
    assert_eq!(
        engine.docker(["run", "--rm", "mine:2", "echo", "same"]).ok(),
        "same"
    );
    let done = engine.docker(["rmi", &registry().busybox()]).run().code(0).stdout;
    assert!(!done.contains("Deleted:"), "{done}");
    assert_eq!(
        engine
            .docker(["images", "--format", "{{.Repository}}:{{.Tag}}"])
            .ok(),
        "mine:2"
    );
    assert!(engine.docker(["rmi", "mine:2"]).ok().contains("Deleted: sha256:"));
    assert_eq!(engine.docker(["images", "-aq"]).ok(), "");
}
