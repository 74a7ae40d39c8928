//! The program itself: start, configuration, files, information, the recipe to enter its namespaces.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::Command;

use serde_json::json;

use crate::harness::{Engine, Options, Owner, PATIENCE, eventually, is_root, registry, require, unused_port};

/// Runs the daemon, which is expected to end by itself with an error; gives what it said.
fn refuses(engine: &Engine, change: impl FnOnce(&mut Command)) -> String {
    let done = engine.run_daemon(change).fails();
    done.stdout + &done.stderr
}

#[test]
fn info_tells_what_this_engine_is() {
    let engine = Engine::with_busybox("vfs");
    let info = engine.get("/info").expect_status(200).json();
    if Engine::own() {
        assert_eq!(info["Driver"], "vfs");
        let options: Vec<_> = info["SecurityOptions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|o| o.as_str().unwrap())
            .collect();
        assert!(options.contains(&"name=rootless"), "{options:?}");
        assert!(options.contains(&"name=seccomp,profile=builtin"), "{options:?}");
        assert_eq!(info["CgroupDriver"], "none");
        assert_eq!(info["DockerRootDir"], engine.data_root().display().to_string());
    }
    assert_eq!(info["OSType"], "linux");
    assert_eq!(info["Images"], 1);
    let text = engine.docker(["info"]).ok();
    for line in [
        " Storage Driver: vfs",
        "  rootless",
        " Cgroup Driver: none",
        " Images: 1",
        " Containers: 0",
    ] {
        assert!(text.contains(line), "{line:?} in\n{text}");
    }
    engine.detached(&[], &["sleep", "1000"]);
    engine.docker(["create", &registry().busybox()]).ok();
    let counts = engine
        .docker([
            "info",
            "--format",
            "{{.Containers}} {{.ContainersRunning}} {{.ContainersStopped}}",
        ])
        .ok();
    assert_eq!(counts, "2 1 1");
    let version = engine
        .docker([
            "version",
            "--format",
            "{{.Server.Os}} {{.Server.APIVersion}} {{.Server.MinAPIVersion}}",
        ])
        .ok();
    assert!(version.starts_with("linux 1."), "{version}");
}

#[test]
fn files_lie_where_docker_s_rootless_mode_has_them() {
    require!(Engine::own(), "looks into the daemon's directories");
    let engine = Engine::start();
    let run = engine.runtime_dir();
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(engine.socket()), 0o660);
    assert_eq!(fs::metadata(engine.socket()).unwrap().uid(), engine.owner().uid);
    assert!(run.join("docker").is_dir(), "exec root");
    assert_eq!(
        mode(&engine.data_root()) & 0o007,
        0,
        "the data root is closed to others"
    );
    assert!(engine.keeper_pid() > 0);
    assert!(!engine.runtime_dir().join("docker.sock.lock").exists());
}

#[test]
fn the_old_recipe_enters_the_namespaces() {
    require!(Engine::own(), "enters the daemon's namespaces");
    let engine = Engine::start();
    let pid_file = engine.runtime_dir().join("docker.pid");
    let script = format!(
        "exec nsenter -U --preserve-credentials -n -m -t $(cat {}) cat /proc/net/dev",
        pid_file.display()
    );
    let done = engine
        .owner()
        .command("sh")
        .args(["-c", &script])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&done.stdout);
    assert!(
        done.status.success() && text.contains("docker0:"),
        "{text}{}",
        String::from_utf8_lossy(&done.stderr)
    );
}

#[test]
fn the_daemon_runs_in_the_host_s_network_and_without_privilege() {
    require!(Engine::own(), "looks at the daemon's processes");
    let engine = Engine::start();
    let namespace = |pid: i32, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    let host = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
    let (daemon, keeper, parent) = (engine.daemon_pid(), engine.keeper_pid(), engine.parent_pid());
    assert_eq!(namespace(daemon, "net"), host("net"));
    assert_eq!(namespace(daemon, "user"), namespace(keeper, "user"));
    assert_eq!(namespace(daemon, "mnt"), namespace(keeper, "mnt"));
    assert_ne!(namespace(keeper, "net"), host("net"));
    assert_ne!(namespace(keeper, "user"), host("user"));
    assert_eq!(namespace(parent, "user"), host("user"));
    for process in engine.processes() {
        assert_ne!(process.uid, 0, "{process:?}");
    }
}

