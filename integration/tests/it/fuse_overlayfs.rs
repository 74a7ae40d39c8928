//! The storage driver `fuse-overlayfs`: containers on a file system in user space, and what becomes of them when its
//! server dies. (`drivers.rs` has what it must do as well as the others.)

use std::fs;
use std::os::unix::fs::symlink;

use crate::harness::{Engine, Options, PATIENCE, Process, eventually, is_root, process, registry, require};

/// The servers of this engine's mounts: their command lines name directories below the engine's own.
fn servers(engine: &Engine) -> Vec<Process> {
    let below = format!("upperdir={}", engine.data_root().display());
    let mut servers = engine.processes();
    servers.retain(|process| !process.zombie && process.command.contains(&below));
    servers
}

fn server_of(engine: &Engine, container: &str) -> Process {
    let merged = engine.inspect(container, "{{.GraphDriver.Data.MergedDir}}");
    let mut servers = servers(engine);
    servers.retain(|process| process.command.ends_with(&merged));
    assert_eq!(servers.len(), 1, "servers of {merged}: {servers:?}");
    servers.remove(0)
}

/// Ends its container when its own files cannot be changed. (What the kernel has cached can be read for ever: it does
/// not ask the server for opens.)
const WATCHES_ITS_FILES: &str = "echo before; while echo alive > /probe; do usleep 10000; done; exit 3";

/// Waits for the end of a container whose server is gone: by the script's own exit, or by SIGBUS when a page of the
/// shell had not been read before.
fn wait_for_the_end(engine: &Engine, container: &str) -> String {
    let code = engine.docker(["wait", container]).ok();
    assert!(["3", "135"].contains(&code.as_str()), "{code}");
    code
}

#[test]
fn the_root_file_system_is_fuse_and_goes_with_its_server() {
    require!(Engine::own(), "chooses the storage driver");
    let engine = Engine::with_busybox("fuse-overlayfs");
    assert_eq!(
        engine.docker(["info", "--format", "{{.Driver}}"]).ok(),
        "fuse-overlayfs"
    );
    let mounts = engine.busybox(&[], &["grep", " / ", "/proc/mounts"]).ok();
    assert!(
        mounts.contains("fuse-overlayfs / fuse.fuse-overlayfs rw"),
        "{mounts}"
    );
    engine.detached(&["--name", "box"], &["sleep", "1000"]);
    let server = server_of(&engine, "box");
    // One's own process, in a session of its own, with the lower directories and nothing else of the host in sight.
    assert!(
        process(server.pid).is_some_and(|p| p.parent != engine.daemon_pid()),
        "{server:?}"
    );
    if is_root() {
        let seen: Vec<String> = crate::harness::mounts_of(server.pid);
        assert!(
            seen.iter()
                .all(|point| point == "/" || point.starts_with("/proc")),
            "the server would keep mounts alive: {seen:?}"
        );
    }
    engine.docker(["rm", "-f", "box"]).ok();
    engine.wait_until_gone(server.pid);
    assert_eq!(servers(&engine), []);
}

#[test]
fn a_container_whose_server_is_killed_is_reported_and_can_be_started_again() {
    require!(Engine::own() && is_root(), "kills a process of the engine");
    let engine = Engine::with_busybox("fuse-overlayfs");
    engine.detached(&["--name", "box"], &["sh", "-c", WATCHES_ITS_FILES]);
    engine.detached(&["--name", "other"], &["sleep", "1000"]);
    engine.wait_for_output("box", "before");
    let server = server_of(&engine, "box");
    engine.kill_9(server.pid);
    // Not hung: what it writes fails.
    let code = wait_for_the_end(&engine, "box");
    assert_eq!(
        engine.inspect("box", "{{.State.Status}} {{.State.ExitCode}}"),
        format!("exited {code}")
    );
    let error = engine.inspect("box", "{{.State.Error}}");
    assert!(
        error.contains("server") && error.contains(&server.pid.to_string()),
        "{error}"
    );
    let merged = engine.inspect("box", "{{.GraphDriver.Data.MergedDir}}");
    eventually("the death is in the log", PATIENCE, || {
        let log = engine.log();
        let lines: Vec<_> = log
            .lines()
            .filter(|line| line.contains(&merged) && line.contains("died"))
            .collect();
        assert!(lines.len() < 2, "one line is enough: {lines:?}");
        (lines.len() == 1).then_some(())
    });
    assert_eq!(engine.inspect("other", "{{.State.Running}}"), "true");
    // A new server, the same files.
    engine.docker(["start", "box"]).ok();
    eventually("it runs again", PATIENCE, || {
        let log = engine.docker(["logs", "box"]).ok();
        (log.matches("before").count() == 2).then_some(())
    });
    assert_ne!(server_of(&engine, "box").pid, server.pid);
    engine.docker(["rm", "-f", "box"]).ok();
}

