//! Whose daemon it is. As root, each daemon gets a user of its own out of a small pool (`SKIFF_TEST_USERS`), locked while
//! the test runs: then every process with one of that user's ids is this daemon's, and what is left at the end is a leak.
//! As an ordinary user there is only oneself, so the tests take turns.

use std::fs::{self, File};
use std::process::Command;
use std::time::Duration;

use super::eventually;
use super::proc::{Process, processes};

/// An account, held until dropped.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Subordinate ids: first and count.
    subordinate: (u32, u32),
    _lock: File,
}

impl Owner {
    /// The next free account.
    pub(crate) fn next_free() -> Self {
        let names = match std::env::var("SKIFF_TEST_USERS") {
            Ok(names) => names.split_whitespace().map(str::to_owned).collect(),
            Err(_) => {
                assert!(
                    !is_root(),
                    "as root, SKIFF_TEST_USERS must name accounts: run the tests by `make integration`"
                );
                vec![std::env::var("USER").unwrap()]
            }
        };
        let directory = std::env::temp_dir().join(format!("skiff-test-locks-{}", nix::unistd::getuid()));
        fs::create_dir_all(&directory).unwrap();
        let files: Vec<_> = names
            .iter()
            .map(|name| (name, File::create(directory.join(name)).unwrap()))
            .collect();
        // Another test frees one when it ends; the limit only says that something hangs.
        let (name, lock) = eventually("a free account", Duration::from_secs(600), || {
            let (name, file) = files.iter().find(|(_, file)| file.try_lock().is_ok())?;
            Some(((*name).clone(), file.try_clone().unwrap()))
        });
        let owner = Self::named(&name, lock);
        owner.kill_all(); // what a test left that was itself killed
        owner
    }

    /// An account that nobody has registered: no name, no home, no subordinate ids.
    pub(crate) fn without_subordinate_ids() -> Self {
        let id = 3_111_222_333; // far from any range
        let path = std::env::temp_dir().join("skiff-test-lock-nobody");
        let lock = File::create(path).unwrap();
        lock.lock().unwrap();
        Self {
            name: String::new(),
            uid: id,
            gid: id,
            subordinate: (0, 0),
            _lock: lock,
        }
    }

    fn named(name: &str, lock: File) -> Self {
        let passwd = fs::read_to_string("/etc/passwd").unwrap();
        let fields = passwd
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|f| f[0] == name);
        let fields = fields.unwrap_or_else(|| panic!("no user {name}"));
        let (uid, gid) = (fields[2].parse().unwrap(), fields[3].parse().unwrap());
        let ranges = fs::read_to_string("/etc/subuid").unwrap_or_default();
        let range = ranges
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|f| f[0] == name);
        let subordinate = range.map_or((0, 0), |f| (f[1].parse().unwrap(), f[2].parse().unwrap()));
        Self {
            name: name.to_owned(),
            uid,
            gid,
            subordinate,
            _lock: lock,
        }
    }

    /// A command that runs as this user, in an environment of nothing but a search path.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        // The kernel ends the process when the test that started it is gone, however it went.
        command.args(["--pdeathsig", "TERM"]);
        if is_root() {
            command.args([
                "--reuid",
                &self.uid.to_string(),
                "--regid",
                &self.gid.to_string(),
                "--clear-groups",
            ]);
            command.arg("--inh-caps=-all");
        }
        command.args(["--", program]);
        command.env_clear().env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        );
        command.current_dir("/");
        command
    }

    /// What runs as this user or as one of its subordinate ids. For an ordinary user that is only the latter: the rest
    /// of one's processes are nobody's business here.
    pub(crate) fn processes(&self) -> Vec<Process> {
        let (first, count) = self.subordinate;
        let mine = |uid| (first..first + count).contains(&uid) || (is_root() && uid == self.uid);
        processes()
            .into_iter()
            .filter(|process| mine(process.uid))
            .collect()
    }

    /// Ends everything of a pool account. Only the guard calls it, at the very end (and before
    /// the first use); one's own account is left alone.
    pub(super) fn kill_all(&self) {
        if !is_root() {
            return;
        }
        eventually("the user's processes end", Duration::from_secs(20), || {
            let left: Vec<_> = self
                .processes()
                .into_iter()
                .filter(|process| !process.zombie)
                .collect();
            for process in &left {
                let pid = nix::unistd::Pid::from_raw(process.pid);
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
            left.is_empty().then_some(())
        });
    }
}

/// Whether the tests run as root (then they may mount, and start daemons as other users).
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
