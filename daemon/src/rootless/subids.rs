//! Which ids this user may map: getsubids(1), /etc/subuid and /etc/subgid, and the two helpers that write the maps.
//!
//! Without ranges or without the helpers the map has one id, the user's own, and says so.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use skiff_sys::idmap::{self, IdRange, MapLine};

/// Fewer than this and images whose files belong to high ids do not unpack (A2).
const RECOMMENDED_IDS: u64 = 65_536;

/// The two maps and how to write them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IdMaps {
    /// For `/proc/PID/uid_map`.
    pub(crate) uids: Vec<MapLine>,
    /// For `/proc/PID/gid_map`.
    pub(crate) gids: Vec<MapLine>,
    /// newuidmap and newgidmap; `None` with a single id, which needs no help.
    pub(crate) helpers: Option<(PathBuf, PathBuf)>,
    /// What the user should know, each a paragraph.
    pub(crate) warnings: Vec<String>,
}

/// Who starts the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    /// Effective user id.
    pub(crate) uid: u32,
    /// Effective group id.
    pub(crate) gid: u32,
    /// Login name; `None` when nobody knows the id.
    pub(crate) name: Option<String>,
}

impl User {
    /// The caller.
    pub(crate) fn current() -> Self {
        let uid = rustix::process::geteuid();
        // A directory service that is down must not keep the daemon from starting: the number works, too.
        let entry = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid.as_raw()))
            .ok()
            .flatten();
        Self {
            uid: uid.as_raw(),
            gid: rustix::process::getegid().as_raw(),
            name: entry.map(|entry| entry.name),
        }
    }

    fn label(&self) -> String {
        format!("{} (\"{}\")", self.uid, self.name.as_deref().unwrap_or_default())
    }
}

/// What the system offers a user.
#[derive(Debug, Clone, Default)]
struct Offer {
    subuids: Vec<IdRange>,
    subgids: Vec<IdRange>,
    newuidmap: Option<PathBuf>,
    newgidmap: Option<PathBuf>,
    /// First id that no line of either file gives to anybody, for the advice.
    next_free: u32,
}

impl IdMaps {
    /// Finds out what the caller may map.
    pub(crate) fn for_user(user: &User) -> Self {
        Self::decide(user, &Offer::find(user))
    }

    fn decide(user: &User, offer: &Offer) -> Self {
        let problem = match (&offer.newuidmap, &offer.newgidmap) {
            (None, _) => Some(missing_helper("newuidmap")),
            (_, None) => Some(missing_helper("newgidmap")),
            _ if offer.subuids.is_empty() => Some(no_ranges("subuid", user, offer.next_free)),
            _ if offer.subgids.is_empty() => Some(no_ranges("subgid", user, offer.next_free)),
            _ => None,
        };
        if let Some(problem) = problem {
            return Self {
                uids: idmap::rootless_map(user.uid, &[]),
                gids: idmap::rootless_map(user.gid, &[]),
                helpers: None,
                warnings: vec![format!(
                    "{problem}\nGoing on with a single id: in containers every file belongs to root, and programs that \
                     change owners or users fail."
                )],
            };
        }
        let mut maps = Self {
            uids: idmap::rootless_map(user.uid, &offer.subuids),
            gids: idmap::rootless_map(user.gid, &offer.subgids),
            helpers: offer.newuidmap.clone().zip(offer.newgidmap.clone()),
            warnings: Vec::new(),
        };
        for (file, map) in [("subuid", &maps.uids), ("subgid", &maps.gids)] {
            // The first id is the user's own, not a subordinate one.
            let ids = idmap::mapped_ids(map) - 1;
            if ids < RECOMMENDED_IDS {
                maps.warnings.push(format!(
                    "only {ids} ids for user {} in /etc/{file}, {RECOMMENDED_IDS} are recommended: images with files of \
                     higher ids cannot be unpacked. {}",
                    user.label(),
                    range_advice(user, offer.next_free)
                ));
            }
        }
        maps
    }

    /// The highest id inside that has a meaning for both kinds.
    pub(crate) fn last_gid(&self) -> u32 {
        self.gids.last().map_or(0, |line| line.inside + (line.count - 1))
    }

    /// Whether only the user's own id is mapped.
    pub(crate) fn is_single(&self) -> bool {
        self.helpers.is_none()
    }
}

fn missing_helper(name: &str) -> String {
    format!(
        "[rootlesskit:parent] error: failed to setup UID/GID map: exec: \"{name}\": executable file not found in $PATH\n\
         Install it: package uidmap (Debian, Ubuntu), shadow-utils (Fedora, RHEL, openSUSE) or shadow (Arch)."
    )
}

fn no_ranges(file: &str, user: &User, next_free: u32) -> String {
    format!(
        "[rootlesskit:parent] error: failed to setup UID/GID map: failed to compute uid/gid map: No {file} ranges found \
         for user {}\n{}",
        user.label(),
        range_advice(user, next_free)
    )
}

