//! Looks up `USER[:GROUP]` in the image's own `/etc/passwd` and `/etc/group`.
//!
//! The files belong to the image, so they are opened inside the root filesystem (openat2 with RESOLVE_IN_ROOT: a symbolic
//! link to `/etc/passwd` means the image's), must be regular files, and are read to a limit. Rules and texts are Docker's.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// More than any real file has; a larger one is cut.
const LIMIT: u64 = 16 << 20;

/// Highest id: the kernel's ids are unsigned, but Docker keeps to the positive half.
const MAX_ID: u32 = i32::MAX.unsigned_abs();

/// Who the first process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups, the primary one included.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

/// Looks up `user` (`USER[:GROUP]`, names or numbers, empty for root) and the additional groups.
///
/// # Errors
/// Docker's text when a name is unknown; a text with the path when a file cannot be read.
pub(crate) fn look_up(rootfs: impl AsFd, user: &str, additional: &[String]) -> Result<Identity, String> {
    let passwd = read_in_root(&rootfs, "etc/passwd")
        .map_err(|error| format!("reading /etc/passwd of the image: {error}"))?;
    let group = read_in_root(&rootfs, "etc/group")
        .map_err(|error| format!("reading /etc/group of the image: {error}"))?;
    resolve(&passwd, &group, user, additional)
}

/// Reads a regular file of the root filesystem; a missing one reads as empty.
fn read_in_root(rootfs: impl AsFd, path: &str) -> rustix::io::Result<String> {
    // NONBLOCK: opening a FIFO that the image may have put there must not wait for its other end.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file: OwnedFd = match rustix::fs::openat2(rootfs, path, flags, Mode::empty(), resolve) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        Err(error) => return Err(error),
    };
    if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    std::fs::File::from(file)
        .take(LIMIT)
        .read_to_end(&mut bytes)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A line of `/etc/passwd` or `/etc/group`, split; comments and blank lines are skipped.
fn lines(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split(':').collect())
}

fn field<'a>(line: &[&'a str], at: usize) -> &'a str {
    line.get(at).copied().unwrap_or("")
}

fn id(text: &str) -> Option<u32> {
    text.parse().ok()
}

fn resolve(passwd: &str, group: &str, spec: &str, additional: &[String]) -> Result<Identity, String> {
    let (user, group_name) = spec.split_once(':').unwrap_or((spec, ""));
    let mut who = Identity {
        uid: 0,
        gid: 0,
        groups: Vec::new(),
        home: "/".to_owned(),
    };
    let number = id(user);
    if number.is_some_and(|uid| uid > MAX_ID) {
        return Err(format!("uids and gids must be in range 0-{MAX_ID}"));
    }
    let wanted = number.or_else(|| user.is_empty().then_some(0));
    let entry = lines(passwd).find(|line| {
        (!user.is_empty() && field(line, 0) == user)
            || wanted.is_some_and(|uid| id(field(line, 2)) == Some(uid))
    });
    let mut login = None;
    match (&entry, wanted) {
        (Some(line), _) => {
            who.uid = id(field(line, 2)).unwrap_or(0);
            who.gid = id(field(line, 3)).unwrap_or(0);
            if !field(line, 5).is_empty() {
                field(line, 5).clone_into(&mut who.home);
            }
            login = Some(field(line, 0));
        }
        (None, Some(uid)) => who.uid = uid,
        (None, None) => {
            return Err(format!(
                "unable to find user {user}: no matching entries in passwd file"
            ));
        }
    }
    let mut groups = Vec::new();
    if group_name.is_empty() {
        // Memberships count only when no group was asked for.
        if let Some(login) = login {
            groups.extend(
                lines(group)
                    .filter(|line| field(line, 3).split(',').any(|member| member.trim() == login))
                    .filter_map(|line| id(field(&line, 2))),
            );
        }
    } else {
        who.gid = find_group(group, group_name)?;
    }
    for name in additional {
        groups.push(find_group(group, name)?);
    }
    who.groups.push(who.gid);
    for gid in groups {
        if !who.groups.contains(&gid) {
            who.groups.push(gid);
        }
    }
    Ok(who)
}

