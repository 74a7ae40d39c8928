//! Builds the OCI runtime specification of a container from what the engine asks for, with Docker's defaults.
//!
//! Called in the shim's short-lived creator process. Reads the root filesystem (users and groups) and facts about the
//! process it runs in ([`Host`]); changes nothing. No user namespace appears in it: rootless, the shim is already in one.

mod capabilities;
mod mounts;
mod user;

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    BoxBuilder, Linux, LinuxDeviceCgroup, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType,
    LinuxResources, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process, Root, Spec, User,
};
use skiff_core::config::Ulimit;
use skiff_core::runtime::{LaunchSpec, MountKind, NetworkNamespace, ProcessSpec};

use crate::seccomp::{self, Circumstances};
use capabilities::CapabilitySet;

/// Where our own program appears as the container's init (`--init`); Docker's path.
pub(crate) const INIT_PATH: &str = "/sbin/docker-init";

/// Why there is no specification.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpecError {
    /// What was asked for is wrong (Docker's text).
    #[error("{0}")]
    Invalid(String),
    /// It cannot be read, or not be expressed.
    #[error("{0}")]
    System(String),
}

impl From<OciSpecError> for SpecError {
    fn from(error: OciSpecError) -> Self {
        Self::System(format!("OCI specification: {error}"))
    }
}

/// Facts about the process that makes the container.
pub(crate) struct Host {
    pub(crate) in_user_namespace: bool,
    uids: IdMap,
    gids: IdMap,
    /// Whether setgroups(2) is allowed (it is not where a single id is mapped).
    setgroups: bool,
    /// Whether the unified hierarchy is at `/sys/fs/cgroup`.
    unified_cgroups: bool,
    /// Whether there is a control group tree to show.
    cgroup_mount: bool,
    oom_score_adj: i32,
    capabilities: CapabilitySet,
    devices: Vec<PathBuf>,
    init_program: PathBuf,
}

/// The ids that exist in our user namespace.
pub(crate) struct IdMap(Vec<(u64, u64)>);

impl IdMap {
    fn read(path: &str) -> Self {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let line = |line: &str| {
            let mut numbers = line.split_ascii_whitespace().map(|word| word.parse::<u64>().ok());
            let (first, _, count) = (numbers.next()??, numbers.next()??, numbers.next()??);
            Some((first, count))
        };
        Self(text.lines().filter_map(line).collect())
    }

    fn contains(&self, id: u32) -> bool {
        self.0
            .iter()
            .any(|(first, count)| (*first..first + count).contains(&u64::from(id)))
    }

    fn is_partial(&self) -> bool {
        !self.contains(u32::MAX - 1)
    }
}

impl Host {
    /// Looks at the calling process.
    pub(crate) fn current(privileged: bool, init_program: PathBuf) -> Self {
        const CGROUP2_MAGIC: i64 = 0x6367_7270;
        let uids = IdMap::read("/proc/self/uid_map");
        let in_user_namespace = uids.is_partial();
        let unified_cgroups = rustix::fs::statfs("/sys/fs/cgroup").is_ok_and(|fs| fs.f_type == CGROUP2_MAGIC);
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        Self {
            in_user_namespace,
            uids,
            gids: IdMap::read("/proc/self/gid_map"),
            setgroups: read("/proc/self/setgroups").trim() != "deny",
            unified_cgroups,
            cgroup_mount: unified_cgroups || !in_user_namespace,
            oom_score_adj: read("/proc/self/oom_score_adj").trim().parse().unwrap_or(0),
            capabilities: capabilities::bounding_set(),
            devices: if privileged {
                mounts::host_devices()
            } else {
                Vec::new()
            },
            init_program,
        }
    }
}

/// Builds the specification.
///
/// # Errors
/// `Invalid` for an unknown user, group, capability or a broken seccomp profile.
pub(crate) fn build(launch: &LaunchSpec, host: &Host) -> Result<Spec, SpecError> {
    let identity = identity(launch, host)?;
    let capabilities = capabilities::compute(
        &launch.cap_add,
        &launch.cap_drop,
        launch.privileged,
        host.capabilities,
    )
    .map_err(SpecError::Invalid)?;
    let mut spec = Spec::default();
    let mut root = Root::default();
    root.set_path(launch.rootfs.clone());
    root.set_readonly(Some(launch.readonly_rootfs));
    spec.set_root(Some(root));
    spec.set_hostname(launch.hostname.clone());
    spec.set_domainname(
        (launch.hostname.is_some() && !launch.domainname.is_empty()).then(|| launch.domainname.clone()),
    );
    spec.set_mounts(Some(mounts::mounts(launch, host)?));
    spec.set_annotations(Some(
        launch.annotations.iter().cloned().collect::<HashMap<_, _>>(),
    ));
    spec.set_process(Some(process(launch, host, &identity, capabilities)?));
    spec.set_linux(Some(linux(launch, host, capabilities)?));
    Ok(spec)
}

