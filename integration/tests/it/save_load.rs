//! `docker save` and `docker load`: round trips with ourselves, with other tools, and with archives that are broken.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{
    Compression, Engine, Image, Layer, Options, PATIENCE, digest, eventually, on_all_drivers, registry,
    require,
};

/// The members of an archive.
fn members(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(fs::File::open(path).unwrap());
    let entries = archive.entries().unwrap().map(Result::unwrap);
    entries
        .map(|mut entry| {
            let mut data = Vec::new();
            entry.read_to_end(&mut data).unwrap();
            (entry.path().unwrap().display().to_string(), data)
        })
        .collect()
}

fn document(members: &BTreeMap<String, Vec<u8>>, name: &str) -> Value {
    serde_json::from_slice(&members[name]).unwrap()
}

/// What the daemon is writing or has left half-written.
fn ingest(engine: &Engine) -> Vec<PathBuf> {
    let entries = fs::read_dir(engine.data_root().join("image/ingest")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// An image of three layers, one in each compression.
fn mixed(name: &str) -> String {
    Image::busybox()
        .packed_layer(Layer::new().file("zstd", b"one"), Compression::Zstd)
        .packed_layer(
            Layer::new().file("plain", b"two").whiteout("zstd"),
            Compression::Plain,
        )
        .with("Labels", json!({"made": "to be saved"}))
        .push(name)
}

on_all_drivers! {
    fn what_was_saved_is_loaded_again_bit_by_bit(engine) {
        let image = mixed("saved");
        engine.docker(["pull", "-q", &image]).ok();
        engine.docker(["tag", &image, "own/name:1"]).ok();
        let id = engine.inspect(&image, "{{.Id}}");
        let file = |name: &str| engine.path().join(name).display().to_string();
        let first = file("first.tar");
        engine.docker(["save", "-o", &first, &image, "own/name"]).ok();

        let pulled = registry().pull("saved", "latest");
        let inside = members(Path::new(&first));
        for blob in pulled.blobs() {
            let member = &inside[&format!("blobs/sha256/{}", &blob.digest[7..])];
            assert_eq!(digest(member), blob.digest, "the very bytes of the registry");
        }
        assert!(inside[&format!("blobs/sha256/{}", &pulled.digest()[7..])] == pulled.manifest);
        let manifest = document(&inside, "manifest.json");
        assert_eq!(manifest[0]["RepoTags"], json!(["own/name:1", image]));
        assert_eq!(manifest[0]["Layers"].as_array().unwrap().len(), 3);

        engine.docker(["rmi", &image, "own/name:1"]).ok();
        engine.docker(["inspect", &id]).run().fails();
        let told = engine.docker(["load", "-i", &first]).ok();
        assert_eq!(told, format!("Loaded image: own/name:1\nLoaded image: {image}"));
        assert_eq!(engine.inspect("own/name:1", "{{.Id}} {{.Config.Labels.made}}"), format!("{id} to be saved"));
        let seen = engine.docker(["run", "--rm", "--network", "none", &image, "sh", "-c", "cat plain; ls zstd"]).run();
        assert_eq!(seen.stdout, "two");

        let second = file("second.tar");
        engine.docker(["save", "-o", &second, "own/name:1", &image]).ok();
        assert!(fs::read(&first).unwrap() == fs::read(&second).unwrap(), "byte-identical");
    }
}

#[test]
fn an_archive_goes_from_one_engine_to_another_with_another_driver() {
    require!(Engine::own(), "starts two daemons");
    let from = Engine::with_busybox("overlay2");
    let to = Engine::start_with(Options::driver("vfs"));
    let busybox = registry().busybox();
    from.docker(["tag", &busybox, "a:1"]).ok();
    from.docker(["tag", &busybox, "a:2"]).ok();
    let other = mixed("travels");
    from.docker(["pull", "-q", &other]).ok();
    let file = from.path().join("a.tar");
    let path = file.display().to_string();
    // A repository means all its tags.
    from.docker(["save", "-o", &path, "a", &other]).ok();
    let told = to.docker(["load", "-i", &path]).ok();
    let mut lines: Vec<_> = told.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "Loaded image: a:1".to_owned(),
            "Loaded image: a:2".to_owned(),
            format!("Loaded image: {other}")
        ]
    );
    assert_eq!(to.docker(["run", "--rm", "a:2", "echo", "here"]).ok(), "here");

    // By id there is no name to give.
    let id = from.inspect("a:1", "{{.Id}}");
    from.docker(["save", "-o", &path, &id]).ok();
    assert_eq!(
        document(&members(&file), "manifest.json")[0]["RepoTags"],
        Value::Null
    );
    let third = Engine::start_with(Options::driver("overlay2"));
    assert_eq!(
        third.docker(["load", "-i", &path]).ok(),
        format!("Loaded image ID: {id}")
    );
    assert_eq!(
        third
            .docker(["images", "-q", "--no-trunc", "--filter", "dangling=true"])
            .ok(),
        id
    );
}

