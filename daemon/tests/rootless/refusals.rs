//! What keeps it from starting, in the texts that people search for.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::{Daemon, Place, eventually, possible, user_without_subids};

fn refused(place: &Place, arguments: &[&str]) -> String {
    let output = place.output(arguments);
    assert!(!output.status.success(), "{arguments:?} must fail");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn without_a_runtime_directory_it_says_where_to_make_one() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let output = place.skiffd(&[]).env_remove("XDG_RUNTIME_DIR").output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(text.starts_with("could not get XDG_RUNTIME_DIR"), "{text}");
    assert!(
        text.contains("~/.docker/run") && !text.contains("mkdir /tmp"),
        "{text}"
    );

    let output = place
        .skiffd(&[])
        .env("XDG_RUNTIME_DIR", "/proc/nothing")
        .output()
        .unwrap();
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .starts_with("could not get XDG_RUNTIME_DIR: /proc/nothing: ")
    );
}

#[test]
fn somebody_elses_runtime_directory_is_refused() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let output = place
        .skiffd(&[])
        .env("XDG_RUNTIME_DIR", place.path(""))
        .output()
        .unwrap();
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("belongs to user 0, not to you")
    );
}

#[test]
fn without_a_home_it_says_so() {
    if !possible() {
        return;
    }
    let place = Place::new();
    for home in [None, Some("/nowhere")] {
        let mut command = place.skiffd(&[]);
        match home {
            None => command.env_remove("HOME"),
            Some(home) => command.env("HOME", home),
        };
        let output = command.output().unwrap();
        assert!(!output.status.success());
        assert!(
            String::from_utf8(output.stderr)
                .unwrap()
                .starts_with("could not get HOME")
        );
    }
}

#[test]
fn without_subordinate_ids_it_warns_and_maps_one_id() {
    if !possible() {
        return;
    }
    let place = Place::of(user_without_subids());
    let mut daemon = place.start();
    let expected = format!(
        "No subuid ranges found for user {} (\\\"{}\\\")",
        place.user.uid, place.user.name
    );
    assert!(daemon.said(&expected), "the warning names the user");
    assert!(
        daemon
            .said("[rootlesskit:parent] error: failed to setup UID/GID map: failed to compute uid/gid map: ")
    );
    assert!(daemon.said(">> /etc/subuid"), "the remedy");
    let map = fs::read_to_string(format!("/proc/{}/uid_map", place.keeper())).unwrap();
    let words: Vec<_> = map.split_ascii_whitespace().map(str::to_owned).collect();
    assert_eq!(words, ["0", &place.user.uid.to_string(), "1"]);
    assert_eq!(place.ping().unwrap(), "OK");
    assert!(daemon.stop().success());
}

#[test]
fn without_newuidmap_it_names_the_package() {
    if !possible() || Path::new("/usr/sbin/newuidmap").exists() {
        return;
    }
    let place = Place::new();
    // A mount namespace without the program is the surest way to have it not installed.
    let script = "mount --bind /dev/null /usr/bin/newuidmap && exec setpriv --reuid \"$1\" --regid \"$2\" --clear-groups \"$3\" -s vfs";
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", script, "sh"])
        .args([place.user.uid.to_string(), place.user.gid.to_string()])
        .arg(place.program())
        .env("HOME", place.path("home"))
        .env("XDG_RUNTIME_DIR", place.path("run"))
        .stdin(Stdio::null());
    let mut daemon = Daemon::spawn(command, &place).ready();
    assert!(daemon.said("newuidmap\\\": executable file not found in $PATH"));
    assert!(daemon.said("package uidmap"));
    assert!(daemon.stop().success());
}

