//! Pulls that must fail: with Docker's words, with nothing half-registered, and so that the next try works.

use std::fs;

use serde_json::json;

use crate::harness::{
    Behaviour, Compression, Engine, Gate, HostileRegistry, Image, Layer, Options, PATIENCE, digest,
    eventually, is_root, machine_address, on_both_drivers, registry, require, skipped,
};

/// The store is as if nothing had happened, and an image can be pulled and run.
fn nothing_is_left_and_the_next_try_works(engine: &Engine, reference: &str) {
    assert_eq!(
        engine.docker(["images", "-aq"]).ok(),
        "",
        "no half-registered image"
    );
    engine.docker(["inspect", reference]).run().fails();
    assert_eq!(
        engine
            .docker(["run", "--rm", &registry().busybox(), "echo", "fine"])
            .ok(),
        "fine"
    );
    engine.docker(["rmi", &registry().busybox()]).ok();
}

#[test]
fn a_missing_image_is_not_found() {
    let engine = Engine::start();
    let address = registry().address;
    let unknown = engine
        .docker(["pull", &format!("{address}/no/such:1")])
        .run()
        .code(1);
    assert!(
        unknown.stderr.contains(&format!(
            "manifest for {address}/no/such:1 not found: manifest unknown"
        )) || unknown.stderr.contains("name unknown"),
        "{unknown}"
    );
    engine
        .docker(["pull", &format!("{address}/busybox:nosuchtag")])
        .run()
        .code(1)
        .says(&format!(
            "manifest for {address}/busybox:nosuchtag not found: manifest unknown: manifest unknown"
        ));
    let absent = format!("{address}/busybox@{}", digest(b"absent"));
    engine
        .docker(["pull", &absent])
        .run()
        .code(1)
        .says("not found: manifest unknown");
    engine
        .docker(["pull", "upper/CASE"])
        .run()
        .code(1)
        .says("must be lowercase");
    let status = engine.post(
        &format!("/images/create?fromImage={address}/busybox&tag=nosuchtag"),
        &json!(null),
    );
    assert_eq!(
        status.status,
        404,
        "an error before the first progress line has its own status: {}",
        status.text()
    );
    let bad = engine
        .post("/images/create?fromImage=UPPER", &json!(null))
        .expect_status(400);
    assert_eq!(
        bad.message(),
        "invalid reference format: repository name (library/UPPER) must be lowercase"
    );
    // run passes the failure on as its own, 125.
    engine
        .docker(["run", "--rm", &format!("{address}/busybox:nosuchtag")])
        .run()
        .code(125)
        .says("manifest unknown");
    nothing_is_left_and_the_next_try_works(&engine, "nosuch");
}

#[test]
fn a_registry_that_is_not_there_is_named_with_the_reason() {
    let engine = Engine::start();
    // Port 1 of loopback: nobody listens.
    engine
        .docker(["pull", "localhost:1/image"])
        .run()
        .code(1)
        .says("localhost:1")
        .says("refused");
    let refusing = HostileRegistry::serve(Image::busybox().build(), |_| Behaviour::Status(403));
    engine
        .docker(["pull", &refusing.reference()])
        .run()
        .code(1)
        .says("denied");
    let broken = HostileRegistry::serve(Image::busybox().build(), |_| Behaviour::Status(500));
    engine
        .docker(["pull", &broken.reference()])
        .run()
        .code(1)
        .says("500");
    nothing_is_left_and_the_next_try_works(&engine, "image");
}

#[test]
fn plain_http_is_for_loopback_and_for_registries_declared_insecure() {
    require!(Engine::own(), "depends on the daemon's registry options");
    let Some(address) = machine_address() else {
        return skipped("the machine has no address besides loopback");
    };
    let hostile = HostileRegistry::serve(Image::busybox().build(), |_| Behaviour::Serve);
    let remote = format!("{address}:{}", hostile.port());
    let image = format!("{remote}/image");
    {
        let engine = Engine::start();
        engine
            .docker(["pull", "-q", &format!("127.0.0.1:{}/image", hostile.port())])
            .ok();
        engine
            .docker(["pull", &image])
            .run()
            .code(1)
            .says("server gave HTTP response to HTTPS client");
    }
    let engine = Engine::start_with(Options::default().arg("--insecure-registry").arg(&remote));
    engine.docker(["pull", "-q", &image]).ok();
}

