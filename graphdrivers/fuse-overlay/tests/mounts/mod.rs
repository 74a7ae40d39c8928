//! Overlay mounts for the tests: by the kernel, or by the program under test.
//!
//! ```text
//! scratch/<name>/bottom  top   lower layers; `top` lies on `bottom`
//!                upper work    writable
//!                merged        mount point
//! ```
//!
//! Both kinds take the same directories, so that one can mount what the other wrote. The program under test is ours;
//! `SKIFF_TEST_FUSE_OVERLAYFS=PROGRAM` names another one with the same command line (a peer, to see what the tests say
//! about it), and `=kernel` puts the kernel in its place (to see that the expectations are right; tests of the serving
//! process then fail).

use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Names another program than ours.
const PROGRAM: &str = "SKIFF_TEST_FUSE_OVERLAYFS";
/// Arguments of a server that is this binary, between bytes that no path has.
const SERVE: &str = "SKIFF_TEST_FUSE_OVERLAYFS_SERVE";
const SEPARATOR: u8 = 0x1f;
/// In the place of the arguments: serve on threads of the process that uses the mount.
const SERVES_ITSELF: &str = "serves-itself";
/// How long a server may take to mount, or to end after it was unmounted. Long, because machines are loaded.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A directory of its own for a test, unmounted and removed at the end.
pub(crate) struct Scratch(tempfile::TempDir);

impl Scratch {
    pub(crate) fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("skiff-fuse-").tempdir().unwrap();
        fs::set_permissions(
            directory.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .unwrap();
        Self(directory)
    }

    /// The same in memory where that can hold overlays (a tmpfs with attributes, Linux 6.6): the kernel's overlay syncs
    /// every copied file, and a table of thousands would wait for the disk.
    pub(crate) fn in_memory() -> Self {
        let this = Self::new();
        mount(
            "tmpfs",
            this.path(),
            "tmpfs",
            MountFlags::empty(),
            Some(c"mode=755"),
        )
        .unwrap();
        if xattr::set(this.path(), "user.test", b"").is_err() {
            unmount(this.path(), UnmountFlags::empty()).unwrap();
        }
        this
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Layers below a new directory.
    pub(crate) fn layers(&self, name: &str) -> Layers {
        Layers::new(&self.path().join(name))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A failed test may leave mounts; a temporary directory cannot be removed below them.
        let Ok(table) = fs::read_to_string("/proc/self/mountinfo") else {
            return;
        };
        for point in table.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
            if Path::new(point).starts_with(self.path()) {
                let _ = unmount(point, UnmountFlags::DETACH);
            }
        }
    }
}

/// The directories of one overlay.
#[derive(Debug, Clone)]
pub(crate) struct Layers {
    pub(crate) bottom: PathBuf,
    pub(crate) top: PathBuf,
    pub(crate) upper: PathBuf,
    pub(crate) work: PathBuf,
    pub(crate) merged: PathBuf,
}

impl Layers {
    pub(crate) fn new(root: &Path) -> Self {
        let make = |name: &str| {
            let path = root.join(name);
            fs::create_dir_all(&path).unwrap();
            path
        };
        Self {
            bottom: make("bottom"),
            top: make("top"),
            upper: make("upper"),
            work: make("work"),
            merged: make("merged"),
        }
    }

    /// The same lower layers below another upper directory.
    pub(crate) fn with_upper(&self, root: &Path) -> Self {
        let other = Self::new(root);
        Self {
            bottom: self.bottom.clone(),
            top: self.top.clone(),
            ..other
        }
    }

    /// Mount options of a writable overlay.
    pub(crate) fn options(&self) -> String {
        format!(
            "lowerdir={}:{},upperdir={},workdir={}",
            self.top.display(),
            self.bottom.display(),
            self.upper.display(),
            self.work.display()
        )
    }

