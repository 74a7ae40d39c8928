//! kill -9, of everything, at any time: nothing that ran stops, nothing that was promised is lost, and what is left on disk
//! is whole.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use crate::harness::{Engine, PATIENCE, eventually, is_root, number, registry, require};

/// Which of the engine's processes dies.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Parent,
    Daemon,
    Keeper,
    All,
}

impl Victim {
    /// Kills it and waits until the daemon is out of the way, so that a new one can be started.
    fn fall(self, engine: &mut Engine) {
        let (parent, daemon, keeper) = (engine.parent_pid(), engine.daemon_pid(), engine.keeper_pid());
        match self {
            Self::Parent => engine.kill_9(parent),
            Self::Daemon => engine.kill_9(daemon),
            Self::Keeper => {
                engine.kill_9(keeper);
                engine.wait_until_gone(keeper);
                // Without its keeper the engine goes on; only then it is restarted.
                assert_eq!(engine.get("/_ping").status, 200);
                engine.kill_9(parent);
            }
            Self::All => {
                for pid in [keeper, daemon, parent] {
                    engine.kill_9(pid);
                }
            }
        }
        engine.wait_for_exit();
        engine.wait_until_gone(daemon);
    }
}

/// A container goes on through the death of `victim`, and the next daemon knows all about it.
fn survives(victim: Victim) {
    require!(Engine::own(), "kills the daemon");
    let mut engine = Engine::with_busybox("overlay2");
    let script = "echo before; while read line; do echo got $line; [ $line != quit ] || exit 5; done";
    let id = engine.detached(&["--name", "survivor", "-i"], &["sh", "-c", script]);
    engine.wait_for_output("survivor", "before");
    engine.detached(&["--name", "finished"], &["sh", "-c", "exit 9"]);
    engine.docker(["wait", "finished"]).ok();
    let before = engine.container("survivor");
    let pid = i32::try_from(before["State"]["Pid"].as_i64().unwrap()).unwrap();
    let namespaces =
        |pid: i32| ["user", "net"].map(|kind| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap());
    let keeper_namespaces = namespaces(engine.keeper_pid());

    victim.fall(&mut engine);
    assert!(
        std::path::Path::new(&format!("/proc/{pid}")).exists(),
        "{victim:?}: the container lives without a daemon"
    );
    engine.start_again();

    let after = engine.container("survivor");
    assert_eq!(after["Id"], id.as_str());
    for field in ["Running", "Pid", "StartedAt", "Status"] {
        assert_eq!(
            after["State"][field], before["State"][field],
            "{victim:?}: {field}"
        );
    }
    assert_eq!(
        after["NetworkSettings"]["Networks"], before["NetworkSettings"]["Networks"],
        "{victim:?}"
    );
    assert_eq!(
        namespaces(engine.keeper_pid())[0],
        keeper_namespaces[0],
        "{victim:?}: the old user namespace is used on"
    );
    assert_eq!(engine.inspect("finished", "{{.State.ExitCode}}"), "9");
    assert_eq!(engine.docker(["images", "-q"]).ok().lines().count(), 1);

    // It can be talked to, its log is whole, its end is noticed, a second start works.
    engine
        .docker(["attach", "survivor"])
        .stdin("hello\nquit\n")
        .run()
        .code(5)
        .prints("got hello\ngot quit\n");
    assert_eq!(
        engine.docker(["logs", "survivor"]).ok(),
        "before\ngot hello\ngot quit"
    );
    assert_eq!(engine.docker(["wait", "survivor"]).ok(), "5");
    // New containers and old ones share one bridge.
    let server = engine.detached(&[], &["sleep", "1000"]);
    let address = engine.inspect(&server, "{{.NetworkSettings.IPAddress}}");
    engine
        .busybox(&[], &["ping", "-c", "1", "-W", "5", &address])
        .run()
        .code(0);
    engine.docker(["rm", "survivor"]).ok();
}

#[test]
fn a_container_survives_the_daemon() {
    survives(Victim::Daemon);
}

#[test]
fn a_container_survives_the_parent() {
    survives(Victim::Parent);
}

#[test]
fn a_container_survives_the_keeper() {
    survives(Victim::Keeper);
}

#[test]
fn a_container_survives_all_three() {
    survives(Victim::All);
}

#[test]
fn an_end_without_a_daemon_is_known_to_the_next_one() {
    require!(Engine::own(), "kills the daemon");
    let mut engine = Engine::with_busybox("overlay2");
    let dir = engine.shared_dir("door");
    let volume = format!("{}:/door", dir.display());
    let script = "until [ -e /door/open ]; do usleep 10000; done; echo leaving; exit 11";
    engine.detached(&["--name", "box", "-v", &volume], &["sh", "-c", script]);
    engine.detached(
        &["--name", "removed", "--rm", "-v", &volume],
        &["sh", "-c", script],
    );
    let pid = |name: &str| engine.inspect(name, "{{.State.Pid}}").parse::<i32>().unwrap();
    let pids = [pid("box"), pid("removed")];
    Victim::Daemon.fall(&mut engine);
    std::fs::write(dir.join("open"), "").unwrap();
    for pid in pids {
        engine.wait_until_gone(pid);
    }
    engine.start_again();
    // The process is gone as soon as it has ended; that its shim has written down how may come later.
    assert_eq!(engine.docker(["wait", "box"]).ok(), "11");
    assert_eq!(
        engine.inspect("box", "{{.State.Status}} {{.State.ExitCode}} {{.State.Pid}}"),
        "exited 11 0"
    );
    assert_eq!(engine.docker(["logs", "box"]).ok(), "leaving");
    eventually("--rm is kept too", PATIENCE, || {
        engine
            .docker(["inspect", "removed"])
            .run()
            .stdout
            .trim()
            .eq("[]")
            .then_some(())
    });
}

