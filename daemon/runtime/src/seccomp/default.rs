//! The built-in seccomp profile: what Docker's default allows and denies, as data.
//!
//! Facts from Docker's published profile (its documentation lists the denied calls and why). Checked by
//! the tests in `mod.rs` and, against the kernel, by the container tests.

use super::profile::{Condition, Filter, Profile, Rule};

/// CLONE_NEW{CGROUP,UTS,IPC,USER,PID,NET} and CLONE_NEWNS: flags of clone(2) that make namespaces.
const NAMESPACE_FLAGS: u64 = 0x7e02_0000;

/// Values of personality(2) that change nothing dangerous: PER_LINUX, PER_LINUX32, each with UNAME26, and "tell me".
const PERSONALITIES: &[u64] = &[0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Highest address family of the run of ordinary ones (AF_NFC is 39).
/// Denied: DECnet 12, Econet 19, ATMSVC 20, IrDA 23, WANPIPE 25, IUCV 34, CAIF 37, ALG 38 (CVE-2026-31431), VSOCK 40,
/// and whatever comes after 45 (MCTP).
const FAMILIES_BELOW: u64 = 12;
const FAMILIES: &[u64] = &[
    13, 14, 15, 16, 17, 18, 21, 22, 24, 26, 27, 28, 29, 30, 31, 32, 33, 35, 36, 39, 41, 42, 43, 44, 45,
];

/// Calls any container may make.
const ALWAYS: &str = "\
    accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32 clock_adjtime \
    clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 \
    close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old \
    epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 \
    fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 \
    fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync \
    ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat get_robust_list \
    get_thread_area getcpu getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups \
    getgroups32 getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid \
    getresuid32 getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getuid32 getxattr getxattrat \
    inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents \
    io_pgetevents_time64 io_setup io_submit ioctl ioprio_get ioprio_set ipc kill landlock_add_rule landlock_create_ruleset \
    landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount listxattr listxattrat llistxattr _llseek \
    lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir \
    mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open mq_timedreceive \
    mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock \
    munlockall munmap name_to_handle_at nanosleep newfstatat _newselect open openat openat2 pause pidfd_open \
    pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 \
    prlimit64 process_mrelease pselect6 pselect6_time64 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv \
    recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat rename renameat renameat2 \
    restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend \
    rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity \
    sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity \
    sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop \
    semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address \
    setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid \
    setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setsockopt setuid setuid32 \
    setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask sigreturn socketcall \
    socketpair splice stat stat64 statfs statfs64 statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee \
    tgkill time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 \
    timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate truncate64 \
    ugetrlimit umask uname unlink unlinkat uretprobe utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid \
    waitpid write writev";

/// Calls that come with a capability.
const WITH_CAPABILITY: &[(&str, &str)] = &[
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules \
         lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname \
         sethostname setns syslog umount umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module init_module finit_module"),
    ("CAP_SYS_PACCT", "acct"),
    (
        "CAP_SYS_PTRACE",
        "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    ),
    ("CAP_SYS_RAWIO", "iopl ioperm"),
    ("CAP_SYS_TIME", "settimeofday stime clock_settime clock_settime64"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    (
        "CAP_SYS_NICE",
        "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    ),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
    ("CAP_PERFMON", "perf_event_open"),
];

/// Calls that only some architectures have.
const WITH_ARCHITECTURE: &[(&[&str], &str)] = &[
    (&["amd64", "x32"], "arch_prctl"),
    (&["amd64", "x32", "x86"], "modify_ldt"),
    (
        &["arm", "arm64"],
        "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls",
    ),
];

/// The profile.
pub(super) fn profile() -> Profile {
    let words = |text: &str| {
        text.split_ascii_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let allow = |names: &str| Rule {
        names: words(names),
        action: "SCMP_ACT_ALLOW".to_owned(),
        ..Rule::default()
    };
    let when = |name: &str, op: &str, value, value_two| Rule {
        args: Some(vec![Condition {
            index: 0,
            value,
            value_two,
            op: op.to_owned(),
        }]),
        ..allow(name)
    };
    let without_admin = Filter {
        caps: words("CAP_SYS_ADMIN"),
        ..Filter::default()
    };
    let mut syscalls = vec![
        allow(ALWAYS),
        // Before 4.8 a tracer could change a system call after the filter had seen it.
        Rule {
            includes: Filter {
                min_kernel: Some("4.8".to_owned()),
                ..Filter::default()
            },
            ..allow("process_vm_readv process_vm_writev ptrace")
        },
        when("socket", "SCMP_CMP_LT", FAMILIES_BELOW, 0),
    ];
    syscalls.extend(
        FAMILIES
            .iter()
            .map(|family| when("socket", "SCMP_CMP_EQ", *family, 0)),
    );
    syscalls.extend(
        PERSONALITIES
            .iter()
            .map(|value| when("personality", "SCMP_CMP_EQ", *value, 0)),
    );
    syscalls.extend(WITH_CAPABILITY.iter().map(|(capability, names)| Rule {
        includes: Filter {
            caps: words(capability),
            ..Filter::default()
        },
        ..allow(names)
    }));
    syscalls.extend(WITH_ARCHITECTURE.iter().map(|(arches, names)| Rule {
        includes: Filter {
            arches: arches.iter().map(|&arch| arch.to_owned()).collect(),
            ..Filter::default()
        },
        ..allow(names)
    }));
    syscalls.push(Rule {
        excludes: without_admin.clone(),
        ..when("clone", "SCMP_CMP_MASKED_EQ", NAMESPACE_FLAGS, 0)
    });
    // clone3's flags are behind a pointer a filter cannot follow; ENOSYS makes the C libraries fall back to clone.
    syscalls.push(Rule {
        action: "SCMP_ACT_ERRNO".to_owned(),
        errno_ret: Some(38),
        excludes: without_admin,
        ..allow("clone3")
    });
    Profile {
        default_action: "SCMP_ACT_ERRNO".to_owned(),
        default_errno_ret: Some(1),
        architectures: native_architectures(),
        syscalls,
        ..Profile::default()
    }
}

/// The architectures whose programs this kernel runs.
pub(super) fn native_architectures() -> Vec<String> {
    let names: &[&str] = if cfg!(target_arch = "aarch64") {
        &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    } else {
        &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    };
    names.iter().map(|&name| name.to_owned()).collect()
}