fn range_advice(user: &User, next_free: u32) -> String {
    let owner = user.name.clone().unwrap_or_else(|| user.uid.to_string());
    format!(
        "As root, add a range that nobody else has, then end and start the daemon:\n    \
         echo {owner}:{next_free}:{RECOMMENDED_IDS} >> /etc/subuid\n    \
         echo {owner}:{next_free}:{RECOMMENDED_IDS} >> /etc/subgid"
    )
}

impl Offer {
    fn find(user: &User) -> Self {
        // Both questions at once: each is a process that may ask a directory service.
        let asked = find_program("getsubids")
            .zip(user.name.as_deref())
            .map(|(program, name)| [ask(&program, &[name]), ask(&program, &["-g", name])]);
        let [subuid_file, subgid_file] =
            ["/etc/subuid", "/etc/subgid"].map(|path| fs::read(path).unwrap_or_default());
        let texts = [&subuid_file, &subgid_file].map(|bytes| String::from_utf8_lossy(bytes));
        let [from_uids, from_gids] = match asked {
            Some(children) => children.map(answer),
            None => [Vec::new(), Vec::new()],
        };
        let or_file = |ranges: Vec<IdRange>, text: &str| {
            if ranges.is_empty() {
                idmap::parse_subid_file(text, user.name.as_deref(), user.uid)
            } else {
                ranges
            }
        };
        Self {
            subuids: or_file(from_uids, &texts[0]),
            subgids: or_file(from_gids, &texts[1]),
            newuidmap: find_program("newuidmap"),
            newgidmap: find_program("newgidmap"),
            next_free: next_free(&texts),
        }
    }
}

fn ask(program: &Path, arguments: &[&str]) -> Option<Child> {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()
}

/// No answer is an empty one: the files are read then.
fn answer(child: Option<Child>) -> Vec<IdRange> {
    let Some(output) = child.and_then(|child| child.wait_with_output().ok()) else {
        return Vec::new();
    };
    if !output.status.success() {
        return Vec::new();
    }
    idmap::parse_getsubids(&String::from_utf8_lossy(&output.stdout))
}

/// Past everything that is given to anybody, and where useradd(8) begins.
fn next_free(files: &[impl AsRef<str>]) -> u32 {
    const FIRST: u32 = 100_000;
    files
        .iter()
        .flat_map(|text| text.as_ref().lines())
        .filter_map(|line| {
            let mut numbers = line
                .split(':')
                .skip(1)
                .map(|number| number.trim().parse::<u32>().ok());
            numbers.next()??.checked_add(numbers.next()??)
        })
        .fold(FIRST, u32::max)
}

/// Finds an executable in PATH, and in the two places that the PATH of a service may lack.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/bin", "/usr/sbin"].map(PathBuf::from))
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(name))
        .find(|file| {
            fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> User {
        User {
            uid: 1001,
            gid: 100,
            name: Some("testuser".to_owned()),
        }
    }

    fn offer(ids: u32) -> Offer {
        let ranges: Vec<_> = IdRange::new(231_072, ids).into_iter().collect();
        Offer {
            subuids: ranges.clone(),
            subgids: ranges,
            newuidmap: Some("/usr/bin/newuidmap".into()),
            newgidmap: Some("/usr/bin/newgidmap".into()),
            next_free: 296_608,
        }
    }

    #[test]
    fn the_ordinary_case() {
        let maps = IdMaps::decide(&user(), &offer(65_536));
        assert_eq!(idmap::map_text(&maps.uids), "0 1001 1\n1 231072 65536\n");
        assert_eq!(idmap::map_text(&maps.gids), "0 100 1\n1 231072 65536\n");
        assert!(maps.warnings.is_empty() && !maps.is_single());
        assert_eq!(maps.last_gid(), 65_536);
    }

    #[test]
    fn few_ids_are_a_warning() {
        let maps = IdMaps::decide(&user(), &offer(1000));
        assert!(!maps.is_single());
        assert!(
            maps.warnings[0].contains("only 1000 ids for user 1001 (\"testuser\") in /etc/subuid"),
            "{maps:?}"
        );
    }

    #[test]
    fn without_ranges_or_helpers_there_is_one_id() {
        let none = Offer {
            subuids: Vec::new(),
            ..offer(1)
        };
        let maps = IdMaps::decide(&user(), &none);
        assert!(maps.is_single());
        assert_eq!((maps.uids.len(), maps.last_gid()), (1, 0));
        assert!(
            maps.warnings[0].starts_with(
                "[rootlesskit:parent] error: failed to setup UID/GID map: failed to compute uid/gid map: \
                 No subuid ranges found for user 1001 (\"testuser\")\n"
            ),
            "{maps:?}"
        );
        assert!(maps.warnings[0].contains("echo testuser:296608:65536 >> /etc/subuid"));

        let maps = IdMaps::decide(
            &user(),
            &Offer {
                newgidmap: None,
                ..offer(65_536)
            },
        );
        assert!(maps.is_single() && maps.warnings[0].contains("\"newgidmap\": executable file not found"));
    }

    #[test]
    fn advice_does_not_overlap_others() {
        assert_eq!(
            next_free(&["a:100000:65536\nb:165536:65536\n", "c:4294967295:1\nx\n"]),
            231_072
        );
        assert_eq!(next_free(&[""]), 100_000);
    }
}