#[test]
fn without_user_namespaces_it_names_the_setting() {
    if !possible() {
        return;
    }
    let place = Place::new();
    // The limit is one of each user namespace: in one of its own, a test may set it to nothing.
    let inner = "echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --reuid \"$1\" --regid \"$2\" --clear-groups \"$3\"";
    let outer = "read go; exec sh -c \"$0\" sh \"$@\"";
    let mut child = Command::new("unshare")
        .args(["--user", "sh", "-c", outer, inner])
        .args([place.user.uid.to_string(), place.user.gid.to_string()])
        .arg(place.program())
        .env("HOME", place.path("home"))
        .env("XDG_RUNTIME_DIR", place.path("run"))
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id();
    let own = fs::read_link("/proc/self/ns/user").unwrap();
    eventually("the namespace", || {
        fs::read_link(format!("/proc/{pid}/ns/user")).is_ok_and(|ns| ns != own)
    });
    for file in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{pid}/{file}"), "0 0 65536\n").unwrap();
    }
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(
        text.contains(
            "[rootlesskit:parent] error: failed to start the child: fork/exec /proc/self/exe: no space left on device"
        ),
        "{text}"
    );
    assert!(
        text.contains("user.max_user_namespaces is 0") && text.contains("echo 28633 > "),
        "{text}"
    );
    assert!(!place.pidfile().exists(), "nothing is left behind");
}

#[test]
fn a_second_daemon_is_refused_and_the_first_goes_on() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let daemon = place.start();
    let text = refused(&place, &["--storage-driver", "vfs"]);
    assert!(
        text.contains(&format!("process with PID {} is still running", daemon.pid())),
        "{text}"
    );

    let other = place.directory("other");
    let exec = other.join("exec");
    let text = refused(
        &place,
        &["--exec-root", exec.to_str().unwrap(), "-H", "unix:///dev/null/x"],
    );
    assert!(
        text.contains("data root") && text.contains("is still running"),
        "{text}"
    );
    let data = other.join("data");
    let text = refused(&place, &["--data-root", data.to_str().unwrap()]);
    assert!(
        text.contains("exec root") && text.contains("is still running"),
        "{text}"
    );

    assert_eq!(place.ping().unwrap(), "OK");
    assert!(daemon.stop().success());
}

#[test]
fn a_socket_that_answers_is_not_taken_away() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let daemon = place.start();
    let other = place.directory("other");
    let [data, exec, pid] = ["data", "exec", "pid"].map(|name| other.join(name).to_str().unwrap().to_owned());
    let text = refused(
        &place,
        &[
            "--data-root",
            &data,
            "--exec-root",
            &exec,
            "--pidfile",
            &pid,
            "-s",
            "vfs",
        ],
    );
    assert!(text.contains("another process listens there"), "{text}");
    assert!(
        !Path::new(&pid).exists(),
        "the keeper of the failed start is gone"
    );
    assert_eq!(place.ping().unwrap(), "OK");
    assert!(daemon.stop().success());
}

#[test]
fn configuration_errors_are_dockerds() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let directory = place.path("home/.config/docker");
    fs::create_dir_all(&directory).unwrap();
    let file = directory.join("daemon.json");
    for (content, flags, expected) in [
        (
            r#"{"debug": true}"#,
            &["-D"][..],
            "the following directives are specified both as a flag and in the configuration file: debug: (from flag: true, from file: true)",
        ),
        (
            r#"{"x": 1}"#,
            &[],
            "the following directives don't match any configuration option: x",
        ),
        (
            r#"{"userns-remap": "default"}"#,
            &[],
            "\"userns-remap\": not supported",
        ),
    ] {
        fs::write(&file, content).unwrap();
        let text = refused(&place, flags);
        assert_eq!(
            text.lines().next().unwrap().split(expected).next().unwrap(),
            format!(
                "unable to configure the Docker daemon with file {}: ",
                file.display()
            ),
            "{text}"
        );
    }
    fs::write(
        &file,
        r#"{"exec-opts":["native.cgroupdriver=cgroupfs"],"cgroup-parent":"/actions_job"}"#,
    )
    .unwrap();
    let output = place.output(&["--validate"]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "configuration OK\n");

    let text = refused(&place, &["--user-remap=default"]);
    assert!(text.contains("--userns-remap"), "{text}");
    assert!(refused(&place, &["--config-file", "/nowhere.json"]).contains("/nowhere.json"));
}
