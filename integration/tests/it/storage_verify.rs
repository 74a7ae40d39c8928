//! `skiffd storage verify`: what was damaged behind the engine's back or by kill -9 is found, named and repaired.

use std::time::Duration;

use crate::harness::{
    Engine, Image, Layer, PATIENCE, Writer, eventually, layered_image, number, on_both_drivers, require,
};
use crate::storage_tool::{all_is_well, names, seed, stopped};

/// What `skiffd storage verify --json` finds.
pub(crate) fn verify(engine: &Engine, words: &[&str], code: i32) -> serde_json::Value {
    let words: Vec<&str> = ["storage", "verify", "--json"]
        .iter()
        .chain(words)
        .copied()
        .collect();
    let done = engine.skiffd(&words).run().code(code);
    serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("{error}: {done}"))
}

on_both_drivers! {
    fn a_data_root_in_use_has_no_damage(engine) {
        require!(Engine::own(), "looks at the data root");
        let image = layered_image("verified");
        engine.docker(["pull", "-q", &image]).ok();
        Writer::new(engine, "writer", &image);
        let found = verify(engine, &[], 0);
        assert_eq!(found["problems"], serde_json::json!([]), "{found:#}");
        assert_eq!((&found["images"], &found["layers"]), (&2.into(), &0.into()), "{found:#}");
        assert!(found["notes"][0].as_str().unwrap().starts_with("the daemon or a container runs"), "{found:#}");
        engine.skiffd(&["storage", "verify", "--repair"]).run().code(2).says("stop it first");
    }
}

