//! The connection to the kernel: reads requests from `/dev/fuse`, calls the overlay, writes answers.
//!
//! ```text
//!            thread 1            thread 2 …           parked threads, one of which looks after the others
//!   read ─► /dev/fuse ─┐   read ─► clone ─┐
//!           parse      │          parse   │
//!           overlay    │          overlay │      no queue, no hand-over between threads: who reads a request
//!           write ─────┘          write ──┘      answers it, through the descriptor it came from
//! ```
//!
//! Own code instead of a library: ADR 11 has the figures. Called by `program`; knows nothing of mounting.

mod abi;
mod crew;
mod directories;
mod dispatch;
mod follow;
mod init;
mod reply;
mod request;
mod serve;

use std::fs::File;
use std::io;
use std::time::Duration;

use rustix::io::Errno;

use crate::overlay::Overlay;
use directories::Directories;
use init::{Agreed, MAX_WRITE, Wishes};
use reply::Reply;
use request::Request;

/// From here on a time is as good as endless.
const ENDLESS: Duration = Duration::from_secs(86_400);

/// How to serve.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Settings {
    /// Requests to write to the disk do nothing.
    pub(crate) no_fsync: bool,
    /// One request at a time.
    pub(crate) single_threaded: bool,
    /// Print each request.
    pub(crate) debug: bool,
}

/// A file system that the kernel has greeted.
#[derive(Debug)]
pub(crate) struct Session {
    device: File,
    overlay: Overlay,
    directories: Directories,
    agreed: Agreed,
    no_fsync: bool,
    single_threaded: bool,
    debug: bool,
}

impl Session {
    /// Answers the kernel's first message, which waits in `device` since the mount.
    ///
    /// # Errors
    /// A kernel too old; reading or writing fails, for example because the mount is gone already.
    pub(crate) fn start(device: File, overlay: Overlay, settings: Settings) -> io::Result<Self> {
        let wishes = Wishes {
            writeback: overlay.config().writeback,
            acl: !overlay.config().noacl,
            endless: overlay.config().ttl >= ENDLESS,
        };
        let mut buffer = vec![0; serve::REQUEST_ROOM];
        let length = serve::next(&device, &mut buffer)?
            .ok_or_else(|| io::Error::other("unmounted before the first message"))?;
        let request = Request::parse(&buffer[..length])
            .ok()
            .filter(|request| request.opcode == abi::opcode::INIT)
            .ok_or_else(|| io::Error::other("the first message is not INIT"))?;
        let mut reply = Reply::with_room(serve::REPLY_ROOM);
        let agreed = match init::negotiate(&request, wishes, &mut reply) {
            Ok(agreed) => agreed,
            Err(refused) => {
                rustix::io::write(
                    &device,
                    reply.message(request.unique, Errno::PROTO.raw_os_error()),
                )?;
                return Err(io::Error::other(refused));
            }
        };
        rustix::io::write(&device, reply.message(request.unique, 0))?;
        Ok(Self {
            device,
            overlay,
            directories: Directories::default(),
            agreed,
            no_fsync: settings.no_fsync,
            single_threaded: settings.single_threaded,
            debug: settings.debug,
        })
    }

    /// Serves until the file system is unmounted everywhere.
    ///
    /// # Errors
    /// The first thread cannot be started, or the device fails in a way that is no end.
    pub(crate) fn run(&self) -> io::Result<()> {
        serve::run(self)
    }

    /// Tells the kernel that what it has cached of a file's attributes is stale. The contents stay cached.
    fn forget_attributes(&self, node: u64) {
        const INVAL_INODE: i32 = 2;
        let mut notice = Reply::with_room(24);
        notice.u64(node).u64((-1i64).cast_unsigned()).u64(0);
        // A notice has no unique number, and its kind stands where an answer has its error.
        let message = notice.notice(INVAL_INODE);
        match rustix::io::write(&self.device, message) {
            // The kernel does not know the inode any more.
            Ok(_) | Err(Errno::NOENT) => {}
            Err(errno) => tracing::warn!(node, %errno, "cannot invalidate attributes"),
        }
    }
}

const _: () = assert!(serve::REQUEST_ROOM > MAX_WRITE as usize);
