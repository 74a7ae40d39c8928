//! Two connections to the kernel under the same overlay core: our own threads, and the crate `fuse3`.
//!
//! `cargo bench -p skiff-fuse-overlay --bench connections [-- ROUNDS]`, as root (also of a user namespace) with
//! `/dev/fuse`. Alternates between the two in one run and prints medians and their ratio. ADR 11 quotes a run.
//!
//! ```text
//!  this program ─┬─ own DIR…        the real program, in the foreground
//!                ├─ fuse3 DIR…      the adapter beside this file; it calls, by PATH,
//!                │    └─ fusermount3 → this program, which mounts and hands the descriptor over
//!                └─ measures through the mount
//! ```
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark prints its figures"
)]

mod fuse3_adapter;

use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use skiff_fuse_overlay::overlay::{Config, Overlay};
use skiff_fuse_overlay::program;

type Outcome<T> = Result<T, Box<dyn Error>>;

const CONNECTIONS: [&str; 2] = ["own", "fuse3"];
const DIRECTORIES: usize = 100;
const FILES_IN_EACH: usize = 100;
const NEW_FILES: usize = 3000;
const STATS: usize = 20_000;

/// What is measured through the mount; each is given the mount point and how often it ran before.
type Work = fn(&Path) -> Outcome<()>;
const WORK: [(&str, Work); 6] = [
    ("find + stat, 10,000 files, fresh mount", walk),
    ("read the same 10,000 files (1 KiB)", read_all),
    ("20,000 look-ups of missing names", missing),
    ("create and write 3,000 files", create),
    ("remove them", remove),
    ("write and read 256 MiB", stream),
];

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let outcome = match arguments.first().and_then(|word| word.to_str()) {
        Some("own") => return program::run(&arguments[1..], "bench"),
        Some("fuse3") => serve_fuse3(&arguments[1..]),
        Some("fusermount3") => hand_over(&arguments[1..]),
        _ => compare(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("connections: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve_fuse3(words: &[OsString]) -> Outcome<()> {
    let [root] = words else {
        return Err("expected one directory".into());
    };
    let root = Path::new(root);
    let overlay = Overlay::new(Config {
        lower: vec![root.join("lower")],
        upper: Some((root.join("upper"), root.join("work"))),
        writeback: true,
        ..Config::default()
    })?;
    Ok(fuse3_adapter::serve(overlay, &root.join("merged"))?)
}

/// `fusermount3 -o OPTIONS DIR`: standard input is the socket that the descriptor is sent through.
fn hand_over(words: &[OsString]) -> Outcome<()> {
    let [_, options, target] = words else {
        return Err("usage: fusermount3 -o OPTIONS DIR".into());
    };
    let options = options.to_str().ok_or("options")?;
    let device = fs::File::options().read(true).write(true).open("/dev/fuse")?;
    let kept = options.split(',').filter(|option| !option.starts_with("fsname="));
    let data = kept.fold(format!("fd={}", device.as_raw_fd()), |data, option| {
        format!("{data},{option}")
    });
    let data = std::ffi::CString::new(data)?;
    rustix::mount::mount(
        "fuse3",
        target,
        "fuse",
        rustix::mount::MountFlags::empty(),
        data.as_c_str(),
    )?;
    let descriptors = [device.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    if !message.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err("no room for the descriptor".into());
    }
    rustix::net::sendmsg(
        std::io::stdin(),
        &[IoSlice::new(b"\0")],
        &mut message,
        SendFlags::empty(),
    )?;
    Ok(())
}

fn compare(arguments: &[OsString]) -> Outcome<()> {
    let rounds = arguments
        .iter()
        .find_map(|word| word.to_str()?.parse::<usize>().ok())
        .unwrap_or(5);
    let place = tempfile::tempdir()?;
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755))?;
    let lower = make_lower(place.path())?;
    let tools = make_fusermount(place.path())?;
    let mut times = vec![[Vec::new(), Vec::new()]; WORK.len()];
    for round in 0..rounds {
        for (index, connection) in CONNECTIONS.iter().enumerate() {
            let mount = Mounted::start(connection, place.path(), &lower, &tools)?;
            for (work, slots) in WORK.iter().zip(&mut times) {
                let begun = Instant::now();
                work.1(&mount.target)?;
                slots[index].push(begun.elapsed());
            }
            mount.end()?;
        }
        eprintln!("round {} of {rounds}", round + 1);
    }
    println!("{:<42} {:>9} {:>9} {:>7}", "medians", "own", "fuse3", "ratio");
    for ((name, _), [own, fuse3]) in WORK.iter().zip(&mut times) {
        let (own, fuse3) = (median(own), median(fuse3));
        println!(
            "{name:<42} {own:>9.1?} {fuse3:>9.1?} {:>6.2}×",
            fuse3.as_secs_f64() / own.as_secs_f64()
        );
    }
    Ok(())
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn make_lower(place: &Path) -> Outcome<PathBuf> {
    let lower = place.join("layer");
    for directory in 0..DIRECTORIES {
        let directory = lower.join(format!("d{directory}"));
        fs::create_dir_all(&directory)?;
        for file in 0..FILES_IN_EACH {
            fs::write(directory.join(format!("f{file}")), [7; 1024])?;
        }
    }
    Ok(lower)
}

/// A directory for PATH whose `fusermount3` is this program. By bash: dash knows descriptors of one digit only.
fn make_fusermount(place: &Path) -> Outcome<PathBuf> {
    let tools = place.join("tools");
    fs::create_dir(&tools)?;
    let script = tools.join("fusermount3");
    let program = std::env::current_exe()?;
    let text = format!(
        "#!/bin/bash\nexec '{}' fusermount3 \"$@\" <&\"$_FUSE_COMMFD\"\n",
        program.display()
    );
    fs::write(&script, text)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    Ok(tools)
}

struct Mounted {
    target: PathBuf,
    root: PathBuf,
    server: Child,
}

impl Mounted {
    fn start(connection: &str, place: &Path, lower: &Path, tools: &Path) -> Outcome<Self> {
        let root = place.join("mount");
        for name in ["upper", "work", "merged"] {
            fs::create_dir_all(root.join(name))?;
        }
        if !root.join("lower").exists() {
            std::os::unix::fs::symlink(lower, root.join("lower"))?;
        }
        let target = root.join("merged");
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(connection);
        if connection == "own" {
            let [lower, upper, work] = ["lower", "upper", "work"].map(|name| root.join(name));
            let options = format!(
                "lowerdir={},upperdir={},workdir={},writeback=1",
                lower.display(),
                upper.display(),
                work.display()
            );
            command.args(["-f", "-o", &options]).arg(&target);
        } else {
            let path = std::env::var("PATH").unwrap_or_default();
            command
                .arg(&root)
                .env("PATH", format!("{}:{path}", tools.display()));
        }
        let mut server = command.spawn()?;
        while !target.join("d0/f0").exists() {
            if let Some(status) = server.try_wait()? {
                return Err(format!("{connection} ended: {status}").into());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        // What was looked at while waiting must not be known already.
        rustix::fs::sync();
        Ok(Self { target, root, server })
    }

    fn end(mut self) -> Outcome<()> {
        rustix::mount::unmount(&self.target, rustix::mount::UnmountFlags::empty())?;
        self.server.wait()?;
        for name in ["upper", "work"] {
            fs::remove_dir_all(self.root.join(name))?;
        }
        Ok(())
    }
}

fn walk(target: &Path) -> Outcome<()> {
    for entry in fs::read_dir(target)? {
        for file in fs::read_dir(entry?.path())? {
            file?.metadata()?;
        }
    }
    Ok(())
}

fn read_all(target: &Path) -> Outcome<()> {
    for directory in 0..DIRECTORIES {
        for file in 0..FILES_IN_EACH {
            fs::read(target.join(format!("d{directory}/f{file}")))?;
        }
    }
    Ok(())
}

fn missing(target: &Path) -> Outcome<()> {
    for index in 0..STATS {
        if target
            .join(format!("d{}/missing{index}", index % DIRECTORIES))
            .exists()
        {
            return Err("a missing file is there".into());
        }
    }
    Ok(())
}

fn create(target: &Path) -> Outcome<()> {
    for index in 0..NEW_FILES {
        fs::write(target.join(format!("d{}/new{index}", index % 10)), [1; 1024])?;
    }
    Ok(())
}

fn remove(target: &Path) -> Outcome<()> {
    for index in 0..NEW_FILES {
        fs::remove_file(target.join(format!("d{}/new{index}", index % 10)))?;
    }
    Ok(())
}

fn stream(target: &Path) -> Outcome<()> {
    let path = target.join("big");
    fs::write(&path, vec![5; 256 << 20])?;
    let read = fs::read(&path)?.len();
    fs::remove_file(&path)?;
    if read == 256 << 20 {
        Ok(())
    } else {
        Err("short file".into())
    }
}