on_both_drivers! {
    fn wrong_bytes_are_refused_and_the_right_ones_taken_next_time(engine) {
        engine.docker(["rmi", &registry().busybox()]).ok();
        let image = Image::busybox().layer(Layer::new().file("payload", &[3; 100_000])).build();
        // Wrong often enough to outlast any retries, then right.
        for behaviour in [Behaviour::Corrupt, Behaviour::Replace(b"something else".to_vec())] {
            let hostile = HostileRegistry::with_bad_layer(image.clone(), usize::MAX, behaviour.clone());
            engine.docker(["pull", &hostile.reference()]).run().code(1);
            nothing_is_left_and_the_next_try_works(engine, &hostile.reference());
        }
        let hostile = HostileRegistry::with_bad_layer(image.clone(), usize::MAX, Behaviour::Corrupt);
        let done = engine.docker(["pull", &hostile.reference()]).run().code(1);
        assert!(
            done.stderr.contains("filesystem layer verification failed for digest") || done.stderr.contains("digest"),
            "the reason is a digest: {done}"
        );
        let good = HostileRegistry::serve(image, |_| Behaviour::Serve);
        assert_eq!(engine.docker(["run", "--rm", &good.reference(), "sh", "-c", "wc -c </payload"]).ok(), "100000");
    }

    fn a_truncated_layer_is_refused(engine) {
        engine.docker(["rmi", &registry().busybox()]).ok();
        let image = Image::busybox().packed_layer(Layer::new().file("payload", &vec![3; 400_000]), Compression::Plain).build();
        let hostile = HostileRegistry::with_bad_layer(image.clone(), usize::MAX, Behaviour::CutAfter(0));
        engine.docker(["pull", &hostile.reference()]).run().code(1);
        nothing_is_left_and_the_next_try_works(engine, &hostile.reference());

        // Shorter than the manifest says, ended cleanly, and truthful about its length.
        let half = image.layers[1].bytes[..200_000].to_vec();
        let hostile = HostileRegistry::with_bad_layer(image, usize::MAX, Behaviour::Replace(half));
        engine.docker(["pull", &hostile.reference()]).run().code(1);
        nothing_is_left_and_the_next_try_works(engine, &hostile.reference());
    }

    fn a_layer_that_is_no_archive_is_refused(engine) {
        engine.docker(["rmi", &registry().busybox()]).ok();
        // The digest is right this time: the registry's bytes are what the manifest promises, and they are garbage.
        for (name, bytes) in [("text", b"not a tar at all, just words".to_vec()), ("cut-gzip", b"\x1f\x8b\x08\0\0\0\0\0\0\x03cut".to_vec())] {
            let mut built = Image::busybox().layer(Layer::new().file("x", b"x")).build();
            let (old, new) = (built.layers[1].digest.clone(), digest(&bytes));
            let old_size = format!("\"size\":{}", built.layers[1].bytes.len());
            let manifest = String::from_utf8(built.manifest).unwrap().replace(&old, &new);
            built.manifest = manifest.replace(&old_size, &format!("\"size\":{}", bytes.len())).into_bytes();
            built.layers[1].digest = new;
            built.layers[1].bytes = bytes;
            let image = registry().push(&built, &format!("garbage-{name}"));
            engine.docker(["pull", &image]).run().code(1);
            nothing_is_left_and_the_next_try_works(engine, &image);
        }
    }

    fn a_configuration_with_other_layers_is_refused(engine) {
        engine.docker(["rmi", &registry().busybox()]).ok();
        // The diff id in the configuration is not that of the layer: Docker's check against swapped layers.
        let mut built = Image::busybox().layer(Layer::new().file("x", b"x")).build();
        let other = Image::busybox().layer(Layer::new().file("x", b"y")).build();
        let manifest = String::from_utf8(built.manifest).unwrap().replace(&built.layers[1].digest, &other.layers[1].digest);
        let (size, other_size) = (built.layers[1].bytes.len(), other.layers[1].bytes.len());
        built.manifest = manifest.replace(&format!("\"size\":{size}"), &format!("\"size\":{other_size}")).into_bytes();
        built.layers = other.layers;
        let image = registry().push(&built, "swapped");
        engine.docker(["pull", &image]).run().code(1);
        nothing_is_left_and_the_next_try_works(engine, &image);
    }

    fn an_archive_cannot_leave_its_directory(engine) {
        engine.docker(["rmi", &registry().busybox()]).ok();
        let outside = engine.shared_dir("outside");
        fs::write(outside.join("victim"), "untouched").unwrap();
        let target = outside.display().to_string();
        let relative = format!("../../../../../../../../../../../..{target}");
        let attacks: Vec<(&str, Layer)> = vec![
            ("dotdot", Layer::new().file(&format!("{relative}/new"), b"x")),
            ("absolute", Layer::new().file(&format!("{target}/new"), b"x")),
            ("symlink", Layer::new().symlink("out", &target).file("out/new", b"x")),
            ("relative-symlink", Layer::new().dir("a").symlink("a/out", &relative).file("a/out/new", b"x")),
            ("symlink-chain", Layer::new().symlink("one", "/").symlink("two", &format!("one{target}")).file("two/new", b"x")),
            ("overwrite-through-symlink", Layer::new().symlink("f", &format!("{target}/victim")).file("f", b"overwritten")),
            ("hardlink", Layer::new().hardlink("stolen", &format!("{target}/victim"))),
            ("hardlink-dotdot", Layer::new().hardlink("stolen", &format!("{relative}/victim"))),
            ("hardlink-through-symlink", Layer::new().symlink("out", &target).hardlink("stolen", "out/victim")),
            ("whiteout", Layer::new().whiteout(&format!("{relative}/victim"))),
            ("whiteout-through-symlink", Layer::new().symlink("out", &target).whiteout("out/victim")),
            ("opaque-through-symlink", Layer::new().symlink("out", &target).opaque("out")),
        ];
        for (name, layer) in attacks {
            let image = Image::busybox().layer(layer).push(&format!("escape-{name}"));
            let done = engine.docker(["pull", "-q", &image]).run();
            let left: Vec<_> = fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(left, ["victim"], "{name}: {done}");
            assert_eq!(fs::read_to_string(outside.join("victim")).unwrap(), "untouched", "{name}");
            if done.status.success() {
                // Docker keeps such entries inside the root file system; then a container must not see the outside either.
                let script = "cat /stolen /f /out/victim 2>/dev/null; true";
                let seen = engine.docker(["run", "--rm", &image, "sh", "-c", script]).run();
                assert!(!seen.stdout.contains("untouched"), "{name}: {seen}");
                engine.docker(["rmi", &image]).ok();
            }
        }
        nothing_is_left_and_the_next_try_works(engine, "escape");
    }

    fn overlay_attributes_of_an_image_never_reach_the_disk(engine) {
        // With these an image could show any file of the host through a kernel overlay.
        let mut layer = Layer::new();
        for name in ["user.overlay.redirect", "trusted.overlay.redirect", "user.overlay.opaque"] {
            layer = layer.xattr_for_next(name, "/etc").dir(&format!("d-{}", name.replace('.', "-")));
        }
        let image = Image::busybox().layer(layer).push("overlay-attributes");
        let seen = engine.docker(["run", "--rm", &image, "sh", "-c", "ls -A /d-*"]).run();
        assert!(!seen.stdout.contains("passwd"), "{seen}");
    }
}

