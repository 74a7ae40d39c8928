//! Who may do what, and whose files come about: the process's umask, owners, groups and lists of access.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode};

use super::Fixture;

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

fn mode(path: impl AsRef<Path>) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// A shell command as another user; returns whether it succeeded.
fn as_user(id: u32, directory: &Path, command: &str) -> bool {
    Command::new("sh")
        .args(["-c", command])
        .current_dir(directory)
        .uid(id)
        .gid(id)
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap()
        .success()
}

/// Modes of new files are what the creating process asked for less its umask, whatever the server's umask is.
pub(crate) fn new_files_obey_the_creator_s_umask() {
    let f = Fixture::new(|_| ());
    for umask in ["000", "022", "077", "777"] {
        let made = Command::new("sh")
            .args([
                "-c",
                "umask $1; : >f$1; mkdir d$1; mkfifo p$1; ln -s x l$1; mkdir -m 1777 m$1",
                "sh",
                umask,
            ])
            .current_dir(f.mount().path())
            .status()
            .unwrap();
        assert!(made.success());
        let bits = u32::from_str_radix(umask, 8).unwrap();
        let found = ["f", "d", "p", "l", "m"].map(|name| mode(f.at(format!("{name}{umask}"))));
        assert_eq!(
            found,
            [0o666 & !bits, 0o777 & !bits, 0o666 & !bits, 0o777, 0o1777],
            "umask {umask}"
        );
        let below = ["f", "d", "p", "m"].map(|name| mode(f.layers.upper.join(format!("{name}{umask}"))));
        assert_eq!(
            below,
            [found[0], found[1], found[2], found[4]],
            "umask {umask} on disk"
        );
    }
}

