//! What `docker diff` shows: the names that a container added, changed and deleted.
//!
//! A directory that holds exactly the changes (an overlay's upper directory) does not tell what was there before, so the
//! layers below are asked, name by name: the cost follows the change and not the tree. Whole trees are walked side by side.
//!
//! ```text
//!   tree   directory ─ name ─┐  in no layer below: added     differs: changed     the same: not shown
//!   lower  layer 3 ─ name? ──┤  whiteout: deleted            opaque directory: what is below and not here is deleted
//!          layer 2 ─ name? ──┘  (down to the first layer that has the name, or hides it)
//! ```
//!
//! A directory is shown when it differs itself (owner, mode, attributes) or when something in it is shown.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{self, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::WhiteoutFormat;
use crate::differ::DiffTree;
use crate::error::{Error, Result, show};
use crate::root::{directory_flags, names};
use crate::walk::{below, is_outdated, is_same, listed, open_child};
use crate::whiteout::{is_mark, is_opaque, is_whiteout_device, stat_at};

/// The layers below a tree, as directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LowerLayers {
    /// Topmost first.
    pub directories: Vec<PathBuf>,
    /// How deletions are marked in them.
    pub whiteouts: WhiteoutFormat,
}

/// What happened to a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChangeKind {
    /// It was there and is different now.
    Modified,
    /// It is new.
    Added,
    /// It is gone.
    Deleted,
}

/// A name that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathChange {
    /// Without a leading slash.
    pub path: Vec<u8>,
    /// What happened.
    pub kind: ChangeKind,
}

/// The changes of `tree` against `lower`, a directory before its contents and names in the order of their bytes; names in
/// `without` are not looked at.
///
/// # Errors
/// `Io`.
pub fn changed_paths(
    tree: &DiffTree<'_>,
    lower: &LowerLayers,
    without: &BTreeSet<Vec<u8>>,
) -> Result<Vec<PathChange>> {
    let (directory, format, complete) = match tree {
        DiffTree::Native { directory, whiteouts } => (*directory, Some(*whiteouts), false),
        DiffTree::Compare { directory, .. } => (*directory, None, true),
    };
    let mut scan = Scan {
        upper: format.filter(|format| *format != WhiteoutFormat::Delete),
        lower: lower.whiteouts,
        without,
        found: Vec::new(),
    };
    scan.directory(
        &open_top(directory)?,
        &open_lower(lower)?,
        complete,
        &mut Vec::new(),
    )?;
    Ok(scan.found)
}

/// Those of `candidates` that `tree` has only as an empty file, an empty directory or a symbolic link, and `lower` does
/// not: what was made to mount something on. Directories that hold nothing but such names count when they are candidates
/// themselves and come after their contents, also when `lower` has them the same.
///
/// # Errors
/// `Io`.
pub fn placeholders(
    tree: &DiffTree<'_>,
    lower: &LowerLayers,
    candidates: &[&str],
) -> Result<BTreeSet<Vec<u8>>> {
    let (DiffTree::Native { directory, .. } | DiffTree::Compare { directory, .. }) = tree;
    let top = open_top(directory)?;
    let lower_tops = open_lower(lower)?;
    let mut found = BTreeSet::new();
    for candidate in candidates {
        let path = candidate.as_bytes();
        let (parents, name) = match path.iter().rposition(|&b| b == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&path[..0], path),
        };
        let failed = |errno| Error::os(format!("look for /{candidate}"), errno);
        let Some(parent) = descend(&top, parents).map_err(failed)? else {
            continue;
        };
        let Some(stat) = optional(stat_at(&parent, name)).map_err(failed)? else {
            continue;
        };
        let inside = |found: &BTreeSet<Vec<u8>>| -> Result<bool, Errno> {
            let directory = fs::openat(&parent, name, directory_flags(), Mode::empty())?;
            // What hides the directory below says something.
            if let DiffTree::Native { whiteouts, .. } = tree
                && is_opaque(&directory, *whiteouts)?
            {
                return Ok(false);
            }
            let known = |inside: &Vec<u8>| found.contains(&[path, b"/", &inside[..]].concat());
            Ok(names(&directory)?.iter().all(known))
        };
        // A container that runs may take it away while we look: then it is no placeholder.
        let or_gone = |outcome: Result<bool, Errno>| match outcome {
            Err(errno) if is_outdated(&parent, name, &stat, errno) => Ok(false),
            other => other.map_err(failed),
        };
        let directory = is_directory(&stat);
        let empty = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => stat.st_size == 0,
            FileType::Symlink => true,
            FileType::Directory => or_gone(inside(&found))?,
            _ => false,
        };
        if !empty {
            continue;
        }
        let below = lower_directories(&lower_tops, lower.whiteouts, parents).map_err(failed)?;
        let below = below.as_deref().unwrap_or(&lower_tops);
        let counts = match find(below, lower.whiteouts, name).map_err(failed)? {
            None => true,
            // A directory that was only copied up to make something in it.
            Some((layer, _)) => directory && or_gone(is_same(&parent, &below[layer], name, &stat))?,
        };
        if counts {
            found.insert(path.to_vec());
        }
    }
    Ok(found)
}

