//! File systems for tests: btrfs in a file, mounted by root in a mount namespace that is gone with the tests, whatever
//! becomes of them. A test binary's run as root starts itself below [`outer`], as an unprivileged user and once more as
//! root; its tests then find the disks by their environment variables.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::support::userns;

/// A btrfs mounted with `user_subvol_rm_allowed`.
pub(crate) const BTRFS: &str = "SKIFF_TEST_BTRFS";
/// One without.
pub(crate) const BTRFS_PLAIN: &str = "SKIFF_TEST_BTRFS_PLAIN";

const AS_ROOT: &str = "SKIFF_TEST_AS_ROOT_ON_DISKS";

const PREPARE: &str = r#"
scratch=$1 owner=$2
shift 2
for kind in rm plain; do
  truncate -s 1G "$scratch/$kind.img"
  mkfs.btrfs -q "$scratch/$kind.img" >/dev/null
  mkdir "$scratch/$kind"
done
mount -o loop,user_subvol_rm_allowed "$scratch/rm.img" "$scratch/rm"
mount -o loop "$scratch/plain.img" "$scratch/plain"
chown "$owner" "$scratch/rm" "$scratch/plain"
export SKIFF_TEST_BTRFS="$scratch/rm" SKIFF_TEST_BTRFS_PLAIN="$scratch/plain"
exec "$@"
"#;

/// Whether this process runs below one of the functions here, and so has the disks. If not, they run it.
pub(crate) fn again() -> bool {
    let again = userns::inside() || std::env::var_os(AS_ROOT).is_some();
    if !again {
        println!("left to the runs with disks");
    }
    again
}

/// The directory of a disk.
pub(crate) fn disk(variable: &str) -> PathBuf {
    let found = std::env::var_os(variable).map(PathBuf::from);
    found.unwrap_or_else(|| panic!("{variable} names no disk here"))
}

/// The command that prepares the disks in `scratch` and runs what follows.
fn outer(scratch: &Path, owner: &str) -> Vec<String> {
    let words = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "--",
        "sh",
        "-euc",
        PREPARE,
        "disks",
        scratch.to_str().unwrap(),
        owner,
    ];
    words.map(str::to_owned).to_vec()
}

fn scratch() -> tempfile::TempDir {
    let scratch = tempfile::Builder::new()
        .prefix("skiff-disks-")
        .tempdir_in("/tmp")
        .unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(scratch.path(), open).unwrap();
    scratch
}

/// Runs the tests whose names contain `filter` as an unprivileged user inside a user namespace, with disks of that user's.
pub(crate) fn in_a_user_namespace(filter: &str) {
    if again() {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        assert!(
            std::env::var_os("SKIFF_TEST_ALLOW_SKIP").is_some_and(|v| v == "1"),
            "the tests need root to mount a btrfs; SKIFF_TEST_ALLOW_SKIP=1 runs the others"
        );
        println!("SKIP everything on btrfs: only root can mount one");
        return userns::rerun_below(&[], &[filter]);
    }
    let scratch = scratch();
    userns::rerun_below(&outer(scratch.path(), userns::USER), &[filter]);
}

/// Runs the tests whose names contain `filter` as root, with disks.
pub(crate) fn as_root(filter: &str) {
    if again() {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        println!("left to a run as root");
        return;
    }
    let scratch = scratch();
    let words = outer(scratch.path(), "root");
    let output = Command::new(&words[0])
        .args(&words[1..])
        .arg(std::env::current_exe().unwrap())
        .args(["--test-threads=2", filter])
        .env(AS_ROOT, "1")
        .env_remove("NEXTEST")
        .env_remove("NEXTEST_EXECUTION_MODE")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "tests fail: {}", output.status);
    assert!(
        !text.contains("running 0 tests") && text.contains(" passed"),
        "no test ran"
    );
}
