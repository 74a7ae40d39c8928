//! Renames: one system call in the upper directory, after what moves is there and before anybody can see less or more
//! than before or after.
//!
//! | moves | onto | how |
//! |---|---|---|
//! | anything | nothing | `rename`; with `RENAME_WHITEOUT` if lower layers have the old name |
//! | file | whiteout, file | the same |
//! | directory | whiteout | exchange; the whiteout serves at the old name or is removed |
//! | directory | empty directory | the same as onto nothing; exchange if whiteouts are in it |
//! | merged or lower directory | | `EXDEV`, as the kernel without `redirect_dir`: mv(1) copies then |
//!
//! A directory that comes to lie over a lower one is made opaque first.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::sync::{Arc, RwLockWriteGuard};

use rustix::fs::{self, AtFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;

use super::at::At;
use super::copy_up::Purpose;
use super::descriptors::DirectoryFd;
use super::layer::{is_whiteout, stat_at};
use super::lock::{lock, read, write};
use super::node::{Known, Node, Place};
use super::resolve::Found;
use super::work::Work;
use super::{Overlay, Result};

/// A name, and the directory in the upper layer that has it.
struct End<'a> {
    parent: &'a Arc<Node>,
    upper: Arc<DirectoryFd>,
    name: &'a OsStr,
    /// A lower layer has this name.
    covered: bool,
}

/// Something that moves or is replaced.
struct Moved {
    node: Known,
    found: Found,
}

/// A copy-up came in between; look again.
const AGAIN: Errno = Errno::AGAIN;

impl Overlay {
    pub(super) fn do_rename(
        &self,
        parent: u64,
        name: &OsStr,
        new_parent: u64,
        new_name: &OsStr,
        flags: u32,
    ) -> Result<()> {
        let work = self.work.as_ref().ok_or(Errno::ROFS)?;
        let flags = RenameFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        if !flags.is_empty() && flags != RenameFlags::NOREPLACE && flags != RenameFlags::EXCHANGE {
            return Err(Errno::INVAL);
        }
        let (from, to) = (self.directory_node(parent)?, self.directory_node(new_parent)?);
        loop {
            let old = self.movable(&from, name)?;
            if flags == RenameFlags::EXCHANGE {
                // What is refused is refused before anything was copied.
                let new = self.movable(&to, new_name)?;
                self.prepare_to_move(&new)?;
            }
            self.prepare_to_move(&old)?;
            let mut old = self.end(&from, name)?;
            let mut new = self.end(&to, new_name)?;
            let _renames = (!Arc::ptr_eq(&from, &to)).then(|| lock(&self.renames));
            let _names = self.lock_names(&from, &to)?;
            old.covered = self.is_covered(&from, name)?;
            new.covered = self.is_covered(&to, new_name)?;
            match self.rename_locked(work, &old, &new, flags) {
                Err(AGAIN) => {}
                outcome => return outcome,
            }
        }
    }

    fn end<'a>(&self, parent: &'a Arc<Node>, name: &'a OsStr) -> Result<End<'a>> {
        Ok(End {
            parent,
            upper: self.upper_fd(parent)?,
            name,
            covered: false,
        })
    }

    /// What is about to move, unless it cannot.
    fn movable(&self, parent: &Arc<Node>, name: &OsStr) -> Result<Known> {
        let held = {
            let _names = read(&self.directory_of(parent)?.names);
            let found = self.resolve(parent, name, false)?.ok_or(Errno::NOENT)?;
            Known::taken(self.known(parent, name, &found))
        };
        match &held.node().directory {
            Some(directory) if !directory.is_pure_upper() => Err(Errno::XDEV),
            _ => Ok(held),
        }
    }

    /// Copies up what is about to move.
    fn prepare_to_move(&self, moved: &Known) -> Result<()> {
        if moved.node().is_directory() {
            return Ok(());
        }
        self.copy_up(moved.node(), Purpose::Keep).map(drop)
    }