#[test]
fn a_client_that_leaves_in_mid_pull_ends_the_pull_and_spoils_nothing() {
    let engine = Engine::start();
    let image = Image::busybox()
        .packed_layer(Layer::new().file("big", &vec![5; 5_000_000]), Compression::Plain)
        .build();
    let hostile =
        HostileRegistry::with_bad_layer(image, 1, Behaviour::StallAfter(2_000_000, Gate::default()));
    let pull = engine.docker(["pull", &hostile.reference()]).start();
    hostile.wait_for_layer_request();
    pull.kill();
    pull.finish();
    hostile.wait_for_abandoned();
    assert_eq!(engine.docker(["images", "-aq"]).ok(), "");
    assert_eq!(
        engine
            .docker(["run", "--rm", &hostile.reference(), "sh", "-c", "wc -c </big"])
            .ok(),
        "5000000"
    );
}

#[test]
fn one_of_two_clients_may_leave() {
    let engine = Engine::start();
    let gate = Gate::default();
    let image = Image::busybox()
        .packed_layer(Layer::new().file("big", &vec![5; 5_000_000]), Compression::Plain)
        .build();
    let hostile = HostileRegistry::with_bad_layer(image, 1, Behaviour::StallAfter(2_000_000, gate.clone()));
    let leaving = engine.docker(["pull", &hostile.reference()]).start();
    hostile.wait_for_layer_request();
    let staying = engine.docker(["pull", &hostile.reference()]).start();
    eventually("the second pull has its manifest", PATIENCE, || {
        (hostile
            .seen()
            .iter()
            .filter(|r| r.path.contains("/manifests/latest"))
            .count()
            >= 2)
            .then_some(())
    });
    leaving.kill();
    leaving.finish();
    gate.open();
    staying.finish().code(0);
    assert_eq!(
        engine
            .docker(["run", "--rm", &hostile.reference(), "sh", "-c", "wc -c </big"])
            .ok(),
        "5000000"
    );
}

