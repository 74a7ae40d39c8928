//! What /proc knows: processes, their mounts and descriptors. The tests count these from outside the engine.

use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::time::{SystemTime, UNIX_EPOCH};

/// A process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    /// Effective user id on the host.
    pub(crate) uid: u32,
    /// Command line, words joined by blanks; the bare name for a process without one.
    pub(crate) command: String,
    /// A zombie has ended, and its parent has not asked how.
    pub(crate) zombie: bool,
}

/// One process, if it exists.
pub(crate) fn process(pid: i32) -> Option<Process> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words = String::from_utf8_lossy(&words)
        .trim_end_matches('\0')
        .replace('\0', " ");
    Some(Process {
        pid,
        parent: field("PPid:")?.parse().ok()?,
        uid: field("Uid:")?.split_whitespace().nth(1)?.parse().ok()?,
        zombie: field("State:")?.starts_with('Z'),
        command: if words.is_empty() {
            field("Name:")?.to_owned()
        } else {
            words
        },
    })
}

/// All processes.
pub(super) fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").unwrap();
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(process)
        .collect()
}

/// The mount points a process sees.
pub(crate) fn mounts_of(pid: i32) -> Vec<String> {
    let table = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(str::to_owned)
        .collect()
}

/// What each open descriptor of a process is.
pub(crate) fn open_descriptors(pid: i32) -> Vec<String> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| Some(fs::read_link(entry.ok()?.path()).ok()?.display().to_string()))
        .collect()
}

/// Seconds since 1970.
pub(crate) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// An address of this machine that is not loopback: the one that would be used to reach the outside. Nothing is sent.
pub(crate) fn machine_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|address| !address.is_loopback() && !address.is_unspecified())
}