    /// Locks both directories, an ancestor before its descendant.
    fn lock_names<'a>(
        &self,
        a: &'a Arc<Node>,
        b: &'a Arc<Node>,
    ) -> Result<(RwLockWriteGuard<'a, ()>, Option<RwLockWriteGuard<'a, ()>>)> {
        if Arc::ptr_eq(a, b) {
            return Ok((write(&self.directory_of(a)?.names), None));
        }
        let b_first = a.is_within(b) || (!b.is_within(a) && b.id < a.id);
        let (first, second) = if b_first { (b, a) } else { (a, b) };
        let first = write(&self.directory_of(first)?.names);
        let second = write(&self.directory_of(second)?.names);
        Ok((first, Some(second)))
    }

    fn moved(&self, end: &End<'_>) -> Result<Option<Moved>> {
        Ok(self.resolve(end.parent, end.name, false)?.map(|found| Moved {
            node: Known::taken(self.known(end.parent, end.name, &found)),
            found,
        }))
    }

    fn rename_locked(&self, work: &Work, old: &End<'_>, new: &End<'_>, flags: RenameFlags) -> Result<()> {
        if old.parent.is_removed() || new.parent.is_removed() {
            return Err(Errno::NOENT);
        }
        let source = self.moved(old)?.ok_or(Errno::NOENT)?;
        let target = self.moved(new)?;
        self.may_move(&source, new)?;
        if let Some(target) = &target {
            if Arc::ptr_eq(source.node.node(), target.node.node()) {
                // Two names of one file: rename(2) leaves both.
                return if flags == RenameFlags::NOREPLACE {
                    Err(Errno::EXIST)
                } else {
                    Ok(())
                };
            }
            if flags == RenameFlags::NOREPLACE {
                return Err(Errno::EXIST);
            }
        }
        let at = At::Name(old.upper.as_fd(), old.name);
        self.mark_plain(&at, new.name, source.found.kind())?;
        match (flags == RenameFlags::EXCHANGE, target) {
            (true, Some(target)) => {
                self.may_move(&target, old)?;
                let at = At::Name(new.upper.as_fd(), new.name);
                self.mark_plain(&at, old.name, target.found.kind())?;
                self.exchange(old, new, &source, &target)
            }
            (true, None) => Err(Errno::NOENT),
            (false, target) => self.replace(work, old, new, &source, target.as_ref()),
        }
    }

    fn may_move(&self, moved: &Moved, to: &End<'_>) -> Result<()> {
        match &moved.node.node().directory {
            Some(directory) if !directory.is_pure_upper() => Err(Errno::XDEV),
            Some(_) if to.parent.is_within(moved.node.node()) => Err(Errno::INVAL),
            None if !self.is_upper(moved.found.layer) => Err(AGAIN),
            _ => Ok(()),
        }
    }

    fn replace(
        &self,
        work: &Work,
        old: &End<'_>,
        new: &End<'_>,
        source: &Moved,
        target: Option<&Moved>,
    ) -> Result<()> {
        let directory = source.node.node().is_directory();
        match target {
            Some(target) if target.node.node().is_directory() => {
                if !directory {
                    return Err(Errno::ISDIR);
                }
                if old.parent.is_within(target.node.node()) {
                    return Err(Errno::NOTEMPTY);
                }
            }
            Some(_) if directory => return Err(Errno::NOTDIR),
            _ => {}
        }
        if directory {
            self.replace_by_directory(work, old, new, source, target)
        } else {
            self.replace_by_file(work, old, new, source, target)
        }
    }

    fn replace_by_file(
        &self,
        work: &Work,
        old: &End<'_>,
        new: &End<'_>,
        source: &Moved,
        target: Option<&Moved>,
    ) -> Result<()> {
        let (node, victim) = (source.node.node(), target.map(|target| target.node.node()));
        let (mut place, mut victim_place) = lock_places(node, victim);
        let kept = match (target, &victim_place) {
            (Some(target), Some(place)) if self.is_upper(target.found.layer) => {
                self.keep_nameless(target.node.node(), place, new.parent, &new.upper, new.name)
            }
            _ => None,
        };
        self.rename_away(work, old, new)?;
        place.renamed((old.parent, old.name), (new.parent, new.name));
        if let (Some(target), Some(victim)) = (target, &mut victim_place) {
            self.lost_name(
                target.node.node(),
                victim,
                new.parent,
                new.name,
                &target.found,
                kept,
            );
        }
        old.changed(0);
        new.changed(0);
        Ok(())
    }

    /// Renames, and leaves a whiteout behind where one is needed.
    fn rename_away(&self, work: &Work, old: &End<'_>, new: &End<'_>) -> Result<()> {
        let flags = if old.covered {
            RenameFlags::WHITEOUT
        } else {
            RenameFlags::empty()
        };
        match fs::renameat_with(&*old.upper, old.name, &*new.upper, new.name, flags) {
            Err(Errno::INVAL | Errno::PERM) if old.covered => rename_in_steps(work, old, new),
            outcome => outcome,
        }
    }

    fn replace_by_directory(
        &self,
        work: &Work,
        old: &End<'_>,
        new: &End<'_>,
        source: &Moved,
        target: Option<&Moved>,
    ) -> Result<()> {
        let node = source.node.node();
        let victim = target.map(|target| target.node.node());
        let victim_names = match victim.and_then(|victim| victim.directory.as_ref()) {
            Some(directory) => Some(write(&directory.names)),
            None => None,
        };
        if let Some(victim) = victim {
            if !self.is_empty(victim)? {
                return Err(Errno::NOTEMPTY);
            }
            self.pin(victim)?;
        }
        self.pin(node)?;
        let outcome: Result<()> = (|| {
            if new.covered {
                self.make_opaque(old)?;
            }
            let tree = write(&self.tree);
            self.move_directory(work, old, new)?;
            node.move_to(new.parent, new.name);
            drop(tree);
            Ok(())
        })();
        self.unpin(node);
        if let (Some(victim), Err(_)) = (victim, &outcome) {
            self.unpin(victim);
        }
        outcome?;
        if let Some(victim) = victim {
            self.directory_is_gone(victim);
        }
        drop(victim_names);
        old.changed(-1);
        new.changed(i32::from(victim.is_none()));
        Ok(())
    }

    /// One system call if it can be.
    fn move_directory(&self, work: &Work, old: &End<'_>, new: &End<'_>) -> Result<()> {
        let there = stat_at(&*new.upper, new.name)?;
        let whiteout = there.as_ref().is_some_and(is_whiteout);
        if !whiteout {
            match self.rename_away(work, old, new) {
                // Whiteouts are in it.
                Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                outcome => return outcome,
            }
        }
        match (whiteout, old.covered) {
            (true, true) => swap(old, new),
            (true, false) => {
                swap(old, new)?;
                fs::unlinkat(&*old.upper, old.name, AtFlags::empty()).inspect_err(|_| swap_back(old, new))
            }
            (false, true) => exchange_for_whiteout(work, old, new),
            (false, false) => {
                swap(old, new)?;
                let staged = work.name();
                fs::renameat(&*old.upper, old.name, &work.fd, &*staged)
                    .inspect_err(|_| swap_back(old, new))?;
                work.discard(&staged);
                Ok(())
            }
        }
    }

    fn exchange(&self, old: &End<'_>, new: &End<'_>, source: &Moved, target: &Moved) -> Result<()> {
        let (a, b) = (source.node.node(), target.node.node());
        for (moved, end, covered) in [(a, old, new.covered), (b, new, old.covered)] {
            if moved.is_directory() && covered {
                self.make_opaque(end)?;
            }
        }
        let files = [a, b].map(|node| (!node.is_directory()).then_some(node));
        let (mut place_a, mut place_b) = lock_some_places(files);
        {
            let _tree = write(&self.tree);
            let flags = RenameFlags::EXCHANGE;
            fs::renameat_with(&*old.upper, old.name, &*new.upper, new.name, flags)?;
            for (node, end) in [(a, new), (b, old)] {
                if node.is_directory() {
                    node.move_to(end.parent, end.name);
                }
            }
        }
        for (place, was, is) in [(&mut place_a, old, new), (&mut place_b, new, old)] {
            if let Some(place) = place {
                place.renamed((was.parent, was.name), (is.parent, is.name));
            }
        }
        let change = i32::from(b.is_directory()) - i32::from(a.is_directory());
        old.changed(change);
        new.changed(-change);
        Ok(())
    }

    fn make_opaque(&self, end: &End<'_>) -> Result<()> {
        let at = At::Name(end.upper.as_fd(), end.name);
        at.set_xattr(self.marks.opaque.as_bytes(), b"y", XattrFlags::empty())
    }
}

