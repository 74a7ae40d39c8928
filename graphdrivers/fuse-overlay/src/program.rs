//! `skiffd fuse-overlayfs -o lowerdir=…,upperdir=…,workdir=… MOUNTPOINT`: the program that container engines start.
//!
//! ```text
//!   parse ─► open the layers ─► mount ─► fork ─┬─ parent: waits for the greeting, exits 0; or says what went wrong
//!                                              └─ child: own session, serves until the mount is gone
//! ```
//!
//! Everything that can fail happens before the parent ends, so that its status is the outcome. The mount is never taken
//! away by its path: when the child is told to end, it detaches exactly what it mounted. Killed, it leaves a mount that
//! answers ENOTCONN.
//!
//! `--leave-namespace` is for a daemon whose mount namespace shall end with the daemon's own processes: a server in it
//! would keep the namespace, which keeps the mount, which keeps the server. (It then cannot detach anything itself.)

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;

use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, Signal};
use rustix::fs::{Mode, OFlags};
use rustix::mount::MountFlags;
use rustix::process::{Resource, Rlimit};
use skiff_sys::process::{Fork, exit_now, fork_single_threaded, unshare_descriptors};

use crate::adapter::{Session, Settings};
use crate::mount::{self, Mounted};
use crate::options::{Options, Permissions};
use crate::overlay::{Config, IdMap, Overlay, XattrNamespace, XattrPermissions};

/// The name by which people and programs know it.
pub const NAME: &str = "fuse-overlayfs";
/// The argument that keeps a server from holding its caller's mount namespace.
pub const LEAVE_NAMESPACE: &str = "--leave-namespace";
/// The version of the well-known program whose options are understood; engines compare it.
const COMPATIBLE_VERSION: &str = "1.14";

const HELP: &str = "\
usage: fuse-overlayfs [options] MOUNTPOINT

Shows several directories as one, as the kernel's overlayfs does and in its format; what is changed goes to UPPER.
Ends when MOUNTPOINT is unmounted.

layers
    -o lowerdir=A:B:...         read-only directories, topmost first; a backslash keeps a colon or comma
    -o upperdir=UPPER           where changes go; without it the mount is read-only
    -o workdir=WORK             an empty directory on the file system of UPPER

owners and modes
    -o uidmapping=DISK:SHOWN:COUNT[:DISK:SHOWN:COUNT...]
    -o gidmapping=...           ids on disk, as which they are shown, how many; others are nobody's
    -o squash_to_root           everything belongs to 0:0
    -o squash_to_uid=N          ... to this user
    -o squash_to_gid=N          ... to this group
    -o xattr_permissions=N      where owners and modes are kept: 0 in the inode (default), 1 in an attribute that only
                                root can write, 2 in user.containers.override_stat
    -o noacl                    no access control lists
    -o static_nlink             directories have one link, so that nobody counts their subdirectories

durability and speed
    -o volatile                 nothing needs to survive a power failure: fsync(2) does nothing
    -o fsync=0|1                whether fsync(2) reaches the disk (default 1)
    -o writeback=0|1            whether the kernel collects small writes (default 0)
    -o timeout=SECONDS          how long the kernel may keep what it was told (default: for ever); needed if somebody
                                changes the layers while they are mounted
    -o threaded=0|1             whether requests are served side by side (default 1); -s is 0

the mount
    -o allow_other, allow_root  let other users in, as far as the modes say; implied for root
    -o ro, nosuid, nodev, noexec, noatime, nodiratime, relatime, strictatime, lazytime, sync, dirsync

    -f                          stay in the foreground
    -d, --debug                 the same, and print each request (also -o debug)
    -V, --version
    -h, --help

Options of the kernel's overlayfs that change its format (redirect_dir, metacopy, index, nfs_export, verity) can only be
off. Those of libfuse that have no meaning here are taken, with a warning where somebody may miss them. Unknown options
are an error.
";

/// What the command line says.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    Help,
    Version,
    Mount(Box<Options>, PathBuf, Manner),
}

/// How to serve.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Manner {
    foreground: bool,
    /// Do not keep the caller's mount namespace alive.
    leave_namespace: bool,
}