#[test]
fn compressed_archives_are_loaded() {
    let engine = Engine::with_busybox("overlay2");
    let file = engine.path().join("plain.tar");
    engine
        .docker(["save", "-o", &file.display().to_string(), &registry().busybox()])
        .ok();
    let plain = fs::read(&file).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    for (name, bytes) in [
        ("gz", gzip.finish().unwrap()),
        ("zst", zstd::encode_all(&plain[..], 1).unwrap()),
    ] {
        let file = engine.path().join(name);
        fs::write(&file, bytes).unwrap();
        let told = engine.docker(["load", "-i", &file.display().to_string()]).ok();
        assert_eq!(
            told,
            format!("Loaded image: {}:latest", registry().busybox()),
            "{name}"
        );
    }
    for tool in ["xz", "bzip2"] {
        let done = Command::new(tool).arg("-k").arg(&file).status();
        require!(done.is_ok_and(|status| status.success()), "{tool} is missing");
    }
    for ending in ["xz", "bz2"] {
        let file = format!("{}.{ending}", file.display());
        engine.docker(["load", "-i", &file]).ok();
    }
}

#[test]
fn the_api_shows_progress_and_errors_as_docker_does() {
    let engine = Engine::with_busybox("overlay2");
    let file = engine.path().join("a.tar");
    let busybox = registry().busybox();
    engine
        .docker(["save", "-o", &file.display().to_string(), &busybox])
        .ok();
    engine.docker(["rmi", &busybox]).ok();
    let bytes = fs::read(&file).unwrap();
    let load = |target: &str, bytes: &[u8]| {
        let answer = engine.open("POST", target, &[("Content-Type", "application/x-tar")], bytes);
        assert_eq!(answer.header("content-type"), Some("application/json"));
        answer.finish().unwrap().expect_status(200).text()
    };
    let layer = registry().pull("busybox", "latest").config;
    let config: Value = serde_json::from_slice(&layer.bytes).unwrap();
    let diff_id = config["rootfs"]["diff_ids"][0].as_str().unwrap();
    let text = load("/images/load?quiet=0", &bytes);
    let lines: Vec<Value> = text
        .split("\r\n")
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines[0]["status"], "Loading layer", "{text}");
    assert_eq!(lines[0]["id"], diff_id[7..19]);
    let last = &lines[lines.len() - 2]["progressDetail"];
    assert_eq!(last["current"], last["total"]);
    assert_eq!(
        lines.last().unwrap(),
        &json!({"stream": format!("Loaded image: {busybox}:latest\n")})
    );
    // Nothing is to be unpacked any more.
    assert_eq!(load("/images/load?quiet=0", &bytes).lines().count(), 1);

    for (bytes, expected) in [
        (&b"garbage"[..], "unexpected EOF"),
        (&bytes[..bytes.len() / 2], "unexpected EOF"),
        (&[0; 1024][..], "open manifest.json: no such file or directory"),
    ] {
        let text = load("/images/load?quiet=1", bytes);
        let line: Value = serde_json::from_str(text.trim()).unwrap();
        assert!(line["error"].as_str().unwrap().contains(expected), "{text}");
        assert_eq!(line["errorDetail"]["message"], line["error"]);
    }
    assert_eq!(
        engine.get("/images/nosuch/get").expect_status(404).message(),
        "No such image: nosuch"
    );
    assert_eq!(
        engine
            .get("/images/get?names=nosuch%3A1")
            .expect_status(404)
            .message(),
        "reference does not exist"
    );
    let head = engine.open(
        "GET",
        &format!("/images/{}/get", crate::harness::query(&busybox)),
        &[],
        b"",
    );
    assert_eq!(
        (head.status, head.header("content-type")),
        (200, Some("application/x-tar"))
    );
}