#[test]
fn the_next_daemon_knows_of_servers_that_died_and_watches_the_others() {
    require!(Engine::own() && is_root(), "kills processes of the engine");
    let mut engine = Engine::with_busybox("fuse-overlayfs");
    let names = ["dead", "dies", "lives"];
    for name in names {
        engine.detached(&["--name", name], &["sleep", "1000"]);
    }
    let [dead, dies, _] = names.map(|name| server_of(&engine, name).pid);
    engine.kill_9(engine.daemon_pid());
    engine.wait_for_exit();
    engine.kill_9(dead);
    engine.start_again();
    let state = |name: &str| engine.inspect(name, "{{.State.Running}} {{.State.Error}}");
    assert!(state("dead").starts_with("true the server of the root file system on "));
    assert_eq!([state("dies"), state("lives")], ["true", "true"]);
    engine.kill_9(dies);
    eventually("the death is seen", PATIENCE, || {
        state("dies")
            .starts_with("true the server (process ")
            .then_some(())
    });
    assert_eq!(state("lives"), "true");
    engine.docker(["rm", "-f", "dead", "dies", "lives"]).ok();
}

#[test]
fn a_container_whose_server_died_can_be_removed() {
    require!(Engine::own() && is_root(), "kills a process of the engine");
    let engine = Engine::with_busybox("fuse-overlayfs");
    // It needs no file any more, so it goes on.
    engine.detached(&["--name", "box"], &["sleep", "1000"]);
    engine.kill_9(server_of(&engine, "box").pid);
    eventually("the death is seen", PATIENCE, || {
        let state = engine.inspect("box", "{{.State.Running}} {{.State.Error}}");
        state.starts_with("true the server (process ").then_some(())
    });
    assert_eq!(engine.get("/containers/json").status, 200);
    engine.docker(["rm", "-f", "box"]).ok();
    let active = engine.data_root().join("fuse-overlayfs");
    eventually("nothing is left", PATIENCE, || {
        let left = fs::read_dir(&active).unwrap();
        let left = left.filter(|entry| {
            entry
                .as_ref()
                .unwrap()
                .file_name()
                .to_string_lossy()
                .starts_with("active-")
        });
        (left.count() == 0).then_some(())
    });
    assert_eq!(servers(&engine), []);
}

#[test]
fn servers_outlive_the_daemon_and_not_its_namespaces() {
    require!(Engine::own() && is_root(), "kills all processes of the engine");
    let mut engine = Engine::with_busybox("fuse-overlayfs");
    engine.detached(
        &["--name", "box", "-i"],
        &["sh", "-c", "echo before; read line; cat /etc/os-release; exit 7"],
    );
    engine.wait_for_output("box", "before");
    let server = server_of(&engine, "box");
    let (daemon, parent) = (engine.daemon_pid(), engine.parent_pid());
    engine.kill_9(daemon);
    engine.wait_for_exit();
    engine.wait_until_gone(parent);
    engine.start_again();
    assert_eq!(
        server_of(&engine, "box").pid,
        server.pid,
        "the same server goes on"
    );
    let shown = engine
        .docker(["attach", "box"])
        .stdin("go\n")
        .run()
        .code(7)
        .stdout;
    assert!(shown.contains("busybox") || !shown.is_empty(), "{shown}");
    engine.docker(["rm", "box"]).ok();
    engine.wait_until_gone(server.pid);

    // Killed with everything that could want it, a mount is gone with the mount namespace, and its server with it.
    engine.detached(&["--name", "box"], &["sleep", "1000"]);
    let server = server_of(&engine, "box");
    let init = engine.inspect("box", "{{.State.Pid}}").parse::<i32>().unwrap();
    let shim = process(init).unwrap().parent;
    for pid in [
        engine.keeper_pid(),
        engine.daemon_pid(),
        engine.parent_pid(),
        shim,
        init,
    ] {
        engine.kill_9(pid);
    }
    engine.wait_for_exit();
    engine.wait_until_gone(server.pid);
    engine.start_again();
    engine.docker(["rm", "-f", "box"]).ok();
}

