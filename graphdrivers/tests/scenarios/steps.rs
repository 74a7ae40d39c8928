//! Kill -9 at each step: an operation is run under ptrace(2) and its process killed before each system call that
//! changes something, one more each time, until the operation gets through. After each kill the driver is opened and
//! must show the state before or after, must be able to go on, and must leave no rubbish.

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use skiff_graphdrivers::{Access, ErrorKind, GraphDriver, PrepareOptions, SnapshotKey, SnapshotRef, select};

use super::{Fixture, commit, fill, key, layer, names, prepare, see};

const ROOT: &str = "SKIFF_TEST_STEP_ROOT";
const DRIVER: &str = "SKIFF_TEST_STEP_DRIVER";
const ACTION: &str = "SKIFF_TEST_STEP_ACTION";

const FILES: [(&str, &str); 3] = [("d/", ""), ("d/f", "content"), ("g", "more")];

/// One operation of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Prepare,
    Stack,
    Commit,
    Remove,
    Purge,
}

const ACTIONS: [(&str, Action); 5] = [
    ("prepare", Action::Prepare),
    ("stack", Action::Stack),
    ("commit", Action::Commit),
    ("remove", Action::Remove),
    ("purge", Action::Purge),
];

impl Action {
    /// Brings a new driver to where the operation can begin: a layer 1, and what the operation works on.
    fn set_up(self, driver: &dyn GraphDriver) {
        commit(driver, &layer(1), None, &FILES);
        match self {
            Self::Prepare => {}
            Self::Stack => {
                prepare(driver, "a", None);
                fill(driver, "a", &[("top", "2")]);
            }
            Self::Commit => {
                prepare(driver, "a", Some(&layer(1)));
                fill(driver, "a", &[("top", "2")]);
            }
            Self::Remove => commit(driver, &layer(2), Some(&layer(1)), &[("top", "2")]),
            Self::Purge => {
                commit(driver, &layer(2), Some(&layer(1)), &[("top", "2")]);
                driver.remove(SnapshotRef::Layer(&layer(2))).unwrap();
            }
        }
    }

    fn run(self, driver: &dyn GraphDriver) -> skiff_graphdrivers::Result<()> {
        match self {
            Self::Prepare => driver.prepare(&key("a"), Some(&layer(1)), &PrepareOptions::default()),
            Self::Stack => driver.stack(&key("a"), &layer(1), false),
            Self::Commit => driver.commit(&key("a"), &layer(2)),
            Self::Remove => driver.remove(SnapshotRef::Layer(&layer(2))),
            Self::Purge => driver.purge().map(drop),
        }
    }
}

/// The child: runs only when it was started by the scenario below.
pub(crate) fn child() {
    let (Some(root), Ok(name), Ok(action)) = (
        std::env::var_os(ROOT),
        std::env::var(DRIVER),
        std::env::var(ACTION),
    ) else {
        return;
    };
    let driver = select(Path::new(&root), Some(&name), &[]).unwrap().driver;
    let action = ACTIONS.iter().find(|(name, _)| *name == action).unwrap().1;
    // libtest captures println.
    let mut out = std::io::stdout().lock();
    writeln!(out, "\nthread {}", rustix::thread::gettid().as_raw_nonzero()).unwrap();
    out.flush().unwrap();
    let mut go = [0];
    std::io::stdin().read_exact(&mut go).unwrap();
    let outcome = action.run(&*driver);
    std::process::exit(if outcome.is_ok() { 0 } else { 1 });
}

pub(crate) fn a_kill_at_each_step_leaves_a_sound_state(f: &Fixture) {
    for (name, action) in ACTIONS {
        if action == Action::Stack && !f.open().capabilities().parallel_apply {
            continue;
        }
        let mut steps = 0;
        loop {
            let root = f.data_root().join(format!("{name}-{steps}"));
            action.set_up(&*select(&root, Some(f.name), &[]).unwrap().driver);
            let ended = run_until(f, &root, name, steps);
            check(f, &root, action, ended);
            if ended {
                break;
            }
            steps += 1;
            assert!(steps < 200, "{name} does not end");
        }
        // Each of them changes at least one thing: without that the kills would prove nothing.
        assert!(steps >= 1, "{name}: {steps} steps");
        println!("{name}: killed at {steps} points");
    }
}

/// Runs an operation up to its `steps`th stop at a system call that changes something; whether it ended before.
fn run_until(f: &Fixture, root: &Path, action: &str, steps: usize) -> bool {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "step_child", "--nocapture", "--test-threads=1"])
        .env(ROOT, root)
        .env(DRIVER, f.name)
        .env(ACTION, action)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let thread = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok)
        .find_map(|line| line.rsplit_once("thread ")?.1.parse().ok())
        .unwrap();
    let ended = trace(&mut child, Pid::from_raw(thread), steps);
    let status = child.wait().unwrap();
    assert!(!ended || status.success(), "{action} fails: {status}");
    ended
}