#[test]
fn a_client_that_leaves_in_the_middle_of_a_load_leaves_nothing() {
    require!(Engine::own(), "looks into the data root");
    let engine = Engine::with_busybox("overlay2");
    let file = engine.path().join("a.tar");
    let image = mixed("half");
    engine.docker(["pull", "-q", &image]).ok();
    engine
        .docker(["save", "-o", &file.display().to_string(), &image])
        .ok();
    engine.docker(["rmi", &image, &registry().busybox()]).ok();
    let bytes = fs::read(&file).unwrap();
    let mut stream = engine.connect().unwrap();
    let head = format!(
        "POST /images/load HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        bytes.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&bytes[..bytes.len() / 2]).unwrap();
    eventually("the daemon has begun", PATIENCE, || {
        (!ingest(&engine).is_empty()).then_some(())
    });
    drop(stream);
    eventually("nothing is left", PATIENCE, || {
        let blobs = fs::read_dir(engine.data_root().join("image/blobs/sha256"))
            .unwrap()
            .count();
        (ingest(&engine).is_empty() && blobs == 0).then_some(())
    });
    assert_eq!(engine.docker(["images", "-aq"]).ok(), "");
    engine.docker(["load", "-i", &file.display().to_string()]).ok();
    engine
        .docker(["run", "--rm", "--network", "none", &image, "true"])
        .ok();
}

#[test]
fn a_reader_that_leaves_in_the_middle_of_a_save_disturbs_nobody() {
    let engine = Engine::with_busybox("overlay2");
    let mut answer = engine.open(
        "GET",
        &format!(
            "/images/get?names={}",
            crate::harness::query(&registry().busybox())
        ),
        &[],
        b"",
    );
    let mut piece = [0; 1000];
    answer.read_exact(&mut piece).unwrap();
    drop(answer);
    engine.docker(["rmi", &registry().busybox()]).ok();
    assert_eq!(engine.docker(["images", "-aq"]).ok(), "");
}

/// Loads, commits and imports more than there is room for; then less.
fn on_a_full_disk(driver: &str) {
    require!(
        Engine::own() && crate::harness::is_root(),
        "mounts a small file system for the data root"
    );
    let noise: Vec<u8> = (0..30_000_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 11).to_le_bytes()[0])
        .collect();
    let elsewhere = Engine::with_busybox("overlay2");
    let large = Image::busybox()
        .packed_layer(Layer::new().file("noise", &noise), Compression::Plain)
        .push(&format!("larger-than-the-disk-{driver}"));
    elsewhere.docker(["pull", "-q", &large]).ok();
    let file = |name: &str| elsewhere.path().join(name).display().to_string();
    let busybox = registry().busybox();
    for (name, image) in [("large", &large), ("small", &busybox)] {
        elsewhere.docker(["save", "-o", &file(name), image]).ok();
    }
    drop(noise);

    let engine = Engine::start_with(Options::driver(driver).data_root_of_mib(24));
    let nothing_is_left = || {
        assert_eq!(
            engine.docker(["images", "-aq"]).ok(),
            "",
            "nothing half-registered"
        );
        let blobs = fs::read_dir(engine.data_root().join("image/blobs/sha256")).unwrap();
        assert_eq!((ingest(&engine), blobs.count()), (Vec::new(), 0));
    };
    for words in [&["load", "-q", "-i"][..], &["import"]] {
        let words = words.iter().map(|word| (*word).to_owned()).chain([file("large")]);
        engine.docker(words).run().code(1).says("no space left on device");
        nothing_is_left();
    }
    // What the failed ones took is free again.
    engine.docker(["load", "-q", "-i", &file("small")]).ok();
    // Room for the container's files, not for them and a layer of them and its blob.
    let script = "dd if=/dev/urandom of=/noise bs=1M count=8 2>/dev/null";
    let words = [
        "run",
        "--name",
        "box",
        "--network",
        "none",
        &busybox,
        "sh",
        "-c",
        script,
    ];
    engine.docker(words).ok();
    let images = engine.docker(["images", "-aq"]).ok();
    let refused = engine.docker(["commit", "box", "too:large"]).run();
    refused.code(1).says("no space left on device");
    assert_eq!(engine.docker(["images", "-aq"]).ok(), images);
    assert_eq!(ingest(&engine), Vec::<PathBuf>::new());
    assert!(
        engine.docker(["diff", "box"]).ok().contains("A /noise"),
        "the container is as it was"
    );
    engine.docker(["rm", "box"]).ok();
    engine.busybox(&["--network", "none"], &["true"]).run().code(0);
}

