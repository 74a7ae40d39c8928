//! Subordinate ids: `/etc/subuid`, `/etc/subgid`, the output of `getsubids`, and the maps made from them.
//!
//! The map of a rootless daemon is: id 0 inside is the user itself, ids 1… are the subordinate ranges in their order
//! (`testuser:231072:65536` → 1..=65536 are 231072..=296607).

use std::fmt::Write as _;

/// How many lines the kernel takes in one map (user_namespaces(7), since 4.15).
pub const MAX_MAP_LINES: usize = 340;

/// Ids `start..start + count`. Never reaches past `u32::MAX - 1`: the last number means "no id".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    start: u32,
    count: u32,
}

/// One line of `/proc/PID/uid_map`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapLine {
    /// First id inside.
    pub inside: u32,
    /// First id outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

impl IdRange {
    /// `None` when it is empty or reaches past the last id.
    pub fn new(start: u32, count: u32) -> Option<Self> {
        (count > 0 && start.checked_add(count).is_some()).then_some(Self { start, count })
    }

    /// First id.
    pub fn start(self) -> u32 {
        self.start
    }

    /// How many.
    pub fn count(self) -> u32 {
        self.count
    }

    fn end(self) -> u32 {
        self.start + self.count
    }

    /// What remains without `other`: nothing, one piece, or two.
    fn without(self, other: Self) -> impl Iterator<Item = Self> {
        let below = Self::new(self.start, self.end().min(other.start).saturating_sub(self.start));
        let from = self.start.max(other.end());
        let above = Self::new(from, self.end().saturating_sub(from));
        below.into_iter().chain(above)
    }
}

/// The ranges that a subuid(5) file gives to a user, by name or by number, in the file's order.
/// Lines that are not `OWNER:START:COUNT` are skipped, as newuidmap(1) does.
pub fn parse_subid_file(text: &str, name: Option<&str>, uid: u32) -> Vec<IdRange> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.trim().split(':');
            let (owner, start, count) = (fields.next()?, fields.next()?, fields.next()?);
            let ours = Some(owner) == name || owner.parse() == Ok(uid);
            if !ours || owner.is_empty() || fields.next().is_some() {
                return None;
            }
            IdRange::new(start.trim().parse().ok()?, count.trim().parse().ok()?)
        })
        .collect()
}

/// The ranges in the output of getsubids(1), lines of the form `0: OWNER START COUNT`.
pub fn parse_getsubids(output: &str) -> Vec<IdRange> {
    output
        .lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace().rev();
            let (count, start) = (words.next()?, words.next()?);
            line.split_once(':')?.0.trim().parse::<u32>().ok()?;
            IdRange::new(start.parse().ok()?, count.parse().ok()?)
        })
        .collect()
}

/// The map of a rootless daemon: `own` becomes 0, the ranges follow. Ids named twice (also `own` itself) are mapped
/// once, because the kernel refuses a map whose lines overlap.
pub fn rootless_map(own: u32, ranges: &[IdRange]) -> Vec<MapLine> {
    let mut taken: Vec<IdRange> = IdRange::new(own, 1).into_iter().collect();
    let mut map = vec![MapLine {
        inside: 0,
        outside: own,
        count: 1,
    }];
    let mut inside: u32 = 1;
    for range in ranges {
        let mut pieces = vec![*range];
        for other in &taken {
            pieces = pieces
                .into_iter()
                .flat_map(|piece| piece.without(*other))
                .collect();
        }
        for piece in pieces {
            let count = piece.count.min(u32::MAX - inside);
            if map.len() == MAX_MAP_LINES || count == 0 {
                return map;
            }
            map.push(MapLine {
                inside,
                outside: piece.start,
                count,
            });
            inside += count;
            taken.push(piece);
        }
    }
    map
}

/// The lines of `/proc/PID/uid_map` or `gid_map`; what is no line of a map is left out.
pub fn parse_map(text: &str) -> Vec<MapLine> {
    let line = |line: &str| {
        let mut words = line.split_ascii_whitespace().map(|word| word.parse().ok());
        Some(MapLine {
            inside: words.next()??,
            outside: words.next()??,
            count: words.next()??,
        })
    };
    text.lines().filter_map(line).collect()
}

