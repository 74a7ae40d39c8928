//! The capabilities of a container: Docker's fourteen, plus and minus what the user said.

use std::collections::BTreeSet;

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};

/// What a container has unless told otherwise.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// All, in the order of their kernel numbers.
const ALL: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// A set of capabilities: bit N is the capability with the kernel's number N.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CapabilitySet(pub(crate) u64);

impl CapabilitySet {
    const EVERY: Self = Self((1 << ALL.len()) - 1);

    fn of(names: &[&str]) -> Self {
        Self(
            names
                .iter()
                .filter_map(|name| bit(name))
                .fold(0, |set, bit| set | bit),
        )
    }

    fn names(self) -> impl Iterator<Item = &'static str> {
        ALL.iter()
            .enumerate()
            .filter(move |(number, _)| self.0 & (1 << number) != 0)
            .map(|(_, name)| *name)
    }

    /// The names as `CAP_…`.
    pub(crate) fn full_names(self) -> BTreeSet<String> {
        self.names().map(|name| format!("CAP_{name}")).collect()
    }

    fn to_oci(self) -> Capabilities {
        // Parsed without the prefix, though written with it.
        self.names()
            .filter_map(|name| name.parse::<Capability>().ok())
            .collect()
    }

    /// The section of the OCI specification. As Docker: a user other than root has them in the bounding set only, which is
    /// what execve would make of them anyway.
    pub(crate) fn section(self, uid: u32) -> LinuxCapabilities {
        let mut section = LinuxCapabilities::default();
        let held = (uid == 0).then(|| self.to_oci());
        section.set_bounding(Some(self.to_oci()));
        section.set_effective(held.clone());
        section.set_permitted(held);
        section.set_inheritable(None);
        section.set_ambient(None);
        section
    }
}

fn bit(name: &str) -> Option<u64> {
    ALL.iter()
        .position(|known| *known == name)
        .map(|number| 1 << number)
}

/// The capabilities of a container.
///
/// `available` are those the caller's bounding set has: nobody can give more.
///
/// # Errors
/// Docker's text for an unknown name.
pub(crate) fn compute(
    add: &[String],
    drop: &[String],
    privileged: bool,
    available: CapabilitySet,
) -> Result<CapabilitySet, String> {
    if privileged {
        return Ok(CapabilitySet(CapabilitySet::EVERY.0 & available.0));
    }
    let parse = |names: &[String], option: &str| -> Result<(bool, u64), String> {
        let (mut all, mut set) = (false, 0);
        for name in names {
            let upper = name.to_ascii_uppercase();
            let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
            match bit(short) {
                _ if short == "ALL" => all = true,
                Some(bit) => set |= bit,
                None => return Err(format!("invalid {option}: unknown capability: \"{name}\"")),
            }
        }
        Ok((all, set))
    };
    let (add_all, added) = parse(add, "CapAdd")?;
    let (drop_all, dropped) = parse(drop, "CapDrop")?;
    let set = match (add_all, drop_all) {
        (true, _) => CapabilitySet::EVERY.0 & !dropped,
        (false, true) => added,
        (false, false) => (CapabilitySet::of(&DEFAULT).0 | added) & !dropped | added,
    };
    Ok(CapabilitySet(set & available.0))
}

/// The caller's bounding set.
pub(crate) fn bounding_set() -> CapabilitySet {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bounding = text
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("CapBnd:")?.trim(), 16).ok());
    bounding.map_or(CapabilitySet::EVERY, CapabilitySet)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(add: &[&str], drop: &[&str]) -> Result<Vec<&'static str>, String> {
        let own = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
        compute(&own(add), &own(drop), false, CapabilitySet::EVERY).map(|set| set.names().collect())
    }

    #[test]
    fn the_default_is_dockers() {
        let mut expected = DEFAULT.to_vec();
        let mut got = names(&[], &[]).unwrap();
        expected.sort_unstable();
        got.sort_unstable();
        assert_eq!(got, expected);
    }

    #[test]
    fn adding_and_dropping() {
        assert!(names(&["cap_net_admin"], &[]).unwrap().contains(&"NET_ADMIN"));
        assert!(!names(&[], &["CHOWN"]).unwrap().contains(&"CHOWN"));
        assert_eq!(names(&["SYS_TIME"], &["all"]).unwrap(), ["SYS_TIME"]);
        assert_eq!(names(&[], &["ALL"]).unwrap().len(), 0);
        assert_eq!(names(&["ALL"], &[]).unwrap().len(), ALL.len());
        assert_eq!(names(&["ALL"], &["SYS_ADMIN"]).unwrap().len(), ALL.len() - 1);
        assert!(
            names(&["FLY"], &[])
                .unwrap_err()
                .contains("unknown capability: \"FLY\"")
        );
    }

    #[test]
    fn nobody_gives_what_he_does_not_have() {
        let set = compute(&["ALL".to_owned()], &[], false, CapabilitySet(0b101)).unwrap();
        assert_eq!(set.names().collect::<Vec<_>>(), ["CHOWN", "DAC_READ_SEARCH"]);
    }

    #[test]
    fn every_name_is_known_to_the_specification() {
        assert_eq!(CapabilitySet::EVERY.to_oci().len(), ALL.len());
    }

    #[test]
    fn only_root_holds_them() {
        assert!(CapabilitySet(1).section(0).effective().is_some());
        let user = CapabilitySet(1).section(1000);
        assert!(user.effective().is_none() && user.permitted().is_none() && user.bounding().is_some());
    }
}
