//! What is done with a name: each action is a few system calls on `n` in the scenario's directory, with everything they
//! return written down.

use std::fmt::Display;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps, XattrFlags};
use rustix::io::{Errno, Result};

/// One scenario under way.
pub(crate) struct Run {
    root: PathBuf,
    /// What the system calls returned, a line each.
    pub(crate) log: Vec<String>,
}

impl Run {
    pub(crate) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            log: Vec::new(),
        }
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Writes down what a call returned and hands it on.
    pub(crate) fn note<T: Display>(&mut self, what: &str, result: Result<T>) -> Option<T> {
        self.log.push(match &result {
            Ok(value) => format!("{what}: {value}"),
            Err(errno) => format!("{what}: {}", name_of(*errno)),
        });
        result.ok()
    }

    fn done(&mut self, what: &str, result: Result<()>) -> bool {
        self.note(what, result.map(|()| "done")).is_some()
    }

    /// Opens; when that works, writes and reads what the flags allow.
    fn open(&mut self, flags: OFlags) {
        // A FIFO would wait for its other end.
        let result = rustix::fs::open(self.at("n"), flags | OFlags::NONBLOCK, Mode::from_raw_mode(0o640));
        let Some(fd) = self.opened("open", result) else {
            return;
        };
        self.note("write", rustix::io::write(&fd, b"written"));
        let read = read_all(&fd);
        self.note("read", read);
        drop(fd);
        self.look();
    }

    fn opened(&mut self, what: &str, result: Result<OwnedFd>) -> Option<OwnedFd> {
        self.log.push(match &result {
            Ok(_) => format!("{what}: descriptor"),
            Err(errno) => format!("{what}: {}", name_of(*errno)),
        });
        result.ok()
    }

    /// What `stat` and the content of `n` say.
    fn look(&mut self) {
        let stat = rustix::fs::lstat(self.at("n"));
        self.note("stat", stat.as_ref().map(describe).map_err(|errno| *errno));
        if stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_file()) {
            let text =
                rustix::fs::open(self.at("n"), OFlags::RDONLY, Mode::empty()).and_then(|fd| read_all(&fd));
            self.note("content", text);
        }
    }

    fn list(&mut self, name: &str) {
        let names = list(&self.at(name));
        self.note(&format!("list {name}"), names);
    }

    fn create(&mut self, name: &str, text: &str) {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let result = rustix::fs::open(self.at(name), flags, Mode::from_raw_mode(0o644));
        if let Some(fd) = self.opened(&format!("create {name}"), result) {
            self.note("write", rustix::io::write(&fd, text.as_bytes()));
        }
    }

    fn unlink(&mut self, name: &str) -> bool {
        let result = rustix::fs::unlink(self.at(name));
        self.done(&format!("unlink {name}"), result)
    }

    fn rmdir(&mut self, name: &str) -> bool {
        let result = rustix::fs::rmdir(self.at(name));
        self.done(&format!("rmdir {name}"), result)
    }

    fn mkdir(&mut self, name: &str) -> bool {
        let result = rustix::fs::mkdir(self.at(name), Mode::from_raw_mode(0o750));
        self.done(&format!("mkdir {name}"), result)
    }

    fn rename(&mut self, from: &str, to: &str, flags: RenameFlags) -> bool {
        let result = rustix::fs::renameat_with(CWD, self.at(from), CWD, self.at(to), flags);
        self.done(&format!("rename {from} {to}"), result)
    }

    fn remove(&mut self) {
        self.remove_tree("n");
    }

    /// `rm -r`, as the tool does it.
    fn remove_tree(&mut self, name: &str) {
        let result = rustix::fs::unlink(self.at(name));
        if result == Err(Errno::ISDIR) {
            for inside in names(&self.at(name)).unwrap_or_default() {
                self.remove_tree(&format!("{name}/{inside}"));
            }
            self.rmdir(name);
        } else {
            self.done(&format!("remove {name}"), result);
        }
    }
}

