//! `docker system df`, `docker ps -s`, `docker images`: sizes to the byte, and what can be reclaimed.

use serde_json::{Value, json};

use crate::harness::{Engine, Image, Layer, on_both_drivers, registry};

/// Every file of an image with its size, each inode once: what Docker's overlay2 adds up.
const MEASURE: &str = "find / -xdev \\( -path /proc -o -path /sys -o -path /dev \\) -prune -o ! -type d -exec stat -c '%i %s' {} + \
                       | sort -u | awk '{ sum += $2 } END { print sum }'";

fn by_id<'a>(list: &'a Value, id: &str) -> &'a Value {
    let mut all = list.as_array().unwrap().iter();
    all.find(|item| item["Id"] == id)
        .unwrap_or_else(|| panic!("{id} is not in {list:#}"))
}

on_both_drivers! {
    fn sizes_are_right_to_the_byte(engine) {
        let layer = Layer::new()
            .dir("d")
            .file("d/a", &[1; 1000])
            .hardlink("d/b", "d/a")
            .symlink("d/c", "twelve-bytes");
        let first = Image::busybox().layer(layer).push("df-first");
        let second = Image::busybox().layer(Layer::new().file("e", &[2; 77])).push("df-second");
        for image in [&first, &second] {
            engine.docker(["pull", "-q", image]).ok();
        }
        let size = |image: &str| engine.inspect(image, "{{.Size}}").parse::<u64>().unwrap();
        let base = size(&registry().busybox());
        assert_eq!((size(&first), size(&second)), (base + 1012, base + 77));

        // Three containers: one that wrote, one that only deleted, one that never ran.
        let write = "head -c 5000 /dev/zero >/x && ln /x /y && ln -s /x /z && echo more >>/d/a";
        engine.docker(["run", "--name", "wrote", "--network", "none", &first, "sh", "-c", write]).ok();
        engine.docker(["run", "--name", "deleted", "--network", "none", &second, "rm", "/e"]).ok();
        engine.docker(["create", "--name", "new", "--network", "none", &registry().busybox(), "true"]).ok();

        let df = engine.get("/system/df").expect_status(200).json();
        assert_eq!(df["LayersSize"], base + 1012 + 77);
        for (image, own, containers) in [(&first, 1012, 1), (&second, 77, 1), (&registry().busybox(), 0, 1)] {
            let found = by_id(&df["Images"], &engine.inspect(image, "{{.Id}}"));
            assert_eq!(found["Size"], base + own, "{found:#}");
            assert_eq!(found["SharedSize"], base, "{found:#}");
            assert_eq!(found["Containers"], containers, "{found:#}");
            assert_eq!(found.get("VirtualSize"), None);
        }
        // Who lists images may ask for the same, since 1.42.
        let listed = |path: &str| engine.get(path).expect_status(200).json();
        let (asked, unasked) = (listed("/images/json?shared-size=1"), listed("/images/json"));
        let early = listed("/v1.41/images/json?shared-size=1");
        for image in [&first, &second, &registry().busybox()] {
            let id = engine.inspect(image, "{{.Id}}");
            assert_eq!(by_id(&asked, &id)["SharedSize"], by_id(&df["Images"], &id)["SharedSize"]);
            for list in [&unasked, &early] {
                assert_eq!((&by_id(list, &id)["SharedSize"], &by_id(list, &id)["Containers"]), (&json!(-1), &json!(-1)));
            }
        }
        // 5000 bytes once although they have two names, a link of 2 bytes, and the whole file that was appended to.
        let sizes = [("wrote", 5000 + 2 + 1005, 1012), ("deleted", 0, 77), ("new", 0, 0)];
        for (name, rw, image) in sizes {
            let id = engine.inspect(name, "{{.Id}}");
            let inspected = engine.get(&format!("/containers/{name}/json?size=1")).json();
            for found in [by_id(&df["Containers"], &id), &inspected] {
                let (own, all) = (found["SizeRw"].as_u64().unwrap_or(0), found["SizeRootFs"].as_u64().unwrap());
                // Mount points that the engine itself makes may be there, and are empty.
                assert_eq!((own, all), (rw, base + image + rw), "{name}: {found:#}");
            }
        }
        assert_eq!(engine.docker(["ps", "-as", "--filter", "name=wrote", "--format", "{{.Size}}"]).ok().split(' ').next(), Some("6.01kB"));
    }

    fn an_image_without_name_below_another_is_counted_and_not_listed(engine) {
        engine.docker(["run", "--name", "one", "--network", "none", &registry().busybox(), "sh", "-c", "head -c 300 /dev/zero >/1"]).ok();
        let below = engine.docker(["commit", "one", "stacked"]).ok();
        engine.docker(["run", "--name", "two", "--network", "none", "stacked", "sh", "-c", "head -c 20 /dev/zero >/2"]).ok();
        let above = engine.docker(["commit", "two", "stacked"]).ok();
        let ids = |words: &[&str]| {
            let mut ids: Vec<String> =
                engine.docker([&["images", "-q", "--no-trunc"], words].concat()).ok().lines().map(str::to_owned).collect();
            ids.sort();
            ids
        };
        assert!(ids(&[]).contains(&above) && !ids(&[]).contains(&below), "{below}: {:?}", ids(&[]));
        assert!(ids(&["-a"]).contains(&below));
        assert_eq!(ids(&["--filter", "dangling=true"]), Vec::<String>::new());
        assert_eq!(ids(&["-a", "--filter", "dangling=true"]), Vec::<String>::new());
        let df = engine.get("/system/df").json();
        assert_eq!(df["Images"].as_array().unwrap().len(), 2, "{df:#}");
        let base = engine.inspect(&registry().busybox(), "{{.Size}}").parse::<u64>().unwrap();
        assert_eq!(df["LayersSize"], base + 320);
        // Its layer is the other's, too, as dockerd counts.
        let found = by_id(&df["Images"], &above);
        assert_eq!((&found["Size"], &found["SharedSize"]), (&(base + 320).into(), &(base + 300).into()));
        // When nothing stands on it any more it dangles.
        engine.docker(["rm", "one", "two"]).ok();
        engine.docker(["tag", &below, "kept"]).ok();
        engine.docker(["rmi", "stacked"]).ok();
        engine.docker(["commit", &engine.detached(&["--network", "none"], &["true"]), "kept"]).ok();
        assert_eq!(ids(&["--filter", "dangling=true"]), [below]);
    }

    fn the_size_of_an_image_is_what_its_files_add_up_to(engine) {
        let measured = engine.busybox(&["--network", "none"], &["sh", "-c", MEASURE]).ok();
        let size = engine.inspect(&registry().busybox(), "{{.Size}}").parse::<i64>().unwrap();
        let mounted = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];
        let count = format!("cat {} | wc -c", mounted.join(" "));
        let generated = engine.busybox(&["--network", "none"], &["sh", "-c", &count]).ok();
        let (measured, generated) = (measured.parse::<i64>().unwrap(), generated.trim().parse::<i64>().unwrap());
        // -xdev leaves the bound files out, or not, as they lie on the same file system or not.
        assert!(measured == size || measured == size + generated, "{measured} {size} {generated}");
    }
}

