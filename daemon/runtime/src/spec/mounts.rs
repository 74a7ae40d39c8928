//! The mounts of a container: the standard ones, then the user's.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, MountBuilder};
use skiff_core::runtime::{LaunchSpec, MountKind, MountSpec, NetworkNamespace};

use super::{Host, SpecError};

/// What is hidden from a container (unless privileged): Docker's list.
pub(super) const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// What a container sees but cannot change: Docker's list.
pub(super) const READ_ONLY: &[&str] = &[
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// All mounts, in the order to make them.
///
/// # Errors
/// A mount that cannot be expressed.
pub(super) fn mounts(launch: &LaunchSpec, host: &Host) -> Result<Vec<Mount>, SpecError> {
    let mut mounts = standard(launch, host)?;
    // A user's mount replaces a standard one on the same path, as Docker has it; one on /dev brings its own devices along.
    mounts.retain(|standard| {
        let path = standard.destination();
        !launch.mounts.iter().any(|own| {
            let target = Path::new(&own.target);
            target == path || (target == Path::new("/dev") && path.starts_with("/dev"))
        })
    });
    for own in &launch.mounts {
        mounts.push(user_mount(own)?);
    }
    for (source, target, permissions) in devices(launch, host) {
        let read_only = !permissions.contains('w');
        mounts.push(bind(
            &source,
            &target,
            &["bind", if read_only { "ro" } else { "rw" }, "nosuid", "noexec"],
        )?);
    }
    if launch.init {
        mounts.push(bind(
            &host.init_program,
            Path::new(super::INIT_PATH),
            &["bind", "ro"],
        )?);
    }
    Ok(mounts)
}

fn standard(launch: &LaunchSpec, host: &Host) -> Result<Vec<Mount>, SpecError> {
    let rw = launch.privileged;
    let writable = if rw { "rw" } else { "ro" };
    // procfs and sysfs show a namespace and can only be mounted by who owns it.
    let bind_proc = launch.host_pid && host.in_user_namespace;
    let bind_sys = launch.network == NetworkNamespace::Host && host.in_user_namespace;
    let mut mounts = vec![
        if bind_proc {
            bind(
                Path::new("/proc"),
                Path::new("/proc"),
                &["rbind", "nosuid", "noexec", "nodev"],
            )?
        } else {
            pseudo("proc", "/proc", "proc", &["nosuid", "noexec", "nodev"])?
        },
        pseudo(
            "tmpfs",
            "/dev",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        )?,
        pseudo("devpts", "/dev/pts", "devpts", &devpts_options(host))?,
        if bind_sys {
            bind(
                Path::new("/sys"),
                Path::new("/sys"),
                &[
                    "rbind",
                    "nosuid",
                    "noexec",
                    "nodev",
                    if rw { "rw" } else { "rro" },
                ],
            )?
        } else {
            pseudo("sysfs", "/sys", "sysfs", &["nosuid", "noexec", "nodev", writable])?
        },
    ];
    if host.cgroup_mount {
        mounts.push(pseudo(
            "cgroup",
            "/sys/fs/cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", writable],
        )?);
    }
    if launch.host_ipc {
        for path in ["/dev/mqueue", "/dev/shm"] {
            if Path::new(path).is_dir() {
                mounts.push(bind(
                    Path::new(path),
                    Path::new(path),
                    &["rbind", "nosuid", "noexec", "nodev"],
                )?);
            }
        }
    } else {
        mounts.push(pseudo(
            "mqueue",
            "/dev/mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        )?);
        let size = format!("size={}", launch.shm_size);
        mounts.push(pseudo(
            "tmpfs",
            "/dev/shm",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", &size],
        )?);
    }
    Ok(mounts)
}

/// The `tty` group can own terminals only where it exists.
fn devpts_options(host: &Host) -> Vec<&'static str> {
    let mut options = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    if host.gids.contains(5) {
        options.push("gid=5");
    }
    options
}

fn user_mount(own: &MountSpec) -> Result<Mount, SpecError> {
    let read_only = if own.read_only { "ro" } else { "rw" };
    match &own.kind {
        MountKind::Bind {
            source,
            propagation,
            recursive,
        } => {
            let kind = if *recursive { "rbind" } else { "bind" };
            // `ro` changes the topmost mount only; those below it are the host's and may be writable: `rro`.
            let read_only = if own.read_only && *recursive {
                "rro"
            } else {
                read_only
            };
            let mut options = vec![kind, read_only];
            if !propagation.is_empty() {
                options.push(propagation);
            }
            bind(source, Path::new(&own.target), &options)
        }
        MountKind::Tmpfs { options } => {
            let mut all: Vec<&str> = options
                .iter()
                .map(String::as_str)
                .filter(|option| !option.is_empty())
                .collect();
            all.push(read_only);
            pseudo("tmpfs", &own.target, "tmpfs", &all)
        }
    }
}

/// Devices to bind: those asked for, and for a privileged container all of the host's.
fn devices(launch: &LaunchSpec, host: &Host) -> Vec<(PathBuf, PathBuf, String)> {
    let mut devices = Vec::new();
    if launch.privileged {
        devices.extend(
            host.devices
                .iter()
                .map(|path| (path.clone(), path.clone(), "rwm".to_owned())),
        );
    }
    devices.extend(launch.devices.iter().cloned());
    devices
}

fn bind(source: &Path, target: &Path, options: &[&str]) -> Result<Mount, SpecError> {
    mount("bind", target, source, options)
}

fn pseudo(kind: &str, target: &str, source: &str, options: &[&str]) -> Result<Mount, SpecError> {
    mount(kind, Path::new(target), Path::new(source), options)
}

fn mount(kind: &str, target: &Path, source: &Path, options: &[&str]) -> Result<Mount, SpecError> {
    Ok(MountBuilder::default()
        .typ(kind)
        .source(source)
        .destination(target)
        .options(
            options
                .iter()
                .map(|&option| option.to_owned())
                .collect::<Vec<_>>(),
        )
        .build()?)
}

/// The device nodes of the host that a privileged container gets; the ones every container has, terminals and
/// what lies on file systems of their own are left out.
pub(super) fn host_devices() -> Vec<PathBuf> {
    const SKIP: &[&str] = &[
        "null", "zero", "full", "random", "urandom", "tty", "console", "ptmx", "pts", "shm", "mqueue", "fd",
        "core",
    ];
    let mut found = Vec::new();
    let mut folders = vec![(PathBuf::from("/dev"), 0)];
    while let Some((folder, depth)) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            use std::os::unix::fs::FileTypeExt;
            let Ok(kind) = entry.file_type() else { continue };
            if depth == 0
                && entry
                    .file_name()
                    .to_str()
                    .is_none_or(|name| SKIP.contains(&name) || name.starts_with('.'))
            {
                continue;
            }
            if kind.is_dir() && depth < 3 {
                folders.push((entry.path(), depth + 1));
            } else if kind.is_char_device() || kind.is_block_device() {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found
}
