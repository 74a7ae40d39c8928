//! A disk that is full: an error that says so, nothing half-registered, and work again when there is room.

use crate::harness::{Engine, Image, Layer, Options, is_root, registry, require};

fn noise(bytes: u32) -> Vec<u8> {
    (0..bytes)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 11).to_le_bytes()[0])
        .collect()
}

/// Pulls an image with this layer, twice, and then runs something that there is room for.
fn too_large(options: Options, name: &str, layer: Layer) {
    require!(
        Engine::own() && is_root(),
        "mounts a small file system for the data root"
    );
    let engine = Engine::start_with(options);
    let image = Image::busybox()
        .layer(Layer::new().file("small", b"x"))
        .layer(layer)
        .push(name);
    for _ in 0..2 {
        engine
            .docker(["pull", &image])
            .run()
            .code(1)
            .says("no space left on device");
        assert_eq!(
            engine.docker(["images", "-aq"]).ok(),
            "",
            "nothing half-registered"
        );
    }
    // What the failed pulls took is free again.
    assert_eq!(
        engine
            .docker(["run", "--rm", &registry().busybox(), "echo", "room"])
            .ok(),
        "room"
    );
}

fn full_while_pulling(driver: &str) {
    let layer = Layer::new().file("noise", &noise(30_000_000));
    too_large(
        Options::driver(driver).data_root_of_mib(24),
        &format!("too-large-{driver}"),
        layer,
    );
}

#[test]
fn a_pull_onto_a_full_disk_fails_cleanly_vfs() {
    full_while_pulling("vfs");
}

#[test]
fn a_pull_onto_a_full_disk_fails_cleanly_overlay2() {
    full_while_pulling("overlay2");
}

#[test]
fn a_bomb_fills_the_disk_and_gives_it_back() {
    // Some 50 KB in the registry.
    let layer = Layer::new().file("bomb", &vec![b'x'; 50_000_000]);
    too_large(Options::driver("overlay2").data_root_of_mib(24), "bomb", layer);
}

#[test]
fn a_pull_that_takes_all_inodes_fails_cleanly() {
    let layer = (0..5_000).fold(Layer::new(), |layer, n| layer.file(&format!("files/{n}"), b""));
    too_large(
        Options::driver("overlay2").data_root_of_inodes(3_000),
        "too-many",
        layer,
    );
}

#[test]
fn a_container_that_fills_the_disk_hurts_only_itself() {
    require!(
        Engine::own() && is_root(),
        "mounts a small file system for the data root"
    );
    let engine = Engine::start_with(Options::driver("overlay2").data_root_of_mib(24));
    engine.docker(["pull", "-q", &registry().busybox()]).ok();
    let done = engine
        .docker([
            "run",
            "--name",
            "hog",
            &registry().busybox(),
            "dd",
            "if=/dev/zero",
            "of=/fill",
            "bs=1M",
        ])
        .run();
    assert!(done.stderr.contains("No space left on device"), "{done}");
    // Everything that needs no room still works, and so does making some.
    assert_eq!(engine.inspect("hog", "{{.State.Status}}"), "exited");
    let refused = engine
        .docker(["create", "--name", "late", &registry().busybox()])
        .run();
    if !refused.status.success() {
        assert!(refused.stderr.contains("no space left on device"), "{refused}");
        engine.docker(["inspect", "late"]).run().fails();
    }
    engine.docker(["rm", "-f", "hog"]).ok();
    engine.docker(["rm", "-f", "late"]).run();
    assert_eq!(engine.busybox(&[], &["echo", "room"]).ok(), "room");
}