#[test]
fn a_full_disk_ends_a_load_an_import_and_a_commit_overlay2() {
    on_a_full_disk("overlay2");
}

#[test]
fn a_full_disk_ends_a_load_an_import_and_a_commit_vfs() {
    on_a_full_disk("vfs");
}

/// Owners that do not exist here: folded with one line, and the archive says again what it said.
fn squashed_and_restored(driver: &str) {
    require!(
        Engine::own() && crate::harness::is_root(),
        "needs an account with a known range of ids"
    );
    let engine = Engine::start_with(
        Options::driver(driver)
            .arg("--storage-opt")
            .arg("oversized-ids=squash"),
    );
    let image = Image::busybox()
        .layer(
            Layer::new()
                .file_of("far", 0o4755, (700_000, 800_000), b"x")
                .file_of("half", 0o644, (5, 800_000), b"y")
                .file_of("near", 0o644, (5, 6), b"z"),
        )
        .push(&format!("far-owners-{driver}"));
    let warning = "Warning: 2 files have owners outside of the user namespace; they belong to 65536:65536 here \
                   (--storage-opt oversized-ids=squash)";
    let told = engine.docker(["pull", &image]).ok();
    assert_eq!(told.matches("Warning: ").count(), 1, "{told}");
    assert!(told.contains(warning), "{told}");
    let look = [
        "run",
        "--rm",
        "--network",
        "none",
        &image,
        "stat",
        "-c",
        "%u:%g",
        "/far",
        "/half",
        "/near",
    ];
    assert_eq!(engine.docker(look).ok(), "65536:65536\n5:65536\n5:6");

    let file = |name: &str| engine.path().join(name).display().to_string();
    engine.docker(["save", "-o", &file("first"), &image]).ok();
    engine.docker(["rmi", &image]).ok();
    let told = engine.docker(["load", "-i", &file("first")]).ok();
    assert_eq!(told, format!("{warning}\nLoaded image: {image}"));
    engine.docker(["save", "-o", &file("second"), &image]).ok();
    assert!(
        fs::read(file("first")).unwrap() == fs::read(file("second")).unwrap(),
        "byte-identical"
    );

    // A layer that is made here has the real owners, too.
    let words = [
        "run",
        "--name",
        "box",
        "--network",
        "none",
        &image,
        "sh",
        "-c",
        "echo more >> /far",
    ];
    engine.docker(words).ok();
    engine.docker(["commit", "box", "made:here"]).ok();
    engine.docker(["save", "-o", &file("third"), "made:here"]).ok();
    let inside = members(Path::new(&file("third")));
    let layers = document(&inside, "manifest.json")[0]["Layers"].clone();
    let top = &inside[layers.as_array().unwrap().last().unwrap().as_str().unwrap()];
    let mut top = tar::Archive::new(flate2::read::GzDecoder::new(&top[..]));
    let owners: Vec<_> = top
        .entries()
        .unwrap()
        .map(Result::unwrap)
        .filter(|entry| entry.path().unwrap().ends_with("far"))
        .map(|entry| (entry.header().uid().unwrap(), entry.header().gid().unwrap()))
        .collect();
    assert_eq!(owners, [(700_000, 800_000)]);
}

