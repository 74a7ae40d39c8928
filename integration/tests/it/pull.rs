//! `docker pull` of good images: what is shown, what lies on disk afterwards.

use serde_json::{Value, json};

use crate::harness::{
    Behaviour, Compression, Engine, Gate, HostileRegistry, Image, Layer, Options, PATIENCE, PasswordRegistry,
    eventually, on_both_drivers, query, registry, require,
};

on_both_drivers! {
    fn layers_change_what_lies_below(engine) {
        let image = Image::busybox()
            .layer(Layer::new().dir("d").file("d/gone", b"1").file("d/kept", b"1").file("d/replaced", b"old").dir("o").file("o/old", b"1"))
            .layer(Layer::new().dir("d").whiteout("d/gone").file("d/replaced", b"new").dir("o").opaque("o").file("o/new", b"2"))
            .layer(Layer::new().whiteout("d/kept").file("d/back", b"3"))
            .layer(Layer::new().file("d/gone", b"again").whiteout("o"))
            .push("whiteouts");
        let script = "cd /d; for f in *; do echo $f=$(cat $f); done; ls -d /o 2>&1";
        let seen = engine.docker(["run", "--rm", &image, "sh", "-c", script]).run().stdout;
        assert_eq!(seen, "back=3\ngone=again\nreplaced=new\nls: /o: No such file or directory\n");
    }

    fn a_file_replaces_a_directory_and_the_other_way_round(engine) {
        let image = Image::busybox()
            .layer(Layer::new().dir("a").file("a/inner", b"x").file("b", b"file").symlink("box", "a").dir("e").file("e/x", b"1"))
            .layer(Layer::new().file("a", b"now a file").dir("b").file("b/inner", b"y").dir("box").file("c/z", b"z").symlink("e", "/etc"))
            .push("swaps");
        let script = "cat /a; echo; cat /b/inner; echo; cat /c/z; echo; readlink /e; ls /a /c";
        let seen = engine.docker(["run", "--rm", &image, "sh", "-c", script]).run().stdout;
        assert_eq!(seen, "now a file\ny\nz\n/etc\n/a\n\n/c:\nz\n");
    }

    fn hard_links_owners_and_attributes_survive(engine) {
        let image = Image::busybox()
            .layer(
                Layer::new()
                    .file_of("one", 0o4755, (33, 50), b"shared")
                    .entry(tar::EntryType::Link, "two", 0o4755, (33, 50), "one", b"")
                    .xattr_for_next("user.note", "kept")
                    .file_of("sealed", 0o600, (65534, 65534), b"s")
                    .entry(tar::EntryType::Fifo, "pipe", 0o640, (1, 2), "", b"")
                    .symlink("dangling", "/nowhere/at/all"),
            )
            .push("kinds");
        let script = "stat -c '%n %h %u:%g %F' /one /two /sealed /pipe; readlink /dangling; [ /one -ef /two ] && echo same";
        let seen = engine.docker(["run", "--rm", &image, "sh", "-c", script]).run().code(0).stdout;
        assert_eq!(
            seen,
            "/one 2 33:50 regular file\n/two 2 33:50 regular file\n/sealed 1 65534:65534 regular file\n\
             /pipe 1 1:2 fifo\n/nowhere/at/all\nsame\n"
        );
    }

    fn every_compression_unpacks(engine) {
        for (name, compression) in [("gzip", Compression::Gzip), ("zstd", Compression::Zstd), ("plain", Compression::Plain)] {
            let text = format!("packed as {name}");
            let image = Image::busybox().packed_layer(Layer::new().file("how", text.as_bytes()), compression).push(name);
            assert_eq!(engine.docker(["run", "--rm", &image, "cat", "/how"]).ok(), text);
        }
    }

    fn sixty_layers_are_not_too_many(engine) {
        let mut image = Image::busybox();
        for n in 0..60_u32 {
            let mut layer = Layer::new().dir("deep").file(&format!("deep/{n}"), n.to_string().as_bytes()).file("top", n.to_string().as_bytes());
            if n >= 10 {
                layer = layer.whiteout(&format!("deep/{}", n - 10));
            }
            image = image.layer(layer);
        }
        let image = image.push("deep");
        let seen = engine.docker(["run", "--rm", &image, "sh", "-c", "ls /deep | sort -n | tr '\\n' ' '; cat /top"]).ok();
        assert_eq!(seen, "50 51 52 53 54 55 56 57 58 59 59");
    }
}

