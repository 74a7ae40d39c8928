//! The ordinary start: namespaces, names, paths.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Stdio;

use crate::harness::{Daemon, Place, arguments, children, namespace, possible};

#[test]
fn three_processes_in_the_right_namespaces() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let daemon = place.start();
    let (parent, keeper, server) = (daemon.pid(), place.keeper(), daemon.server());
    let me = std::process::id();
    for kind in ["user", "mnt", "net", "cgroup"] {
        assert_eq!(
            namespace(parent, kind),
            namespace(me, kind),
            "the parent stays on the host: {kind}"
        );
        assert_ne!(namespace(keeper, kind), namespace(me, kind), "{kind}");
        match kind {
            "net" => assert_eq!(
                namespace(server, kind),
                namespace(me, kind),
                "pulls use the host's network"
            ),
            _ => assert_eq!(namespace(server, kind), namespace(keeper, kind), "{kind}"),
        }
    }
    let status = |pid: u32, field: &str| {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        text.lines()
            .find_map(|line| line.strip_prefix(field))
            .unwrap()
            .trim()
            .to_owned()
    };
    assert_eq!(status(keeper, "Threads:"), "1");
    assert_eq!(status(parent, "Threads:"), "1");
    assert_eq!(
        status(server, "SigBlk:"),
        "0000000000000000",
        "what it starts must not inherit blocked signals"
    );
    assert!(daemon.stop().success());
}

#[test]
fn the_map_is_the_documented_one() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let daemon = place.start();
    let subuids = fs::read_to_string("/etc/subuid").unwrap();
    let line = subuids
        .lines()
        .find(|line| line.starts_with(&format!("{}:", place.user.name)))
        .unwrap();
    let (start, count) = line.split_once(':').unwrap().1.split_once(':').unwrap();
    let map = fs::read_to_string(format!("/proc/{}/uid_map", place.keeper())).unwrap();
    let words: Vec<_> = map.split_ascii_whitespace().collect();
    assert_eq!(words, ["0", &place.user.uid.to_string(), "1", "1", start, count]);
    assert!(daemon.stop().success());
}

#[test]
fn the_documented_nsenter_recipe_works() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let daemon = place.start();
    let script = "nsenter -U --preserve-credentials -n -m -t $(cat $XDG_RUNTIME_DIR/docker.pid) sh -c 'id -u; \
                  cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ip_forward; \
                  grep -o \"^ *lo:\" /proc/net/dev; ls /sys/fs/cgroup/cgroup.procs'";
    let output = place
        .command("/bin/sh")
        .args(["-c", script])
        .stdout(Stdio::piped())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    assert_eq!(
        lines,
        ["0", "0", "1", "lo:", "/sys/fs/cgroup/cgroup.procs"],
        "{:?}",
        String::from_utf8(output.stderr)
    );
    assert!(daemon.stop().success());
}

#[test]
fn files_are_where_docker_has_them_and_nobody_elses() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let daemon = place.start();
    let uid = place.user.uid.as_raw();
    for (path, mode) in [
        ("run/docker.sock", 0o660),
        ("run/docker", 0o710),
        ("home/.local/share/docker", 0o710),
    ] {
        let meta = fs::metadata(place.path(path)).unwrap();
        assert_eq!(
            (meta.permissions().mode() & 0o777, meta.uid()),
            (mode, uid),
            "{path}"
        );
    }
    let pid = fs::read_to_string(place.pidfile()).unwrap();
    assert!(
        pid.bytes().all(|byte| byte.is_ascii_digit()),
        "the bare number, as dockerd: {pid:?}"
    );
    assert!(daemon.stop().success());
}

#[test]
fn other_paths_are_used_when_given() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let other = place.directory("other");
    let [data, exec, pid, socket] = ["data", "exec", "pid", "socket"].map(|name| other.join(name));
    let mut command = place.skiffd(&["--storage-driver", "vfs"]);
    command
        .arg("--data-root")
        .arg(&data)
        .arg("--exec-root")
        .arg(&exec)
        .arg("--pidfile")
        .arg(&pid);
    command.arg("-H").arg(format!("unix://{}", socket.display()));
    let daemon = Daemon::spawn(command, &place).ready();
    assert!(data.join("engine-id").exists() && exec.join("keeper").exists() && pid.exists());
    assert_eq!(crate::harness::ping(&socket).unwrap(), "OK");
    assert!(!place.socket().exists() && !place.path("home/.local").exists());
    assert!(daemon.stop().success());
}

#[test]
fn the_old_names_and_the_old_command_line_work() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let link = place.path("dockerd-rootless.sh");
    symlink(place.program(), &link).unwrap();
    let mut command = place.command(&link);
    command.args(["--experimental", "--storage-driver", "vfs"]);
    command.env("DOCKERD_ROOTLESS_ROOTLESSKIT_FLAGS", "-p 0.0.0.0:2376:2376/tcp");
    let mut daemon = Daemon::spawn(command, &place).ready();
    assert!(daemon.said("DOCKERD_ROOTLESS_ROOTLESSKIT_FLAGS has no effect"));
    let words = arguments(daemon.server());
    assert!(
        words[0].ends_with("dockerd-rootless.sh"),
        "ps aux | grep dockerd: {words:?}"
    );
    assert_eq!(words[2..5], ["--experimental", "--storage-driver", "vfs"]);
    assert_eq!(children(daemon.pid()).len(), 2);
    assert!(daemon.stop().success());
}

#[test]
fn the_setup_tool_checks_and_admits_what_it_cannot_do() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let link = place.path("dockerd-rootless-setuptool.sh");
    symlink(place.program(), &link).unwrap();
    let run = |argument: &str| {
        place
            .command(&link)
            .arg(argument)
            .stdout(Stdio::piped())
            .output()
            .unwrap()
    };
    let output = run("check");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "[INFO] Requirements are satisfied\n"
    );
    for command in ["install", "uninstall", "nsenter"] {
        let output = run(command);
        assert!(!output.status.success());
        assert!(
            String::from_utf8(output.stderr)
                .unwrap()
                .contains("not available in this version")
        );
    }
}