/// In a directory with the set-group-id bit new files take its group, and directories the bit as well.
pub(crate) fn set_group_id_directories_pass_their_group_on() {
    let f = Fixture::new(|layers| {
        let shared = layers.bottom.join("shared");
        fs::create_dir(&shared).unwrap();
        chown(&shared, Some(5), Some(7)).unwrap();
        fs::set_permissions(&shared, PermissionsExt::from_mode(0o2777)).unwrap();
    });
    let at = |name: &str| f.at("shared").join(name);
    fs::write(at("file"), "").unwrap();
    fs::create_dir(at("directory")).unwrap();
    symlink("x", at("link")).unwrap();
    rustix::fs::mknodat(CWD, at("fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    for name in ["file", "directory", "link", "fifo"] {
        let meta = fs::symlink_metadata(at(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (0, 7), "{name}");
        assert_eq!(meta.mode() & 0o2000 != 0, name == "directory", "{name}");
    }
    assert!(as_user(
        1000,
        &f.at("shared"),
        "umask 022; : >theirs; mkdir their-directory; chmod 2755 theirs"
    ));
    let theirs = fs::metadata(at("theirs")).unwrap();
    assert_eq!((theirs.uid(), theirs.gid()), (1000, 7));
    assert_eq!(
        theirs.mode() & 0o7777,
        0o755,
        "not a member of the group: no set-group-id for them"
    );
    assert_eq!(mode(at("their-directory")), 0o2755);
}

/// Owners, modes, sticky directories: the kernel's checks apply to every user of the mount.
pub(crate) fn permissions_are_checked_for_every_user() {
    let f = Fixture::new(|layers| {
        let file = |name: &str, owner, bits| {
            let path = layers.bottom.join(name);
            fs::write(&path, "text").unwrap();
            chown(&path, Some(owner), Some(owner)).unwrap();
            fs::set_permissions(&path, PermissionsExt::from_mode(bits)).unwrap();
        };
        file("root-only", 0, 0o600);
        file("theirs", 1000, 0o600);
        file("readable", 0, 0o644);
        for (name, bits) in [("closed", 0o700), ("sticky", 0o1777), ("open", 0o777)] {
            fs::create_dir(layers.bottom.join(name)).unwrap();
            fs::set_permissions(layers.bottom.join(name), PermissionsExt::from_mode(bits)).unwrap();
        }
        file("closed/f", 0, 0o666);
        file("sticky/of-root", 0, 0o666);
        file("open/of-root", 0, 0o600);
    });
    let root = f.mount().path();
    for (command, expected) in [
        ("cat root-only", false),
        ("cat theirs", true),
        ("echo more >>theirs", true),
        ("cat readable", true),
        ("echo more >>readable", false),
        ("chmod 666 readable", false),
        ("touch -d @0 readable", false),
        ("cat closed/f", false),
        ("ls closed", false),
        ("rm -f sticky/of-root", false),
        ("mv sticky/of-root sticky/x", false),
        (": >sticky/own && rm sticky/own", true),
        ("rm -f open/of-root", true),
        ("chown 0 theirs", false),
        ("chgrp 0 theirs", false),
        ("ln readable open/hard", true),
    ] {
        // fs.protected_hardlinks is the machine's business.
        let protected = fs::read_to_string("/proc/sys/fs/protected_hardlinks")
            .unwrap()
            .trim()
            == "1";
        let expected = expected && !(protected && command.starts_with("ln "));
        assert_eq!(as_user(1000, root, command), expected, "{command}");
    }
    assert_eq!(
        fs::metadata(f.at("theirs")).unwrap().uid(),
        1000,
        "the copied-up file keeps its owner"
    );
}

/// Writing to a program takes its set-user-id bit away, and so does giving it to somebody else.
pub(crate) fn writing_takes_set_user_id_away() {
    let f = Fixture::new(|layers| {
        for name in ["written", "given", "truncated", "overwritten", "reserved"] {
            let path = layers.bottom.join(name);
            fs::write(&path, "program").unwrap();
            chown(&path, Some(1000), Some(1000)).unwrap();
            fs::set_permissions(&path, PermissionsExt::from_mode(0o6777)).unwrap();
        }
    });
    assert!(as_user(1001, f.mount().path(), "echo more >>written"));
    assert_eq!(mode(f.at("written")), 0o777, "after a write by another user");
    // Neither changes the length. The kernel must not keep the mode it knew, by which it starts programs: stat(1) asks
    // for the mode alone, so that changed times do not make the kernel ask for everything.
    for (name, command) in [
        ("overwritten", "printf x 1<>overwritten"),
        ("reserved", "fallocate -l 1 reserved"),
    ] {
        let shown = || {
            let output = Command::new("stat")
                .args(["-c", "%a"])
                .arg(f.at(name))
                .output()
                .unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        assert_eq!(shown(), "6777\n", "{name}");
        assert!(as_user(1001, f.mount().path(), command), "{command}");
        assert_eq!(shown(), "777\n", "after {command:?} by another user");
        assert_eq!(mode(f.layers.upper.join(name)), 0o777, "{name}");
    }
    assert!(as_user(1001, f.mount().path(), ": >truncated"));
    assert_eq!(
        mode(f.at("truncated")),
        0o777,
        "after a truncation by another user"
    );
    chown(f.at("given"), Some(1002), Some(1002)).unwrap();
    assert_eq!(mode(f.at("given")), 0o777, "after chown");
    OpenOptions::new()
        .append(true)
        .open(f.at("given"))
        .unwrap()
        .write_all(b"+")
        .unwrap();
}

/// `security.capability` is kept by copy-up and taken away by a write.
pub(crate) fn file_capabilities_survive_copy_up_and_end_with_a_write() {
    // Version 2: effective, CAP_NET_BIND_SERVICE permitted.
    let mut value = [0_u8; 20];
    value[..8].copy_from_slice(&[1, 0, 0, 2, 0, 4, 0, 0]);
    let f = Fixture::new(|layers| {
        fs::write(layers.bottom.join("program"), "text").unwrap();
        xattr::set(layers.bottom.join("program"), "security.capability", &value).unwrap();
    });
    let get = || xattr::get(f.at("program"), "security.capability").unwrap();
    assert_eq!(get().as_deref(), Some(&value[..]));
    fs::set_permissions(f.at("program"), PermissionsExt::from_mode(0o755)).unwrap();
    assert!(f.layers.upper.join("program").exists());
    assert_eq!(get().as_deref(), Some(&value[..]), "after copy-up");
    OpenOptions::new()
        .append(true)
        .open(f.at("program"))
        .unwrap()
        .write_all(b"+")
        .unwrap();
    assert_eq!(get(), None, "after a write");
}

/// A list of access as the kernel stores it: version 2, then tag, permissions and id of each entry.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// Lists of access can be set and are obeyed, a default list is inherited and replaces the umask, and both survive
/// copy-up.
pub(crate) fn access_lists_are_kept_and_obeyed() {
    const NOBODY: u32 = u32::MAX;
    let list = acl(&[
        (1, 6, NOBODY),
        (2, 4, 1000),
        (4, 0, NOBODY),
        (16, 6, NOBODY),
        (32, 0, NOBODY),
    ]);
    let inherited = acl(&[
        (1, 7, NOBODY),
        (2, 5, 1000),
        (4, 0, NOBODY),
        (16, 7, NOBODY),
        (32, 0, NOBODY),
    ]);
    let f = Fixture::new(|layers| {
        fs::write(layers.bottom.join("lower"), "text").unwrap();
        fs::set_permissions(layers.bottom.join("lower"), PermissionsExt::from_mode(0o600)).unwrap();
        xattr::set(layers.bottom.join("lower"), ACCESS, &list).unwrap();
        fs::create_dir(layers.bottom.join("d")).unwrap();
        xattr::set(layers.bottom.join("d"), DEFAULT, &inherited).unwrap();
    });
    let root = f.mount().path();
    assert_eq!(
        xattr::get(f.at("lower"), ACCESS).unwrap().as_deref(),
        Some(&list[..])
    );
    assert!(as_user(1000, root, "cat lower"), "the list lets user 1000 read");
    assert!(!as_user(1001, root, "cat lower"), "and nobody else");
    assert!(!as_user(1000, root, "echo more >>lower"));

    OpenOptions::new()
        .append(true)
        .open(f.at("lower"))
        .unwrap()
        .write_all(b"+")
        .unwrap();
    assert_eq!(
        xattr::get(f.at("lower"), ACCESS).unwrap().as_deref(),
        Some(&list[..]),
        "after copy-up"
    );
    assert!(as_user(1000, root, "cat lower"));
    xattr::remove(f.at("lower"), ACCESS).unwrap();
    assert!(!as_user(1000, root, "cat lower"), "without the list");

    fs::write(f.at("new"), "text").unwrap();
    fs::set_permissions(f.at("new"), PermissionsExt::from_mode(0o600)).unwrap();
    xattr::set(f.at("new"), ACCESS, &list).unwrap();
    assert_eq!(
        mode(f.at("new")),
        0o660,
        "the mask is the group's part of the mode"
    );
    assert!(as_user(1000, root, "cat new"));
    assert_eq!(
        xattr::get(f.layers.upper.join("new"), ACCESS).unwrap().as_deref(),
        Some(&list[..])
    );

    let made = Command::new("sh")
        .args(["-c", "umask 077; : >d/f; mkdir d/s"])
        .current_dir(root)
        .status()
        .unwrap();
    assert!(made.success());
    assert_eq!(mode(f.at("d/f")), 0o660, "the default list counts, not the umask");
    assert!(as_user(1000, root, "cat d/f"));
    assert!(!as_user(1001, root, "cat d/f"));
    assert_eq!(
        xattr::get(f.at("d/s"), DEFAULT).unwrap().as_deref(),
        Some(&inherited[..])
    );
    assert!(as_user(1000, root, "ls d/s"));
}