#[test]
fn the_progress_is_docker_s() {
    let engine = Engine::start();
    let image = Image::busybox()
        .layer(Layer::new().file("unique", b"the progress"))
        .push("progress");
    let built = registry().pull("progress", "latest");
    let done = engine.docker(["pull", &image]).run().code(0).stdout;
    let short = &built.layers[1].digest[7..19];
    for line in [
        "latest: Pulling from progress".to_owned(),
        format!("{short}: Pulling fs layer"),
        format!("{short}: Download complete"),
        format!("{short}: Pull complete"),
        format!("Digest: {}", built.digest()),
        format!("Status: Downloaded newer image for {image}"),
    ] {
        assert!(done.lines().any(|seen| seen == line), "{line:?} in\n{done}");
    }
    assert!(
        done.ends_with(&format!("{image}\n")),
        "the CLI's last line: {done}"
    );

    let again = engine.docker(["pull", &image]).run().code(0).stdout;
    assert!(
        again.contains(&format!("Status: Image is up to date for {image}\n")),
        "{again}"
    );
    assert!(!again.contains("Pulling fs layer"), "{again}");

    // A missing image is pulled by run, with the CLI's announcement on stderr.
    engine.docker(["rmi", &image]).ok();
    let run = engine
        .docker(["run", "--rm", &image, "cat", "/unique"])
        .run()
        .code(0);
    assert_eq!(run.stdout, "the progress");
    assert!(
        run.stderr
            .starts_with(&format!("Unable to find image '{image}' locally\n")),
        "{run}"
    );
    // --pull=always asks again, --pull=never does not ask at all.
    engine.docker(["rmi", &image]).ok();
    engine
        .docker(["run", "--rm", "--pull", "never", &image])
        .run()
        .code(125)
        .says("No such image: ");
}

#[test]
fn the_progress_stream_is_json_a_line_each() {
    let engine = Engine::start();
    let image = Image::busybox()
        .layer(Layer::new().file("big", &[7; 300_000]))
        .push("json-progress");
    let mut stream = engine.open(
        "POST",
        &format!(
            "/v1.45/images/create?fromImage={}&tag=latest",
            query(image.trim_end_matches(":latest"))
        ),
        &[],
        b"",
    );
    assert_eq!(stream.status, 200);
    assert_eq!(stream.header("content-type"), Some("application/json"));
    let mut messages: Vec<Value> = Vec::new();
    while let Some(line) = stream.line().unwrap() {
        messages.push(serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}")));
    }
    assert_eq!(
        messages[0],
        json!({"status": "Pulling from json-progress", "id": "latest"})
    );
    let position = |status: &str| {
        messages
            .iter()
            .position(|m| m["status"] == status)
            .unwrap_or_else(|| panic!("{status}: {messages:?}"))
    };
    assert!(position("Pulling fs layer") < position("Download complete"));
    assert!(position("Download complete") < position("Pull complete"));
    let last = messages.last().unwrap();
    assert_eq!(
        *last,
        json!({"status": format!("Status: Downloaded newer image for {image}")})
    );
}

#[test]
fn an_image_is_found_by_tag_and_by_digest() {
    let engine = Engine::start();
    let old = Image::busybox().layer(Layer::new().file("version", b"1"));
    let old_digest = old.build();
    let image = registry().push(&old_digest, "moving:1");
    let by_digest = format!("{}/moving@{}", registry().address, old_digest.digest());
    Image::busybox()
        .layer(Layer::new().file("version", b"2"))
        .push("moving:1");
    let cat = |reference: &str| engine.docker(["run", "--rm", reference, "cat", "/version"]).ok();
    assert_eq!(cat(&image), "2");
    assert_eq!(cat(&by_digest), "1", "a digest does not move");
    let digests = engine
        .docker([
            "images",
            "--digests",
            "--format",
            "{{.Repository}}:{{.Tag}} {{.Digest}}",
        ])
        .ok();
    assert!(digests.contains(&old_digest.digest()), "{digests}");
}

#[test]
fn a_newer_image_takes_the_tag_and_the_old_one_stays_by_id() {
    let engine = Engine::start();
    let image = Image::busybox().layer(Layer::new().file("v", b"1")).push("newer");
    engine.docker(["pull", "-q", &image]).ok();
    let first = engine.inspect(&image, "{{.Id}}");
    Image::busybox().layer(Layer::new().file("v", b"2")).push("newer");
    let done = engine.docker(["pull", &image]).run().code(0).stdout;
    assert!(done.contains("Status: Downloaded newer image"), "{done}");
    assert!(
        done.contains("Already exists"),
        "the shared layer is not fetched again: {done}"
    );
    let second = engine.inspect(&image, "{{.Id}}");
    assert_ne!(first, second);
    assert_eq!(engine.docker(["run", "--rm", &first, "cat", "/v"]).ok(), "1");
    assert_eq!(
        engine
            .docker(["images", "-q", "--no-trunc", "-f", "dangling=true"])
            .ok(),
        first
    );
}

