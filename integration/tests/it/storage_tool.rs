//! `skiffd storage migrate`: by its user, on a data root whose daemon is stopped, killed, running, full, or gone half-way.

use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use crate::harness::{
    Engine, Options, PATIENCE, Writer, digest, eventually, layered_image, number, registry, require,
};
use crate::storage_verify::verify;

/// A stopped daemon's data root with two images and two containers that changed their files.
pub(crate) fn stopped(driver: &str) -> (Engine, Vec<Writer>) {
    stopped_with(driver, Options::driver(driver))
}

fn stopped_with(driver: &str, options: Options) -> (Engine, Vec<Writer>) {
    let mut engine = Engine::start_with(options);
    let image = layered_image(&format!("moved-from-{driver}"));
    for image in [&registry().busybox(), &image] {
        engine.docker(["pull", "-q", image]).ok();
    }
    // A FUSE file system in a debug build takes its time.
    let names = if driver == "fuse-overlayfs" {
        &["one"][..]
    } else {
        &["one", "two"]
    };
    let writers = names
        .iter()
        .map(|name| Writer::new(&engine, name, &image))
        .collect();
    engine.stop();
    (engine, writers)
}

fn migrate(engine: &Engine, to: &str) -> crate::harness::Docker {
    engine.skiffd(&["storage", "migrate", "--to", to])
}

/// The daemon starts with a driver and everything is there.
pub(crate) fn all_is_well(engine: &mut Engine, driver: &str, writers: &[Writer]) {
    engine.set_args(&["--storage-driver", driver]);
    engine.start_again();
    assert_eq!(engine.docker(["info", "--format", "{{.Driver}}"]).ok(), driver);
    assert_eq!(engine.docker(["images", "-q"]).ok().lines().count(), 2);
    for writer in writers {
        assert_eq!(engine.inspect(&writer.name, "{{.Driver}}"), driver);
        writer.has_its_files(engine);
    }
    engine.stop();
    assert_eq!(verify(engine, &[], 0)["problems"], serde_json::json!([]));
}

/// There and, after the daemon was looked at, for good.
fn moves(from: &str, to: &str) {
    let (mut engine, writers) = stopped(from);
    let done = migrate(&engine, to).run().code(0).stdout;
    assert!(done.contains(&format!("Moved everything to {to}")), "{done}");
    assert!(
        done.contains("--confirm") && done.contains("--rollback"),
        "{done}"
    );

    // The old driver would be half of the truth.
    let refused = engine.run_daemon(|command| {
        command.args(["--storage-driver", from]);
    });
    refused.fails().says("skiffd storage migrate --rollback");
    // Without being told, the daemon takes the new one, although both are there.
    engine.set_args(&[]);
    engine.start_again();
    assert_eq!(engine.docker(["info", "--format", "{{.Driver}}"]).ok(), to);
    engine.stop();
    all_is_well(&mut engine, to, &writers);

    let done = engine
        .skiffd(&["storage", "migrate", "--confirm"])
        .run()
        .code(0)
        .stdout;
    assert!(done.contains("Deleted the old state"), "{done}");
    assert!(!engine.data_root().join(from).exists() && !engine.data_root().join("image").join(from).exists());
    all_is_well(&mut engine, to, &writers);
    engine
        .skiffd(&["storage", "migrate", "--to", to])
        .run()
        .code(0)
        .prints(&format!(
            "Nothing to move: no other storage driver than {to} holds anything.\n"
        ));
    engine
        .skiffd(&["storage", "migrate", "--rollback"])
        .run()
        .code(2)
        .says("there is no migration to roll back");
}

#[test]
fn everything_moves_from_overlay2_to_vfs() {
    require!(Engine::own(), "stops the daemon");
    moves("overlay2", "vfs");
}

#[test]
fn everything_moves_from_vfs_to_overlay2() {
    require!(Engine::own(), "stops the daemon");
    moves("vfs", "overlay2");
}

#[test]
fn everything_moves_from_vfs_to_fuse_overlayfs() {
    require!(Engine::own() && has_fuse(), "mounts a FUSE file system");
    moves("vfs", "fuse-overlayfs");
}

#[test]
fn everything_moves_from_fuse_overlayfs_to_overlay2() {
    require!(Engine::own() && has_fuse(), "mounts a FUSE file system");
    moves("fuse-overlayfs", "overlay2");
}

