//! Tells when a log may have changed.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::net::unix::pipe;

/// How often to look when the kernel does not tell (a user has 128 inotify instances by default).
const POLL: Duration = Duration::from_millis(100);

/// Watches the folder of a log: one watch sees writes to the file, and rotation.
pub(super) struct Watch(Option<pipe::Receiver>);

impl Watch {
    pub(super) fn new(path: &Path) -> Self {
        let open = || -> rustix::io::Result<OwnedFd> {
            let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
            let folder = path.parent().unwrap_or(Path::new("/"));
            inotify::add_watch(
                &fd,
                folder,
                WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO,
            )?;
            Ok(fd)
        };
        // Not a pipe, but tokio's type for one is its only safe way to wait for a descriptor.
        Self(
            open()
                .ok()
                .and_then(|fd| pipe::Receiver::from_owned_fd_unchecked(fd).ok()),
        )
    }

    /// Waits until something has happened since the last call; may return for no reason.
    pub(super) async fn changed(&self) {
        let Some(events) = &self.0 else {
            return tokio::time::sleep(POLL).await;
        };
        if events.readable().await.is_err() {
            return tokio::time::sleep(POLL).await;
        }
        // What has happened does not matter: the reader looks at everything.
        let mut buffer = [0; 4096];
        while events.try_read(&mut buffer).is_ok_and(|count| count > 0) {}
    }
}
