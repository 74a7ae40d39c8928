//! Owners that this user namespace does not have.
//!
//! A rootless engine has some 65,537 ids; images made at big sites name others (`UID 718322462`). By default such a layer
//! is refused with Docker's text. With [`OversizedIds::Squash`] the owner is folded onto the highest id that is mapped,
//! which no image uses by accident (unlike 65534, `nobody`, whose processes would then own the files), and the real one
//! is told to the caller, who keeps it in a table beside the layer. It is not kept in an extended attribute: a container
//! would see it, could change it, and would lose it on a copy.
//!
//! ```text
//!   apply ──▶ SquashedOwner{path, uid, gid} ──▶ table of the layer ──▶ Owners ──▶ diff writes the real owner again
//! ```

use std::collections::HashMap;
use std::io::{self, BufRead, Write};

use skiff_sys::idmap::{self, MapLine};

use crate::OversizedIds;
use crate::entry::Entry;

/// First line of a table of real owners.
const TABLE_HEADER: &str = "skiff owners 1";

/// A member whose owner was folded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SquashedOwner<'a> {
    /// Name in the layer, without leading or trailing slash.
    pub path: &'a [u8],
    /// The owner in the archive.
    pub uid: u64,
    /// The group in the archive.
    pub gid: u64,
}

/// Where real owners are told.
pub type OwnerSink<'s> = dyn FnMut(SquashedOwner<'_>) -> io::Result<()> + 's;

/// The ids of one kind that exist here.
#[derive(Debug)]
struct Ids {
    ranges: Vec<(u32, u32)>,
    /// What others are folded onto.
    highest: u32,
}

impl Ids {
    fn new(map: &[MapLine], max: Option<u32>) -> Self {
        let max = max.unwrap_or(u32::MAX - 1);
        let ranges: Vec<(u32, u32)> = map
            .iter()
            .filter(|line| line.count > 0 && line.inside <= max)
            .map(|line| (line.inside, line.inside.saturating_add(line.count - 1).min(max)))
            .collect();
        Self {
            highest: ranges.iter().map(|range| range.1).max().unwrap_or(0),
            ranges,
        }
    }

    /// `id`, if it exists here. The last number means "leave it" to chown(2) and never does.
    fn get(&self, id: u64) -> Option<u32> {
        let id = u32::try_from(id).ok().filter(|id| *id != u32::MAX)?;
        let known = self
            .ranges
            .iter()
            .any(|(first, last)| (*first..=*last).contains(&id));
        known.then_some(id)
    }
}

/// Decides on the owner of each member.
#[derive(Debug)]
pub(crate) struct OwnerMap {
    uids: Ids,
    gids: Ids,
    squash: bool,
}

/// The owner a member gets on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Its own.
    Real(u32, u32),
    /// At least one of the two was folded.
    Squashed(u32, u32),
    /// It does not exist here.
    Unknown,
}

impl OwnerMap {
    /// What this process's user namespace has, at most up to `max`.
    pub(crate) fn of_this_process(max: Option<u32>, oversized: OversizedIds) -> Self {
        let read = |path| match std::fs::read_to_string(path) {
            Ok(text) => idmap::parse_map(&text),
            // Without /proc the kernel decides, at chown(2).
            Err(_) => vec![MapLine {
                inside: 0,
                outside: 0,
                count: u32::MAX,
            }],
        };
        Self {
            uids: Ids::new(&read("/proc/self/uid_map"), max),
            gids: Ids::new(&read("/proc/self/gid_map"), max),
            squash: oversized == OversizedIds::Squash,
        }
    }

    pub(crate) fn owner(&self, entry: &Entry) -> Owner {
        match (self.uids.get(entry.uid), self.gids.get(entry.gid)) {
            (Some(uid), Some(gid)) => Owner::Real(uid, gid),
            (uid, gid) if self.squash => {
                Owner::Squashed(uid.unwrap_or(self.uids.highest), gid.unwrap_or(self.gids.highest))
            }
            _ => Owner::Unknown,
        }
    }

    /// What owners are folded onto.
    pub(crate) fn folded(&self) -> (u32, u32) {
        (self.uids.highest, self.gids.highest)
    }
}

/// Writes a table of real owners, one layer's.
#[derive(Debug)]
pub struct OwnerTable<W> {
    out: W,
    begun: bool,
}

impl<W: Write> OwnerTable<W> {
    /// A table that is written to `out`.
    pub fn new(out: W) -> Self {
        Self { out, begun: false }
    }

    /// Adds a line.
    ///
    /// # Errors
    /// The writer's.
    pub fn push(&mut self, owner: SquashedOwner<'_>) -> io::Result<()> {
        if !self.begun {
            writeln!(self.out, "{TABLE_HEADER}")?;
            self.begun = true;
        }
        // Names hold any byte but zero.
        write!(self.out, "{} {} ", owner.uid, owner.gid)?;
        self.out.write_all(owner.path)?;
        self.out.write_all(b"\0")
    }

    /// Gives the writer back.
    ///
    /// # Errors
    /// The writer's.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.flush()?;
        Ok(self.out)
    }
}

/// Real owners of files below a tree, for [`crate::diff_with`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owners {
    /// What owners were folded onto.
    folded: (u32, u32),
    real: HashMap<Box<[u8]>, (u64, u64)>,
}