#[test]
fn credentials_open_a_registry_and_their_absence_is_refused() {
    let engine = Engine::start();
    let secured = PasswordRegistry::start();
    let image = secured.registry.push(
        &Image::busybox().layer(Layer::new().file("s", b"secret")).build(),
        "private",
    );
    // Docker's texts for a pull without credentials, and for a wrong password.
    engine
        .docker(["pull", &image])
        .run()
        .code(1)
        .says("no basic auth credentials");
    let address = &secured.registry.address;
    let login = |password: &str| {
        engine
            .docker(["login", "-u", PasswordRegistry::USER, "--password-stdin", address])
            .stdin(password)
            .run()
    };
    login("wrong").code(1).says("nauthorized");
    assert!(
        login(PasswordRegistry::PASSWORD)
            .code(0)
            .stdout
            .contains("Login Succeeded")
    );
    assert_eq!(engine.docker(["run", "--rm", &image, "cat", "/s"]).ok(), "secret");
    engine.docker(["logout", address]).ok();
    engine.docker(["rmi", &image]).ok();
    engine.docker(["pull", &image]).run().code(1);
}

#[test]
fn two_pulls_of_one_image_share_the_download() {
    let engine = Engine::start();
    let gate = Gate::default();
    let image = Image::busybox()
        .packed_layer(Layer::new().file("big", &vec![1; 3_000_000]), Compression::Plain)
        .build();
    let hostile = HostileRegistry::with_bad_layer(image, 1, Behaviour::StallAfter(1_000_000, gate.clone()));
    let reference = hostile.reference();
    let first = engine.docker(["pull", &reference]).start();
    hostile.wait_for_layer_request();
    let second = engine.docker(["pull", &reference]).start();
    // The second has asked for the manifest, so it knows which layer it wants, before the first may go on.
    eventually("the second pull has its manifest", PATIENCE, || {
        let manifests = hostile
            .seen()
            .iter()
            .filter(|r| r.path.contains("/manifests/latest"))
            .count();
        (manifests >= 2).then_some(())
    });
    gate.open();
    for pull in [first, second] {
        assert!(pull.finish().code(0).stdout.contains("Status: "));
    }
    assert_eq!(
        hostile.layer_requests(),
        1,
        "the layer was fetched once: {:?}",
        hostile.seen()
    );
    assert_eq!(engine.docker(["images", "-q"]).ok().lines().count(), 1);
}

#[test]
fn a_cut_connection_is_resumed_where_it_broke() {
    let engine = Engine::start();
    let noise: Vec<u8> = (0..2_000_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0])
        .collect();
    let image = Image::busybox()
        .packed_layer(Layer::new().file("noise", &noise), Compression::Plain)
        .build();
    let hostile = HostileRegistry::with_bad_layer(image, 2, Behaviour::CutAfter(700_000));
    engine.docker(["pull", "-q", &hostile.reference()]).ok();
    let ranges: Vec<_> = hostile
        .seen()
        .iter()
        .filter(|r| r.path.contains("/blobs/"))
        .filter_map(|r| r.header("range").map(str::to_owned))
        .collect();
    assert_eq!(ranges, ["bytes=700000-", "bytes=1400000-"]);
    let sum = engine
        .docker(["run", "--rm", &hostile.reference(), "sh", "-c", "wc -c </noise"])
        .ok();
    assert_eq!(sum, "2000000");
}

#[test]
fn a_redirect_never_carries_the_password_along() {
    let engine = Engine::start();
    let image = Image::busybox()
        .layer(Layer::new().file("r", b"redirected"))
        .build();
    let storage = HostileRegistry::serve(image.clone(), |_| Behaviour::Serve);
    let elsewhere = storage.address.clone();
    // 127.0.0.1 is another host than localhost to an HTTP client.
    let elsewhere = elsewhere.replace("localhost", "127.0.0.1");
    let front = HostileRegistry::serve(image, move |request| {
        if request.path.contains("/blobs/") {
            Behaviour::Redirect(format!("http://{elsewhere}{}", request.path))
        } else {
            Behaviour::Serve
        }
    });
    engine
        .docker(["login", "-u", "u", "--password-stdin", &front.address])
        .stdin("p")
        .ok();
    engine.docker(["pull", "-q", &front.reference()]).ok();
    assert!(
        storage.seen().iter().any(|r| r.path.contains("/blobs/")),
        "the blobs came from the other host"
    );
    for request in storage.seen() {
        assert_eq!(request.header("authorization"), None, "{request:?}");
    }
}

#[test]
fn a_mirror_is_only_for_docker_hub() {
    require!(Engine::own(), "depends on the daemon's mirror");
    let mirror = HostileRegistry::serve(
        Image::busybox()
            .layer(Layer::new().file("m", b"mirrored"))
            .build(),
        |_| Behaviour::Serve,
    );
    let engine = Engine::start_with(
        Options::default()
            .arg("--registry-mirror")
            .arg(&format!("http://{}", mirror.address)),
    );
    // The name is the Hub's, the bytes are the mirror's.
    assert_eq!(
        engine.docker(["run", "--rm", "mirrored/image", "cat", "/m"]).ok(),
        "mirrored"
    );
    assert_eq!(
        engine.docker(["images", "--format", "{{.Repository}}"]).ok(),
        "mirrored/image"
    );
    let before = mirror.seen().len();
    engine.docker(["pull", "-q", &registry().busybox()]).ok();
    assert_eq!(mirror.seen().len(), before, "other registries are asked directly");
}