fn trace(child: &mut Child, thread: Pid, steps: usize) -> bool {
    let options = ptrace::Options::PTRACE_O_TRACESYSGOOD | ptrace::Options::PTRACE_O_EXITKILL;
    ptrace::seize(thread, options).unwrap();
    ptrace::interrupt(thread).unwrap();
    let wait = || waitpid(thread, Some(WaitPidFlag::__WALL));
    wait().unwrap();
    child.stdin.take().unwrap().write_all(b"!").unwrap();
    let (mut seen, mut inside) = (0, false);
    loop {
        if ptrace::syscall(thread, None).is_err() {
            return true;
        }
        match wait() {
            Ok(WaitStatus::PtraceSyscall(_)) => {
                if !changes_something(thread) {
                    continue;
                }
                // Stops come in pairs; after one call is as before the next.
                inside = !inside;
                if !inside {
                    continue;
                }
                if seen == steps {
                    child.kill().unwrap();
                    // A traced thread is reaped by its tracer, and the process not before it.
                    while !matches!(wait(), Ok(WaitStatus::Signaled(..)) | Err(_)) {}
                    return false;
                }
                seen += 1;
            }
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(_) => return true,
            Ok(WaitStatus::Stopped(_, signal)) if signal != Signal::SIGTRAP => {
                panic!("the child gets {signal}")
            }
            Ok(_) => {}
        }
    }
}

/// Whether the system call at which `thread` stands can leave traces on a disk.
#[cfg(target_arch = "x86_64")]
fn changes_something(thread: Pid) -> bool {
    let registers = ptrace::getregs(thread).unwrap();
    let number = i64::try_from(registers.orig_rax).unwrap_or(-1);
    let creates = |flags: u64| flags & u64::from(libc::O_CREAT.unsigned_abs()) != 0;
    match number {
        libc::SYS_openat => creates(registers.rdx),
        libc::SYS_open => creates(registers.rsi),
        libc::SYS_mkdir
        | libc::SYS_rmdir
        | libc::SYS_unlink
        | libc::SYS_rename
        | libc::SYS_symlink
        | libc::SYS_link
        | libc::SYS_chmod
        | libc::SYS_chown
        | libc::SYS_lchown => true,
        number => changes_anywhere(number),
    }
}

#[cfg(target_arch = "aarch64")]
fn changes_something(thread: Pid) -> bool {
    let registers = ptrace::getregset::<ptrace::regset::NT_PRSTATUS>(thread).unwrap();
    let number = i64::try_from(registers.regs[8]).unwrap_or(-1);
    match number {
        libc::SYS_openat => registers.regs[2] & u64::from(libc::O_CREAT.unsigned_abs()) != 0,
        number => changes_anywhere(number),
    }
}

fn changes_anywhere(number: i64) -> bool {
    [
        libc::SYS_mkdirat,
        libc::SYS_unlinkat,
        libc::SYS_renameat2,
        libc::SYS_symlinkat,
        libc::SYS_linkat,
        libc::SYS_mknodat,
        libc::SYS_fchmod,
        libc::SYS_fchmodat,
        libc::SYS_fchown,
        libc::SYS_fchownat,
        libc::SYS_utimensat,
        libc::SYS_setxattr,
        libc::SYS_lsetxattr,
        libc::SYS_fsetxattr,
        libc::SYS_removexattr,
        libc::SYS_ioctl,
        libc::SYS_copy_file_range,
        libc::SYS_ftruncate,
    ]
    .contains(&number)
}

/// Everything that may be there is whole, the operation can be done (again), and nothing is left over.
fn check(f: &Fixture, root: &Path, action: Action, ended: bool) {
    let driver = select(root, Some(f.name), &[]).unwrap().driver;
    let found: HashSet<SnapshotKey> = driver.list().unwrap().into_iter().map(|info| info.key).collect();
    let active = SnapshotKey::Active(key("a"));
    let top = SnapshotKey::Layer(layer(2));
    assert!(found.contains(&SnapshotKey::Layer(layer(1))));
    let done = match action {
        Action::Prepare => found.contains(&active),
        Action::Stack => {
            assert!(found.contains(&active));
            let info = driver.stat(SnapshotRef::Active(&key("a"))).unwrap();
            info.parent.is_some()
        }
        Action::Commit => {
            assert_ne!(found.contains(&active), found.contains(&top), "one of them");
            found.contains(&top)
        }
        Action::Remove | Action::Purge => !found.contains(&top),
    };
    assert!(done || !ended, "{action:?} ended, but was not done");
    if !done || action == Action::Purge {
        action.run(&*driver).unwrap();
    }
    let expected: &[&str] = match action {
        Action::Prepare => &["d", "g"],
        Action::Stack | Action::Commit => &["d", "g", "top"],
        Action::Remove | Action::Purge => &[],
    };
    let layer_2 = layer(2);
    if action == Action::Stack {
        driver.commit(&key("a"), &layer_2).unwrap();
    }
    if !expected.is_empty() {
        let shown = match action {
            Action::Prepare => driver.stat(SnapshotRef::Active(&key("a"))).map(|info| info.key),
            _ => driver.stat(SnapshotRef::Layer(&layer_2)).map(|info| info.key),
        };
        let shown = shown.unwrap();
        let (snapshot, access) = match &shown {
            SnapshotKey::Active(id) => (SnapshotRef::Active(id), Access::ReadWrite),
            SnapshotKey::Layer(id) => (SnapshotRef::Layer(id), Access::ReadOnly),
        };
        see(f, &*driver, snapshot, access, |p| {
            assert_eq!(names(p), expected);
            assert_eq!(fs::read_to_string(p.join("d/f")).unwrap(), "content");
        });
    }
    // Whose child is whose was counted right.
    let in_use = driver.remove(SnapshotRef::Layer(&layer(1)));
    match action {
        Action::Remove | Action::Purge => in_use.unwrap(),
        _ => assert_eq!(in_use.unwrap_err().kind(), ErrorKind::InUse),
    }
    driver.cleanup(&HashSet::new()).unwrap();
    assert!(driver.list().unwrap().is_empty());
    for place in ["staging", "trash"] {
        assert!(names(&root.join(f.name).join(place)).is_empty());
    }
}