/// Damages a layer and a blob behind a stopped daemon's back.
fn damage_is_found_and_repaired(driver: &str, inside: &str) {
    let (mut engine, writers) = stopped(driver);
    let found = verify(&engine, &[], 0);
    assert_eq!(found["problems"], serde_json::json!([]), "{found:#}");
    assert_eq!(
        (&found["layers"], &found["containers"]),
        (&3.into(), &2.into()),
        "{found:#}"
    );

    // The layer with the containers' files: there is one `kept/linked` for each layer that has it.
    let places: Vec<_> = names(&engine.data_root().join(driver))
        .into_iter()
        .filter(|name| name.len() == 64)
        .map(|name| engine.data_root().join(driver).join(name).join(inside))
        .filter(|place| place.join("kept/linked").exists())
        .collect();
    for place in &places {
        std::fs::write(place.join("kept/linked"), "LINKED").unwrap();
        std::fs::write(place.join("kept/surplus"), "").unwrap();
        std::fs::remove_file(place.join("kept/removed")).unwrap();
    }
    let found = verify(&engine, &[], 1);
    let problems = found["problems"].as_array().unwrap();
    assert_eq!(problems.len(), places.len(), "{found:#}");
    let damage = problems[0]["damage"].as_str().unwrap();
    for text in ["/kept/linked has other contents", "/kept/removed is missing"] {
        assert!(damage.contains(text), "{damage}");
    }
    let said = engine.skiffd(&["storage", "verify"]).run().code(1).stdout;
    assert!(said.contains("repair: skiffd storage verify --repair"), "{said}");
    let repaired = engine
        .skiffd(&["storage", "verify", "--repair"])
        .run()
        .code(0)
        .stdout;
    assert!(
        repaired.contains(&format!("{} repaired, nothing else is damaged", places.len())),
        "{repaired}"
    );
    assert_eq!(verify(&engine, &[], 0)["problems"], serde_json::json!([]));
    all_is_well(&mut engine, driver, &writers);

    // A blob with a wrong byte: taken away, and brought back by the command that is named.
    let manifest = largest_blob(&engine);
    let mut bytes = std::fs::read(&manifest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    std::fs::write(&manifest, bytes).unwrap();
    let found = verify(&engine, &["--repair"], 1);
    let commands = found["problems"][0]["remedy"]["command"]
        .as_array()
        .unwrap()
        .clone();
    assert!(!manifest.exists() && !commands.is_empty(), "{found:#}");
    engine.start_again();
    for command in commands {
        let words: Vec<&str> = command.as_str().unwrap().split(' ').collect();
        assert_eq!(words[..2], ["docker", "pull"]);
        engine.docker(["pull", "-q", words[2]]).ok();
    }
    engine.stop();
    assert!(manifest.exists(), "the pull brought it back");
    assert_eq!(verify(&engine, &[], 0)["problems"], serde_json::json!([]));
}

fn largest_blob(engine: &Engine) -> std::path::PathBuf {
    let directory = engine.data_root().join("image/blobs/sha256");
    let all = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    all.max_by_key(|entry| entry.metadata().unwrap().len())
        .unwrap()
        .path()
}

#[test]
fn damage_is_found_and_repaired_overlay2() {
    require!(
        Engine::own() && crate::harness::is_root(),
        "damages files of other ids"
    );
    damage_is_found_and_repaired("overlay2", "diff");
}

#[test]
fn damage_is_found_and_repaired_vfs() {
    require!(
        Engine::own() && crate::harness::is_root(),
        "damages files of other ids"
    );
    damage_is_found_and_repaired("vfs", "dir");
}

#[test]
fn a_container_whose_files_are_gone_is_named_with_what_is_left_to_do() {
    require!(
        Engine::own() && crate::harness::is_root(),
        "damages files of other ids"
    );
    let (mut engine, _) = stopped("overlay2");
    let directory = engine.data_root().join("overlay2");
    let lost = names(&directory)
        .into_iter()
        .find(|name| name.starts_with("active-rw-"))
        .unwrap();
    std::fs::remove_dir_all(directory.join(&lost)).unwrap();
    let found = verify(&engine, &["--repair"], 1);
    let problem = &found["problems"][0];
    assert_eq!(problem["damage"], "its writable layer is gone");
    let command = problem["remedy"]["command"].as_str().unwrap().to_owned();
    engine.start_again();
    let words: Vec<&str> = command.split(' ').collect();
    assert_eq!(words[..2], ["docker", "rm"]);
    engine.docker(&words[1..]).ok();
    engine.stop();
    assert_eq!(verify(&engine, &[], 0)["problems"], serde_json::json!([]));
}

/// kill -9 of the daemon at any instant of removals and of the collection at its start.
fn killed_while_removing(driver: &str) {
    let (mut engine, writers) = stopped(driver);
    let [keeper, _] = &writers[..] else {
        panic!("two containers")
    };
    let mut dice = seed() | 1;
    let mut below = |limit: u64| {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        dice % limit
    };
    engine.start_again();
    let kill = |engine: &mut Engine| {
        let (parent, daemon) = (engine.parent_pid(), engine.daemon_pid());
        engine.kill_9(daemon);
        engine.kill_9(parent);
        engine.wait_for_exit();
        engine.wait_until_gone(daemon);
    };
    for round in 0..number("SKIFF_TEST_ROUNDS", 3) {
        let image = layered_image(&format!("removed-{driver}-{round}"));
        let own = Image::busybox()
            .layer(Layer::new().file("own", round.to_string().as_bytes()))
            .push(&format!("removed-own-{driver}-{round}"));
        for image in [&image, &own] {
            engine.docker(["pull", "-q", image]).ok();
        }
        let doomed = format!("doomed-{round}");
        engine
            .docker(["create", "--name", &doomed, "--network", "none", &own, "true"])
            .ok();
        let removals = [
            engine.docker(["rm", &doomed]).start(),
            engine.docker(["rmi", "-f", &image, &own]).start(),
        ];
        // The instant is the point here, not an event to wait for.
        std::thread::sleep(Duration::from_millis(below(150)));
        kill(&mut engine);
        removals.into_iter().for_each(|removal| drop(removal.finish()));
        // And once more in the start, which collects what nobody needs.
        engine.launch();
        let daemon = eventually("a daemon runs", PATIENCE, || {
            let parent = engine.parent_pid();
            let mut all = engine.processes().into_iter();
            all.find(|p| p.parent == parent && !p.zombie && p.command.contains(" daemon"))
        });
        std::thread::sleep(Duration::from_millis(below(150)));
        engine.kill_9(daemon.pid);
        engine.wait_for_exit();
        engine.wait_until_gone(daemon.pid);
        engine.start_again();
        keeper.has_its_files(&engine);
    }
    for left in engine
        .docker(["ps", "-aq", "--filter", "name=doomed"])
        .ok()
        .lines()
    {
        engine.docker(["rm", "-f", left]).ok();
    }
    engine.stop();
    assert_eq!(verify(&engine, &[], 0)["problems"], serde_json::json!([]));
    all_containers_start(&mut engine, &writers);
}

fn all_containers_start(engine: &mut Engine, writers: &[Writer]) {
    engine.start_again();
    for writer in writers {
        writer.has_its_files(engine);
    }
    engine.stop();
}

#[test]
fn killed_while_removing_overlay2() {
    require!(Engine::own(), "kills the daemon");
    killed_while_removing("overlay2");
}

#[test]
fn killed_while_removing_vfs() {
    require!(Engine::own(), "kills the daemon");
    killed_while_removing("vfs");
}