/// Actions with a file `lower` and a directory `lower-directory` beside `n`.
pub(crate) const WITH_NEIGHBOURS: &[&str] = &[
    "link-of-lower-onto",
    "rename-lower-file-onto",
    "rename-lower-directory-onto",
    "rename-no-replace",
    "exchange-with-lower-file",
    "exchange-with-lower-directory",
    "rename-across",
    "rename-file-in",
    "remove-and-link",
];

type Action = (&'static str, fn(&mut Run));

/// All of them.
pub(crate) const ACTIONS: &[Action] = &[
    ("look", |r| {
        r.look();
        r.list("n");
        r.list(".");
        let link = rustix::fs::readlink(r.at("n"), Vec::new());
        r.note("readlink", link.map(|l| l.to_string_lossy().into_owned()));
        let followed = rustix::fs::stat(r.at("n"));
        r.note(
            "followed",
            followed.as_ref().map(describe).map_err(|errno| *errno),
        );
        let slash = rustix::fs::lstat(r.at("n/"));
        r.note("slash", slash.as_ref().map(describe).map_err(|errno| *errno));
        let below = rustix::fs::lstat(r.at("n/f"));
        r.note("below", below.as_ref().map(describe).map_err(|errno| *errno));
    }),
    ("open-read", |r| r.open(OFlags::RDONLY)),
    ("open-write", |r| r.open(OFlags::WRONLY)),
    ("open-both", |r| r.open(OFlags::RDWR)),
    ("open-append", |r| r.open(OFlags::RDWR | OFlags::APPEND)),
    ("open-truncate", |r| r.open(OFlags::RDWR | OFlags::TRUNC)),
    ("open-read-truncate", |r| r.open(OFlags::RDONLY | OFlags::TRUNC)),
    ("open-create", |r| r.open(OFlags::RDWR | OFlags::CREATE)),
    ("open-create-truncate", |r| {
        r.open(OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC);
    }),
    ("open-create-append", |r| {
        r.open(OFlags::RDWR | OFlags::CREATE | OFlags::APPEND);
    }),
    ("open-create-exclusive", |r| {
        r.open(OFlags::RDWR | OFlags::CREATE | OFlags::EXCL);
    }),
    ("open-create-exclusive-truncate", |r| {
        r.open(OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::TRUNC);
    }),
    ("open-directory", |r| r.open(OFlags::RDONLY | OFlags::DIRECTORY)),
    ("open-no-follow", |r| {
        r.open(OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK);
    }),
    ("truncate-to-nothing", |r| truncate(r, 0)),
    ("truncate-shorter", |r| truncate(r, 3)),
    ("truncate-longer", |r| truncate(r, 9)),
    ("unlink", |r| {
        r.unlink("n");
        r.list(".");
    }),
    ("rmdir", |r| {
        r.rmdir("n");
        r.list(".");
    }),
    ("mkdir", |r| {
        r.mkdir("n");
        r.list("n");
    }),
    ("mkdir-slash", |r| {
        r.mkdir("n/");
        r.list("n");
    }),
    ("mkfifo", |r| {
        let result = rustix::fs::mknodat(CWD, r.at("n"), FileType::Fifo, Mode::from_raw_mode(0o600), 0);
        r.done("mkfifo", result);
        r.look();
    }),
    ("make-whiteout", |r| {
        let device = FileType::CharacterDevice;
        let result = rustix::fs::mknodat(CWD, r.at("n"), device, Mode::from_raw_mode(0o600), 0);
        r.done("mknod", result);
        r.list(".");
    }),
    ("symlink", |r| {
        let result = rustix::fs::symlink("elsewhere", r.at("n"));
        r.done("symlink", result);
        r.look();
    }),
    ("link-from", |r| {
        link(r, "n", "new");
        r.look();
    }),
    ("link-from-and-write", |r| {
        link(r, "n", "new");
        r.open(OFlags::RDWR | OFlags::APPEND);
    }),
    ("link-onto", |r| {
        r.create("new", "new");
        link(r, "new", "n");
        r.look();
    }),
    ("link-of-lower-onto", |r| {
        link(r, "lower", "n");
        r.look();
    }),
    ("link-and-unlink", |r| {
        link(r, "n", "new");
        r.unlink("n");
        link(r, "new", "n");
        r.look();
    }),
    ("chmod", |r| {
        let result = rustix::fs::chmod(r.at("n"), Mode::from_raw_mode(0o4711));
        r.done("chmod", result);
        r.look();
    }),
    ("chown", |r| {
        let (uid, gid) = (
            rustix::process::Uid::from_raw(7),
            rustix::process::Gid::from_raw(8),
        );
        let result = rustix::fs::chownat(CWD, r.at("n"), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW);
        r.done("chown", result);
        r.look();
    }),
    ("set-times", |r| {
        let result = rustix::fs::utimensat(CWD, r.at("n"), &times(1_100_000_000), AtFlags::SYMLINK_NOFOLLOW);
        r.done("utimensat", result);
        r.look();
    }),
    ("attributes", |r| {
        let result = rustix::fs::lsetxattr(r.at("n"), "user.shape", b"round", XattrFlags::empty());
        r.done("set", result);
        let result = rustix::fs::lsetxattr(r.at("n"), "user.colour", b"red", XattrFlags::CREATE);
        r.done("create", result);
        let result = rustix::fs::lsetxattr(r.at("n"), "user.colour", b"blue", XattrFlags::REPLACE);
        r.done("replace", result);
        attributes(r);
    }),
    // Linux 6.7; before, the kernel's overlay refuses these names.
    ("overlay-attributes", |r| {
        for (name, value) in [
            ("opaque", "y"),
            ("whiteout", ""),
            ("redirect", "/lower"),
            ("overlay.opaque", "y"),
        ] {
            let name = format!("user.overlay.{name}");
            let result = rustix::fs::lsetxattr(r.at("n"), &name, value.as_bytes(), XattrFlags::empty());
            r.done(&format!("set {name}"), result);
            let mut buffer = [0; 16];
            let result = rustix::fs::lgetxattr(r.at("n"), &name, &mut buffer);
            r.note(&format!("get {name}"), result);
        }
        attributes(r);
        let result = rustix::fs::lremovexattr(r.at("n"), "user.overlay.redirect");
        r.done("remove", result);
        attributes(r);
        r.list("n");
    }),
    ("remove-attribute", |r| {
        let result = rustix::fs::lremovexattr(r.at("n"), "user.colour");
        r.done("remove", result);
        attributes(r);
    }),
    ("rename-away", |r| {
        r.rename("n", "new", RenameFlags::empty());
        r.list(".");
        r.list("new");
    }),
    ("rename-away-and-recreate", |r| {
        r.rename("n", "new", RenameFlags::empty());
        r.create("n", "recreated");
    }),
    ("rename-there-and-back", |r| {
        r.rename("n", "new", RenameFlags::empty());
        r.rename("new", "n", RenameFlags::empty());
        r.look();
    }),
    ("rename-to-itself", |r| {
        r.rename("n", "n", RenameFlags::empty());
        r.look();
    }),
    ("rename-into-itself", |r| {
        r.rename("n", "n/inside", RenameFlags::empty());
    }),
    ("rename-new-file-onto", |r| {
        r.create("new", "new");
        r.rename("new", "n", RenameFlags::empty());
        r.look();
    }),
    ("rename-lower-file-onto", |r| {
        r.rename("lower", "n", RenameFlags::empty());
        r.look();
    }),
    ("rename-new-directory-onto", |r| {
        r.mkdir("new");
        r.rename("new", "n", RenameFlags::empty());
        r.list("n");
    }),
    ("rename-new-tree-onto", |r| {
        r.mkdir("new");
        r.create("new/x", "x");
        r.rename("new", "n", RenameFlags::empty());
        r.list("n");
    }),
    ("rename-lower-directory-onto", |r| {
        r.rename("lower-directory", "n", RenameFlags::empty());
        r.list("n");
    }),
    ("rename-no-replace", |r| {
        r.rename("n", "lower", RenameFlags::NOREPLACE);
        r.rename("n", "new", RenameFlags::NOREPLACE);
        r.rename("lower", "n", RenameFlags::NOREPLACE);
        r.look();
    }),
    ("exchange-with-lower-file", |r| {
        r.rename("n", "lower", RenameFlags::EXCHANGE);
        r.look();
    }),
    ("exchange-with-new-file", |r| {
        r.create("new", "new");
        r.rename("new", "n", RenameFlags::EXCHANGE);
        r.look();
    }),
    ("exchange-with-new-directory", |r| {
        r.mkdir("new");
        r.create("new/x", "x");
        r.rename("n", "new", RenameFlags::EXCHANGE);
        r.list("n");
        r.list("new");
    }),
    ("exchange-with-lower-directory", |r| {
        r.rename("n", "lower-directory", RenameFlags::EXCHANGE);
        r.list("n");
    }),
    ("rename-whiteout", |r| {
        r.rename("n", "new", RenameFlags::WHITEOUT);
        r.list(".");
    }),
    ("rename-across", |r| {
        r.rename("n", "lower-directory/n", RenameFlags::empty());
        r.list("lower-directory");
    }),
    ("rename-child-out", |r| {
        r.rename("n/f", "new", RenameFlags::empty());
        r.list("n");
    }),
    ("rename-child-directory-out", |r| {
        r.rename("n/sub", "new", RenameFlags::empty());
        r.list("n");
        r.list("new");
    }),
    ("rename-file-in", |r| {
        r.rename("lower", "n/f", RenameFlags::empty());
        r.list("n");
    }),
    ("unlink-and-create", |r| {
        r.unlink("n");
        r.create("n", "again");
        r.look();
    }),
    ("unlink-and-mkdir", |r| {
        r.unlink("n");
        r.mkdir("n");
        r.list("n");
    }),
    ("remove-and-mkdir", |r| {
        r.remove();
        r.mkdir("n");
        r.list("n");
        r.create("n/f", "again");
        r.mkdir("n/sub");
        r.list("n/sub");
    }),
    ("remove-and-create", |r| {
        r.remove();
        r.create("n", "again");
        r.remove();
        r.list(".");
    }),
    ("remove-and-link", |r| {
        r.remove();
        link(r, "lower", "n");
        r.look();
    }),
    ("remove-and-rename-onto", |r| {
        r.remove();
        r.mkdir("new");
        r.create("new/x", "x");
        r.rename("new", "n", RenameFlags::empty());
        r.list("n");
    }),
    ("create-inside", |r| {
        r.create("n/f", "inside");
        r.create("n/x", "inside");
        r.list("n");
    }),
    ("unlink-inside", |r| {
        r.unlink("n/f");
        r.list("n");
        r.create("n/f", "again");
        r.list("n");
    }),
    ("write-deep-inside", |r| {
        let result = rustix::fs::open(r.at("n/sub/h"), OFlags::RDWR | OFlags::APPEND, Mode::empty());
        if let Some(fd) = r.opened("open", result) {
            r.note("write", rustix::io::write(&fd, b"+"));
        }
        r.list("n/sub");
    }),
    ("remove-inside-and-rmdir", |r| {
        r.remove_tree("n/sub");
        r.rmdir("n");
        r.remove_tree("n/f");
        r.rmdir("n");
        r.list(".");
    }),
    ("mkdir-inside", |r| {
        r.mkdir("n/sub");
        r.mkdir("n/y");
        r.list("n");
    }),
    ("use-after-unlink", |r| {
        while_open(r, |r| {
            r.unlink("n");
        });
    }),
    ("use-after-replacement", |r| {
        while_open(r, |r| {
            r.create("new", "new");
            r.rename("new", "n", RenameFlags::empty());
        });
    }),
    ("use-after-rename", |r| {
        while_open(r, |r| {
            r.rename("n", "new", RenameFlags::empty());
        });
    }),
    ("list-after-rmdir", |r| {
        let result = rustix::fs::open(r.at("n"), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty());
        let Some(fd) = r.opened("open", result) else {
            return;
        };
        r.remove();
        r.note(
            "stat",
            rustix::fs::fstat(&fd).map(|stat| u32::from(FileType::from_raw_mode(stat.st_mode).is_dir())),
        );
        let made = rustix::fs::openat(
            &fd,
            "x",
            OFlags::WRONLY | OFlags::CREATE,
            Mode::from_raw_mode(0o644),
        );
        r.opened("create inside", made);
    }),
];

/// Opens `n` for both, does something to the name, and goes on through the descriptor.
fn while_open(r: &mut Run, work: fn(&mut Run)) {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let result = rustix::fs::open(r.at("n"), flags, Mode::empty());
    let Some(fd) = r.opened("open", result) else {
        return;
    };
    // The kernel's overlay copies a special file up over whatever has its name now: nothing to compare with.
    if !rustix::fs::fstat(&fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_file()) {
        return;
    }
    work(r);
    let size = rustix::fs::fstat(&fd).map(|stat| format!("{} bytes, {} names", stat.st_size, stat.st_nlink));
    r.note("fstat", size);
    let result = rustix::fs::ftruncate(&fd, 2);
    r.done("ftruncate", result);
    let result = rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o600));
    r.done("fchmod", result);
    r.note("seek", rustix::fs::seek(&fd, rustix::fs::SeekFrom::End(0)));
    r.note("write", rustix::io::write(&fd, b"after"));
    r.note("read", read_all(&fd));
    r.list(".");
}