#[test]
fn a_server_that_died_with_the_daemon_is_replaced() {
    require!(Engine::own() && is_root(), "kills processes of the engine");
    let mut engine = Engine::with_busybox("fuse-overlayfs");
    engine.detached(&["--name", "box"], &["sh", "-c", WATCHES_ITS_FILES]);
    engine.wait_for_output("box", "before");
    let server = server_of(&engine, "box");
    let daemon = engine.daemon_pid();
    for pid in [daemon, server.pid] {
        engine.kill_9(pid);
    }
    engine.wait_for_exit();
    engine.wait_until_gone(daemon);
    engine.start_again();
    wait_for_the_end(&engine, "box");
    engine.docker(["start", "box"]).ok();
    assert_ne!(server_of(&engine, "box").pid, server.pid);
    engine.docker(["rm", "-f", "box"]).ok();
}

#[test]
fn another_program_can_serve() {
    require!(Engine::own(), "chooses the storage driver");
    let base = tempfile::Builder::new().prefix("skiff-it-").tempdir().unwrap();
    fs::set_permissions(base.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let program = base.path().join("fuse-overlayfs");
    // The same one by another name, called as one that knows nothing of skiff.
    symlink(std::env::var("SKIFF_TEST_DAEMON").unwrap(), &program).unwrap();
    let option = format!("fuse-overlayfs.mount_program={}", program.display());
    let engine = Engine::start_with(
        Options::driver("fuse-overlayfs")
            .arg("--storage-opt")
            .arg(&option),
    );
    engine.docker(["pull", "-q", &registry().busybox()]).ok();
    let status = engine.get("/info").json()["DriverStatus"].to_string();
    assert!(status.contains(&program.display().to_string()), "{status}");
    engine.detached(&["--name", "box"], &["sleep", "1000"]);
    let server = server_of(&engine, "box");
    assert!(
        server.command.starts_with(&program.display().to_string()),
        "{server:?}"
    );
    engine.docker(["rm", "-f", "box"]).ok();
    engine.wait_until_gone(server.pid);
}

#[test]
fn refusals_name_the_option() {
    require!(Engine::own(), "chooses the storage driver");
    for (option, text) in [
        (
            "mount_program=/no/such/program",
            "fuse-overlayfs.mount_program=/no/such/program: No such file",
        ),
        (
            "mountopt=nonsense",
            "fuse-overlayfs.mountopt: unknown option nonsense",
        ),
        (
            "mountopt=lowerdir=/x",
            "fuse-overlayfs.mountopt: lowerdir is the driver's own",
        ),
        (
            "nonsense=1",
            "fuse-overlayfs: unknown option fuse-overlayfs.nonsense",
        ),
        ("mount_program=/bin/false", "/bin/false: exit status: 1"),
    ] {
        let option = format!("fuse-overlayfs.{option}");
        let engine = Engine::prepare(
            Options::driver("fuse-overlayfs")
                .arg("--storage-opt")
                .arg(&option),
        );
        let done = engine.run_daemon(|_| {});
        done.fails().says(text);
    }
}

/// The well-known program (Debian's), as people have it: what containers change through it is a layer like any other.
#[test]
fn the_well_known_program_can_serve() {
    const PROGRAM: &str = "/usr/bin/fuse-overlayfs";
    require!(Engine::own(), "chooses the storage driver");
    require!(
        std::path::Path::new(PROGRAM).exists(),
        "fuse-overlayfs is missing"
    );
    let engine = Engine::start_with(
        Options::driver("fuse-overlayfs")
            .arg("--storage-opt")
            .arg(&format!("fuse-overlayfs.mount_program={PROGRAM}")),
    );
    engine.docker(["pull", "-q", &registry().busybox()]).ok();
    let script =
        "rm /etc/group; mkdir /d; echo new >/d/new; ln /d/new /d/linked; rm -r /var; mkdir /var; sleep 1000";
    engine.detached(&["--name", "box"], &["sh", "-c", script]);
    let server = server_of(&engine, "box");
    assert!(server.command.starts_with(PROGRAM), "{server:?}");
    let lines = || {
        let shown = engine.docker(["diff", "box"]).ok();
        shown.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let expected = ["D /etc/group", "A /d/new", "A /d/linked"];
    eventually("the changes are seen", PATIENCE, || {
        let lines = lines();
        expected
            .iter()
            .all(|line| lines.iter().any(|other| other == line))
            .then_some(())
    });
    engine.docker(["commit", "box", "committed"]).ok();
    engine.docker(["rm", "-f", "box"]).ok();
    engine.wait_until_gone(server.pid);
    let look = "test ! -e /etc/group && cat /d/linked && stat -c %h /d/new";
    let seen = engine
        .docker(["run", "--rm", "--network", "none", "committed", "sh", "-c", look])
        .ok();
    assert_eq!(seen, "new\n2");
}