#[test]
fn the_configuration_file_counts_and_conflicts_are_told() {
    require!(Engine::own(), "writes the daemon's configuration");
    let engine =
        Engine::start_with(Options::default().config(json!({"storage-driver": "vfs", "debug": true})));
    assert_eq!(
        engine.docker(["info", "--format", "{{.Driver}} {{.Debug}}"]).ok(),
        "vfs true"
    );
    drop(engine);

    let both = Engine::prepare(Options::driver("overlay2").config(json!({"storage-driver": "vfs"})));
    let text = refuses(&both, |_| {});
    assert!(
        text.contains("the following directives are specified both as a flag and in the configuration file"),
        "{text}"
    );
    assert!(
        text.contains("storage-driver: (from flag: overlay2, from file: vfs)"),
        "{text}"
    );
    drop(both);

    let unknown = Engine::prepare(Options::default().config(json!({"storage-drivr": "vfs"})));
    let text = refuses(&unknown, |_| {});
    assert!(
        text.contains("the following directives don't match any configuration option: storage-drivr"),
        "{text}"
    );
    assert!(text.contains("storage-driver"), "with a suggestion: {text}");
    let text = refuses(&unknown, |command| {
        command.arg("--validate");
    });
    assert!(text.contains("storage-drivr"), "{text}");
    drop(unknown);

    let engine = Engine::prepare(Options::default().config(json!({"storage-driver": "overlay2"})));
    let valid = engine.run_daemon(|command| {
        command.arg("--validate");
    });
    let said = valid.code(0);
    assert!(
        (said.stdout.clone() + &said.stderr).contains("configuration OK"),
        "{said}"
    );
    let text = refuses(&engine, |command| {
        command.arg("--storage-drver=vfs");
    });
    assert!(
        text.contains("--storage-driver"),
        "a suggestion for a mistyped flag: {text}"
    );
}

#[test]
fn versions_and_help_need_nothing() {
    require!(Engine::own(), "runs the program");
    let engine = Engine::prepare(Options::default());
    let run = |flag: &str| {
        let done = engine.run_daemon(|command| {
            command.env_remove("XDG_RUNTIME_DIR").env_remove("HOME").arg(flag);
        });
        done.code(0).stdout
    };
    assert!(run("--version").contains("version"), "{}", run("--version"));
    let help = run("--help");
    for flag in [
        "--storage-driver",
        "--host",
        "--data-root",
        "--exec-root",
        "--pidfile",
        "--insecure-registry",
        "--registry-mirror",
    ] {
        assert!(help.contains(flag), "{flag}");
    }
}

#[test]
fn a_start_that_cannot_work_says_why() {
    require!(Engine::own(), "starts daemons that fail");
    let engine = Engine::prepare(Options::default());
    let text = refuses(&engine, |command| {
        command.env_remove("XDG_RUNTIME_DIR");
    });
    assert!(text.contains("XDG_RUNTIME_DIR"), "{text}");
    let text = refuses(&engine, |command| {
        command.env("XDG_RUNTIME_DIR", "/proc/nowhere");
    });
    assert!(text.contains("/proc/nowhere"), "{text}");
    let text = refuses(&engine, |command| {
        command.env_remove("HOME");
    });
    assert!(text.contains("HOME"), "{text}");
    let text = refuses(&engine, |command| {
        command.arg("--storage-driver=aufs");
    });
    assert!(text.contains("aufs"), "{text}");
    let text = refuses(&engine, |command| {
        command.arg("--host=ftp://x");
    });
    assert!(text.contains("ftp"), "{text}");
}

#[test]
fn the_environment_overrides_the_configured_storage_driver() {
    require!(Engine::own(), "starts the daemon with another driver");
    let engine = Engine::prepare(Options::driver("vfs"));
    let text = refuses(&engine, |command| {
        command.env("DOCKER_DRIVER", "aufs");
    });
    assert!(
        text.contains("the aufs storage-driver has been deprecated and removed"),
        "{text}"
    );
}

#[test]
fn storage_options_are_checked_before_anything_is_written() {
    require!(Engine::own(), "starts the daemon with options");
    let engine = Engine::prepare(Options::driver("overlay2"));
    for (option, expected) in [
        ("overley2.mountopt=volatile", "did you mean overlay2.mountopt?"),
        ("btrfs.min_space=1G", "for the storage driver btrfs"),
        ("overlay2.size=1G", "quotas"),
        ("overlay2.mountopt=metacopy=on", "metacopy is the driver's own"),
        ("overlay2.mountopt=nonsense", "overlay2.mountopt=nonsense"),
    ] {
        let text = refuses(&engine, |command| {
            command.args(["--storage-opt", option]);
        });
        assert!(text.contains(expected), "{option}: {text}");
    }
    assert!(!engine.data_root().join("overlay2").exists());
}