fn truncate(r: &mut Run, length: i64) {
    // By path, without a descriptor; rustix has only ftruncate.
    let result =
        nix::unistd::truncate(&r.at("n"), length).map_err(|errno| Errno::from_raw_os_error(errno as i32));
    r.done("truncate", result);
    // Whether a length that was the same already counts as a change is told differently by file systems.
    let _ = rustix::fs::utimensat(CWD, r.at("n"), &times(1_100_000_000), AtFlags::SYMLINK_NOFOLLOW);
    r.look();
}

fn link(r: &mut Run, from: &str, to: &str) {
    let result = rustix::fs::link(r.at(from), r.at(to));
    r.done(&format!("link {from} {to}"), result);
}

fn attributes(r: &mut Run) {
    let mut names = Vec::with_capacity(4096);
    let result = rustix::fs::llistxattr(r.at("n"), rustix::buffer::spare_capacity(&mut names));
    let text = result.map(|_| {
        let mut names: Vec<_> = names.split(|b| *b == 0).map(String::from_utf8_lossy).collect();
        names.retain(|name| name.starts_with("user."));
        names.sort();
        names.join(" ")
    });
    r.note("attributes", text);
}

fn times(seconds: i64) -> Timestamps {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: 500,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

fn describe(stat: &Stat) -> String {
    let kind = FileType::from_raw_mode(stat.st_mode);
    let names = if kind.is_dir() { 0 } else { stat.st_nlink };
    let size = if kind.is_dir() { 0 } else { stat.st_size };
    format!(
        "{kind:?} {:o} owner {}:{} {names} names {size} bytes",
        stat.st_mode & 0o7777,
        stat.st_uid,
        stat.st_gid
    )
}

/// The content from the beginning.
fn read_all(fd: &OwnedFd) -> Result<String> {
    let mut bytes = vec![0; 4096];
    let length = rustix::io::pread(fd, &mut bytes, 0)?;
    Ok(String::from_utf8_lossy(&bytes[..length]).replace('\0', "0"))
}

fn names(path: &Path) -> Result<Vec<String>> {
    let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::new(fd)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// The entries with their types as the directory says them.
fn list(path: &Path) -> Result<String> {
    let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    let mut entries = Vec::new();
    for entry in rustix::fs::Dir::new(fd)? {
        let entry = entry?;
        entries.push(format!(
            "{}={:?}",
            entry.file_name().to_string_lossy(),
            entry.file_type()
        ));
    }
    entries.sort();
    Ok(entries.join(" "))
}

fn name_of(errno: Errno) -> String {
    format!("{:?}", nix::errno::Errno::from_raw(errno.raw_os_error()))
}