#[test]
fn everything_moves_from_btrfs_to_overlay2_and_back() {
    require!(
        Engine::own() && crate::harness::is_root(),
        "only root can mount a btrfs"
    );
    let (mut engine, writers) = stopped("btrfs");
    for (from, to) in [("btrfs", "overlay2"), ("overlay2", "btrfs")] {
        engine
            .skiffd(&["storage", "migrate", "--to", to, "--confirm"])
            .run()
            .code(0);
        assert!(!engine.data_root().join(from).exists());
        all_is_well(&mut engine, to, &writers);
    }
}

/// What clients see of a container's files without starting it: what it changed, everything, and everything in an image
/// that is made of it.
fn seen_by_clients(engine: &Engine, name: &str) -> Vec<String> {
    let mut seen: Vec<String> = engine
        .docker(["diff", name])
        .ok()
        .lines()
        .map(str::to_owned)
        .collect();
    seen.extend(exported(engine, name));
    engine.docker(["commit", name, "committed:1"]).ok();
    let size = engine.inspect("committed:1", "{{.Size}}");
    seen.push(format!("committed: {size} bytes"));
    engine
        .docker(["create", "--name", "of-commit", "committed:1", "true"])
        .ok();
    let committed = exported(engine, "of-commit").into_iter();
    seen.extend(committed.map(|line| format!("committed: {line}")));
    engine.docker(["rm", "of-commit"]).ok();
    engine.docker(["rmi", "committed:1"]).ok();
    seen
}

/// Everything that `docker export` says, a line an entry.
fn exported(engine: &Engine, name: &str) -> Vec<String> {
    let file = engine.path().join("export.tar");
    engine.docker(["export", "-o", file.to_str().unwrap(), name]).ok();
    let mut archive = tar::Archive::new(std::fs::File::open(&file).unwrap());
    let describe = |entry: std::io::Result<tar::Entry<'_, std::fs::File>>| {
        let mut entry = entry.unwrap();
        let mut contents = Vec::new();
        entry.read_to_end(&mut contents).unwrap();
        let mut notes: Vec<String> = Vec::new();
        for record in entry.pax_extensions().unwrap().into_iter().flatten() {
            let record = record.unwrap();
            notes.push(format!(
                "{}={}",
                record.key().unwrap(),
                String::from_utf8_lossy(record.value_bytes())
            ));
        }
        let header = entry.header();
        format!(
            "{} {:?} {:o} {}:{} {:?} {} {} {notes:?}",
            entry.path().unwrap().display(),
            header.entry_type(),
            header.mode().unwrap(),
            header.uid().unwrap(),
            header.gid().unwrap(),
            entry.link_name().unwrap(),
            header.mtime().unwrap(),
            digest(&contents)
        )
    };
    archive.entries().unwrap().map(describe).collect()
}

/// From one driver to the next, and after each move clients see what they saw under the first.
fn moves_along(drivers: &[&str]) {
    require!(
        Engine::own() && crate::harness::is_root() && has_fuse(),
        "mounts a btrfs and a FUSE file system"
    );
    let (mut engine, writers) = stopped_with(drivers[0], Options::driver(drivers[0]).on_btrfs());
    engine.start_again();
    let before = seen_by_clients(&engine, &writers[0].name);
    for text in ["C /kept/noted", "D /kept/removed", "A /new/together"] {
        assert!(before.iter().any(|line| line == text), "{text}: {before:#?}");
    }
    engine.stop();
    for to in &drivers[1..] {
        engine
            .skiffd(&["storage", "migrate", "--to", to, "--confirm"])
            .run()
            .code(0);
        engine.set_args(&["--storage-driver", to]);
        engine.start_again();
        let now = seen_by_clients(&engine, &writers[0].name);
        let lost: Vec<_> = before.iter().filter(|line| !now.contains(line)).collect();
        let new: Vec<_> = now.iter().filter(|line| !before.contains(line)).collect();
        assert!(
            lost.is_empty() && new.is_empty(),
            "{to}: lost {lost:#?}, new {new:#?}"
        );
        engine.stop();
    }
    let last = drivers.last().unwrap();
    all_is_well(&mut engine, last, &writers);
}

#[test]
fn clients_see_no_difference_along_vfs_btrfs_fuse_overlayfs_vfs() {
    moves_along(&["vfs", "btrfs", "fuse-overlayfs", "vfs"]);
}

#[test]
fn clients_see_no_difference_along_overlay2_fuse_overlayfs_btrfs_vfs() {
    moves_along(&["overlay2", "fuse-overlayfs", "btrfs", "vfs"]);
}

/// Whether an ordinary user may open the device.
fn has_fuse() -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata("/dev/fuse").is_ok_and(|device| device.permissions().mode() & 0o006 == 0o006)
}