#[test]
fn a_shim_that_is_killed_ends_its_container_and_no_other() {
    require!(Engine::own(), "kills a process of the engine");
    let engine = Engine::with_busybox("overlay2");
    engine.detached(&["--name", "one"], &["sleep", "1000"]);
    engine.detached(&["--name", "two"], &["sleep", "1000"]);
    let init = engine.inspect("one", "{{.State.Pid}}").parse::<i32>().unwrap();
    let shim = crate::harness::process(init).unwrap().parent;
    engine.kill_9(shim);
    eventually("the container counts as ended", PATIENCE, || {
        (engine.inspect("one", "{{.State.Running}}") == "false").then_some(())
    });
    assert_ne!(engine.inspect("one", "{{.State.ExitCode}}"), "0");
    engine.wait_until_gone(init);
    assert_eq!(engine.inspect("two", "{{.State.Running}}"), "true");
    engine.docker(["rm", "one"]).ok();
}

/// Numbers that look random, from a seed that is shown, so that a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let seed = number("SKIFF_TEST_SEED", now.subsec_nanos().into());
        eprintln!("SKIFF_TEST_SEED={seed}");
        Self(seed | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Everything the engine says about itself holds together, and it works.
fn the_store_is_whole(engine: &Engine) {
    for id in engine
        .docker(["images", "-aq", "--no-trunc"])
        .ok()
        .lines()
        .collect::<BTreeSet<_>>()
    {
        assert_eq!(engine.inspect(id, "{{.Id}}"), id);
        // Every layer is really there: a container of it can be made and reads its files.
        assert_eq!(
            engine
                .docker(["run", "--rm", "--network", "none", id, "cat", "/etc/os-release"])
                .run()
                .code(0)
                .stderr,
            ""
        );
    }
    for id in engine.docker(["ps", "-aq", "--no-trunc"]).ok().lines() {
        let found = engine.get(&format!("/containers/{id}/json"));
        // One with --rm may end and go at any time.
        if found.status == 404 {
            continue;
        }
        let state = found.expect_status(200).json()["State"]["Status"].clone();
        assert!(
            ["created", "running", "exited", "removing"].contains(&state.as_str().unwrap()),
            "{id} is {state}"
        );
        engine.docker(["rm", "-f", id]).run();
    }
    eventually("all containers are removed", PATIENCE, || {
        engine.docker(["ps", "-aq"]).ok().is_empty().then_some(())
    });
}

/// Kills the engine at a random instant of `act`, over and over.
pub(crate) fn killed_at_any_instant(
    driver: &str,
    longest: u64,
    mut act: impl FnMut(&Engine, u64) -> Vec<crate::harness::Docker>,
) {
    let mut engine = Engine::start_with(crate::harness::Options::driver(driver));
    let mut dice = Dice::new();
    for round in 0..number("SKIFF_TEST_ROUNDS", 6) {
        let running: Vec<_> = act(&engine, round)
            .into_iter()
            .map(crate::harness::Docker::start)
            .collect();
        // The instant is the point here, not an event to wait for.
        std::thread::sleep(Duration::from_millis(dice.below(longest)));
        let victim = [Victim::Daemon, Victim::Parent, Victim::All][usize::try_from(dice.below(3)).unwrap()];
        victim.fall(&mut engine);
        for command in running {
            command.finish();
        }
        engine.start_again();
        the_store_is_whole(&engine);
    }
    engine
        .docker(["run", "--rm", &registry().busybox(), "true"])
        .run()
        .code(0);
    if is_root() {
        let parent = engine.parent_pid();
        let ours = [parent, engine.daemon_pid(), engine.keeper_pid()];
        eventually("nothing of the dead is left", PATIENCE, || {
            let left: Vec<_> = engine
                .processes()
                .into_iter()
                .filter(|p| !ours.contains(&p.pid) && !p.zombie)
                .collect();
            left.iter()
                .all(|p| p.command.contains("slirp4netns") || p.command.contains("pasta"))
                .then_some(())
        });
    }
}

#[test]
fn killed_at_any_instant_of_a_pull_vfs() {
    require!(Engine::own(), "kills the daemon");
    killed_at_any_instant("vfs", 400, pulls);
}

#[test]
fn killed_at_any_instant_of_a_pull_overlay2() {
    require!(Engine::own(), "kills the daemon");
    killed_at_any_instant("overlay2", 400, pulls);
}

/// Pulls an image nobody has yet, and one that shares its first layer with it.
fn pulls(engine: &Engine, round: u64) -> Vec<crate::harness::Docker> {
    let mut image = crate::harness::Image::busybox();
    for n in 0..5_u64 {
        let mut layer = crate::harness::Layer::new().dir("data");
        for file in 0..50 {
            layer = layer.file(
                &format!("data/{n}-{file}"),
                format!("{round} {n} {file}").repeat(500).as_bytes(),
            );
        }
        image = image.layer(layer);
    }
    let image = image.push(&format!("killed-{round}-{}", std::process::id()));
    vec![
        engine.docker(["pull", &image]),
        engine.docker(["pull", &registry().busybox()]),
    ]
}

#[test]
fn killed_at_any_instant_of_a_run() {
    require!(Engine::own(), "kills the daemon");
    killed_at_any_instant("overlay2", 500, |engine, _| {
        engine.docker(["pull", "-q", &registry().busybox()]).ok();
        vec![
            engine.busybox(&[], &["sh", "-c", "echo x; exit 1"]),
            engine.docker(["run", "-d", &registry().busybox(), "sleep", "1000"]),
            engine.docker(["run", "-d", "--network", "none", &registry().busybox(), "true"]),
        ]
    });
}