struct Scan<'s> {
    /// Whiteouts of the tree itself; `None` when it has none.
    upper: Option<WhiteoutFormat>,
    lower: WhiteoutFormat,
    without: &'s BTreeSet<Vec<u8>>,
    found: Vec<PathChange>,
}

impl Scan<'_> {
    /// One directory. `complete` says that it shows everything there is: a name below that is not here was deleted.
    fn directory(
        &mut self,
        here: &OwnedFd,
        lower: &[OwnedFd],
        complete: bool,
        path: &mut Vec<u8>,
    ) -> Result<()> {
        let failed = |what: &str, path: &[u8], errno| Error::os(format!("{what} /{}", show(path)), errno);
        let mut all: BTreeSet<Vec<u8>> = listed(here, path)?.into_iter().collect();
        if complete {
            let old = lower_names(lower, self.lower).map_err(|e| failed("read directory below", path, e))?;
            all.extend(old);
        }
        for name in all {
            if self.upper.is_some_and(|format| is_mark(&name, format)) {
                continue;
            }
            below(path, &name, |path| {
                if self.without.contains(path) {
                    return Ok(());
                }
                let before = find(lower, self.lower, &name).map_err(|e| failed("stat below", path, e))?;
                let now = match stat_at(here, &name) {
                    // A running container may remove files while we look.
                    Err(Errno::NOENT) => None,
                    Ok(stat) if self.upper.is_some() && is_whiteout_device(&stat) => None,
                    Ok(stat) => Some(stat),
                    Err(errno) => return Err(failed("stat", path, errno)),
                };
                match (now, before) {
                    (None, Some(_)) => self.push(path, ChangeKind::Deleted),
                    (None, None) => {}
                    (Some(now), before) => self.present(here, lower, complete, path, &name, &now, before)?,
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one name in two trees is described by that much"
    )]
    fn present(
        &mut self,
        here: &OwnedFd,
        lower: &[OwnedFd],
        complete: bool,
        path: &mut Vec<u8>,
        name: &[u8],
        now: &Stat,
        before: Option<(usize, Stat)>,
    ) -> Result<()> {
        let failed = |what: &str, path: &[u8], errno| Error::os(format!("{what} /{}", show(path)), errno);
        let same = match &before {
            Some((layer, _)) => match is_same(here, &lower[*layer], name, now) {
                // It changes while we look.
                Err(errno) if is_outdated(here, name, now, errno) => false,
                other => other.map_err(|e| failed("compare", path, e))?,
            },
            None => false,
        };
        let kind = if before.is_some() {
            ChangeKind::Modified
        } else {
            ChangeKind::Added
        };
        self.push(path, kind);
        let mark = self.found.len();
        if is_directory(now)
            && let Some(child) = open_child(here, name, now, path)?
        {
            let opaque = match self.upper {
                Some(format) => {
                    is_opaque(&child, format).map_err(|e| failed("read attributes of", path, e))?
                }
                None => false,
            };
            let inside =
                enter(lower, self.lower, name).map_err(|e| failed("open directory below", path, e))?;
            self.directory(&child, &inside, complete || opaque, path)?;
        }
        if same && self.found.len() == mark {
            self.found.pop();
        }
        Ok(())
    }

    fn push(&mut self, path: &[u8], kind: ChangeKind) {
        self.found.push(PathChange {
            path: path.to_vec(),
            kind,
        });
    }
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// `None` for a name that is not there, or below something that is no directory.
fn optional<T>(outcome: Result<T, Errno>) -> Result<Option<T>, Errno> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn open_top(path: &std::path::Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fs::open(path, flags, Mode::empty())
        .map_err(|errno| Error::os(format!("open directory {}", path.display()), errno))
}

fn open_lower(lower: &LowerLayers) -> Result<Vec<OwnedFd>> {
    lower.directories.iter().map(|path| open_top(path)).collect()
}

fn whiteout(stat: &Stat, format: WhiteoutFormat) -> bool {
    format != WhiteoutFormat::Delete && is_whiteout_device(stat)
}

/// What the directories, as one, have under `name`: in which of them, and what.
fn find(lower: &[OwnedFd], format: WhiteoutFormat, name: &[u8]) -> Result<Option<(usize, Stat)>, Errno> {
    for (layer, directory) in lower.iter().enumerate() {
        if let Some(stat) = optional(stat_at(directory, name))? {
            return Ok((!whiteout(&stat, format)).then_some((layer, stat)));
        }
    }
    Ok(None)
}

/// The directories that together show `name` below.
fn enter(lower: &[OwnedFd], format: WhiteoutFormat, name: &[u8]) -> Result<Vec<OwnedFd>, Errno> {
    let mut inside = Vec::new();
    for directory in lower {
        let Some(stat) = optional(stat_at(directory, name))? else {
            continue;
        };
        if !is_directory(&stat) {
            break;
        }
        let child = fs::openat(directory, name, directory_flags(), Mode::empty())?;
        let opaque = is_opaque(&child, format)?;
        inside.push(child);
        if opaque {
            break;
        }
    }
    Ok(inside)
}

/// The names that the directories show together.
fn lower_names(lower: &[OwnedFd], format: WhiteoutFormat) -> Result<BTreeSet<Vec<u8>>, Errno> {
    let (mut shown, mut hidden) = (BTreeSet::new(), BTreeSet::new());
    for directory in lower {
        for name in names(directory)? {
            if shown.contains(&name) || hidden.contains(&name) {
                continue;
            }
            if format != WhiteoutFormat::Delete && whiteout(&stat_at(directory, &name)?, format) {
                hidden.insert(name);
            } else {
                shown.insert(name);
            }
        }
    }
    Ok(shown)
}

fn parts(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|&b| b == b'/').filter(|part| !part.is_empty())
}

/// The directory `path` below `top`, without following symbolic links.
fn descend(top: &OwnedFd, path: &[u8]) -> Result<Option<OwnedFd>, Errno> {
    let mut current = top
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::MFILE))?;
    for part in parts(path) {
        match optional(fs::openat(&current, part, directory_flags(), Mode::empty()))? {
            Some(child) => current = child,
            None => return Ok(None),
        }
    }
    Ok(Some(current))
}

