//! What service managers expect: readiness, passed sockets; and API sockets over TCP.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};

use command_fds::{CommandFdExt, FdMapping};

use crate::harness::{Daemon, PATIENCE, Place, ping, possible};

#[test]
fn readiness_is_notified_when_the_socket_answers() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let path = place.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = place.skiffd(&["--storage-driver", "vfs"]);
    command.env("NOTIFY_SOCKET", &path);
    let daemon = Daemon::spawn(command, &place);
    let mut buffer = [0; 256];
    let mut receive = || {
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    assert!(receive().contains("READY=1"));
    assert_eq!(place.ping().unwrap(), "OK");
    assert!(daemon.stop().success());
    assert!(receive().contains("STOPPING=1"));
}

#[test]
fn a_socket_from_the_service_manager_is_served() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let path = place.path("passed.sock");
    let listener = UnixListener::bind(&path).unwrap();
    // LISTEN_PID must be the very process, which a shell can say before it becomes the daemon.
    let mut command = place.command("/bin/sh");
    command
        .args(["-c", "LISTEN_PID=$$ exec \"$0\" -H fd:// -s vfs"])
        .arg(place.program());
    command.env("LISTEN_FDS", "1");
    command
        .fd_mappings(vec![FdMapping {
            parent_fd: listener.into(),
            child_fd: 3,
        }])
        .unwrap();
    let daemon = Daemon::spawn(command, &place).ready();
    assert_eq!(ping(&path).unwrap(), "OK");
    assert!(daemon.stop().success());
    assert!(path.exists(), "the file belongs to the service manager");
}

#[test]
fn fd_without_sockets_is_refused() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let output = place.output(&["-H", "fd://", "-s", "vfs"]);
    assert!(!output.status.success());
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("no sockets found via socket activation")
    );
    assert!(!place.pidfile().exists());
}

#[test]
fn tcp_is_served_with_a_warning() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let mut daemon = Daemon::spawn(place.skiffd(&["-H", "tcp://127.0.0.1:0", "-s", "vfs"]), &place);
    daemon.until("[DEPRECATION NOTICE]: API is accessible on http://127.0.0.1:0 without encryption");
    let line = daemon.until("API listen on ");
    let address = line
        .split("API listen on ")
        .nth(1)
        .unwrap()
        .trim_end_matches('"')
        .to_owned();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
        .write_all(b"GET /_ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("OK"), "{answer}");
    assert!(daemon.stop().success());
}