#[test]
fn a_roll_back_returns_everything() {
    require!(Engine::own(), "stops the daemon");
    let (mut engine, writers) = stopped("overlay2");
    migrate(&engine, "vfs").run().code(0);
    engine
        .skiffd(&["storage", "migrate", "--rollback"])
        .run()
        .code(0)
        .prints("Everything is in overlay2 again (2 containers).\n");
    assert!(!engine.data_root().join("vfs").exists());
    all_is_well(&mut engine, "overlay2", &writers);

    // After a daemon has worked with the new driver, what it wrote is at stake: that has to be said twice.
    migrate(&engine, "vfs").run().code(0);
    all_is_well(&mut engine, "vfs", &writers);
    let asked = engine.skiffd(&["storage", "migrate", "--rollback"]).run().code(2);
    assert!(
        asked.stderr.contains("A daemon has used vfs since") && asked.stderr.contains("--yes"),
        "{asked}"
    );
    engine
        .skiffd(&["storage", "migrate", "--rollback", "--yes"])
        .run()
        .code(0);
    all_is_well(&mut engine, "overlay2", &writers);
}

#[test]
fn a_running_daemon_or_container_is_in_the_way() {
    require!(Engine::own(), "kills the daemon");
    let mut engine = Engine::with_busybox("overlay2");
    engine.detached(&["--name", "running"], &["sleep", "1000"]);
    let pid = engine.parent_pid();
    let refused = migrate(&engine, "vfs").run().code(2);
    assert!(refused.stderr.contains(&format!("kill {pid}")), "{refused}");
    let daemon = engine.daemon_pid();
    for process in [daemon, pid] {
        engine.kill_9(process);
    }
    engine.wait_for_exit();
    engine.wait_until_gone(daemon);
    let refused = migrate(&engine, "vfs").run().code(2);
    assert!(refused.stderr.contains("1 containers still run"), "{refused}");
    assert!(!engine.data_root().join("vfs").exists());
    engine.start_again();
    assert_eq!(engine.inspect("running", "{{.State.Running}}"), "true");
}

#[test]
fn a_dry_run_says_what_would_be_done_and_does_nothing() {
    require!(Engine::own(), "stops the daemon");
    let (mut engine, writers) = stopped("overlay2");
    let before = names(&engine.data_root());
    let done = engine
        .skiffd(&["storage", "migrate", "--to", "vfs", "--dry-run"])
        .run()
        .code(0)
        .stdout;
    assert!(done.starts_with("From overlay2 to vfs:\n"), "{done}");
    assert_eq!(done.matches("unpacked from its blob").count(), 3, "{done}");
    assert!(
        done.contains("container one (") && done.contains("3 layers and 2 containers; about "),
        "{done}"
    );
    assert_eq!(names(&engine.data_root()), before);
    all_is_well(&mut engine, "overlay2", &writers);
    engine
        .skiffd(&["storage", "migrate", "--to", "floppy", "--dry-run"])
        .run()
        .code(2)
        .says("unknown storage driver");
    engine
        .skiffd(&["storage", "migrate"])
        .run()
        .code(2)
        .says("Usage: skiffd storage migrate");
}

pub(crate) fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// kill -9 of the command at any instant of the way there, of the confirmation and of the way back.
fn killed_at_any_instant(from: &str, to: &str, seed: u64) {
    let (mut engine, writers) = stopped(from);
    let mut dice = seed | 1;
    let mut below = |limit: u64| {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        dice % limit
    };
    let mut kill_during = |engine: &Engine, words: &[&str]| {
        let before: Vec<i32> = engine.processes().iter().map(|p| p.pid).collect();
        let command = engine.skiffd(words).start();
        // The instant is the point here, not an event to wait for.
        std::thread::sleep(Duration::from_millis(below(400)));
        command.kill();
        command.finish();
        // Its temporary keeper ends with it.
        eventually("nothing of it is left", PATIENCE, || {
            let mut all = engine.processes().into_iter();
            all.all(|p| p.zombie || before.contains(&p.pid)).then_some(())
        });
    };
    let (mut refusals, mut runs) = (0, 0);
    for round in 0..number("SKIFF_TEST_ROUNDS", 2) {
        kill_during(&engine, &["storage", "migrate", "--to", to]);
        let journal =
            std::fs::read_to_string(engine.data_root().join("image/migration.json")).unwrap_or_default();
        if journal.contains("\"converting\"") || journal.contains("\"switching\"") {
            let refused = engine.run_daemon(|_| ());
            assert!(
                refused
                    .fails()
                    .stderr
                    .contains(&format!("skiffd storage migrate --to {to}"))
            );
            refusals += 1;
        }
        if round % 2 == 0 {
            // Forward: killed once more, then to its end.
            kill_during(&engine, &["storage", "migrate", "--to", to]);
            migrate(&engine, to).run().code(0);
            all_is_well(&mut engine, to, &writers);
            // And back, before it is confirmed: the copies of the old driver are what they were.
            kill_during(&engine, &["storage", "migrate", "--rollback", "--yes"]);
            if engine.data_root().join("image/migration.json").exists() {
                engine
                    .skiffd(&["storage", "migrate", "--rollback", "--yes"])
                    .run()
                    .code(0);
            }
        } else if !journal.is_empty() {
            engine.skiffd(&["storage", "migrate", "--rollback"]).run().code(0);
        }
        all_is_well(&mut engine, from, &writers);
        runs += 1;
    }
    migrate(&engine, to).run().code(0);
    kill_during(&engine, &["storage", "migrate", "--confirm"]);
    if engine.data_root().join("image/migration.json").exists() {
        engine.skiffd(&["storage", "migrate", "--confirm"]).run().code(0);
    }
    assert!(!engine.data_root().join(from).exists());
    all_is_well(&mut engine, to, &writers);
    eprintln!("{runs} rounds, {refusals} of them left a half-done migration");
}