    /// Mounts by the kernel, in the format an unprivileged user can write.
    pub(crate) fn kernel(&self) -> Mounted {
        let options = CString::new(format!("{},userxattr", self.options())).unwrap();
        mount(
            "overlay",
            &self.merged,
            "overlay",
            MountFlags::empty(),
            Some(&*options),
        )
        .unwrap_or_else(|error| panic!("the kernel does not mount {options:?}: {error}"));
        Mounted {
            at: self.merged.clone(),
            server: None,
        }
    }

    /// Mounts by the program under test.
    pub(crate) fn ours(&self) -> Mounted {
        if std::env::var_os(PROGRAM).is_some_and(|program| program == "kernel") {
            return self.kernel();
        }
        self.ours_with("")
    }

    /// The same with more mount options, which begin with a comma.
    pub(crate) fn ours_with(&self, more: &str) -> Mounted {
        Mounted::by_program(&format!("{}{more}", self.options()), &self.merged)
    }
}

/// The program under test with these arguments: this very binary in the part of [`serve`], or what the environment names.
pub(crate) fn program<A: AsRef<OsStr>>(arguments: &[A]) -> Command {
    if let Some(program) = std::env::var_os(PROGRAM) {
        let mut command = Command::new(program);
        command.args(arguments);
        return command;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    // One test thread is the main thread, so that the process has no second one.
    command.args(["--exact", "server", "--nocapture", "--test-threads=1"]);
    let words: Vec<&[u8]> = arguments.iter().map(|word| word.as_ref().as_bytes()).collect();
    command.env(SERVE, OsStr::from_bytes(&words.join(&SEPARATOR)));
    command
}

/// The other side of [`program`]: does nothing in an ordinary run.
pub(crate) fn serve() {
    let Some(words) = std::env::var_os(SERVE) else {
        return;
    };
    let words: Vec<OsString> = words
        .as_bytes()
        .split(|byte| *byte == SEPARATOR)
        .map(|word| OsStr::from_bytes(word).to_owned())
        .collect();
    if let [word, options, at] = &words[..]
        && word == SERVES_ITSELF
    {
        use_what_it_serves(options, Path::new(at));
    }
    let status = skiff_fuse_overlay::program::run(&words, "test");
    std::process::exit(i32::from(status != ExitCode::SUCCESS));
}

/// Starts a process that uses, until it is killed, a mount that threads of its own serve. Returns when it is at it.
pub(crate) fn serving_itself(layers: &Layers) -> Child {
    let mut child = program(&[
        SERVES_ITSELF.as_ref(),
        OsStr::new(&layers.options()),
        layers.merged.as_os_str(),
    ])
    .stdin(Stdio::null())
    .stdout(Stdio::null())
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();
    let mut word = [0; 4];
    child.stderr.as_mut().unwrap().read_exact(&mut word).unwrap();
    assert_eq!(&word, b"busy");
    child
}

fn use_what_it_serves(options: &OsStr, at: &Path) -> ! {
    skiff_fuse_overlay::program::serve_here(options, at).unwrap();
    for round in 0.. {
        fs::write(at.join("file"), "text").unwrap();
        assert_eq!(fs::read_dir(at).unwrap().count(), 1);
        fs::remove_file(at.join("file")).unwrap();
        if round == 100 {
            std::io::stderr().write_all(b"busy").unwrap();
        }
    }
    unreachable!("the rounds do not end");
}

/// A mount. Dropped, it is unmounted in any case; [`Mounted::unmount`] checks that this goes well.
#[derive(Debug)]
pub(crate) struct Mounted {
    at: PathBuf,
    server: Option<Child>,
}

impl Mounted {
    /// Starts the program under test in the foreground and waits for the mount.
    pub(crate) fn by_program(options: &str, at: &Path) -> Self {
        Self::by_program_saying(options, at, Stdio::inherit())
    }

    /// The same with another standard error.
    pub(crate) fn by_program_saying(options: &str, at: &Path, stderr: Stdio) -> Self {
        let mut table = Table::open();
        let before = table.mounts_on(at);
        let mut child = program(&[OsStr::new("-f"), "-o".as_ref(), options.as_ref(), at.as_os_str()])
            .stdin(Stdio::null())
            // libtest says something there.
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let pidfd = pidfd_open(pid_of(&child), PidfdFlags::empty()).unwrap();
        while table.mounts_on(at) == before {
            let mut fds = [
                PollFd::new(&table.0, PollFlags::PRI),
                PollFd::new(&pidfd, PollFlags::IN),
            ];
            assert!(
                poll(&mut fds, Some(&timespec(PATIENCE))).unwrap() > 0,
                "no mount after {PATIENCE:?}"
            );
            if let Some(status) = child.try_wait().unwrap() {
                panic!("the program ended instead of mounting: {status} (-o {options})");
            }
        }
        // Answered after the kernel and the server have greeted each other.
        fs::metadata(at).unwrap();
        Self {
            at: at.to_owned(),
            server: Some(child),
        }
    }

    /// The mount point.
    pub(crate) fn path(&self) -> &Path {
        &self.at
    }

    /// A path below the mount point.
    pub(crate) fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        self.at.join(path)
    }

    /// The serving process; panics for a mount of the kernel's.
    pub(crate) fn server(&self) -> &Child {
        self.server.as_ref().unwrap()
    }

    /// Makes the kernel forget every name and inode that is not in use, as memory pressure does.
    pub(crate) fn forget(&self) {
        // A remount drops the unused part of the name cache of this file system, and needs no power over others.
        rustix::mount::mount_remount(&self.at, MountFlags::empty(), c"").unwrap();
    }

    /// Unmounts and waits for the server to end by itself.
    pub(crate) fn unmount(mut self) {
        unmount(&self.at, UnmountFlags::empty())
            .unwrap_or_else(|error| panic!("umount {:?}: {error}", self.at));
        if let Some(mut server) = self.server.take() {
            let status = wait(&mut server, "after umount");
            assert!(status.success(), "server after umount: {status}");
        }
    }

    /// Kills the server and leaves the dead mount.
    pub(crate) fn kill_server(&mut self) {
        let mut server = self.server.take().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
    }

    /// Hands over the server; the mount stays and is no longer unmounted by this value.
    pub(crate) fn leave(mut self) -> Child {
        let server = self.server.take().unwrap();
        self.at = PathBuf::new();
        server
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.at.as_os_str().is_empty() {
            return;
        }
        let _ = unmount(&self.at, UnmountFlags::DETACH);
        if let Some(server) = &mut self.server {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// Waits for a process to end, without end only for a debugger.
pub(crate) fn wait(child: &mut Child, when: &str) -> ExitStatus {
    let pidfd = pidfd_open(pid_of(child), PidfdFlags::empty()).unwrap();
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    if poll(&mut fds, Some(&timespec(PATIENCE))).unwrap() == 0 {
        child.kill().unwrap();
        panic!("the process still runs {when}, {PATIENCE:?} later");
    }
    child.wait().unwrap()
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

fn timespec(duration: Duration) -> Timespec {
    duration.try_into().unwrap()
}

/// The mount table, which poll(2) watches.
pub(crate) struct Table(File);

impl Table {
    pub(crate) fn open() -> Self {
        Self(File::open("/proc/self/mountinfo").unwrap())
    }

    /// How many mounts lie on a mount point, one on the other.
    pub(crate) fn mounts_on(&mut self, at: &Path) -> usize {
        // Read through the watched descriptor: that is what resets the event.
        let mut text = Vec::new();
        std::io::Seek::rewind(&mut self.0).unwrap();
        std::io::Read::read_to_end(&mut self.0, &mut text).unwrap();
        text.split(|byte| *byte == b'\n')
            .filter(|line| line.split(|byte| *byte == b' ').nth(4) == Some(at.as_os_str().as_bytes()))
            .count()
    }
}