/// Runs the program; `arguments` without its name. Returns when the mount is gone, in the foreground or the child;
/// in the parent when it is up. Must be called before the process has a second thread.
pub fn run(arguments: &[OsString], version: &str) -> ExitCode {
    match parse(arguments) {
        Ok(Command::Help) => print(HELP),
        Ok(Command::Version) => print(&format!(
            "{NAME}: version {COMPATIBLE_VERSION}\nFUSE kernel interface version 7.41\nskiffd {version}\n"
        )),
        Ok(Command::Mount(options, target, manner)) => {
            for warning in &options.warnings {
                complain(&format!("warning: {warning}"));
            }
            // Names are made by one thread and forgotten by another: with a heap a thread, each would grow to the most that
            // the mount ever needed.
            skiff_sys::heap::limit_arenas(2);
            mount_and_serve(&options, &target, manner).unwrap_or_else(|text| {
                complain(&text);
                ExitCode::FAILURE
            })
        }
        Err(text) => {
            complain(&text);
            ExitCode::FAILURE
        }
    }
}

fn print(text: &str) -> ExitCode {
    // A reader that left is no failure of ours.
    let _ = io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "{NAME}: {text}");
}

fn parse(arguments: &[OsString]) -> Result<Command, String> {
    let mut options = Options::default();
    let mut positional = Vec::new();
    let mut manner = Manner::default();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match word.as_bytes() {
            b"-h" | b"--help" => return Ok(Command::Help),
            b"-V" | b"--version" => return Ok(Command::Version),
            b"-f" => manner.foreground = true,
            flag if flag == LEAVE_NAMESPACE.as_bytes() => manner.leave_namespace = true,
            b"-d" | b"--debug" => options.debug = true,
            b"-s" => options.single_threaded = true,
            b"-o" => {
                let text = words.next().ok_or("-o needs options")?;
                options.add(text).map_err(|error| error.to_string())?;
            }
            [b'-', b'o', rest @ ..] => {
                options
                    .add(OsStr::from_bytes(rest))
                    .map_err(|error| error.to_string())?;
            }
            b"--" => positional.extend(words.by_ref().map(PathBuf::from)),
            [b'-', _, ..] => return Err(format!("unknown option {}", word.to_string_lossy())),
            _ => positional.push(word.into()),
        }
    }
    // mount(8) calls its helpers with a source in front.
    let target = match positional.len() {
        1 | 2 => positional.pop(),
        _ => None,
    };
    let target = target.ok_or("expected one mount point (see --help)")?;
    options.check().map_err(|error| error.to_string())?;
    manner.foreground |= options.debug;
    Ok(Command::Mount(Box::new(options), target, manner))
}

fn mount_and_serve(options: &Options, target: &Path, manner: Manner) -> Result<ExitCode, String> {
    raise_descriptor_limit();
    let (overlay, device, mounted) = mount_overlay(options, target)?;
    let serve = |greeted: &mut dyn FnMut(&Result<(), String>)| {
        widen_descriptor_table(&device);
        let left = if manner.leave_namespace {
            mounted.leave_namespace()
        } else {
            Ok(())
        };
        let started = left
            .and_then(|()| detach_when_told(mounted))
            .and_then(|()| Session::start(device, overlay, settings(options)));
        serve(started, greeted)
    };
    if manner.foreground {
        return Ok(serve(&mut |outcome| {
            if let Err(text) = outcome {
                complain(text);
            }
        }));
    }
    let outcome = in_background(serve)?;
    if outcome == ExitCode::SUCCESS {
        warm_up(options, target);
    }
    Ok(outcome)
}

