//! Runs the tests of a binary once more as an unprivileged user inside a user namespace.
//!
//! Started as root, a test binary runs its tests with real root's powers; its test `in_a_user_namespace` then copies
//! the binary to where an ordinary user can read it and starts it again as that user, below `unshare` with that user's
//! subordinate ids. Started as an ordinary user, the tests are left to that second run. Where no second run is
//! possible the test fails, unless `SKIFF_TEST_ALLOW_SKIP=1` says that a skip will do.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Output};

/// The user that is made when the tests run as root.
pub(crate) const USER: &str = "skiff-drivers";
const INSIDE: &str = "SKIFF_TEST_IN_USER_NAMESPACE";
const ALLOW_SKIP: &str = "SKIFF_TEST_ALLOW_SKIP";

/// Whether this process runs below [`rerun`].
pub(crate) fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Whether tests that need the powers of (some) root can run in this process. If not, [`rerun`] runs them.
pub(crate) fn powers() -> bool {
    let powers = rustix::process::geteuid().is_root();
    if !powers {
        println!("left to the run inside a user namespace");
    }
    powers
}

/// Runs all tests of this binary but `this_test` inside a user namespace.
pub(crate) fn rerun(this_test: &str) {
    rerun_below(&[], &["--exact", "--skip", this_test]);
}

/// Runs some tests (`which` is for the test program) below a command of root's that prepares something and then runs what
/// follows it.
pub(crate) fn rerun_below(outer: &[String], which: &[&str]) {
    if inside() {
        return;
    }
    let root = rustix::process::geteuid().is_root();
    let scratch = tempfile::Builder::new()
        .prefix("skiff-userns-")
        .tempdir_in("/tmp")
        .unwrap();
    let own = scratch.path().join("tmp");
    fs::set_permissions(scratch.path(), Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(&own).unwrap();
    let binary = scratch.path().join("tests");
    fs::copy(std::env::current_exe().unwrap(), &binary).unwrap();
    fs::set_permissions(&binary, Permissions::from_mode(0o755)).unwrap();
    if root {
        let user = user();
        chown(&own, Some(user), Some(user)).unwrap();
    }

    let trial = enter(&[], root, &own).arg("true").output();
    if let Some(reason) = failure(trial) {
        let text = format!("no user namespace for an unprivileged user here: {reason}");
        assert!(
            std::env::var_os(ALLOW_SKIP).is_some_and(|v| v == "1"),
            "{text}; {ALLOW_SKIP}=1 skips this"
        );
        println!("SKIP {which:?}: {text}");
        return;
    }
    let output = enter(outer, root, &own)
        .arg(&binary)
        .arg("--test-threads=2")
        .args(which)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(
        output.status.success(),
        "tests fail inside a user namespace: {}",
        output.status
    );
    let passed = text
        .split(" passed")
        .next()
        .and_then(|t| t.rsplit(' ').next())
        .and_then(|n| n.parse::<u32>().ok());
    assert!(
        passed.is_some_and(|n| n > 0),
        "no test ran inside the user namespace"
    );
}

/// The command that becomes root of a new user and mount namespace; what to run there is to be appended.
fn enter(outer: &[String], root: bool, tmp: &Path) -> Command {
    let unshare = [
        "--user",
        "--map-auto",
        "--map-root-user",
        "--mount",
        "--propagation",
        "private",
        "--",
    ];
    let as_user = [
        "setpriv",
        "--reuid",
        USER,
        "--regid",
        USER,
        "--clear-groups",
        "--",
    ];
    let mut words: Vec<&str> = outer.iter().map(String::as_str).collect();
    if root {
        words.extend(as_user);
    }
    words.push("unshare");
    words.extend(unshare);
    let mut command = Command::new(words[0]);
    command
        .args(&words[1..])
        .env(INSIDE, "1")
        .env("TMPDIR", tmp)
        .env("HOME", tmp)
        .current_dir(tmp);
    // The libtest of the second run is not nextest's child.
    command.env_remove("NEXTEST").env_remove("NEXTEST_EXECUTION_MODE");
    command
}

fn failure(output: std::io::Result<Output>) -> Option<String> {
    match output {
        Err(error) => Some(error.to_string()),
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!(
            "{}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        )),
    }
}

/// The test user's id; made with subordinate ids if there is none.
fn user() -> u32 {
    // Several test processes may come here at once, and useradd does not wait for its lock.
    let lock = File::create("/tmp/skiff-test-user.lock").unwrap();
    lock.lock().unwrap();
    let id = || {
        let output = Command::new("id").args(["-u", USER]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().parse::<u32>().ok()
    };
    id().unwrap_or_else(|| {
        let made = Command::new("useradd")
            .args(["--create-home", "--shell", "/bin/sh", USER])
            .output()
            .unwrap();
        assert!(
            made.status.success(),
            "useradd: {}",
            String::from_utf8_lossy(&made.stderr)
        );
        id().unwrap()
    })
}