/// How many ids a map has.
pub fn mapped_ids(map: &[MapLine]) -> u64 {
    map.iter().map(|line| u64::from(line.count)).sum()
}

/// The text for `/proc/PID/uid_map`; its words are also newuidmap(1)'s arguments.
pub fn map_text(map: &[MapLine]) -> String {
    map.iter().fold(String::new(), |mut text, line| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} {} {}", line.inside, line.outside, line.count);
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(start: u32, count: u32) -> IdRange {
        IdRange::new(start, count).expect("valid range")
    }

    #[test]
    fn ranges_are_found_by_name_and_by_number() {
        let text = "# comment\n\nother:100000:65536\ntestuser:231072:65536\n1001:400000:10\ntestuser:x:1\ntestuser:1:2:3\ntestuser:5:0\n";
        assert_eq!(
            parse_subid_file(text, Some("testuser"), 1001),
            [range(231_072, 65_536), range(400_000, 10)]
        );
        assert_eq!(parse_subid_file(text, None, 1001), [range(400_000, 10)]);
        assert_eq!(parse_subid_file(text, Some("nobody"), 7), []);
    }

    #[test]
    fn ranges_past_the_last_id_are_not_ranges() {
        assert_eq!(IdRange::new(u32::MAX, 1), None);
        assert_eq!(IdRange::new(1, u32::MAX), None);
        assert!(IdRange::new(0, u32::MAX).is_some());
        assert_eq!(parse_subid_file("u:4294967290:65536", Some("u"), 1), []);
    }

    #[test]
    fn a_map_is_read_as_the_kernel_prints_it() {
        let text = "         0       1000          1\n         1     231072      65536\nrubbish\n";
        let map = parse_map(text);
        assert_eq!(map.len(), 2);
        assert_eq!(
            (map[1].inside, map[1].outside, map[1].count),
            (1, 231_072, 65_536)
        );
        assert_eq!(parse_map(&map_text(&map)), map);
    }

    #[test]
    fn getsubids_output_is_read() {
        assert_eq!(
            parse_getsubids("0: alice 100000 65536\n1: alice 400000 1\n"),
            [range(100_000, 65_536), range(400_000, 1)]
        );
        assert_eq!(parse_getsubids("Error fetching ranges\n"), []);
    }

    #[test]
    fn the_documented_map() {
        assert_eq!(
            map_text(&rootless_map(1001, &[range(231_072, 65_536)])),
            "0 1001 1\n1 231072 65536\n"
        );
    }

    #[test]
    fn an_own_id_inside_the_range_is_cut_out() {
        assert_eq!(
            map_text(&rootless_map(1000, &[range(998, 5)])),
            "0 1000 1\n1 998 2\n3 1001 2\n"
        );
    }

    proptest! {
        #[test]
        fn any_file_gives_ranges_and_never_panics(text in "[a-z0-9:# \n]{0,200}", uid in any::<u32>()) {
            for range in parse_subid_file(&text, Some("a"), uid) {
                prop_assert!(range.count() > 0 && range.start().checked_add(range.count()).is_some());
            }
            parse_getsubids(&text);
        }

        #[test]
        fn maps_are_contiguous_inside_and_disjoint_outside(
            own in 0u32..500,
            input in prop::collection::vec((0u32..1000, 1u32..100), 0..40),
        ) {
            let ranges: Vec<_> = input.iter().map(|&(start, count)| range(start, count)).collect();
            let map = rootless_map(own, &ranges);
            let mut next = 0;
            let mut outside = std::collections::BTreeSet::new();
            for line in &map {
                prop_assert_eq!(line.inside, next);
                next += line.count;
                for id in line.outside..line.outside + line.count {
                    prop_assert!(outside.insert(id), "{} is mapped twice", id);
                }
            }
            let wanted: std::collections::BTreeSet<u32> =
                input.iter().flat_map(|&(start, count)| start..start + count).chain([own]).collect();
            prop_assert_eq!(outside, wanted);
            prop_assert_eq!(mapped_ids(&map), u64::from(next));
        }

        #[test]
        fn maps_never_have_more_lines_than_the_kernel_takes(own in any::<u32>(), n in 0u32..500) {
            let ranges: Vec<_> = (0..n).map(|i| range(i * 10, 3)).collect();
            prop_assert!(rootless_map(own, &ranges).len() <= MAX_MAP_LINES);
        }
    }
}