impl End<'_> {
    fn changed(&self, subdirectories: i32) {
        if let Some(directory) = &self.parent.directory {
            directory.gained();
            if subdirectories != 0 {
                directory.count(subdirectories);
            }
        }
    }
}

fn swap(old: &End<'_>, new: &End<'_>) -> Result<()> {
    let flags = RenameFlags::EXCHANGE;
    fs::renameat_with(&*old.upper, old.name, &*new.upper, new.name, flags)
}

/// Undoes [`swap`] when what was to follow it failed (a full disk): who called believes that nothing was done.
fn swap_back(old: &End<'_>, new: &End<'_>) {
    if let Err(errno) = swap(old, new) {
        tracing::error!(old = ?old.name, new = ?new.name, %errno, "a rename could not be undone");
    }
}

/// Exchanges the two names, then puts a whiteout in the place of what came to the old one. Whatever needs room on the
/// disk comes before the first step that others see; at no instant is a name gone.
fn exchange_for_whiteout(work: &Work, old: &End<'_>, new: &End<'_>) -> Result<()> {
    let staged = work.name();
    work.whiteout(&work.fd, &staged)?;
    let outcome = swap(old, new).and_then(|()| {
        let flags = RenameFlags::EXCHANGE;
        fs::renameat_with(&work.fd, &*staged, &*old.upper, old.name, flags)
            .inspect_err(|_| swap_back(old, new))
    });
    // What the new name led to before; or, on failure, the whiteout.
    work.discard(&staged);
    outcome
}

