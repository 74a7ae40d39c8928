//! Open files: after their name is gone, in great numbers, from many threads, locked.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Barrier;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use super::Fixture;

/// Everything that works on a descriptor works after the last name is gone, whether the file was a lower one, was
/// copied up before, or is new.
pub(crate) fn unlinked_open_files_stay_usable() {
    let f = Fixture::new(|layers| {
        for name in ["lower", "copied", "replaced"] {
            fs::write(layers.bottom.join(name), "0123456789").unwrap();
        }
    });
    fs::write(f.at("new"), "0123456789").unwrap();
    fs::write(f.at("other"), "other").unwrap();
    fs::set_permissions(f.at("copied"), PermissionsExt::from_mode(0o640)).unwrap();
    for name in ["lower", "copied", "replaced", "new"] {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(f.at(name))
            .unwrap();
        let reader = File::open(f.at(name)).unwrap();
        let ino = file.metadata().unwrap().ino();
        if name == "replaced" {
            fs::rename(f.at("other"), f.at(name)).unwrap();
            assert_eq!(fs::read_to_string(f.at(name)).unwrap(), "other");
        } else {
            fs::remove_file(f.at(name)).unwrap();
            assert!(!f.at(name).exists());
        }
        f.mount().forget();

        let stat = file.metadata().unwrap();
        assert_eq!(
            (stat.len(), stat.nlink(), stat.ino()),
            (10, 0, ino),
            "{name}: fstat"
        );
        assert_eq!(file.seek(SeekFrom::End(-3)).unwrap(), 7, "{name}: lseek");
        file.write_all(b"abcdef").unwrap();
        assert_eq!(file.metadata().unwrap().len(), 13, "{name}: grew");
        file.set_len(11).unwrap();
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "0123456abcd", "{name}: content");
        let mut through_reader = [0; 11];
        reader.read_exact_at(&mut through_reader, 0).unwrap();
        assert_eq!(
            &through_reader, b"0123456abcd",
            "{name}: another descriptor sees the same file"
        );

        file.set_permissions(PermissionsExt::from_mode(0o4711)).unwrap();
        rustix::fs::fchown(&file, Some(rustix::process::Uid::from_raw(3)), None).unwrap();
        let changed = file.metadata().unwrap();
        // A chown takes set-user-id away.
        assert_eq!(
            (changed.mode() & 0o7777, changed.uid()),
            (0o711, 3),
            "{name}: fchmod, fchown"
        );
        rustix::fs::fsetxattr(&file, "user.colour", b"green", XattrFlags::empty()).unwrap();
        let mut value = [0; 16];
        assert_eq!(
            rustix::fs::fgetxattr(&file, "user.colour", &mut value).unwrap(),
            5,
            "{name}"
        );
        let past = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        file.set_modified(past).unwrap();
        assert_eq!(
            file.metadata().unwrap().modified().unwrap(),
            past,
            "{name}: futimens"
        );
        file.sync_all().unwrap();

        // What is gone stays gone: no name can be made for it again, except through /proc with the right powers.
        let link = rustix::fs::linkat(file.as_fd(), c"", CWD, f.at("again"), AtFlags::EMPTY_PATH);
        assert_eq!(link, Err(Errno::NOENT), "{name}: linkat of an unlinked file");
        // Opening once more by descriptor is what bare file systems allow.
        let again = File::open(format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(&file)
        ))
        .unwrap();
        assert_eq!(
            again.metadata().unwrap().len(),
            11,
            "{name}: opened again by descriptor"
        );
    }
}

