//! `docker-init` from outside: exit codes, signals, orphans.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn init(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skiffd"));
    command.arg0("/sbin/docker-init").arg("--").args(words);
    command
}

fn code(words: &[&str]) -> Option<i32> {
    init(words).stderr(Stdio::null()).status().unwrap().code()
}

/// Starts a script and waits for its first line.
fn started(script: &str) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = init(&["sh", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    (child, lines)
}

#[test]
fn it_ends_as_the_command_ends() {
    assert_eq!(code(&["true"]), Some(0));
    assert_eq!(code(&["sh", "-c", "exit 42"]), Some(42));
    assert_eq!(code(&["sh", "-c", "kill -KILL $$"]), Some(137));
    assert_eq!(code(&["/nowhere/program"]), Some(127));
    assert_eq!(code(&["/etc/passwd"]), Some(126));
    assert_eq!(code(&[]), Some(1));
}

#[test]
fn signals_reach_the_command_which_has_none_blocked() {
    let script = "sleep 1000 & trap 'kill $!; exit 7' TERM; \
                  grep -q 'SigBlk:.0000000000000000' /proc/self/status && echo up; wait";
    let (mut child, _lines) = started(script);
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(7));
}

#[test]
fn other_children_that_end_do_not_end_it() {
    let script = "(exit 3) & wait $!; echo up; read line; exit 5";
    let (mut child, _lines) = started(script);
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(5));
}
