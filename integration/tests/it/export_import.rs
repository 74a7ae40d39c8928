//! `docker export` and `docker import`: a container's whole file system as one archive, and back.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{Engine, on_all_drivers, registry};

fn names(path: &Path) -> BTreeSet<String> {
    let mut archive = tar::Archive::new(fs::File::open(path).unwrap());
    let entries = archive.entries().unwrap();
    entries
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect()
}

on_all_drivers! {
    fn an_exported_container_is_imported_as_an_image(engine) {
        let script = "mkdir -p /data; echo kept > /data/file; chown 7:8 /data/file; chmod 4755 /data/file; ln /data/file /data/twin; \
                      ln -s file /data/link; mkfifo /data/fifo; rm /etc/group; touch -d '2001-02-03 04:05:06' /data/link -h";
        engine.docker(["run", "--name", "source", "--tmpfs", "/scratch", &registry().busybox(), "sh", "-c", script]).ok();
        let file = engine.path().join("export.tar");
        let path = file.display().to_string();
        engine.docker(["export", "-o", &path, "source"]).ok();
        let inside = names(&file);
        for name in ["data/", "data/file", "data/twin", "data/link", "data/fifo", "bin/busybox"] {
            assert!(inside.contains(name), "{name} in {inside:?}");
        }
        assert!(!inside.contains("etc/group"));
        let words = ["import", "-m", "from a file", "-c", "CMD [\"/bin/sh\"]", "-c", "WORKDIR /data", "-c", "EXPOSE 80", &path, "imported:1"];
        let id = engine.docker(words).ok();
        let image = engine.get("/images/imported:1/json").json();
        assert_eq!(image["Id"], id);
        assert_eq!((&image["Comment"], &image["Parent"]), (&json!("from a file"), &json!("")));
        assert_eq!((&image["Config"]["WorkingDir"], &image["Config"]["ExposedPorts"]), (&json!("/data"), &json!({"80/tcp": {}})));
        assert_eq!(image["RootFS"]["Layers"].as_array().unwrap().len(), 1);
        let look = "cat file; stat -c '%u:%g %a %h' twin; readlink link; stat -c %F fifo";
        let seen = engine.docker(["run", "--rm", "imported:1", "sh", "-c", look]).ok();
        assert_eq!(seen, "kept\n7:8 4755 2\nfile\nfifo");
    }
}

#[test]
fn a_running_container_is_exported_without_its_mounts() {
    let engine = Engine::with_busybox("overlay2");
    let dir = engine.shared_dir("host");
    fs::write(dir.join("secret"), "x").unwrap();
    let volume = format!("{}:/mnt", dir.display());
    engine.detached(
        &["--name", "runs", "-v", &volume],
        &["sh", "-c", "echo 1 > /one; echo ready; sleep 1000"],
    );
    engine.wait_for_output("runs", "ready");
    let file = engine.path().join("e.tar");
    engine
        .docker(["export", "-o", &file.display().to_string(), "runs"])
        .ok();
    let inside = names(&file);
    assert!(inside.contains("one") && inside.contains("mnt/"));
    assert!(!inside.contains("mnt/secret"));
    assert!(
        !inside
            .iter()
            .any(|name| name.starts_with("proc/") && name != "proc/"),
        "{inside:?}"
    );
    assert_eq!(engine.inspect("runs", "{{.State.Running}}"), "true");
    engine.docker(["rm", "-f", "runs"]).ok();
    assert_eq!(
        engine
            .get("/containers/nosuch/export")
            .expect_status(404)
            .message(),
        "No such container: nosuch"
    );
}

#[test]
fn an_export_that_nobody_reads_to_the_end_lets_the_container_go() {
    let engine = Engine::with_busybox("overlay2");
    engine
        .docker(["create", "--name", "box", &registry().busybox(), "true"])
        .ok();
    let mut answer = engine.open("GET", "/containers/box/export", &[], b"");
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (200, Some("application/octet-stream"))
    );
    let mut piece = [0; 1000];
    answer.read_exact(&mut piece).unwrap();
    drop(answer);
    // Its file system is in use until the daemon has noticed.
    crate::harness::eventually("the container can be removed", crate::harness::PATIENCE, || {
        (engine.delete("/containers/box").status == 204).then_some(())
    });
}

#[test]
fn imports_by_the_api() {
    let engine = Engine::with_busybox("overlay2");
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(2);
    header.set_mode(0o644);
    header.set_cksum();
    tar.append_data(&mut header, "file", &b"hi"[..]).unwrap();
    let plain = tar.into_inner().unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let gzip = gzip.finish().unwrap();
    let import = |query: &str, body: &[u8]| {
        engine
            .open(
                "POST",
                &format!("/images/create?fromSrc=-{query}"),
                &[("Content-Type", "application/tar")],
                body,
            )
            .finish()
            .unwrap()
    };
    let mut layers = BTreeSet::new();
    for (name, body) in [("plain", &plain), ("gzip", &gzip)] {
        let answer = import(
            &format!("&repo=api&tag={name}&message=&platform=linux%2Farm64"),
            body,
        )
        .expect_status(200);
        let id = answer.json()["status"].as_str().unwrap().to_owned();
        let image = engine.get(&format!("/images/api:{name}/json")).json();
        assert_eq!(image["Id"], id.as_str());
        assert_eq!(
            (&image["Architecture"], &image["Comment"]),
            (&json!("arm64"), &json!("Imported from -"))
        );
        layers.insert(image["RootFS"]["Layers"][0].as_str().unwrap().to_owned());
    }
    assert_eq!(layers.len(), 1, "one content, one layer");
    for (query, body, status, message) in [
        (
            "&changes=RUN%20x",
            &plain[..],
            400,
            "RUN is not a valid change command",
        ),
        ("&repo=UPPER", &plain, 400, "must be lowercase"),
        (
            "&platform=windows",
            &plain,
            400,
            "operating system is not supported",
        ),
        ("", b"garbage", 500, "unexpected EOF"),
        ("", &plain[..600], 500, "unexpected EOF"),
    ] {
        let answer = import(query, body).expect_status(status);
        assert!(
            answer.message().contains(message),
            "{query}: {}",
            answer.message()
        );
    }
    let answer = engine.post(
        "/images/create?fromSrc=http%3A%2F%2Fexample.org%2Fx.tar",
        &Value::Null,
    );
    assert!(answer.expect_status(501).message().contains("not supported"));
    assert_eq!(
        engine.get("/images/json").json().as_array().unwrap().len(),
        3,
        "busybox and two imports"
    );
}