#[test]
fn owners_outside_of_the_map_are_squashed_and_restored_overlay2() {
    squashed_and_restored("overlay2");
}

#[test]
fn owners_outside_of_the_map_are_squashed_and_restored_btrfs() {
    squashed_and_restored("btrfs");
}

/// Runs a tool; its standard output.
fn tool(words: &[&str]) -> Vec<u8> {
    let done = Command::new(words[0])
        .args(&words[1..])
        .output()
        .unwrap_or_else(|error| panic!("{words:?}: {error}"));
    assert!(
        done.status.success(),
        "{words:?}: {}\n{}",
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    );
    done.stdout
}

fn installed(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .output()
        .is_ok_and(|done| done.status.success())
}

#[test]
fn skopeo_reads_what_we_save_and_we_what_skopeo_writes() {
    require!(installed("skopeo"), "skopeo is missing");
    let engine = Engine::with_busybox("overlay2");
    let path = |name: &str| engine.path().join(name).display().to_string();
    let image = Image::busybox()
        .layer(Layer::new().file("own", b"1"))
        .push("for-skopeo");
    engine.docker(["pull", "-q", &image]).ok();
    engine.docker(["tag", &image, "skopeo:1"]).ok();
    let id = engine.inspect("skopeo:1", "{{.Id}}");
    let pulled = registry().pull("for-skopeo", "latest");
    let ours = path("ours.tar");
    engine.docker(["save", "-o", &ours, "skopeo:1"]).ok();

    // As an OCI archive it is the registry's image, manifest and all; as a Docker archive its layers are unpacked ones.
    assert!(tool(&["skopeo", "inspect", "--raw", &format!("oci-archive:{ours}")]) == pulled.manifest);
    for (form, layers) in [("oci-archive", 2), ("docker-archive", 2)] {
        let target = path(form);
        tool(&[
            "skopeo",
            "copy",
            "-q",
            "--insecure-policy",
            &format!("{form}:{ours}"),
            &format!("dir:{target}"),
        ]);
        let config = fs::read(Path::new(&target).join(&id[7..])).unwrap();
        assert_eq!(digest(&config), id, "{form}");
        let manifest: Value =
            serde_json::from_slice(&fs::read(Path::new(&target).join("manifest.json")).unwrap()).unwrap();
        assert_eq!(manifest["layers"].as_array().unwrap().len(), layers, "{form}");
    }

    let oci = path("theirs-oci.tar");
    let docker = path("theirs-docker.tar");
    tool(&[
        "skopeo",
        "copy",
        "-q",
        "--insecure-policy",
        &format!("oci-archive:{ours}"),
        &format!("oci-archive:{oci}:localhost/theirs:oci"),
    ]);
    tool(&[
        "skopeo",
        "copy",
        "-q",
        "--insecure-policy",
        &format!("oci-archive:{ours}"),
        &format!("docker-archive:{docker}:theirs:docker"),
    ]);
    engine.docker(["rmi", "-f", &image, "skopeo:1"]).ok();
    assert_eq!(
        engine.docker(["load", "-i", &oci]).ok(),
        "Loaded image: localhost/theirs:oci"
    );
    assert_eq!(
        engine.docker(["load", "-i", &docker]).ok(),
        "Loaded image: theirs:docker"
    );
    for name in ["localhost/theirs:oci", "theirs:docker"] {
        assert_eq!(engine.inspect(name, "{{.Id}}"), id);
        assert_eq!(
            engine
                .docker(["run", "--rm", "--network", "none", name, "cat", "/own"])
                .ok(),
            "1"
        );
    }
    // The registry's manifest made the whole way.
    let back = path("back.tar");
    engine.docker(["save", "-o", &back, "localhost/theirs:oci"]).ok();
    assert!(tool(&["skopeo", "inspect", "--raw", &format!("oci-archive:{back}")]) == pulled.manifest);
}

