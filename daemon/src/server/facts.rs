//! What this machine and this daemon are, for `docker info` and `docker version`.

/// `/sys/fs/cgroup` is the unified tree.
pub(crate) fn cgroup_v2() -> bool {
    /// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
    const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;
    rustix::fs::statfs("/sys/fs/cgroup").is_ok_and(|fs| u64::try_from(fs.f_type) == Ok(CGROUP2_SUPER_MAGIC))
}
