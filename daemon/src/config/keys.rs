//! Every option dockerd knows, by its names in `daemon.json` and on the command line, and what it means here.
//!
//! Three classes, so that no recipe fails for a detail and no protection is dropped in silence: *supported*; *inert*,
//! accepted with a warning when it asks for something; *refused*, because ignoring it would weaken what the operator
//! asked for.

use serde_json::Value;

use Class::{AlwaysOn, Inert, Refused, Supported};
use Shape::{Flag, Text};

/// An option of dockerd.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key {
    /// Name in the file.
    pub(super) file: &'static str,
    /// Name on the command line, without dashes; `None` when it exists only in the file.
    pub(super) flag: Option<&'static str>,
    /// What it means here.
    pub(super) class: Class,
    /// Whether the flag takes a value.
    pub(super) shape: Shape,
}

/// What an option means here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// It does what dockerd's does.
    Supported,
    /// It is accepted and has no effect, for this reason.
    Inert(&'static str),
    /// It is an error, for this reason.
    Refused(&'static str),
    /// `true` is what happens anyway; `false` is an error, for this reason.
    AlwaysOn(&'static str),
}

/// Whether a flag takes a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// `--flag` or `--flag=BOOL`.
    Flag,
    /// `--flag VALUE` or `--flag=VALUE`.
    Text,
}

const CGROUPS: &str = "containers run without control groups";
const LATER: &str = "not supported by this version";
const NO_CONTAINERD: &str = "skiff does not use containerd";
const NO_SWARM: &str = "skiff has no Swarm mode";
const NO_TLS: &str = "TLS on the API socket is not supported by this version; use a unix socket or ssh://";
const WEAKER: &str =
    "not supported by this version, and ignoring it would give containers more than you asked for";

const fn key(file: &'static str, flag: &'static str, class: Class, shape: Shape) -> Key {
    Key {
        file,
        flag: Some(flag),
        class,
        shape,
    }
}

const fn file_only(file: &'static str, class: Class) -> Key {
    Key {
        file,
        flag: None,
        class,
        shape: Text,
    }
}

/// The table, in the order of the file's names.
pub(super) const KEYS: &[Key] = &[
    key("allow-direct-routing", "allow-direct-routing", Inert(LATER), Flag),
    file_only(
        "allow-nondistributable-artifacts",
        Inert("dockerd ignores it, too"),
    ),
    key(
        "api-cors-header",
        "api-cors-header",
        Inert("removed from dockerd, too"),
        Text,
    ),
    key(
        "authorization-plugins",
        "authorization-plugin",
        Refused(WEAKER),
        Text,
    ),
    key("bip", "bip", Supported, Text),
    key(
        "bip6",
        "bip6",
        Inert("the default bridge has no IPv6 in this version"),
        Text,
    ),
    key(
        "bridge",
        "bridge",
        Inert("the default bridge is always docker0"),
        Text,
    ),
    key("bridge-accept-fwmark", "bridge-accept-fwmark", Inert(LATER), Text),
    file_only("builder", Inert("there is no builder in this version")),
    key("cdi-spec-dirs", "cdi-spec-dir", Inert(LATER), Text),
    key("cgroup-parent", "cgroup-parent", Inert(CGROUPS), Text),
    key("containerd", "containerd", Inert(NO_CONTAINERD), Text),
    key(
        "containerd-namespace",
        "containerd-namespace",
        Inert(NO_CONTAINERD),
        Text,
    ),
    key(
        "containerd-plugin-namespace",
        "containerd-plugins-namespace",
        Inert(NO_CONTAINERD),
        Text,
    ),
    key("cpu-rt-period", "cpu-rt-period", Inert(CGROUPS), Text),
    key("cpu-rt-runtime", "cpu-rt-runtime", Inert(CGROUPS), Text),
    key("cri-containerd", "cri-containerd", Inert(NO_CONTAINERD), Flag),
    key("data-root", "data-root", Supported, Text),
    key("debug", "debug", Supported, Flag),
    key(
        "default-address-pools",
        "default-address-pool",
        Inert(LATER),
        Text,
    ),
    key(
        "default-cgroupns-mode",
        "default-cgroupns-mode",
        Inert(CGROUPS),
        Text,
    ),
    key("default-gateway", "default-gateway", Inert(LATER), Text),
    key("default-gateway-v6", "default-gateway-v6", Inert(LATER), Text),
    key(
        "default-ipc-mode",
        "default-ipc-mode",
        Inert("it is always private"),
        Text,
    ),
    key("default-network-opts", "default-network-opt", Inert(LATER), Text),
    key("default-runtime", "default-runtime", Supported, Text),
    key("default-shm-size", "default-shm-size", Inert(LATER), Text),
    key("default-ulimits", "default-ulimit", Inert(LATER), Text),
    key("dns", "dns", Inert(LATER), Text),
    key("dns-opts", "dns-opt", Inert(LATER), Text),
    key("dns-search", "dns-search", Inert(LATER), Text),
    key("exec-opts", "exec-opt", Inert(CGROUPS), Text),
    key("exec-root", "exec-root", Supported, Text),
    key("experimental", "experimental", Supported, Flag),
    key("features", "feature", Inert(LATER), Text),
    key(
        "firewall-backend",
        "firewall-backend",
        Inert("rules are written to nf_tables by netlink"),
        Text,
    ),
    key("fixed-cidr", "fixed-cidr", Inert(LATER), Text),
    key("fixed-cidr-v6", "fixed-cidr-v6", Inert(LATER), Text),
    key("group", "group", Inert(LATER), Text),
    key("host-gateway-ips", "host-gateway-ip", Inert(LATER), Text),
    key("hosts", "host", Supported, Text),
    key(
        "http-proxy",
        "http-proxy",
        Inert("set HTTP_PROXY in the daemon's environment"),
        Text,
    ),
    key(
        "https-proxy",
        "https-proxy",
        Inert("set HTTPS_PROXY in the daemon's environment"),
        Text,
    ),
    key("icc", "icc", AlwaysOn(WEAKER), Flag),
    key("init", "init", Inert(LATER), Flag),
    key("init-path", "init-path", Inert("the init is built in"), Text),
    key("insecure-registries", "insecure-registry", Supported, Text),
    key("ip", "ip", Inert("ports are not published in this version"), Text),
    key(
        "ip-forward",
        "ip-forward",
        Inert("it is on in the daemon's own network namespace"),
        Flag,
    ),
    key("ip-forward-no-drop", "ip-forward-no-drop", Inert(LATER), Flag),
    key("ip-masq", "ip-masq", Inert(LATER), Flag),
    key("ip6tables", "ip6tables", Inert("iptables is not used"), Flag),
    key("iptables", "iptables", Inert("iptables is not used"), Flag),
    key("ipv6", "ipv6", Inert(LATER), Flag),
    key("labels", "label", Supported, Text),
    key("live-restore", "live-restore", Supported, Flag),
    key(
        "log-driver",
        "log-driver",
        Inert("the default is json-file; name another one per container"),
        Text,
    ),
    key("log-format", "log-format", Inert("the format is text"), Text),
    key("log-level", "log-level", Supported, Text),
    key("log-opts", "log-opt", Inert("give --log-opt per container"), Text),
    key(
        "max-concurrent-downloads",
        "max-concurrent-downloads",
        Supported,
        Text,
    ),
    key(
        "max-concurrent-uploads",
        "max-concurrent-uploads",
        Inert(LATER),
        Text,
    ),
    key(
        "max-download-attempts",
        "max-download-attempts",
        Inert(LATER),
        Text,
    ),
    key("metrics-addr", "metrics-addr", Inert(LATER), Text),
    key(
        "min-api-version",
        "min-api-version",
        Inert("1.24 and later are always spoken"),
        Text,
    ),
    key("mtu", "mtu", Supported, Text),
    key(
        "network-control-plane-mtu",
        "network-control-plane-mtu",
        Inert(NO_SWARM),
        Text,
    ),
    key("no-new-privileges", "no-new-privileges", Refused(WEAKER), Flag),
    key(
        "no-proxy",
        "no-proxy",
        Inert("set NO_PROXY in the daemon's environment"),
        Text,
    ),
    key(
        "node-generic-resources",
        "node-generic-resource",
        Inert(NO_SWARM),
        Text,
    ),
    file_only("nri-opts", Inert(LATER)),
    key(
        "oom-score-adjust",
        "oom-score-adjust",
        Inert("removed from dockerd, too"),
        Text,
    ),
    key("pidfile", "pidfile", Supported, Text),
    file_only(
        "proxies",
        Inert("set HTTP_PROXY, HTTPS_PROXY and NO_PROXY in the daemon's environment"),
    ),
    key("raw-logs", "raw-logs", Inert(LATER), Flag),
    key("registry-mirrors", "registry-mirror", Supported, Text),
    key(
        "rootless",
        "rootless",
        Inert("every daemon of an ordinary user is rootless"),
        Flag,
    ),
    key("runtimes", "add-runtime", Supported, Text),
    key("seccomp-profile", "seccomp-profile", Refused(WEAKER), Text),
    key("selinux-enabled", "selinux-enabled", Refused(WEAKER), Flag),
    key("shutdown-timeout", "shutdown-timeout", Supported, Text),
    key("storage-driver", "storage-driver", Supported, Text),
    key("storage-opts", "storage-opt", Supported, Text),
    key(
        "swarm-default-advertise-addr",
        "swarm-default-advertise-addr",
        Inert(NO_SWARM),
        Text,
    ),
    key("tls", "tls", Refused(NO_TLS), Flag),
    key("tlscacert", "tlscacert", Refused(NO_TLS), Text),
    key("tlscert", "tlscert", Refused(NO_TLS), Text),
    key("tlskey", "tlskey", Refused(NO_TLS), Text),
    key("tlsverify", "tlsverify", Refused(NO_TLS), Flag),
    key(
        "userland-proxy",
        "userland-proxy",
        Inert("ports are not published in this version"),
        Flag,
    ),
    key(
        "userland-proxy-path",
        "userland-proxy-path",
        Inert("ports are not published in this version"),
        Text,
    ),
    key(
        "userns-remap",
        "userns-remap",
        Refused("not supported by this version"),
        Text,
    ),
];

/// Names that never were, or no longer are, dockerd's, and what was meant.
const MISTAKES: &[(&str, &str)] = &[
    ("graph", "data-root"),
    ("host", "hosts"),
    ("label", "labels"),
    ("storage-opt", "storage-opts"),
    ("insecure-registry", "insecure-registries"),
    ("registry-mirror", "registry-mirrors"),
    ("exec-opt", "exec-opts"),
    ("add-runtime", "runtimes"),
    ("user-remap", "userns-remap"),
];

/// Finds an option by its name in the file.
pub(super) fn by_file_name(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.file == name)
}

