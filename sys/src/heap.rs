//! What keeps a small daemon small: two settings of the C library's allocator, and giving back start-up's pages.

use std::io;

/// Keeps all threads on `arenas` heaps (glibc gives each thread its own, up to eight a core). Call before threads exist.
pub fn limit_arenas(arenas: u16) {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt only changes a parameter of the allocator; failure (0) leaves the default, which is correct, too.
    let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, libc::c_int::from(arenas)) };
    #[cfg(not(target_env = "gnu"))]
    let _ = arenas;
}

/// Gives unused heap pages back to the kernel; worth it after a start-up that parsed and built much.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim is thread-safe and frees only what no allocation uses.
    let _ = unsafe { libc::malloc_trim(0) };
}

/// Unmaps the pages of programs and libraries that were only needed to start. They stay in the page cache, unmapped and
/// so the first to go when memory is short; what is needed again is mapped again by a minor fault (some 100 ns).
///
/// # Errors
/// When `/proc` cannot be read; nothing is changed then.
pub fn release_program_pages() -> io::Result<()> {
    let smaps = std::fs::read_to_string("/proc/self/smaps")?;
    for (start, length) in clean_file_mappings(&smaps) {
        // SAFETY: the range is a whole private mapping of a file, not writable and without a single page of its own
        // (Anonymous: 0), so that dropping its pages and reading them from the file again gives the same bytes. Such
        // mappings are the loader's, which changes none of them after the program has started.
        let _ = unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
    }
    Ok(())
}

/// Start and length of the private, read-only mappings of files in `/proc/PID/smaps` that have no page of their own.
fn clean_file_mappings(smaps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut candidate = None;
    for line in smaps.lines() {
        if let Some(range) = mapping(line) {
            candidate = range;
        } else if line.split_ascii_whitespace().eq(["Anonymous:", "0", "kB"]) {
            found.extend(candidate.take());
        }
    }
    found
}

/// `None`: not the first line of a mapping. `Some(None)`: of one that is not meant.
fn mapping(line: &str) -> Option<Option<(usize, usize)>> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let (start, end) = (
        usize::from_str_radix(start, 16).ok()?,
        usize::from_str_radix(end, 16).ok()?,
    );
    let (mode, path) = (words.next()?, words.nth(3));
    let meant = matches!(mode, "r--p" | "r-xp") && path.is_some_and(|path| path.starts_with('/'));
    Some(meant.then(|| (start, end.saturating_sub(start))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clean_read_only_private_file_mappings_are_meant() {
        let smaps = "\
1000-3000 r-xp 00000000 fe:00 1    /usr/bin/a
Rss:                   8 kB
Anonymous:             0 kB
3000-4000 r--p 00002000 fe:00 1    /usr/bin/a
Anonymous:             4 kB
4000-5000 rw-p 00003000 fe:00 1    /usr/bin/a
Anonymous:             0 kB
5000-6000 r--s 00003000 fe:00 1    /dev/shm/x
Anonymous:             0 kB
6000-7000 r-xp 00000000 00:00 0    [vdso]
Anonymous:             0 kB
7000-8000 r--p 00000000 00:00 0
Anonymous:             0 kB
";
        assert_eq!(clean_file_mappings(smaps), [(0x1000, 0x2000)]);
    }

    #[test]
    fn a_process_goes_on_after_giving_its_pages_back() {
        let constant = "some bytes in the program's read-only data";
        release_program_pages().unwrap();
        limit_arenas(2);
        trim();
        assert_eq!(constant.len(), 42);
    }
}