/// What the embedded runtime must do itself after the mounts are made, because libcontainer ignores the options:
/// the propagation of each bind mount, as (path in the container, type).
pub(crate) fn propagations(launch: &LaunchSpec) -> Vec<(String, String)> {
    let bind = |mount: &skiff_core::runtime::MountSpec| match &mount.kind {
        MountKind::Bind { propagation, .. } if !propagation.is_empty() => {
            Some((mount.target.clone(), propagation.clone()))
        }
        MountKind::Bind { .. } => Some((mount.target.clone(), "rprivate".to_owned())),
        MountKind::Tmpfs { .. } => None,
    };
    launch.mounts.iter().filter_map(bind).collect()
}

fn identity(launch: &LaunchSpec, host: &Host) -> Result<user::Identity, SpecError> {
    let rootfs = File::open(&launch.rootfs).map_err(|error| {
        SpecError::System(format!("root filesystem {}: {error}", launch.rootfs.display()))
    })?;
    let process = &launch.process;
    let mut identity =
        user::look_up(rootfs, &process.user, &process.additional_groups).map_err(SpecError::Invalid)?;
    if !host.uids.contains(identity.uid) || !host.gids.contains(identity.gid) {
        return Err(SpecError::Invalid(format!(
            "user {}:{} does not exist in the user namespace: the ranges in /etc/subuid and /etc/subgid are too small",
            identity.uid, identity.gid
        )));
    }
    // A group that does not exist here could not be given: setgroups(2) would fail as a whole.
    identity
        .groups
        .retain(|gid| host.setgroups && host.gids.contains(*gid));
    Ok(identity)
}

fn process(
    launch: &LaunchSpec,
    host: &Host,
    identity: &user::Identity,
    capabilities: CapabilitySet,
) -> Result<Process, SpecError> {
    let wanted: &ProcessSpec = &launch.process;
    let mut process = Process::default();
    process.set_terminal(Some(wanted.tty));
    if let Some(size) = wanted.console_size.filter(|_| wanted.tty) {
        let (height, width) = (u64::from(size.height), u64::from(size.width));
        process.set_console_size(Some(BoxBuilder::default().height(height).width(width).build()?));
    }
    let mut user = User::default();
    user.set_uid(identity.uid);
    user.set_gid(identity.gid);
    user.set_additional_gids((!identity.groups.is_empty()).then(|| identity.groups.clone()));
    process.set_user(user);
    let mut args = wanted.args.clone();
    if launch.init {
        args.splice(0..0, [INIT_PATH.to_owned(), "--".to_owned()]);
    }
    process.set_args(Some(args));
    let mut env = wanted.env.clone();
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        env.push(format!("HOME={}", identity.home));
    }
    process.set_env(Some(env));
    process.set_cwd(PathBuf::from(if wanted.cwd.is_empty() {
        "/"
    } else {
        &wanted.cwd
    }));
    process.set_capabilities(Some(capabilities.section(identity.uid)));
    process.set_rlimits(rlimits(&launch.ulimits, host)?);
    // Absent is not the same as false to libcontainer; see the executor.
    process.set_no_new_privileges(launch.no_new_privileges.then_some(true));
    // Unprivileged, the score can only be raised; a write of the present value is left out, too.
    let lowers = launch.oom_score_adj < host.oom_score_adj;
    let keep = launch.oom_score_adj == host.oom_score_adj || (lowers && host.in_user_namespace);
    process.set_oom_score_adj((!keep).then_some(launch.oom_score_adj));
    Ok(process)
}

fn rlimits(ulimits: &[Ulimit], host: &Host) -> Result<Option<Vec<PosixRlimit>>, SpecError> {
    let mut limits = Vec::new();
    for ulimit in ulimits {
        let name = format!("RLIMIT_{}", ulimit.name.to_ascii_uppercase());
        let typ: PosixRlimitType = name
            .parse()
            .map_err(|_| SpecError::Invalid(format!("invalid ulimit type: {}", ulimit.name)))?;
        // -1 is "unlimited", the largest number to the kernel.
        let (mut soft, mut hard) = (
            u64::try_from(ulimit.soft).unwrap_or(u64::MAX),
            u64::try_from(ulimit.hard).unwrap_or(u64::MAX),
        );
        if host.in_user_namespace
            && let Some(ours) = own_hard_limit(&ulimit.name)
        {
            // Raising a hard limit takes a privilege on the machine: what cannot be had is cut, not refused.
            hard = hard.min(ours);
            soft = soft.min(hard);
        }
        limits.push(
            PosixRlimitBuilder::default()
                .typ(typ)
                .soft(soft)
                .hard(hard)
                .build()?,
        );
    }
    Ok((!limits.is_empty()).then_some(limits))
}