impl Owners {
    /// No real owners are known; `folded` is what [`crate::Applied::folded`] said.
    pub fn new(folded: (u32, u32)) -> Self {
        Self {
            folded,
            real: HashMap::new(),
        }
    }

    /// Reads a table that [`OwnerTable`] wrote. What an earlier table said of the same name is replaced, so read the
    /// tables of a chain from the bottom to the top.
    ///
    /// # Errors
    /// The reader's; `InvalidData` for anything but a table.
    pub fn read(&mut self, mut table: impl BufRead) -> io::Result<()> {
        let bad = || io::Error::new(io::ErrorKind::InvalidData, "not a table of owners");
        let mut line = Vec::new();
        table.read_until(b'\n', &mut line)?;
        if line != [TABLE_HEADER.as_bytes(), b"\n"].concat() {
            return Err(bad());
        }
        loop {
            line.clear();
            if table.read_until(0, &mut line)? == 0 {
                return Ok(());
            }
            if line.pop() != Some(0) {
                return Err(bad());
            }
            let mut parts = line.splitn(3, |&b| b == b' ');
            let mut number = || crate::pax::decimal(parts.next()?);
            let (uid, gid) = (number().ok_or_else(bad)?, number().ok_or_else(bad)?);
            let path = parts.next().ok_or_else(bad)?;
            self.real.insert(path.into(), (uid, gid));
        }
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.real.is_empty()
    }

    /// The real owner of `path`, which on disk belongs to `uid` and `gid`. An id that was changed since is kept.
    pub fn real(&self, path: &[u8], uid: u32, gid: u32) -> (u64, u64) {
        let disk = (u64::from(uid), u64::from(gid));
        if uid != self.folded.0 && gid != self.folded.1 {
            return disk;
        }
        let Some(real) = self.real.get(path) else {
            return disk;
        };
        let restored =
            |disk: u64, folded: u32, real: u64| if disk == u64::from(folded) { real } else { disk };
        (
            restored(disk.0, self.folded.0, real.0),
            restored(disk.1, self.folded.1, real.1),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::writer::blank;

    fn map(lines: &[(u32, u32)]) -> Vec<MapLine> {
        let line = |(inside, count): &(u32, u32)| MapLine {
            inside: *inside,
            outside: 100_000 + inside,
            count: *count,
        };
        lines.iter().map(line).collect()
    }

    fn owners(squash: bool) -> OwnerMap {
        OwnerMap {
            uids: Ids::new(&map(&[(0, 1), (1, 65_536), (100_000, 10)]), None),
            gids: Ids::new(&map(&[(0, 1), (1, 65_536)]), None),
            squash,
        }
    }

    #[test]
    fn ids_outside_the_map_are_refused_or_folded() {
        let entry = |uid, gid| Entry { uid, gid, ..blank() };
        let folding = owners(true);
        for (uid, gid, expected) in [
            (0, 0, Owner::Real(0, 0)),
            (65_536, 65_536, Owner::Real(65_536, 65_536)),
            (100_009, 5, Owner::Real(100_009, 5)),
            // A hole in the map, and beyond its end.
            (65_537, 5, Owner::Squashed(100_009, 5)),
            (718_322_462, 1 << 40, Owner::Squashed(100_009, 65_536)),
            (u32::MAX.into(), 0, Owner::Squashed(100_009, 0)),
        ] {
            assert_eq!(folding.owner(&entry(uid, gid)), expected);
            if matches!(expected, Owner::Squashed(..)) {
                assert_eq!(owners(false).owner(&entry(uid, gid)), Owner::Unknown);
            }
        }
    }

    #[test]
    fn the_initial_namespace_has_all_ids_but_the_last() {
        let all = Ids::new(&map(&[(0, u32::MAX)]), None);
        assert_eq!(all.get(u64::from(u32::MAX) - 1), Some(u32::MAX - 1));
        assert_eq!(all.get(u64::from(u32::MAX)), None);
        assert_eq!(Ids::new(&map(&[(0, u32::MAX)]), Some(65_536)).highest, 65_536);
        assert_eq!(Ids::new(&[], None).get(0), None);
    }

    #[test]
    fn a_table_comes_back_and_restores_only_what_was_folded() {
        let mut table = OwnerTable::new(Vec::new());
        for (path, uid, gid) in [(&b"a"[..], 70_000, 5), (b"b c\nd", 7, 80_000), (b"a", 90_000, 5)] {
            table.push(SquashedOwner { path, uid, gid }).unwrap();
        }
        let bytes = table.finish().unwrap();
        let mut owners = Owners::new((65_536, 65_536));
        owners.read(&bytes[..]).unwrap();
        // The later line of a name counts; a changed owner stays; an unknown name stays.
        assert_eq!(owners.real(b"a", 65_536, 5), (90_000, 5));
        assert_eq!(owners.real(b"a", 0, 0), (0, 0));
        assert_eq!(owners.real(b"b c\nd", 7, 65_536), (7, 80_000));
        assert_eq!(owners.real(b"x", 65_536, 65_536), (65_536, 65_536));
        for bad in [
            &b"something else\n"[..],
            b"skiff owners 1\n1 2 no end",
            b"skiff owners 1\nx 2 a\0",
        ] {
            assert!(owners.read(bad).is_err(), "{bad:?}");
        }
    }
}
