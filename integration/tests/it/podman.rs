//! Our FUSE overlay as Podman's `mount_program`: another engine, with its own idea of how to call such a program, builds
//! its containers on it as an ordinary user.

use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::harness::{Image, Layer, Owner, eventually, is_root, require};

/// Podman with a store of its own below a temporary directory.
struct Podman {
    owner: Owner,
    home: tempfile::TempDir,
}

impl Podman {
    fn new() -> Self {
        let owner = Owner::next_free();
        let home = tempfile::Builder::new()
            .prefix("skiff-podman-")
            .tempdir()
            .unwrap();
        let this = Self { owner, home };
        fs::create_dir(this.path("run")).unwrap();
        // Called by this name, the program is the file system.
        let program = std::env::var("SKIFF_TEST_DAEMON")
            .expect("SKIFF_TEST_DAEMON names the program: `make integration`");
        symlink(program, this.path("fuse-overlayfs")).unwrap();
        for path in [this.home.path().to_owned(), this.path("run")] {
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
            if is_root() {
                chown(&path, Some(this.owner.uid), Some(this.owner.gid)).unwrap();
            }
        }
        this
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn output(&self, words: &[&str]) -> Output {
        let inner = self.owner.command("podman");
        // crun refuses a machine with both versions of cgroups, so that this test shows it one. Podman keeps the mount
        // namespace of its first call for all later ones.
        let mut command = if is_root() {
            let mut command = Command::new("unshare");
            let script = "mount --make-rshared / && mount -t cgroup2 none /sys/fs/cgroup && exec \"$@\"";
            command.args(["--mount", "--propagation", "slave", "sh", "-c", script, "sh"]);
            command.arg(inner.get_program()).args(inner.get_args());
            command.env_clear();
            for (name, value) in inner.get_envs() {
                command.env(name, value.unwrap_or_default());
            }
            command
        } else {
            inner
        };
        let show = |path: &Path| path.display().to_string();
        command
            .env("HOME", self.home.path())
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .current_dir(self.home.path())
            .args([
                "--root",
                &show(&self.path("store")),
                "--runroot",
                &show(&self.path("run/podman")),
            ])
            .args(["--storage-driver", "overlay", "--storage-opt"])
            .arg(format!(
                "overlay.mount_program={}",
                show(&self.path("fuse-overlayfs"))
            ))
            .args(["--cgroup-manager", "cgroupfs", "--events-backend", "file"])
            .args(words)
            .output()
            .unwrap()
    }

    /// Standard output of a command that has to succeed.
    fn run(&self, words: &[&str]) -> String {
        let output = self.output(words);
        assert!(
            output.status.success(),
            "podman {words:?}: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Pids of our program serving this store.
    fn servers(&self) -> Vec<i32> {
        let home = self.home.path().display().to_string();
        self.owner
            .processes()
            .into_iter()
            .filter(|process| !process.zombie)
            .map(|process| process.pid)
            .filter(|pid| {
                fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
                    let line = String::from_utf8_lossy(&line);
                    line.contains("upperdir=") && line.contains(&home)
                })
            })
            .collect()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.output(&["rm", "-f", "-t", "0", "-a"]);
        // The process that holds Podman's namespaces.
        if let Ok(text) = fs::read_to_string(self.path("run/libpod/tmp/pause.pid"))
            && let Ok(pid) = text.trim().parse()
        {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        for pid in self.servers() {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

fn installed(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
}

#[test]
fn podman_runs_its_containers_on_our_file_system() {
    require!(installed("podman"), "podman is missing");
    require!(
        std::env::var_os("SKIFF_TEST_SOCKET").is_none(),
        "needs our own program"
    );
    let image = Image::busybox()
        .layer(
            Layer::new()
                .dir("d")
                .file("d/kept", b"kept")
                .file("d/removed", b"removed"),
        )
        .layer(Layer::new().file("d/changed", b"lower"))
        .push("podman-mounts");
    let podman = Podman::new();
    podman.run(&["pull", "-q", "--tls-verify=false", &image]);
    let options = ["--cgroups=disabled", "--network", "none"];
    let script = "cat /proc/mounts | head -n 1; rm /d/removed; echo upper >/d/changed; echo new >/d/new; \
                  ln /d/new /d/linked; mkdir /d/e; touch /d/e/f; mv /d/e /d/g; chown 5:6 /d/kept; chmod 4711 /d/kept; \
                  ls /d; cat /d/changed; stat -c '%a %u:%g' /d/kept";
    let run = [
        &["run", "--name", "one"][..],
        &options,
        &[&image, "sh", "-c", script],
    ]
    .concat();
    let seen = podman.run(&run);
    let mut lines = seen.lines();
    let mount = lines.next().unwrap_or_default();
    assert!(mount.contains(" / fuse"), "the root is not on FUSE: {mount}");
    let rest: Vec<_> = lines.collect();
    assert_eq!(
        rest,
        ["changed", "g", "kept", "linked", "new", "upper", "4711 5:6"]
    );

    // What the container changed, as Podman reads it off the upper directory.
    let mut changes: Vec<_> = podman.run(&["diff", "one"]).lines().map(str::to_owned).collect();
    changes.sort();
    let of_ours: Vec<_> = changes
        .iter()
        .filter(|line| line.contains("/d"))
        .map(String::as_str)
        .collect();
    let expected = [
        "A /d/g",
        "A /d/g/f",
        "A /d/linked",
        "A /d/new",
        "C /d",
        "C /d/changed",
        "C /d/kept",
        "D /d/removed",
    ];
    assert_eq!(of_ours, expected);

    podman.run(&["commit", "-q", "one", "localhost/committed"]);
    let script = "test ! -e /d/removed && cat /d/changed /d/linked && stat -c '%a %u:%g %h' /d/kept /d/new";
    let run = [
        &["run", "--rm"][..],
        &options,
        &["localhost/committed", "sh", "-c", script],
    ]
    .concat();
    assert_eq!(podman.run(&run), "upper\nnew\n4711 5:6 1\n644 0:0 2");

    // A container that runs has one server; when it is removed, none is left.
    let run = [
        &["run", "-d", "--name", "two"][..],
        &options,
        &[&image, "sleep", "1000"],
    ]
    .concat();
    podman.run(&run);
    assert_eq!(podman.servers().len(), 1);
    assert_eq!(podman.run(&["exec", "two", "cat", "/d/kept"]), "kept");
    podman.run(&["rm", "-f", "-t", "0", "two"]);
    podman.run(&["rm", "one"]);
    eventually("the servers end", crate::harness::PATIENCE, || {
        podman.servers().is_empty().then_some(())
    });
}