/// The name in the file that was probably meant.
pub(super) fn suggestion(name: &str) -> Option<&'static str> {
    if let Some((_, meant)) = MISTAKES.iter().find(|(mistake, _)| *mistake == name) {
        return Some(meant);
    }
    let limit = (name.len() / 3).clamp(1, 3);
    KEYS.iter()
        .map(|key| (edit_distance(name, key.file), key.file))
        .min()
        .and_then(|(distance, file)| (distance <= limit).then_some(file))
}

/// What to do with a value that was given for an option.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Take it.
    Use,
    /// Nothing was asked for, or what was asked for happens anyway.
    Ignore,
    /// Say that it has no effect, for this reason.
    Warn(&'static str),
    /// Refuse to start, for this reason.
    Refuse(&'static str),
}

impl Class {
    /// Judges a value.
    pub(super) fn judge(self, value: &Value) -> Verdict {
        match self {
            Supported => Verdict::Use,
            AlwaysOn(reason) if *value == Value::Bool(false) => Verdict::Refuse(reason),
            Inert(reason) if !asks_for_nothing(value) => Verdict::Warn(reason),
            Refused(reason) if !asks_for_nothing(value) => Verdict::Refuse(reason),
            _ => Verdict::Ignore,
        }
    }
}

/// Whether a value asks for nothing, so that an option without effect need not be mentioned.
fn asks_for_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

/// How many letters must be added, removed or changed (Levenshtein).
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let changed = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_ordered_and_unambiguous() {
        assert!(KEYS.windows(2).all(|pair| pair[0].file < pair[1].file));
        let mut flags: Vec<_> = KEYS.iter().filter_map(|key| key.flag).collect();
        flags.sort_unstable();
        assert!(flags.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn suggestions() {
        for (wrong, right) in [
            ("storage-drivr", Some("storage-driver")),
            ("host", Some("hosts")),
            ("graph", Some("data-root")),
            ("userns-rempa", Some("userns-remap")),
            ("xyzzy", None),
            ("", None),
        ] {
            assert_eq!(suggestion(wrong), right, "{wrong}");
        }
    }

    #[test]
    fn distances() {
        for (a, b, expected) in [
            ("", "abc", 3),
            ("kitten", "sitting", 3),
            ("same", "same", 0),
            ("ab", "ba", 2),
        ] {
            assert_eq!(edit_distance(a, b), expected);
        }
    }
}