fn own_hard_limit(name: &str) -> Option<u64> {
    use rustix::process::Resource;
    let resource = match name {
        "core" => Resource::Core,
        "cpu" => Resource::Cpu,
        "data" => Resource::Data,
        "fsize" => Resource::Fsize,
        "locks" => Resource::Locks,
        "memlock" => Resource::Memlock,
        "msgqueue" => Resource::Msgqueue,
        "nice" => Resource::Nice,
        "nofile" => Resource::Nofile,
        "nproc" => Resource::Nproc,
        "rss" => Resource::Rss,
        "rtprio" => Resource::Rtprio,
        "rttime" => Resource::Rttime,
        "sigpending" => Resource::Sigpending,
        "stack" => Resource::Stack,
        _ => return None,
    };
    Some(rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX))
}

fn linux(launch: &LaunchSpec, host: &Host, capabilities: CapabilitySet) -> Result<Linux, SpecError> {
    let mut linux = Linux::default();
    linux.set_namespaces(Some(namespaces(launch, host)?));
    linux.set_cgroups_path(Some(Path::new("/docker").join(&launch.id)));
    linux.set_sysctl((!launch.sysctls.is_empty()).then(|| launch.sysctls.iter().cloned().collect()));
    linux.set_devices(None);
    let mut resources = LinuxResources::default();
    resources.set_devices((!host.in_user_namespace).then(|| device_rules(launch)));
    linux.set_resources(Some(resources));
    let list = |own: &Option<Vec<String>>, default: &[&str]| match own {
        _ if launch.privileged => Vec::new(),
        Some(own) => own.clone(),
        None => default.iter().map(|&path| path.to_owned()).collect(),
    };
    linux.set_masked_paths(Some(list(&launch.masked_paths, mounts::MASKED)));
    linux.set_readonly_paths(Some(list(&launch.readonly_paths, mounts::READ_ONLY)));
    linux.set_rootfs_propagation(rootfs_propagation(launch).map(str::to_owned));
    let circumstances = Circumstances {
        capabilities: &capabilities.full_names(),
        kernel: seccomp::kernel_version(),
    };
    let seccomp = if launch.privileged {
        None
    } else {
        seccomp::resolve(&launch.seccomp, &circumstances)
            .map_err(|error| SpecError::Invalid(error.to_string()))?
    };
    linux.set_seccomp(seccomp);
    Ok(linux)
}

/// A bind mount can only be shared with the host when everything above it is.
fn rootfs_propagation(launch: &LaunchSpec) -> Option<&'static str> {
    let wants = |kind: &str| {
        launch.mounts.iter().any(
            |mount| matches!(&mount.kind, MountKind::Bind { propagation, .. } if propagation.ends_with(kind)),
        )
    };
    if wants("shared") {
        Some("shared")
    } else {
        wants("slave").then_some("slave")
    }
}

fn namespaces(launch: &LaunchSpec, host: &Host) -> Result<Vec<LinuxNamespace>, SpecError> {
    use LinuxNamespaceType as Kind;
    let mut kinds = vec![Kind::Mount];
    if !launch.host_ipc {
        kinds.push(Kind::Ipc);
    }
    if launch.hostname.is_some() {
        kinds.push(Kind::Uts);
    }
    if !launch.host_pid {
        kinds.push(Kind::Pid);
    }
    if host.unified_cgroups {
        kinds.push(Kind::Cgroup);
    }
    let mut namespaces = kinds
        .into_iter()
        .map(|kind| LinuxNamespaceBuilder::default().typ(kind).build())
        .collect::<Result<Vec<_>, _>>()?;
    if let NetworkNamespace::Path(path) = &launch.network {
        namespaces.push(
            LinuxNamespaceBuilder::default()
                .typ(Kind::Network)
                .path(path.clone())
                .build()?,
        );
    }
    Ok(namespaces)
}

/// Which devices the control group lets a container use (the runtime adds those every container has).
fn device_rules(launch: &LaunchSpec) -> Vec<LinuxDeviceCgroup> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let mut all = LinuxDeviceCgroup::default();
    all.set_allow(launch.privileged);
    all.set_access(Some("rwm".to_owned()));
    let mut rules = vec![all];
    for (source, _, permissions) in &launch.devices {
        let Ok(meta) = std::fs::metadata(source) else {
            continue;
        };
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(true);
        let block = meta.file_type().is_block_device();
        rule.set_typ(Some(if block {
            oci_spec::runtime::LinuxDeviceType::B
        } else {
            oci_spec::runtime::LinuxDeviceType::C
        }));
        rule.set_major(Some(i64::from(rustix::fs::major(meta.rdev()))));
        rule.set_minor(Some(i64::from(rustix::fs::minor(meta.rdev()))));
        rule.set_access(Some(permissions.clone()));
        rules.push(rule);
    }
    rules
}