#[test]
fn podman_loads_what_we_save_and_we_what_podman_saves() {
    require!(installed("podman"), "podman is missing");
    require!(
        crate::harness::is_root(),
        "podman's store of its own needs root here"
    );
    let engine = Engine::with_busybox("overlay2");
    let path = |name: &str| engine.path().join(name).display().to_string();
    let (root, run) = (path("podman"), path("podman-run"));
    let podman = |words: &[&str]| {
        let all = [
            "podman",
            "--root",
            &root,
            "--runroot",
            &run,
            "--storage-driver",
            "vfs",
            "--cgroup-manager",
            "cgroupfs",
        ];
        let output = tool(&[&all, words].concat());
        String::from_utf8_lossy(&output).trim().to_owned()
    };
    let image = Image::busybox()
        .layer(Layer::new().file("own", b"1"))
        .push("for-podman");
    engine.docker(["pull", "-q", &image]).ok();
    engine.docker(["tag", &image, "podman.example/p:1"]).ok();
    let id = engine.inspect(&image, "{{.Id}}");
    let ours = path("ours.tar");
    engine.docker(["save", "-o", &ours, "podman.example/p:1"]).ok();
    assert_eq!(
        podman(&["load", "-q", "-i", &ours]),
        "Loaded image: podman.example/p:1"
    );
    assert_eq!(
        podman(&["image", "inspect", "--format", "{{.Id}}", "podman.example/p:1"]),
        id[7..]
    );

    engine.docker(["rmi", "-f", &image, "podman.example/p:1"]).ok();
    for form in ["docker-archive", "oci-archive"] {
        let theirs = path(form);
        podman(&[
            "save",
            "-q",
            "--format",
            form,
            "-o",
            &theirs,
            "podman.example/p:1",
        ]);
        engine.docker(["load", "-i", &theirs]).ok();
        assert_eq!(engine.inspect("podman.example/p:1", "{{.Id}}"), id, "{form}");
        let seen = engine
            .docker([
                "run",
                "--rm",
                "--network",
                "none",
                "podman.example/p:1",
                "cat",
                "/own",
            ])
            .ok();
        assert_eq!(seen, "1", "{form}");
        engine.docker(["rmi", "podman.example/p:1"]).ok();
    }
}

#[test]
fn killed_at_any_instant_of_a_load_or_a_commit() {
    require!(Engine::own(), "kills the daemon");
    let archives = tempfile::tempdir().unwrap();
    crate::crash::killed_at_any_instant("overlay2", 300, |engine, round| {
        let mut left = ingest(engine);
        // Documents whose digest was known are kept for who writes the same again, as interrupted downloads are.
        left.retain(|path| path.extension().is_some_and(|suffix| suffix == "staged"));
        assert!(
            left.is_empty(),
            "what was staged goes at the next start: {left:?}"
        );
        let mut image = Image::busybox();
        for n in 0..3 {
            let noise: String = (0..40_000).map(|i| format!("{} ", i * (round + n + 7))).collect();
            image = image.layer(Layer::new().file(&format!("file-{n}"), noise.as_bytes()));
        }
        let image = image.push(&format!("loaded-{round}-{}", std::process::id()));
        let archive = archives.path().join("a.tar").display().to_string();
        let busybox = registry().busybox();
        engine.docker(["pull", "-q", &busybox]).ok();
        engine.docker(["pull", "-q", &image]).ok();
        engine.docker(["save", "-o", &archive, &image]).ok();
        engine.docker(["rmi", &image]).ok();
        let words = [
            "run",
            "-d",
            "--network",
            "none",
            &busybox,
            "sh",
            "-c",
            "seq 200000 > /numbers",
        ];
        let changed = engine.docker(words).ok();
        engine.docker(["wait", &changed]).ok();
        vec![
            engine.docker(["load", "-i", &archive]),
            engine.docker(["commit", &changed, "committed:1"]),
            engine.docker(["commit", &changed]),
        ]
    });
}