#[test]
fn a_layer_stays_for_a_pull_under_way_when_its_last_image_is_removed() {
    let engine = Engine::start();
    let base = Image::busybox().build();
    let shared = base.layers[0].digest.clone();
    let base = registry().push(&base, &format!("leased-{}", std::process::id()));
    engine.docker(["pull", "-q", &base]).ok();
    let gate = Gate::default();
    let image = Image::busybox()
        .packed_layer(Layer::new().file("big", &vec![6; 5_000_000]), Compression::Plain)
        .build();
    assert_eq!(image.layers[0].digest, shared);
    let hostile = HostileRegistry::with_bad_layer(image, 1, Behaviour::StallAfter(2_000_000, gate.clone()));
    let pull = engine.docker(["pull", &hostile.reference()]).start();
    hostile.wait_for_layer_request();
    engine.docker(["rmi", &base]).ok();
    gate.open();
    pull.finish().code(0);
    assert_eq!(
        engine
            .docker(["run", "--rm", &hostile.reference(), "sh", "-c", "wc -c </big"])
            .ok(),
        "5000000"
    );
    assert!(
        hostile
            .seen()
            .iter()
            .all(|request| !request.path.ends_with(&shared)),
        "the shared layer was there all the time"
    );
}

#[test]
fn a_daemon_killed_in_mid_pull_starts_clean_and_pulls_again() {
    require!(Engine::own(), "kills the daemon");
    let mut engine = Engine::start();
    let image = Image::busybox()
        .packed_layer(Layer::new().file("big", &vec![5; 5_000_000]), Compression::Plain)
        .build();
    let hostile =
        HostileRegistry::with_bad_layer(image, 1, Behaviour::StallAfter(2_000_000, Gate::default()));
    let pull = engine.docker(["pull", &hostile.reference()]).start();
    hostile.wait_for_layer_request();
    engine.kill_9(engine.daemon_pid());
    pull.finish().fails();
    assert!(
        !engine.wait_for_exit().success(),
        "the parent ends with its child"
    );
    engine.start_again();
    assert_eq!(engine.docker(["images", "-aq"]).ok(), "");
    assert_eq!(
        engine
            .docker(["run", "--rm", &hostile.reference(), "sh", "-c", "wc -c </big"])
            .ok(),
        "5000000"
    );
}

#[test]
fn an_owner_beyond_the_map_is_explained() {
    require!(
        Engine::own() && is_root(),
        "needs an account with a known range of ids"
    );
    let engine = Engine::start();
    let image = Image::busybox()
        .layer(Layer::new().file_of("far", 0o644, (70_000, 70_000), b"x"))
        .push("far-owner");
    let done = engine.docker(["pull", &image]).run().code(1);
    let text = &done.stderr;
    assert!(
        text.contains("failed to Lchown \"/far\" for UID 70000, GID 70000"),
        "{done}"
    );
    assert!(
        text.contains("/etc/subuid") && text.contains("/etc/subgid"),
        "{done}"
    );
    nothing_is_left_and_the_next_try_works(&engine, &image);
}