/// Teaches the kernel that it may open files by itself, which it only learns when it asks for the first time. Until then
/// it asks for the release of each file that a program makes, and a container's first work may be to make thousands.
fn warm_up(options: &Options, target: &Path) {
    if options.upper.is_none() || options.read_only {
        return;
    }
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    // Where this does not work (a full disk, another's directory) files are only a little slower.
    let Ok(file) = rustix::fs::open(target, flags, Mode::RUSR | Mode::WUSR) else {
        return;
    };
    // By its descriptor: it has no name.
    let again = format!("/proc/self/fd/{}", file.as_raw_fd());
    let _ = rustix::fs::open(again, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
}

fn mount_overlay(options: &Options, target: &Path) -> Result<(Overlay, File, Mounted), String> {
    let overlay = Overlay::new(config(options)).map_err(|error| error.to_string())?;
    let device = mount::open_device().map_err(|error| error.to_string())?;
    let mut flags = options.flags.unwrap_or(MountFlags::empty());
    if options.read_only || options.upper.is_none() {
        flags |= MountFlags::RDONLY;
    }
    // Root is asked on behalf of everybody; without this even its own containers' users could not enter.
    let allow_other = options.allow_other || rustix::process::geteuid().is_root();
    let mounted = mount::mount(&device, target, flags, allow_other).map_err(|error| error.to_string())?;
    Ok((overlay, device, mounted))
}

/// Whether `-o` would take these options.
///
/// # Errors
/// A sentence that names the first one it would not.
pub fn check_options(options: &str) -> Result<(), String> {
    Options::default()
        .add(OsStr::new(options))
        .map_err(|error| error.to_string())
}

/// Mounts on `target` what the argument of `-o` describes, and serves it on threads of this process until the mount is
/// gone. For programs that do their work and end: the mount does not outlive them.
///
/// # Errors
/// A sentence with the evidence.
pub fn serve_here(options: &OsStr, target: &Path) -> Result<(), String> {
    let mut parsed = Options::default();
    parsed.add(options).map_err(|error| error.to_string())?;
    parsed.check().map_err(|error| error.to_string())?;
    let target = target.to_owned();
    let (greeted, greeting) = mpsc::channel();
    let work = move || {
        // Who uses the mount must not keep its device open, or could not be killed while it waits for an answer.
        let started = unshare_descriptors()
            .map_err(|error| format!("unshare descriptors: {error}"))
            // The overlay wants a umask of its own; the rest of the process keeps its.
            .and_then(|()| {
                nix::sched::unshare(CloneFlags::CLONE_FS)
                    .map_err(|errno| format!("unshare(CLONE_FS): {errno}"))
            })
            .and_then(|()| mount_overlay(&parsed, &target))
            .and_then(|(overlay, device, _)| {
                Session::start(device, overlay, settings(&parsed)).map_err(|error| error.to_string())
            });
        let outcome = started.and_then(|session| {
            // Who asked waits for this very message.
            let _ = greeted.send(Ok(()));
            session.run().map_err(|error| error.to_string())
        });
        if let Err(text) = outcome {
            tracing::error!(target = %target.display(), "FUSE overlay: {text}");
            let _ = greeted.send(Err(text));
        }
    };
    thread::Builder::new()
        .name("fuse-overlay".to_owned())
        .spawn(work)
        .map_err(|error| format!("start a thread: {error}"))?;
    greeting
        .recv()
        .unwrap_or_else(|_| Err("the serving thread died".to_owned()))
}

/// Forks; the parent learns whether the kernel was greeted, the child serves.
fn in_background(
    serve: impl FnOnce(&mut dyn FnMut(&Result<(), String>)) -> ExitCode,
) -> Result<ExitCode, String> {
    let (mut reader, mut writer) = io::pipe().map_err(|error| format!("pipe: {error}"))?;
    match fork_single_threaded().map_err(|error| format!("fork: {error}"))? {
        Fork::Parent(_) => {
            // With its descriptor of the device: if the child dies, nobody shall wait for its answers.
            drop(serve);
            drop(writer);
            let mut message = String::new();
            reader
                .read_to_string(&mut message)
                .map_err(|error| format!("pipe: {error}"))?;
            match message.as_str() {
                "ok" => Ok(ExitCode::SUCCESS),
                "" => Err("the serving process died".to_owned()),
                text => Err(text.to_owned()),
            }
        }
        Fork::Child => {
            drop(reader);
            if let Err(error) = leave_caller() {
                let _ = write!(writer, "{error}");
                exit_now(1);
            }
            let mut writer = Some(writer);
            serve(&mut |outcome| {
                if let Some(mut writer) = writer.take() {
                    let text = outcome.as_ref().map_or_else(String::as_str, |()| "ok");
                    let _ = writer.write_all(text.as_bytes());
                }
            });
            exit_now(0)
        }
    }
}

/// A session of its own, no terminal, no directory kept busy.
fn leave_caller() -> io::Result<()> {
    rustix::process::setsid()?;
    std::env::set_current_dir("/")?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

/// Serves until the mount is gone.
fn serve(started: io::Result<Session>, greeted: &mut dyn FnMut(&Result<(), String>)) -> ExitCode {
    // Shown by ps; the program's file is called otherwise.
    let _ = nix::sys::prctl::set_name(c"fuse-overlayfs");
    let session = match started {
        Ok(session) => session,
        Err(error) => {
            // Without its device the mount answers ENOTCONN; its maker is told and takes it away.
            greeted(&Err(error.to_string()));
            return ExitCode::FAILURE;
        }
    };
    greeted(&Ok(()));
    match session.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn settings(options: &Options) -> Settings {
    Settings {
        no_fsync: options.no_fsync || options.is_volatile,
        single_threaded: options.single_threaded,
        debug: options.debug,
    }
}

/// Lets SIGTERM, SIGINT and SIGHUP detach the mount and end the process.
fn detach_when_told(mounted: Mounted) -> io::Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    // Before any other thread exists, so that all inherit it.
    signals.thread_block()?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        // Detaching asks our own file system; see `unshare_descriptors` for why this thread then may not hold its device.
        let apart = unshare_descriptors();
        if signals.wait().is_ok() {
            if apart.is_err() {
                exit_now(1);
            }
            // What was written is on its way to the layers before the file system goes. A second signal does not wait.
            thread::spawn(move || {
                let _ = signals.wait();
                exit_now(1);
            });
            let done = mounted.detach().is_ok();
            exit_now(i32::from(!done));
        }
    })?;
    Ok(())
}