/// The directories that together show `path` below; `None` for the top.
fn lower_directories(
    tops: &[OwnedFd],
    format: WhiteoutFormat,
    path: &[u8],
) -> Result<Option<Vec<OwnedFd>>, Errno> {
    let mut inside: Option<Vec<OwnedFd>> = None;
    for part in parts(path) {
        inside = Some(enter(inside.as_deref().unwrap_or(tops), format, part)?);
    }
    Ok(inside)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs as disk;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;

    struct Trees {
        scratch: tempfile::TempDir,
        layers: Vec<PathBuf>,
    }

    impl Trees {
        fn new(layers: usize) -> Self {
            let scratch = tempfile::tempdir().unwrap();
            let layers: Vec<_> = (0..layers)
                .map(|n| scratch.path().join(format!("l{n}")))
                .collect();
            for directory in layers.iter().chain([&scratch.path().join("upper")]) {
                disk::create_dir(directory).unwrap();
            }
            Self { scratch, layers }
        }

        fn upper(&self) -> PathBuf {
            self.scratch.path().join("upper")
        }

        fn lower(&self, whiteouts: WhiteoutFormat) -> LowerLayers {
            LowerLayers {
                directories: self.layers.clone(),
                whiteouts,
            }
        }

        fn native(&self, without: &BTreeSet<Vec<u8>>) -> Vec<String> {
            let upper = self.upper();
            let tree = DiffTree::Native {
                directory: &upper,
                whiteouts: WhiteoutFormat::OverlayUser,
            };
            shown(changed_paths(&tree, &self.lower(WhiteoutFormat::OverlayUser), without).unwrap())
        }

        fn compare(&self) -> Vec<String> {
            let upper = self.upper();
            let tree = DiffTree::Compare {
                directory: &upper,
                parent: self.layers.first().map(PathBuf::as_path),
            };
            shown(changed_paths(&tree, &self.lower(WhiteoutFormat::Delete), &BTreeSet::new()).unwrap())
        }
    }

    fn shown(changes: Vec<PathChange>) -> Vec<String> {
        let letter = |kind| match kind {
            ChangeKind::Modified => 'C',
            ChangeKind::Added => 'A',
            ChangeKind::Deleted => 'D',
        };
        changes
            .iter()
            .map(|change| {
                format!(
                    "{} /{}",
                    letter(change.kind),
                    String::from_utf8_lossy(&change.path)
                )
            })
            .collect()
    }

    fn put(path: &Path, content: &str) {
        disk::create_dir_all(path.parent().unwrap()).unwrap();
        disk::write(path, content).unwrap();
    }

    /// Copies a file with its time, as a copy-up does.
    fn copy_up(from: &Path, to: &Path) {
        disk::create_dir_all(to.parent().unwrap()).unwrap();
        disk::copy(from, to).unwrap();
        let time = disk::metadata(from).unwrap().modified().unwrap();
        disk::File::options()
            .write(true)
            .open(to)
            .unwrap()
            .set_modified(time)
            .unwrap();
    }

    fn opaque(path: &Path) {
        disk::create_dir_all(path).unwrap();
        fs::setxattr(path, "user.overlay.opaque", b"y", fs::XattrFlags::empty()).unwrap();
    }

    /// A whiteout needs CAP_MKNOD or a kernel that lets user namespaces make it; the tests of this crate run where one of
    /// both is given.
    fn whiteout_at(path: &Path) {
        disk::create_dir_all(path.parent().unwrap()).unwrap();
        fs::mknodat(fs::CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    }

    #[test]
    fn an_upper_directory_is_held_against_the_layers_below() {
        let trees = Trees::new(2);
        let (top, bottom, upper) = (&trees.layers[0], &trees.layers[1], trees.upper());
        put(&bottom.join("etc/passwd"), "root");
        put(&bottom.join("etc/same"), "same");
        put(&bottom.join("gone/a"), "1");
        put(&bottom.join("replaced/old"), "1");
        put(&bottom.join("replaced/kept"), "1");
        put(&bottom.join("hidden"), "1");
        put(&top.join("replaced/newer"), "1");
        whiteout_at(&top.join("hidden"));

        put(&upper.join("etc/passwd"), "root and me");
        put(&upper.join("etc/new"), "1");
        copy_up(&bottom.join("etc/same"), &upper.join("etc/same"));
        put(&upper.join("hidden"), "made again");
        whiteout_at(&upper.join("gone"));
        opaque(&upper.join("replaced"));
        put(&upper.join("replaced/kept"), "other");
        put(&upper.join("tree/of/files"), "1");
        assert_eq!(
            trees.native(&BTreeSet::new()),
            [
                "C /etc",
                "A /etc/new",
                "C /etc/passwd",
                "D /gone",
                "A /hidden",
                "C /replaced",
                "C /replaced/kept",
                "D /replaced/newer",
                "D /replaced/old",
                "A /tree",
                "A /tree/of",
                "A /tree/of/files",
            ]
        );
        let without = BTreeSet::from([b"tree".to_vec(), b"etc/new".to_vec()]);
        let shown = trees.native(&without);
        assert!(
            !shown
                .iter()
                .any(|line| line.contains("tree") || line.ends_with("/new")),
            "{shown:?}"
        );
    }

    #[test]
    fn a_copied_up_directory_without_a_change_is_not_shown_and_one_with_another_mode_is() {
        let trees = Trees::new(1);
        for name in ["quiet/deep", "mode"] {
            disk::create_dir_all(trees.layers[0].join(name)).unwrap();
            disk::create_dir_all(trees.upper().join(name)).unwrap();
        }
        disk::set_permissions(trees.upper().join("mode"), disk::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(trees.native(&BTreeSet::new()), ["C /mode"]);
    }

    #[test]
    fn whole_trees_are_walked_side_by_side() {
        let trees = Trees::new(1);
        let (old, new) = (&trees.layers[0], trees.upper());
        put(&old.join("a/same"), "1");
        copy_up(&old.join("a/same"), &new.join("a/same"));
        put(&old.join("a/deleted"), "1");
        put(&old.join("a/sub/gone"), "1");
        put(&old.join("file"), "1");
        put(&new.join("file/is/a/directory"), "1");
        symlink("x", old.join("link")).unwrap();
        symlink("y", new.join("link")).unwrap();
        assert_eq!(
            trees.compare(),
            [
                "C /a",
                "D /a/deleted",
                "D /a/sub",
                "C /file",
                "A /file/is",
                "A /file/is/a",
                "A /file/is/a/directory",
                "C /link",
            ]
        );
        // From nothing.
        let empty = Trees::new(0);
        put(&empty.upper().join("x/y"), "1");
        assert_eq!(empty.compare(), ["A /x", "A /x/y"]);
    }

    #[test]
    fn what_was_only_made_to_be_mounted_on_is_known() {
        let trees = Trees::new(1);
        put(&trees.layers[0].join("etc/hosts"), "");
        for file in ["etc/hosts", "etc/hostname", "dev/console", ".dockerenv"] {
            put(&trees.upper().join(file), "");
        }
        put(&trees.upper().join("etc/resolv.conf"), "mine");
        disk::create_dir_all(trees.upper().join("dev/pts")).unwrap();
        disk::create_dir_all(trees.upper().join("proc")).unwrap();
        // Copied up to make something in it, and nothing else.
        disk::create_dir_all(trees.layers[0].join("opt/app")).unwrap();
        put(&trees.upper().join("opt/app/mounted"), "");
        // A container's link must not lead us out.
        let outside = trees.scratch.path().join("outside");
        put(&outside.join("mtab"), "");
        symlink(&outside, trees.upper().join("run")).unwrap();
        let upper = trees.upper();
        let tree = DiffTree::Native {
            directory: &upper,
            whiteouts: WhiteoutFormat::OverlayUser,
        };
        let candidates = [
            "dev/pts",
            "dev/console",
            "proc",
            "sys",
            ".dockerenv",
            "etc/hosts",
            "etc/hostname",
            "etc/resolv.conf",
            "run/mtab",
            "opt/app/mounted",
            "opt/app",
            "dev",
            "etc",
        ];
        let found = placeholders(&tree, &trees.lower(WhiteoutFormat::OverlayUser), &candidates).unwrap();
        let found: Vec<_> = found
            .iter()
            .map(|path| String::from_utf8_lossy(path).into_owned())
            .collect();
        assert_eq!(
            found,
            [
                ".dockerenv",
                "dev",
                "dev/console",
                "dev/pts",
                "etc/hostname",
                "opt/app",
                "opt/app/mounted",
                "proc"
            ]
        );
        // Nothing of it is hidden from those who ask for everything. (Whether what is below too counts as changed is a
        // matter of the clock's ticks between the two writes.)
        let listed = trees.native(&BTreeSet::new());
        let added = listed.iter().filter(|line| line.starts_with('A')).count();
        assert_eq!(added, 9, "{listed:?}");
    }
}
