//! The first exchange: what the kernel can do, and what of it is used.

use super::abi::{MAJOR, MINOR, OLDEST_MINOR, init};
use super::reply::Reply;
use super::request::{Malformed, Request};

/// Largest write, and with it largest read: what Linux allows without an administrator (256 pages).
pub(super) const MAX_WRITE: u32 = 1 << 20;
const PAGE: u32 = 4096;
/// Reads ahead and writes back that may be under way at once; without privilege the kernel may lower it.
const MAX_BACKGROUND: u16 = 128;

/// What the mount asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wishes {
    /// Let the kernel collect writes.
    pub(super) writeback: bool,
    /// POSIX access control lists.
    pub(super) acl: bool,
    /// What the kernel is told stays true until it is told otherwise; then it need not ask for opens.
    pub(super) endless: bool,
}

/// What was agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Agreed {
    pub(super) minor: u32,
    pub(super) writeback: bool,
    /// SETXATTR carries flags of its own.
    pub(super) setxattr_ext: bool,
    /// The file system takes set-user-id away on writes.
    pub(super) kill_privileges: bool,
    /// Files and directories are opened by the kernel alone (Linux 3.16 and 5.1).
    pub(super) no_open: bool,
    pub(super) no_opendir: bool,
}

/// Why a kernel cannot be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("the first FUSE message is malformed")]
    Malformed,
    #[error("FUSE protocol {0}.{1}, needs {MAJOR}.{OLDEST_MINOR} (Linux 4.18)")]
    Version(u32, u32),
}

impl From<Malformed> for Refused {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

/// Reads INIT and writes the answer.
pub(super) fn negotiate(request: &Request<'_>, wishes: Wishes, reply: &mut Reply) -> Result<Agreed, Refused> {
    let mut body = request.body;
    let (major, minor) = (body.u32()?, body.u32()?);
    if major != MAJOR || minor < OLDEST_MINOR {
        return Err(Refused::Version(major, minor));
    }
    let readahead = body.u32()?;
    let mut offered = u64::from(body.u32()?);
    if offered & init::INIT_EXT != 0 {
        offered |= u64::from(body.u32()?) << 32;
    }
    let mut accepted = offered & wanted(wishes);
    if accepted & init::NO_OPEN_SUPPORT != 0 {
        // Nobody tells of an open that truncates: the kernel then does so by a request of its own.
        accepted &= !init::ATOMIC_O_TRUNC;
    }
    let minor = minor.min(MINOR);
    let [low, high] = halves(accepted);
    reply
        .u32(MAJOR)
        .u32(minor)
        .u32(readahead)
        .u32(low)
        .u16(MAX_BACKGROUND)
        .u16(MAX_BACKGROUND / 4 * 3)
        .u32(MAX_WRITE)
        .u32(1) // Granularity of times in nanoseconds.
        .u16(u16::try_from(MAX_WRITE / PAGE).unwrap_or(u16::MAX))
        .u16(0)
        .u32(high)
        .zeros(28);
    let has = |flag| accepted & flag != 0;
    Ok(Agreed {
        minor,
        writeback: has(init::WRITEBACK_CACHE),
        setxattr_ext: has(init::SETXATTR_EXT),
        kill_privileges: has(init::HANDLE_KILLPRIV_V2),
        no_open: has(init::NO_OPEN_SUPPORT),
        no_opendir: has(init::NO_OPENDIR_SUPPORT),
    })
}

fn wanted(wishes: Wishes) -> u64 {
    // Neither POSIX_LOCKS nor FLOCK_LOCKS: a mount has one kernel above it, which keeps locks best itself.
    // No AUTO_INVAL_DATA: nobody but this mount changes the files.
    let mut flags = init::ASYNC_READ
        | init::ATOMIC_O_TRUNC
        | init::BIG_WRITES
        | init::DONT_MASK
        | init::DO_READDIRPLUS
        | init::READDIRPLUS_AUTO
        | init::ASYNC_DIO
        | init::PARALLEL_DIROPS
        | init::MAX_PAGES
        | init::CACHE_SYMLINKS
        | init::EXPLICIT_INVAL_DATA
        | init::HANDLE_KILLPRIV_V2
        | init::SETXATTR_EXT
        | init::INIT_EXT;
    if wishes.writeback {
        flags |= init::WRITEBACK_CACHE;
    }
    if wishes.acl {
        flags |= init::POSIX_ACL;
    }
    if wishes.endless {
        flags |= init::NO_OPEN_SUPPORT | init::NO_OPENDIR_SUPPORT;
    }
    flags
}

fn halves(flags: u64) -> [u32; 2] {
    let bytes = flags.to_le_bytes();
    let (low, high) = bytes.split_at(4);
    [low, high].map(|half| half.iter().rev().fold(0, |n, byte| n << 8 | u32::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::super::abi::{OUT_HEADER, opcode};
    use super::*;

    fn init_message(minor: u32, flags: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(104u32.to_ne_bytes());
        bytes.extend(opcode::INIT.to_ne_bytes());
        bytes.extend([0; 32]);
        for field in [MAJOR, minor, 131_072, flags] {
            bytes.extend(field.to_ne_bytes());
        }
        bytes.resize(104, 0);
        bytes
    }

    fn agree(minor: u32, flags: u64, wishes: Wishes) -> (Result<Agreed, Refused>, Vec<u8>) {
        let bytes = init_message(minor, halves(flags)[0]);
        let mut reply = Reply::with_room(128);
        let outcome = negotiate(&Request::parse(&bytes).unwrap(), wishes, &mut reply);
        (outcome, reply.message(1, 0)[OUT_HEADER..].to_vec())
    }

    #[test]
    fn only_what_is_offered_and_wanted() {
        let wishes = Wishes {
            writeback: true,
            acl: false,
            endless: false,
        };
        let offered = init::WRITEBACK_CACHE | init::POSIX_ACL | init::CACHE_SYMLINKS;
        let (agreed, answer) = agree(45, offered, wishes);
        let agreed = agreed.unwrap();
        assert!(agreed.writeback && !agreed.setxattr_ext && !agreed.kill_privileges);
        assert_eq!(agreed.minor, MINOR);
        assert_eq!(answer.len(), 64);
        let flags = u32::from_ne_bytes(answer[12..16].try_into().unwrap());
        assert_eq!(u64::from(flags), init::WRITEBACK_CACHE | init::CACHE_SYMLINKS);
    }

    #[test]
    fn who_is_not_asked_for_opens_truncates_otherwise() {
        let offered = init::NO_OPEN_SUPPORT | init::ATOMIC_O_TRUNC;
        for endless in [true, false] {
            let wishes = Wishes {
                writeback: false,
                acl: false,
                endless,
            };
            let (agreed, answer) = agree(45, offered, wishes);
            assert_eq!(agreed.unwrap().no_open, endless);
            let flags = u64::from(u32::from_ne_bytes(answer[12..16].try_into().unwrap()));
            assert_eq!(flags & init::ATOMIC_O_TRUNC == 0, endless);
        }
    }

    #[test]
    fn an_old_kernel_is_named() {
        let wishes = Wishes {
            writeback: false,
            acl: false,
            endless: false,
        };
        let text = agree(26, 0, wishes).0.unwrap_err().to_string();
        assert_eq!(text, "FUSE protocol 7.26, needs 7.27 (Linux 4.18)");
    }
}