fn find_group(group: &str, name: &str) -> Result<u32, String> {
    let number = id(name);
    let entry = lines(group)
        .find(|line| field(line, 0) == name || (number.is_some() && id(field(line, 2)) == number));
    let gid = entry.and_then(|line| id(field(&line, 2))).or(number);
    match gid {
        Some(gid) if gid > MAX_ID => Err(format!("uids and gids must be in range 0-{MAX_ID}")),
        Some(gid) => Ok(gid),
        None => Err(format!(
            "unable to find group {name}: no matching entries in group file"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &str = "# comment\nroot:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv/web:/bin/sh\nnohome:x:50:50:::\nbroken\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nadm:x:4:web,root\nlog:x:5:other, web\n";

    fn who(spec: &str, additional: &[&str]) -> Result<Identity, String> {
        resolve(
            PASSWD,
            GROUP,
            spec,
            &additional.iter().map(|&s| s.to_owned()).collect::<Vec<_>>(),
        )
    }

    fn identity(uid: u32, gid: u32, groups: &[u32], home: &str) -> Identity {
        Identity {
            uid,
            gid,
            groups: groups.to_vec(),
            home: home.to_owned(),
        }
    }

    #[test]
    fn names_numbers_and_defaults() {
        assert_eq!(who("", &[]), Ok(identity(0, 0, &[0, 4], "/root")));
        assert_eq!(who("web", &[]), Ok(identity(33, 34, &[34, 4, 5], "/srv/web")));
        assert_eq!(who("33", &[]), Ok(identity(33, 34, &[34, 4, 5], "/srv/web")));
        assert_eq!(
            who("web:root", &[]),
            Ok(identity(33, 0, &[0], "/srv/web")),
            "an explicit group drops memberships"
        );
        assert_eq!(who("1000", &[]), Ok(identity(1000, 0, &[0], "/")));
        assert_eq!(
            who("1000:1000", &["adm", "7"]),
            Ok(identity(1000, 1000, &[1000, 4, 7], "/"))
        );
        assert_eq!(who("nohome", &[]), Ok(identity(50, 50, &[50], "/")));
        assert_eq!(resolve("", "", "", &[]), Ok(identity(0, 0, &[0], "/")));
    }

    #[test]
    fn unknown_names_have_dockers_texts() {
        assert_eq!(
            who("nobody", &[]).unwrap_err(),
            "unable to find user nobody: no matching entries in passwd file"
        );
        assert_eq!(
            who("web:wheel", &[]).unwrap_err(),
            "unable to find group wheel: no matching entries in group file"
        );
        assert_eq!(
            who("", &["wheel"]).unwrap_err(),
            "unable to find group wheel: no matching entries in group file"
        );
        assert_eq!(
            who("4294967295", &[]).unwrap_err(),
            "uids and gids must be in range 0-2147483647"
        );
    }

    #[test]
    fn links_stay_inside_the_image_and_special_files_are_not_read() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("users"), "inside:x:7:8::/in:\n").unwrap();
        std::os::unix::fs::symlink("/../../users", dir.path().join("etc/passwd")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dir.path().join("etc/group"),
            FileType::Fifo,
            Mode::from(0o600),
            0,
        )
        .unwrap();
        let root = std::fs::File::open(dir.path()).unwrap();
        assert_eq!(look_up(&root, "inside", &[]), Ok(identity(7, 8, &[8], "/in")));
        assert!(look_up(&root, "root", &[]).is_err(), "the host's file was read");
    }

    proptest! {
        #[test]
        fn any_files_are_survived(passwd in ".{0,200}", group in ".{0,200}", spec in ".{0,20}") {
            let _ = resolve(&passwd, &group, &spec, &[]);
        }
    }
}