/// A directory that was removed while open is empty, and nothing can be made in it.
pub(crate) fn a_removed_open_directory_is_empty() {
    let f = Fixture::new(|layers| fs::create_dir(layers.bottom.join("lower")).unwrap());
    fs::create_dir(f.at("new")).unwrap();
    for name in ["lower", "new"] {
        let fd = rustix::fs::open(f.at(name), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        fs::remove_dir(f.at(name)).unwrap();
        f.mount().forget();
        assert!(rustix::fs::fstat(&fd).is_ok(), "{name}: fstat");
        let made = rustix::fs::openat(
            &fd,
            "x",
            OFlags::WRONLY | OFlags::CREATE,
            Mode::from_raw_mode(0o644),
        );
        assert_eq!(made.err(), Some(Errno::NOENT), "{name}: create inside");
        let left: Vec<_> = rustix::fs::Dir::read_from(&fd)
            .unwrap()
            .filter_map(Result::ok)
            .filter(|entry| !matches!(entry.file_name().to_bytes(), b"." | b".."))
            .collect();
        assert!(left.is_empty(), "{name}: {left:?}");
    }
}

/// A descriptor opened for reading before the copy-up sees what is written after it.
pub(crate) fn readers_opened_before_a_copy_up_see_the_writes() {
    let f = Fixture::with_file("before");
    let reader = File::open(f.at("f")).unwrap();
    let mut text = [0; 6];
    reader.read_exact_at(&mut text, 0).unwrap();
    assert_eq!(&text, b"before");
    let ino = reader.metadata().unwrap().ino();
    fs::write(f.at("f"), "after!").unwrap();
    reader.read_exact_at(&mut text, 0).unwrap();
    assert_eq!(&text, b"after!");
    assert_eq!(reader.metadata().unwrap().ino(), ino);
    assert_eq!(fs::metadata(f.at("f")).unwrap().ino(), ino);
    assert_eq!(fs::read_to_string(f.layers.bottom.join("f")).unwrap(), "before");
}

/// Descriptors and memory of the server stay bounded over very many opens.
pub(crate) fn many_opens_leak_nothing() {
    const ROUNDS: usize = 100;
    const FILES: usize = 250;
    // The user namespace's run has the machine for itself; as root this would only be done twice.
    if !crate::userns::inside() {
        return;
    }
    let f = Fixture::new(|layers| {
        for n in 0..FILES {
            fs::write(layers.bottom.join(format!("f{n}")), "x").unwrap();
        }
    });
    let once = |round: usize| {
        for n in 0..FILES {
            let path = f.at(format!("f{n}"));
            for _ in 0..4 {
                let mut byte = [0];
                File::open(&path).unwrap().read_exact(&mut byte).unwrap();
            }
            fs::metadata(&path).unwrap();
            if n % 50 == round % 50 {
                OpenOptions::new()
                    .append(true)
                    .open(&path)
                    .unwrap()
                    .write_all(b"y")
                    .unwrap();
            }
        }
        f.mount().forget();
    };
    (0..10).for_each(once);
    let pid = f.mount().server().id();
    let before = (descriptors(pid), resident(pid));
    (10..ROUNDS + 10).for_each(once);
    // A look forces the requests before it through; releases are sent without waiting for them.
    fs::read_dir(f.mount().path()).unwrap().for_each(drop);
    let after = (descriptors(pid), resident(pid));
    println!(
        "{} opens: descriptors, KiB: {before:?} → {after:?}",
        ROUNDS * FILES * 4
    );
    assert!(
        after.0 <= before.0 + 16,
        "descriptors leak: {before:?} → {after:?}"
    );
    assert!(
        after.1 <= before.1 + 8 * 1024,
        "memory leaks: {before:?} → {after:?} KiB"
    );
}

/// Nobody tells the server when a file is closed: it keeps descriptors of files as a cache. What was made, without a
/// name, replaced, or removed while it was open must not stay in it for ever.
pub(crate) fn new_and_removed_files_do_not_stay_open() {
    const FILES: usize = 20_000;
    const ODD: usize = 500;
    // As in `many_opens_leak_nothing`.
    if !crate::userns::inside() {
        return;
    }
    let f = Fixture::new(|layers| {
        for n in 0..ODD {
            fs::write(layers.bottom.join(format!("lower{n}")), "lower").unwrap();
        }
    });
    let pid = f.mount().server().id();
    let before = descriptors(pid);
    let mut seen = Vec::new();
    // Twice the same: what a server keeps for the next time is no leak.
    for round in 0..2 {
        let most = make_and_remove(&f, FILES, ODD);
        let limit = limit_of_descriptors(pid);
        assert!(
            most < limit / 2 + 1024,
            "{most} of {limit} descriptors are in use"
        );
        f.mount().forget();
        // The kernel tells the server what it forgets without waiting for it.
        let gone = std::time::Instant::now();
        while descriptors(pid) > before + 16 && gone.elapsed() < crate::mounts::PATIENCE {
            rustix::fs::statvfs(f.mount().path()).unwrap();
            std::thread::yield_now();
        }
        seen.push((descriptors(pid), resident(pid)));
        assert!(
            seen[round].0 <= before + 16,
            "descriptors leak: {before} → {most} → {seen:?}"
        );
        for n in 0..ODD {
            fs::write(f.at(format!("lower{n}")), "anew").unwrap();
        }
    }
    println!("{FILES} new files, twice: descriptors, KiB: {seen:?}");
    // What memory does: docs/fuse-overlay-conformance.md, "Memory".
}

/// Makes `files` files and removes them, `odd` of them in each odd way. How many descriptors the server had at most.
fn make_and_remove(f: &Fixture, files: usize, odd: usize) -> usize {
    let pid = f.mount().server().id();
    fs::create_dir(f.at("d")).unwrap();
    for n in 0..files {
        let mut file = File::create_new(f.at(format!("d/{n}"))).unwrap();
        file.write_all(b"x").unwrap();
    }
    let most = descriptors(pid);
    for n in 0..odd {
        let nameless =
            rustix::fs::open(f.mount().path(), OFlags::RDWR | OFlags::TMPFILE, Mode::RUSR).unwrap();
        rustix::io::write(&nameless, b"x").unwrap();
        // One of the upper layer and one of the lower lose their names while they are open, then go by replacement.
        let open = |name: String| OpenOptions::new().append(true).open(f.at(name)).unwrap();
        let (mut upper, mut lower) = (open(format!("d/{n}")), open(format!("lower{n}")));
        fs::remove_file(f.at(format!("d/{n}"))).unwrap();
        fs::rename(f.at(format!("d/{}", odd + n)), f.at(format!("lower{n}"))).unwrap();
        upper.write_all(b"y").unwrap();
        lower.write_all(b"y").unwrap();
    }
    for n in 2 * odd..files {
        let (name, other) = (f.at(format!("d/{n}")), f.at(format!("d/{}", n + 1)));
        match n % 2 {
            0 if n + 1 < files => fs::rename(name, other).unwrap(),
            _ => fs::remove_file(name).unwrap(),
        }
    }
    for n in 0..odd {
        fs::remove_file(f.at(format!("lower{n}"))).unwrap();
    }
    fs::remove_dir(f.at("d")).unwrap();
    most
}

/// How many descriptors a process may have.
fn limit_of_descriptors(pid: u32) -> usize {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap();
    line.split_whitespace().nth(3).unwrap().parse().unwrap()
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Resident memory in KiB.
fn resident(pid: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Eight threads create, write, rename, list, read and remove in directories they share; nothing is lost, nothing
/// appears twice, and every byte is the writer's.
pub(crate) fn threads_do_not_disturb_each_other() {
    const THREADS: usize = 8;
    const ROUNDS: usize = 60;
    let f = Fixture::new(|layers| {
        for n in 0..THREADS {
            fs::create_dir_all(layers.bottom.join(format!("shared/lower{n}"))).unwrap();
            for m in 0..ROUNDS {
                fs::write(
                    layers.bottom.join(format!("shared/lower{n}/{m}")),
                    format!("{n} {m}"),
                )
                .unwrap();
            }
        }
    });
    let start = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for n in 0..THREADS {
            let (f, start) = (&f, &start);
            scope.spawn(move || {
                start.wait();
                for m in 0..ROUNDS {
                    let text = format!("thread {n} round {m}").repeat(m + 1);
                    let (draft, done) = (
                        f.at(format!("shared/draft-{n}-{m}")),
                        f.at(format!("shared/done-{n}-{m}")),
                    );
                    fs::write(&draft, &text).unwrap();
                    fs::rename(&draft, &done).unwrap();
                    assert_eq!(fs::read_to_string(&done).unwrap(), text);
                    // The neighbour's lower files are read while it changes and removes its own.
                    let neighbour = f.at(format!("shared/lower{}/{m}", (n + 1) % THREADS));
                    if let Ok(seen) = fs::read_to_string(neighbour) {
                        let whole = format!("{} {m}", (n + 1) % THREADS);
                        assert!(seen == whole || seen == format!("{whole}+"), "{seen:?}");
                    }
                    let own = f.at(format!("shared/lower{n}/{m}"));
                    OpenOptions::new()
                        .append(true)
                        .open(&own)
                        .unwrap()
                        .write_all(b"+")
                        .unwrap();
                    assert_eq!(fs::read_to_string(&own).unwrap(), format!("{n} {m}+"));
                    if m % 2 == 0 {
                        fs::remove_file(&own).unwrap();
                        fs::remove_file(&done).unwrap();
                    }
                    let listed: Vec<_> = fs::read_dir(f.at("shared"))
                        .unwrap()
                        .map(|e| e.unwrap().file_name())
                        .collect();
                    let distinct: BTreeSet<_> = listed.iter().collect();
                    assert_eq!(distinct.len(), listed.len(), "a name twice");
                }
            });
        }
    });
    let left = fs::read_dir(f.at("shared")).unwrap().count();
    assert_eq!(left, THREADS + THREADS * ROUNDS / 2);
    for n in 0..THREADS {
        let left = fs::read_dir(f.at(format!("shared/lower{n}"))).unwrap().count();
        assert_eq!(left, ROUNDS / 2, "lower{n}");
    }
}

/// flock(2) and fcntl(2) locks exclude other processes, and end with their holder.
pub(crate) fn locks_hold_between_processes() {
    let f = Fixture::with_file("text");
    for kind in ["flock", "lockf"] {
        let program = format!(
            "import fcntl, sys\n\
             f = open(sys.argv[1], 'r+')\n\
             fcntl.{kind}(f, fcntl.LOCK_EX)\n\
             print('locked', flush=True)\n\
             sys.stdin.read()"
        );
        let mut holder = Command::new("python3")
            .args(["-c", &program])
            .arg(f.at("f"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "locked\n", "{kind}");
        assert_eq!(
            try_lock(kind, &f.at("f")),
            "busy\n",
            "{kind} does not exclude another process"
        );
        holder.kill().unwrap();
        holder.wait().unwrap();
        assert_eq!(try_lock(kind, &f.at("f")), "free\n", "{kind} outlives its holder");
    }
}

fn try_lock(kind: &str, path: &Path) -> String {
    let program = format!(
        "import fcntl, sys\n\
         f = open(sys.argv[1], 'r+')\n\
         try:\n    fcntl.{kind}(f, fcntl.LOCK_EX | fcntl.LOCK_NB)\n    print('free')\n\
         except BlockingIOError:\n    print('busy')"
    );
    String::from_utf8(super::python(&program, &[path]).stdout).unwrap()
}

/// Two processes append to one file without losing a line.
pub(crate) fn appends_from_two_processes_are_whole() {
    const LINES: usize = 2000;
    let f = Fixture::with_file("");
    let program = format!(
        "import os, sys\n\
         fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)\n\
         for n in range({LINES}):\n    os.write(fd, (sys.argv[2] * 20 + '\\n').encode())"
    );
    let mut writers: Vec<_> = ["a", "b"]
        .map(|letter| {
            Command::new("python3")
                .args(["-c", &program])
                .arg(f.at("f"))
                .arg(letter)
                .spawn()
                .unwrap()
        })
        .into();
    for writer in &mut writers {
        assert!(writer.wait().unwrap().success());
    }
    let text = fs::read_to_string(f.at("f")).unwrap();
    let (a, b) = ("a".repeat(20), "b".repeat(20));
    assert_eq!(text.lines().filter(|line| *line == a).count(), LINES);
    assert_eq!(text.lines().filter(|line| *line == b).count(), LINES);
    assert_eq!(text.len(), 2 * LINES * 21);
}

/// `O_TMPFILE` makes a file without a name, and linkat(2) gives it one.
pub(crate) fn a_file_without_a_name_can_get_one() {
    let f = Fixture::new(|layers| fs::create_dir(layers.bottom.join("d")).unwrap());
    let flags = OFlags::RDWR | OFlags::TMPFILE;
    let file = File::from(rustix::fs::open(f.at("d"), flags, Mode::from_raw_mode(0o640)).unwrap());
    (&file).write_all(b"text").unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    assert_eq!(fs::read_dir(f.at("d")).unwrap().count(), 0);
    let by_descriptor = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    rustix::fs::linkat(CWD, by_descriptor, CWD, f.at("d/named"), AtFlags::SYMLINK_FOLLOW).unwrap();
    assert_eq!(fs::read_to_string(f.at("d/named")).unwrap(), "text");
    assert_eq!(file.metadata().unwrap().nlink(), 1);
    assert_eq!(fs::metadata(f.at("d/named")).unwrap().mode() & 0o777, 0o640);
    assert_eq!(fs::metadata(f.layers.upper.join("d/named")).unwrap().len(), 4);
}
