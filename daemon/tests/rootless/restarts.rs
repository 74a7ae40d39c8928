//! `kill -9` of any of the three processes, and what a restart finds.

use std::fs;

use nix::sys::signal::Signal;
use skiff_sys::identity::ProcessIdentity;

use crate::harness::{Daemon, Place, eventually, namespace, possible, signal_pid, wait_for_end};

/// The namespaces of the keeper, and a mark in its mount namespace that only the very same one has.
fn namespaces(place: &Place) -> [std::path::PathBuf; 4] {
    ["user", "mnt", "net", "cgroup"].map(|kind| namespace(place.keeper(), kind))
}

#[test]
fn a_killed_parent_takes_the_daemon_along_and_the_next_start_adopts() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let mut first = place.start();
    let before = namespaces(&place);
    let keeper = ProcessIdentity::of(place.keeper()).unwrap();
    let server = ProcessIdentity::of(first.server()).ok();
    first.signal(Signal::SIGKILL);
    first.wait();
    wait_for_end(&server);
    assert!(keeper.is_alive().unwrap(), "the keeper stays");

    let mut second = place.start();
    assert!(second.said("found the namespaces of an earlier run"));
    assert_eq!(namespaces(&place), before);
    assert_eq!(place.ping().unwrap(), "OK");
    wait_for_end(&Some(keeper));
    assert!(second.stop().success());
    assert!(!place.pidfile().exists());
}

#[test]
fn a_start_right_after_the_kill_waits_for_the_dying_daemon() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let mut daemon = place.start();
    for _ in 0..5 {
        daemon.signal(Signal::SIGKILL);
        // At once: the old server may still hold the locks and the socket.
        let next = Daemon::spawn(place.skiffd(&["--storage-driver", "vfs"]), &place).ready();
        daemon.wait();
        daemon = next;
        assert_eq!(place.ping().unwrap(), "OK");
    }
    assert!(daemon.stop().success());
}

#[test]
fn a_killed_daemon_ends_the_parent_with_its_status_and_loses_nothing() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let mut first = place.start();
    let before = namespaces(&place);
    signal_pid(first.server(), Signal::SIGKILL);
    assert_eq!(first.wait().code(), Some(128 + 9));
    assert!(first.said("the daemon ended unexpectedly"));

    let second = place.start();
    assert_eq!(namespaces(&place), before);
    assert_eq!(place.ping().unwrap(), "OK");
    assert!(second.stop().success());
}

#[test]
fn a_killed_keeper_is_replaced_while_the_daemon_goes_on() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let mut daemon = place.start();
    let before = namespaces(&place);
    let server = daemon.server();
    for _ in 0..3 {
        let keeper = place.keeper();
        signal_pid(keeper, Signal::SIGKILL);
        daemon.until("another one took its place");
        eventually("another pid in docker.pid", || place.keeper() != keeper);
        assert_eq!(namespaces(&place), before);
    }
    assert_eq!(daemon.server(), server);
    assert_eq!(place.ping().unwrap(), "OK");
    assert!(daemon.stop().success());
    assert!(!place.pidfile().exists());
}

#[test]
fn when_everything_was_killed_everything_is_new() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let mut first = place.start();
    let server = ProcessIdentity::of(first.server()).ok();
    let keeper = place.keeper();
    let keeper_process = ProcessIdentity::of(keeper).ok();
    first.signal(Signal::SIGKILL);
    signal_pid(keeper, Signal::SIGKILL);
    first.wait();
    wait_for_end(&server);
    wait_for_end(&keeper_process);

    let mut second = place.start();
    assert!(!second.said("found the namespaces of an earlier run"));
    assert_ne!(place.keeper(), keeper);
    assert_eq!(place.ping().unwrap(), "OK");
    assert!(second.stop().success());
}

#[test]
fn an_orderly_stop_leaves_no_process_and_no_file_that_says_otherwise() {
    if !possible() {
        return;
    }
    let place = Place::new();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut daemon = place.start();
        let keeper = ProcessIdentity::of(place.keeper()).ok();
        daemon.signal(signal);
        assert!(daemon.wait().success());
        assert!(daemon.said("Daemon shutdown complete"));
        wait_for_end(&keeper);
        assert!(!place.pidfile().exists() && !place.socket().exists());
    }
}

#[test]
fn a_signal_to_the_pid_in_docker_pid_means_the_daemon() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let mut daemon = place.start();
    signal_pid(place.keeper(), Signal::SIGHUP);
    daemon.until("Got signal to reload configuration");
    signal_pid(place.keeper(), Signal::SIGTERM);
    assert!(daemon.wait().success());
}

#[test]
fn a_record_of_a_dead_keeper_is_ignored() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let exec_root = place.directory("run/docker");
    let init = ProcessIdentity::of(1).unwrap();
    for record in [
        // Somebody else's process, a reused pid, nonsense.
        init.to_string(),
        ProcessIdentity {
            start_time: 1,
            ..ProcessIdentity::current().unwrap()
        }
        .to_string(),
        "?".to_owned(),
    ] {
        fs::write(exec_root.join("keeper"), record).unwrap();
        let mut daemon = place.start();
        assert!(!daemon.said("found the namespaces of an earlier run"));
        assert!(daemon.stop().success());
    }
}

#[test]
fn a_reload_changes_what_is_logged() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let directory = place.path("home/.config/docker");
    fs::create_dir_all(&directory).unwrap();
    let file = directory.join("daemon.json");
    fs::write(&file, r#"{"debug": false}"#).unwrap();
    let mut daemon = place.start();
    fs::write(&file, r#"{"debug": tru}"#).unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.until("level=error msg=\"unable to configure the Docker daemon with file");
    fs::write(&file, r#"{"debug": true}"#).unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.until("Reloaded configuration: the log level is Debug");
    assert_eq!(place.ping().unwrap(), "OK");
    daemon.until("level=debug");
    assert!(daemon.stop().success());
}