/// For file systems that cannot leave a whiteout behind in one step: for an instant the old name shows what is in the
/// lower layers, or what the new name showed.
fn rename_in_steps(work: &Work, old: &End<'_>, new: &End<'_>) -> Result<()> {
    if stat_at(&*new.upper, new.name)?.is_some() {
        return exchange_for_whiteout(work, old, new);
    }
    let staged = work.name();
    work.whiteout(&work.fd, &staged)?;
    let outcome = fs::renameat(&*old.upper, old.name, &*new.upper, new.name).and_then(|()| {
        fs::renameat(&work.fd, &*staged, &*old.upper, old.name).inspect_err(|_| {
            if let Err(errno) = fs::renameat(&*new.upper, new.name, &*old.upper, old.name) {
                tracing::error!(old = ?old.name, new = ?new.name, %errno, "a rename could not be undone");
            }
        })
    });
    outcome.inspect_err(|_| work.discard(&staged))
}

type PlaceGuard<'a> = RwLockWriteGuard<'a, Place>;

/// Locks the places of two files, in the order of their numbers.
fn lock_places<'a>(a: &'a Arc<Node>, b: Option<&'a Arc<Node>>) -> (PlaceGuard<'a>, Option<PlaceGuard<'a>>) {
    match b {
        Some(b) if b.id < a.id => {
            let b = write(&b.place);
            (write(&a.place), Some(b))
        }
        b => (write(&a.place), b.map(|b| write(&b.place))),
    }
}

fn lock_some_places<'a>(
    nodes: [Option<&'a Arc<Node>>; 2],
) -> (Option<PlaceGuard<'a>>, Option<PlaceGuard<'a>>) {
    match nodes {
        [Some(a), b] => {
            let (a, b) = lock_places(a, b);
            (Some(a), b)
        }
        [None, b] => (None, b.map(|b| write(&b.place))),
    }
}
