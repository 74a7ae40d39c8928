//! What a process that makes containers needs of the kernel and `std` does not offer: a fork of a single-threaded
//! process, the default signal dispositions, loading a system-call filter.
//!
//! Called by the shim of `skiff-runtime`, which never has a second thread.

use std::io;

/// One instruction of a classic BPF program, as the kernel reads it (`struct sock_filter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct BpfInstruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when a comparison holds.
    pub jt: u8,
    /// Instructions to skip when it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// Which side of a fork the caller is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The process that called; the child's process id.
    Parent(u32),
    /// The new process.
    Child,
}

/// Forks the calling process, which must have one thread only.
///
/// The child has a copy of all memory and must end with [`exit_now`], lest the parent's destructors and buffers run twice.
///
/// # Errors
/// `EBUSY` when the process has several threads (locks would stay taken for ever in the child), else what fork(2) says.
pub fn fork_single_threaded() -> io::Result<Fork> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    // SAFETY: the process has exactly one thread, this one, and no other can appear meanwhile; so the child's
    // copy of memory is consistent and no lock in it is held by a thread that does not exist there.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid.unsigned_abs())),
    }
}

/// Ends the process at once: no destructors, no exit handlers, no flushing.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) takes any integer and does not return.
    unsafe { libc::_exit(code) }
}

/// Closes all descriptors but the three standard ones. For the very start of `main`, before anything is opened:
/// whoever uses a descriptor that existed before gets `EBADF`, or somebody else's file.
pub fn close_inherited_descriptors() {
    // SAFETY: closing is a plain system call; that no owner of these descriptors exists in this process is the
    // caller's part, and holds at the start of main, where nothing but the runtime of the language has run.
    unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3 as libc::c_uint,
            libc::c_uint::MAX,
            0 as libc::c_uint,
        )
    };
}

/// Gives the calling thread a table of descriptors of its own, with nothing but the standard three in it.
///
/// For programs that serve a file system in user space and use it themselves: a thread that waits for an answer cannot be
/// killed once the request was read (Linux 6.18, `request_wait_answer` in fs/fuse/dev.c), and while it waits it keeps
/// its table. If the serving threads' descriptor of `/dev/fuse` is in that table, the connection is never closed and
/// the process can never end. So either side calls this first, and opens what it needs afterwards.
///
/// All signals are blocked for the thread: their handlers belong to the process and use its descriptors (a runtime's pipe
/// that wakes it, say), which would be others here or none.
///
/// Threads that the caller starts share the new table and the mask. Descriptors that other threads own stay open for them; the caller
/// must not own any yet.
///
/// # Errors
/// `ENOMEM`; before Linux 5.9 also what reading `/proc/thread-self/fd` says.
pub fn unshare_descriptors() -> io::Result<()> {
    nix::sys::signal::SigSet::all().thread_block()?;
    // SAFETY: with CLOSE_RANGE_UNSHARE the table is copied first and only the copy is emptied, so no descriptor that
    // another thread owns is closed; that this thread owns none is the caller's part.
    let done = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3 as libc::c_uint,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_UNSHARE,
        )
    };
    if done == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::ENOSYS) {
        return Err(error);
    }
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_FILES)?;
    let open: Vec<i32> = std::fs::read_dir("/proc/thread-self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|descriptor| *descriptor > 2)
        .collect();
    for descriptor in open {
        // SAFETY: as above; the listing's own descriptor is closed already, which is EBADF and harmless in a table
        // that only this thread has.
        unsafe { libc::close(descriptor) };
    }
    Ok(())
}

/// Gives every signal its default disposition and unblocks all: what a program expects to start with.
/// (Rust's runtime ignores SIGPIPE and our shim blocks several; both would be inherited through execve.)
pub fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL is valid for every signal; for those that cannot be changed, and for the numbers
        // the C library reserves, the call fails without effect.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: `set` is initialised by sigemptyset before it is read.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Sends a signal, by its number (also the real-time ones, which the enumerations of the wrapping crates lack).
///
/// The caller vouches that `pid` is still the process meant: a child that was not reaped.
///
/// # Errors
/// `EINVAL` for a number that is no signal, `ESRCH`, `EPERM`.
pub fn kill(pid: u32, signal: i32) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
    if pid <= 0 {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    // SAFETY: kill(2) takes any two integers.
    if unsafe { libc::kill(pid, signal) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Filters the system calls of this thread, and of all it will ever execute, with a BPF program.
///
/// # Errors
/// `EACCES` without `no_new_privs` and without CAP_SYS_ADMIN in the user namespace, `EINVAL` for a program
/// the kernel does not accept.
pub fn load_seccomp_filter(program: &[BpfInstruction]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    let fprog = libc::sock_fprog {
        len,
        filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut(),
    };
    // SAFETY: BpfInstruction has the layout of sock_filter, `fprog` points to `len` of them, and the kernel only
    // reads (and copies) them during the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0 as libc::c_ulong,
            &raw const fprog,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_can_have_descriptors_of_its_own() {
        use std::os::fd::AsRawFd;
        let ours = std::fs::File::open("/dev/null").unwrap();
        let link = format!("/proc/thread-self/fd/{}", ours.as_raw_fd());
        let seen = link.clone();
        let there = std::thread::spawn(move || {
            unshare_descriptors().unwrap();
            let blocked = nix::sys::signal::SigSet::thread_get_mask().unwrap();
            (
                std::fs::read_link(seen).is_ok(),
                blocked.contains(nix::sys::signal::Signal::SIGINT),
            )
        });
        assert_eq!(there.join().unwrap(), (false, true));
        assert!(std::fs::read_link(link).is_ok());
    }

    #[test]
    fn a_threaded_process_does_not_fork() {
        // The test harness runs tests on threads of their own.
        let error = fork_single_threaded().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
    }
}
