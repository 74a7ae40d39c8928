//! Which process exactly: a pid that cannot be mistaken for a later one.
//!
//! Pids are reused. What is written to disk about a process (keeper, shims) is therefore its pid, its start time and
//! the id of the boot it was started in; [`ProcessIdentity::open`] gives a pidfd only when all three still agree.
//! The text form is one line, `PID START_TIME BOOT_ID`.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::str::FromStr;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// A process of this or an earlier boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessIdentity {
    /// Its pid, as seen from the caller's pid namespace.
    pub pid: u32,
    /// When it was started, in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub start_time: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
}

impl ProcessIdentity {
    /// Describes a living process.
    ///
    /// # Errors
    /// `NotFound` when there is none with this pid; other errors when `/proc` cannot be read.
    pub fn of(pid: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let start_time = field(&stat, 22).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat: {stat:?}"))
        })?;
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?
            .trim()
            .to_owned();
        Ok(Self {
            pid,
            start_time,
            boot_id,
        })
    }

    /// Describes the caller. # Errors: as [`ProcessIdentity::of`].
    pub fn current() -> io::Result<Self> {
        Self::of(std::process::id())
    }

    /// A pidfd of this very process; `None` when it has ended (a zombie has ended, too).
    ///
    /// # Errors
    /// Only when the kernel refuses for another reason than that the process is gone.
    pub fn open(&self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else {
            return Ok(None);
        };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => fd,
            // EINVAL: the number is a thread's, so the process is gone and its number was reused.
            Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // The pidfd pins whatever process has the pid now; only then is it compared to what was recorded.
        match Self::of(self.pid) {
            Ok(now) if now == *self && !has_ended(&pidfd)? => Ok(Some(pidfd)),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // ESRCH: it ended between open and read.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether it lives. # Errors: as [`ProcessIdentity::open`].
    pub fn is_alive(&self) -> io::Result<bool> {
        Ok(self.open()?.is_some())
    }
}

/// Whether the process behind a pidfd has ended. # Errors: poll(2)'s.
pub fn has_ended(pidfd: &OwnedFd) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    Ok(poll(&mut fds, Some(&now))? > 0)
}

/// Whether a process is on its way out, or gone. A killed process closes its descriptors, which others notice, some time
/// before its pidfd says that it has ended. (`PF_EXITING` in field 9 of `/proc/PID/stat`: proc_pid_stat(5), linux/sched.h.)
pub fn is_exiting(pid: u32) -> bool {
    const PF_EXITING: u64 = 0x4;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.ok()
        .and_then(|stat| field(&stat, 9))
        .is_none_or(|flags| flags & PF_EXITING != 0)
}

/// A numeric field after the third of `/proc/PID/stat`, counted from 1 as in proc_pid_stat(5). The second is the command in
/// parentheses and may contain anything.
fn field(stat: &str, number: usize) -> Option<u64> {
    let (_, after_command) = stat.rsplit_once(')')?;
    let field = after_command.split_ascii_whitespace().nth(number - 3)?;
    field.parse().ok()
}

impl fmt::Display for ProcessIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.pid, self.start_time, self.boot_id)
    }
}

/// A line that is not `PID START_TIME BOOT_ID`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a process identity: {0:?}")]
pub struct ParseIdentityError(String);

impl FromStr for ProcessIdentity {
    type Err = ParseIdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseIdentityError(text.chars().take(100).collect());
        let mut words = text.split_ascii_whitespace();
        let mut next = || words.next().ok_or_else(error);
        let pid = next()?.parse().map_err(|_| error())?;
        let start_time = next()?.parse().map_err(|_| error())?;
        let boot_id = next()?.to_owned();
        if words.next().is_some() {
            Err(error())
        } else {
            Ok(Self {
                pid,
                start_time,
                boot_id,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_identity_survives_the_text_form_and_is_alive() {
        let me = ProcessIdentity::current().unwrap();
        let back: ProcessIdentity = me.to_string().parse().unwrap();
        assert_eq!(back, me);
        assert!(back.is_alive().unwrap());
    }

    #[test]
    fn another_start_time_or_boot_is_another_process() {
        let me = ProcessIdentity::current().unwrap();
        assert!(
            !ProcessIdentity {
                start_time: me.start_time + 1,
                ..me.clone()
            }
            .is_alive()
            .unwrap()
        );
        assert!(
            !ProcessIdentity {
                boot_id: "x".into(),
                ..me.clone()
            }
            .is_alive()
            .unwrap()
        );
        assert!(!ProcessIdentity { pid: 0, ..me.clone() }.is_alive().unwrap());
        assert!(!ProcessIdentity { pid: u32::MAX, ..me }.is_alive().unwrap());
    }

    #[test]
    fn a_zombie_has_ended() {
        let mut child = std::process::Command::new("/bin/sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        let identity = ProcessIdentity::of(child.id()).unwrap();
        assert!(!is_exiting(child.id()));
        let pidfd = identity.open().unwrap().expect("alive");
        child.kill().unwrap();
        let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, None).unwrap();
        assert!(!identity.is_alive().unwrap(), "not yet reaped, but ended");
        assert!(is_exiting(child.id()));
        child.wait().unwrap();
    }

    #[test]
    fn a_command_with_parentheses_does_not_shift_the_fields() {
        let tail = (3..=21).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(field(&format!("7 (a) b) {tail} 4711 23"), 22), Some(4711));
        assert_eq!(field("7 (a", 22), None);
    }
}