/// Directories and files are kept open; the limit that shells are given is for programs that use select(2).
fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // What is not granted is not needed at once.
    let _ = rustix::process::setrlimit(Resource::Nofile, raised);
}

/// Makes room for many descriptors as long as the process has one thread. Later the kernel would wait, each time the
/// table doubles, until all processors have seen it: milliseconds in which no request is answered.
fn widen_descriptor_table(some: &File) {
    const ROOM: u64 = 16_384;
    let limit = rustix::process::getrlimit(Resource::Nofile).current;
    let last = limit.unwrap_or(ROOM).min(ROOM).saturating_sub(1);
    // Closed at once; the room stays. Without it the table grows as it is needed.
    drop(rustix::io::fcntl_dupfd_cloexec(
        some,
        RawFd::try_from(last).unwrap_or(0),
    ));
}

fn config(options: &Options) -> Config {
    let map = |stretches: &[crate::options::IdStretch]| {
        IdMap::new(stretches.iter().map(|s| [s.shown, s.disk, s.count]).collect())
    };
    let base = Config::default();
    Config {
        lower: options.lower.clone(),
        upper: options.upper.clone().zip(options.work.clone()),
        xattr_namespace: XattrNamespace::User,
        uid_map: map(&options.uid_map),
        gid_map: map(&options.gid_map),
        squash_to_uid: options.squash_uid,
        squash_to_gid: options.squash_gid,
        xattr_permissions: match options.permissions {
            Permissions::Inode => XattrPermissions::Off,
            Permissions::PrivilegedAttribute => XattrPermissions::Privileged,
            Permissions::UserAttribute => XattrPermissions::Containers,
        },
        static_nlink: options.static_nlink,
        noacl: options.no_acl,
        volatile: options.is_volatile,
        writeback: options.writeback && options.upper.is_some() && !options.read_only,
        ttl: options.timeout.unwrap_or(base.ttl),
        directory_descriptors: base.directory_descriptors,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn help_names_every_option_that_does_something() {
        for option in [
            "lowerdir",
            "upperdir",
            "workdir",
            "uidmapping",
            "gidmapping",
            "squash_to_root",
            "squash_to_uid",
            "squash_to_gid",
            "xattr_permissions",
            "static_nlink",
            "noacl",
            "volatile",
            "fsync",
            "writeback",
            "timeout",
            "threaded",
            "allow_other",
            "allow_root",
            "debug",
            "ro",
            "nosuid",
            "nodev",
            "noexec",
            "noatime",
        ] {
            assert!(HELP.contains(option), "{option}");
        }
    }

    #[test]
    fn command_lines() {
        assert_eq!(parse(&words("--version")), Ok(Command::Version));
        assert_eq!(parse(&words("-o lowerdir=a --help")), Ok(Command::Help));
        let Ok(Command::Mount(options, target, manner)) =
            parse(&words("-f -olowerdir=a:b -o upperdir=u -o workdir=w /m"))
        else {
            panic!("refused");
        };
        assert!(manner.foreground && !manner.leave_namespace && target == Path::new("/m"));
        assert_eq!(options.lower.len(), 2);
        // As mount(8) calls it.
        assert!(matches!(
            parse(&words("source /m -o rw,lowerdir=a")),
            Ok(Command::Mount(_, target, manner)) if !manner.foreground && target == Path::new("/m")
        ));
        for bad in ["", "-o lowerdir=a", "/m", "-o", "-x /m", "-o lowerdir=a a b c"] {
            assert!(parse(&words(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_are_shown_as_the_second_number() {
        let Ok(Command::Mount(options, ..)) = parse(&words("-o lowerdir=a,uidmapping=0:1000:1 /m")) else {
            panic!("refused");
        };
        let config = config(&options);
        assert_eq!(config.uid_map.shown(0), 1000);
        assert_eq!(config.uid_map.stored(1000), Some(0));
        assert!(config.gid_map.is_identity());
    }
}
