//! Facts about this process that decide how files can be written.

use std::fs;
use std::io;
use std::path::Path;
use std::thread;

use nix::sched::CloneFlags;

/// Whether this process runs in a user namespace other than the initial one.
///
/// Read from `/proc/self/uid_map`: only the initial namespace maps all of 0..4294967295 to itself. A namespace that
/// was given this very map by root behaves the same in every way that matters to files. When `/proc` cannot be read the
/// answer is `true`, the careful one.
pub fn in_user_namespace() -> bool {
    fs::read_to_string("/proc/self/uid_map").map_or(true, |map| {
        map.split_whitespace().collect::<Vec<_>>() != ["0", "0", "4294967295"]
    })
}

/// Runs `work` on a thread of its own whose working directory is `directory`; no other thread notices.
///
/// For system calls that take long lists of paths in one page, such as the options of mount(2): relative names keep
/// them short.
///
/// # Errors
/// The thread cannot be started, or the directory cannot be entered; a panic of `work` is an error too.
pub fn in_directory<T: Send>(directory: &Path, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        thread::Builder::new()
            .name("in-directory".to_owned())
            .spawn_scoped(scope, || {
                // A thread shares its working directory with the process until it takes a copy.
                nix::sched::unshare(CloneFlags::CLONE_FS)?;
                std::env::set_current_dir(directory)?;
                Ok(work())
            })?
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_working_directory_changes_for_the_closure_only() {
        let before = std::env::current_dir().unwrap();
        let inside = in_directory(Path::new("/proc"), || std::env::current_dir().unwrap()).unwrap();
        assert_eq!(inside, Path::new("/proc"));
        assert_eq!(std::env::current_dir().unwrap(), before);
        assert!(in_directory(Path::new("/nonexistent"), || ()).is_err());
    }
}