#[test]
fn the_cli_shows_what_is_active_and_what_can_be_reclaimed() {
    let engine = Engine::with_busybox("overlay2");
    let used = Image::busybox()
        .layer(Layer::new().file("used", &[1; 2_000_000]))
        .push("df-used");
    let unused = Image::busybox()
        .layer(Layer::new().file("unused", &[2; 3_000_000]))
        .push("df-unused");
    for image in [&used, &unused] {
        engine.docker(["pull", "-q", image]).ok();
    }
    let write = "head -c 1000000 /dev/zero >/x";
    engine
        .docker([
            "run",
            "--name",
            "writer",
            "--network",
            "none",
            &used,
            "sh",
            "-c",
            write,
        ])
        .ok();
    let rows = engine
        .docker([
            "system",
            "df",
            "--format",
            "{{.Type}}|{{.TotalCount}}|{{.Active}}|{{.Size}}|{{.Reclaimable}}",
        ])
        .ok();
    let rows: Vec<Vec<&str>> = rows.lines().map(|row| row.split('|').collect()).collect();
    assert_eq!(rows[0][..3], ["Images", "3", "1"], "{rows:?}");
    // Everything but the two million bytes that only the used image has.
    let base = engine
        .inspect(&registry().busybox(), "{{.Size}}")
        .parse::<u64>()
        .unwrap();
    let megabytes = |bytes: u64| format!("{:.4}", bytes as f64 / 1e6);
    let shown = |text: &str| text.split("MB").next().unwrap().parse::<f64>().unwrap();
    assert!(
        (shown(rows[0][3]) - megabytes(base + 5_000_000).parse::<f64>().unwrap()).abs() < 0.01,
        "{rows:?}"
    );
    assert!(
        (shown(rows[0][4]) - megabytes(base + 3_000_000).parse::<f64>().unwrap()).abs() < 0.01,
        "{rows:?}"
    );
    assert_eq!(
        rows[1][..],
        ["Containers", "1", "0", "1MB", "1MB (100%)"],
        "{rows:?}"
    );
    assert_eq!(rows[2][..4], ["Local Volumes", "0", "0", "0B"], "{rows:?}");
    assert_eq!(rows[3][..4], ["Build Cache", "0", "0", "0B"], "{rows:?}");
    let verbose = engine.docker(["system", "df", "-v"]).ok();
    assert!(
        verbose.contains("UNIQUE SIZE") && verbose.contains("df-unused"),
        "{verbose}"
    );
}

#[test]
fn the_answer_has_the_form_of_its_api_version() {
    let engine = Engine::with_busybox("vfs");
    let keys = |answer: &Value| answer.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let whole = engine.get("/v1.51/system/df").expect_status(200).json();
    let mut names = keys(&whole);
    names.sort();
    assert_eq!(
        names,
        ["BuildCache", "Containers", "Images", "LayersSize", "Volumes"]
    );
    assert_eq!(
        (&whole["Volumes"], &whole["BuildCache"], &whole["Containers"]),
        (&json!([]), &json!([]), &json!([]))
    );

    let images = engine
        .get("/v1.42/system/df?type=image")
        .expect_status(200)
        .json();
    assert!(
        images["Images"][0]["SharedSize"].is_u64()
            && images["Containers"].is_null()
            && images["Volumes"].is_null()
    );
    assert_eq!(images["Images"][0]["VirtualSize"], images["Images"][0]["Size"]);
    let rest = engine
        .get("/v1.44/system/df?type=container&type=volume")
        .expect_status(200)
        .json();
    assert!(rest["Images"].is_null() && rest["Containers"].is_array() && rest["Volumes"].is_array());
    assert_eq!(rest["LayersSize"], 0);
    // Before 1.42 nobody could choose.
    let old = engine
        .get("/v1.24/system/df?type=nonsense")
        .expect_status(200)
        .json();
    assert!(old["Images"].is_array() && old["Containers"].is_array());
    let refused = engine
        .get("/v1.44/system/df?type=nonsense")
        .expect_status(400)
        .json();
    assert_eq!(refused["message"], "unknown object type: nonsense");
}