#[test]
fn killed_at_any_instant_from_overlay2_to_vfs() {
    require!(Engine::own(), "stops the daemon");
    killed_at_any_instant("overlay2", "vfs", seed());
}

#[test]
fn killed_at_any_instant_from_vfs_to_overlay2() {
    require!(Engine::own(), "stops the daemon");
    killed_at_any_instant("vfs", "overlay2", seed());
}

/// A number that looks random and is shown, so that a failure can be repeated.
pub(crate) fn seed() -> u64 {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::SystemTime::UNIX_EPOCH)
        .unwrap();
    let seed = number("SKIFF_TEST_SEED", now.subsec_nanos().into());
    eprintln!("SKIFF_TEST_SEED={seed}");
    seed
}

#[test]
fn a_full_disk_is_said_before_and_does_no_harm_when_it_comes_all_the_same() {
    require!(
        Engine::own() && crate::harness::is_root(),
        "mounts a small file system"
    );
    let mut engine = Engine::start_with(Options::driver("overlay2").data_root_of_mib(72));
    let image = layered_image("full");
    engine.docker(["pull", "-q", &image]).ok();
    let writer = Writer::new(&engine, "one", &image);
    // With its copy it does not fit, whatever the layers below it take.
    let fill = "dd if=/dev/urandom of=/fill bs=1M count=46 2>/dev/null";
    engine
        .docker([
            "run",
            "--name",
            "big",
            "--network",
            "none",
            &image,
            "sh",
            "-c",
            fill,
        ])
        .ok();
    engine.stop();
    let refused = migrate(&engine, "vfs").run().code(2);
    assert!(
        refused.stderr.contains("too little room") && refused.stderr.contains("--no-space-check"),
        "{refused}"
    );
    let failed = engine
        .skiffd(&["storage", "migrate", "--to", "vfs", "--no-space-check"])
        .run()
        .code(2);
    assert!(
        failed.stderr.contains("no space left on device") && failed.stderr.contains("--rollback"),
        "{failed}"
    );
    // Not a byte is left, and the way back is open all the same.
    let filler = engine.data_root().join("filler");
    fill_up(&filler);
    engine.skiffd(&["storage", "migrate", "--rollback"]).run().code(0);
    std::fs::remove_file(&filler).unwrap();
    engine.set_args(&["--storage-driver", "overlay2"]);
    engine.start_again();
    writer.has_its_files(&engine);
    engine.docker(["rm", "big"]).ok();
    eventually("its room is free", PATIENCE, || {
        names(&engine.data_root().join("overlay2/trash"))
            .is_empty()
            .then_some(())
    });
    engine.stop();

    // So is the way forward.
    migrate(&engine, "vfs").run().code(0);
    fill_up(&filler);
    engine.skiffd(&["storage", "migrate", "--confirm"]).run().code(0);
    std::fs::remove_file(&filler).unwrap();
    engine.set_args(&["--storage-driver", "vfs"]);
    engine.start_again();
    writer.has_its_files(&engine);
}

/// Takes all the room there is.
fn fill_up(file: &Path) {
    use std::io::Write as _;
    let mut file = std::fs::File::create(file).unwrap();
    let mut block = vec![1; 1 << 20];
    while !block.is_empty() {
        match file.write_all(&block) {
            Ok(()) => {}
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
                block.truncate(block.len() / 2);
            }
        }
    }
}