#[test]
fn a_second_daemon_on_the_same_roots_is_refused() {
    require!(Engine::own(), "starts two daemons");
    let engine = Engine::with_busybox("overlay2");
    engine.detached(&["--name", "box"], &["sleep", "1000"]);
    let text = refuses(&engine, |_| {});
    assert!(
        text.contains("docker.pid") || text.contains("running") || text.contains("lock"),
        "{text}"
    );
    assert_eq!(
        engine.inspect("box", "{{.State.Running}}"),
        "true",
        "the first is unharmed"
    );
}

#[test]
fn an_orderly_stop_ends_the_containers_and_cleans_up() {
    require!(Engine::own(), "stops the daemon");
    let mut engine = Engine::with_busybox("overlay2");
    engine.detached(
        &["--name", "box"],
        &[
            "sh",
            "-c",
            "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done",
        ],
    );
    engine.wait_for_output("box", "ready");
    assert!(engine.stop().success(), "SIGTERM is an orderly end");
    if is_root() {
        eventually("no process is left", PATIENCE, || {
            engine.processes().is_empty().then_some(())
        });
    }
    assert!(!engine.socket().exists(), "the socket is gone");
    assert!(!engine.runtime_dir().join("docker.pid").exists());
    engine.start_again();
    assert_eq!(
        engine.inspect("box", "{{.State.Status}} {{.State.ExitCode}}"),
        "exited 3"
    );
    assert_eq!(engine.docker(["images", "-q"]).ok().lines().count(), 1);
    assert_eq!(engine.docker(["start", "box"]).ok(), "box");
}

#[test]
fn the_storage_driver_can_be_changed_without_losing_images() {
    require!(Engine::own(), "starts the daemon with another driver");
    let mut engine = Engine::with_busybox("vfs");
    let id = engine.inspect(&registry().busybox(), "{{.Id}}");
    engine.stop();
    engine.set_args(&["--storage-driver", "overlay2"]);
    engine.start_again();
    assert_eq!(
        engine.docker(["info", "--format", "{{.Driver}}"]).ok(),
        "overlay2"
    );
    assert_eq!(
        engine.inspect(&registry().busybox(), "{{.Id}}"),
        id,
        "the image is there without a pull"
    );
    assert_eq!(
        engine
            .docker([
                "run",
                "--rm",
                "--pull",
                "never",
                &registry().busybox(),
                "echo",
                "unpacked"
            ])
            .ok(),
        "unpacked"
    );
}

#[test]
fn a_listener_on_tcp_can_be_added() {
    require!(Engine::own(), "gives the daemon its listeners");
    let port = unused_port();
    let engine = Engine::prepare(Options::default());
    let socket = format!("unix://{}", engine.socket().display());
    let mut engine = engine;
    engine.set_args(&["-H", &socket, "-H", &format!("tcp://127.0.0.1:{port}")]);
    engine.start_again();
    let done = engine.docker([
        "-H",
        &format!("tcp://127.0.0.1:{port}"),
        "version",
        "--format",
        "{{.Server.Os}}",
    ]);
    assert_eq!(done.ok(), "linux");
    assert_eq!(
        engine.docker(["version", "--format", "{{.Server.Os}}"]).ok(),
        "linux"
    );
}

#[test]
fn without_subordinate_ids_there_is_one_user_and_a_warning() {
    require!(
        Engine::own() && is_root(),
        "needs an account without ids of its own"
    );
    let mut engine = Engine::prepare_for(Owner::without_subordinate_ids(), Options::default());
    engine.launch();
    engine.wait_until_ready();
    let log = engine.log();
    assert!(
        log.contains(&format!("No subuid ranges found for user {}", engine.owner().uid)),
        "{log}"
    );
    let image = crate::harness::Image::scratch()
        .layer(crate::harness::Layer::from_busybox_binary())
        .with("Env", json!(["PATH=/bin"]))
        .push("single-user");
    let options = [
        "run",
        "--rm",
        "--network",
        "none",
        image.as_str(),
        "busybox",
        "id",
        "-u",
    ];
    assert_eq!(engine.docker(options).ok(), "0");
}
