//! `-o`: the options of the well-known fuse-overlayfs, and what mount(8) and fstab(5) put beside them.
//!
//! Each option is honoured, ignored because it changes nothing here, ignored with a warning, or refused by name with
//! the reason. None is dropped in silence that would have changed what the mount shows.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use rustix::mount::MountFlags;

/// One stretch of an id mapping: `count` ids from `disk` on are shown as those from `shown` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IdStretch {
    /// First id in the layers.
    pub(crate) disk: u32,
    /// First id in the mount.
    pub(crate) shown: u32,
    /// How many.
    pub(crate) count: u32,
}

/// Where owner, group and mode of files are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Permissions {
    /// In the inode, as everywhere.
    #[default]
    Inode,
    /// In an attribute that only a privileged program may write (`xattr_permissions=1`).
    PrivilegedAttribute,
    /// In `user.fuseoverlayfs.override_stat` (`xattr_permissions=2`).
    UserAttribute,
}

/// Everything that was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Topmost first.
    pub(crate) lower: Vec<PathBuf>,
    /// `upperdir`; without it the mount is read-only.
    pub(crate) upper: Option<PathBuf>,
    /// `workdir`.
    pub(crate) work: Option<PathBuf>,
    /// `uidmapping`.
    pub(crate) uid_map: Vec<IdStretch>,
    /// `gidmapping`.
    pub(crate) gid_map: Vec<IdStretch>,
    /// Everything belongs to this user (`squash_to_uid`, `squash_to_root`).
    pub(crate) squash_uid: Option<u32>,
    /// The same for the group.
    pub(crate) squash_gid: Option<u32>,
    /// `xattr_permissions`.
    pub(crate) permissions: Permissions,
    /// Directories have one link (`static_nlink`).
    pub(crate) static_nlink: bool,
    /// No access control lists (`noacl`).
    pub(crate) no_acl: bool,
    /// Nothing needs to survive a power failure (`volatile`).
    pub(crate) is_volatile: bool,
    /// Requests to write to the disk do nothing (`fsync=0`).
    pub(crate) no_fsync: bool,
    /// How long the kernel may keep what it was told; endless by default.
    pub(crate) timeout: Option<Duration>,
    /// One request at a time (`threaded=0`).
    pub(crate) single_threaded: bool,
    /// Let the kernel collect writes: many small ones into one file become much faster, nearly everything else slower
    /// (ADR 11).
    pub(crate) writeback: bool,
    /// Not only the user who mounted may enter (`allow_other`, `allow_root`).
    pub(crate) allow_other: bool,
    /// Read only, whatever `upperdir` says.
    pub(crate) read_only: bool,
    /// `nosuid`, `nodev`, `noexec`, `noatime` and the like.
    pub(crate) flags: Option<MountFlags>,
    /// `-d`, or `debug` as an option.
    pub(crate) debug: bool,
    /// Sentences about options that have no effect.
    pub(crate) warnings: Vec<String>,
}

/// An option that cannot be honoured; the text names it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadOption(String);

/// Honoured by doing what they say anyway.
const WITHOUT_EFFECT: [&str; 36] = [
    "rw",
    "suid",
    "dev",
    "exec",
    "atime",
    "async",
    "default_permissions",
    "clone_fd",
    "max_idle_threads",
    "max_threads",
    "userxattr",
    "nonempty",
    "auto",
    "noauto",
    "user",
    "users",
    "nouser",
    "nofail",
    "_netdev",
    "defaults",
    "fsname",
    "subtype",
    "idle_threads",
    "splice_read",
    "splice_write",
    "splice_move",
    "big_writes",
    "kernel_cache",
    "auto_cache",
    "noforget",
    "allow_root",
    "norelatime",
    "nostrictatime",
    "nolazytime",
    "nomand",
    "loud",
];

/// Harmless, but somebody may have meant something by them.
const IGNORED: [&str; 13] = [
    "context",
    "fscontext",
    "defcontext",
    "rootcontext",
    "auto_unmount",
    "max_write",
    "max_read",
    "max_readahead",
    "entry_timeout",
    "attr_timeout",
    "negative_timeout",
    "ac_attr_timeout",
    "umask",
];

/// Options of overlayfs whose only accepted value is "off": with them an upper directory is no whole difference.
const MUST_BE_OFF: [&str; 5] = ["redirect_dir", "metacopy", "index", "nfs_export", "verity"];

impl Options {
    /// Takes in the argument of one `-o`; several add up, the last of a kind wins.
    ///
    /// # Errors
    /// The first option that is unknown, malformed or cannot be honoured.
    pub(crate) fn add(&mut self, text: &OsStr) -> Result<(), BadOption> {
        for option in split_unescaped(text.as_bytes(), b',') {
            if !option.is_empty() {
                self.add_one(&option)?;
            }
        }
        Ok(())
    }

    fn add_one(&mut self, option: &[u8]) -> Result<(), BadOption> {
        let (name, value) = match option.iter().position(|b| *b == b'=') {
            Some(at) => (&option[..at], Some(&option[at + 1..])),
            None => (option, None),
        };
        let name = String::from_utf8_lossy(name).into_owned();
        let option = Named { name: &name, value };
        match name.as_str() {
            "lowerdir" => {
                self.lower = split_unescaped(option.required()?, b':')
                    .iter()
                    .map(|part| lower_path(part))
                    .collect::<Result<_, _>>()?;
            }
            "upperdir" => self.upper = Some(option.path()?),
            "workdir" => self.work = Some(option.path()?),
            "uidmapping" => self.uid_map = option.mapping()?,
            "gidmapping" => self.gid_map = option.mapping()?,
            "squash_to_root" if option.switch()? => {
                (self.squash_uid, self.squash_gid) = (Some(0), Some(0));
            }
            "squash_to_root" => {}
            "squash_to_uid" => self.squash_uid = Some(option.number()?),
            "squash_to_gid" => self.squash_gid = Some(option.number()?),
            "xattr_permissions" => {
                self.permissions = match option.number()? {
                    0 => Permissions::Inode,
                    1 => Permissions::PrivilegedAttribute,
                    2 => Permissions::UserAttribute,
                    _ => return Err(option.bad("is 0, 1 or 2")),
                };
            }
            "static_nlink" => self.static_nlink = option.switch()?,
            "noacl" => self.no_acl = option.switch()?,
            "volatile" => self.is_volatile = option.switch()?,
            "fsync" => self.no_fsync = !option.switch()?,
            "threaded" => self.single_threaded = !option.switch()?,
            "writeback" => self.writeback = option.switch()?,
            "timeout" => self.timeout = Some(option.seconds()?),
            "debug" => self.debug = true,
            "allow_other" => self.allow_other = true,
            "ro" => self.read_only = true,
            _ => return self.add_generic(&option),
        }
        Ok(())
    }

    fn add_generic(&mut self, option: &Named<'_>) -> Result<(), BadOption> {
        let flag = match option.name {
            "nosuid" => MountFlags::NOSUID,
            "nodev" => MountFlags::NODEV,
            "noexec" => MountFlags::NOEXEC,
            "noatime" => MountFlags::NOATIME,
            "nodiratime" => MountFlags::NODIRATIME,
            "relatime" => MountFlags::RELATIME,
            "strictatime" => MountFlags::STRICTATIME,
            "lazytime" => MountFlags::LAZYTIME,
            "dirsync" => MountFlags::DIRSYNC,
            "sync" => MountFlags::SYNCHRONOUS,
            _ => MountFlags::empty(),
        };
        if !flag.is_empty() {
            self.flags = Some(self.flags.unwrap_or(flag) | flag);
        }
        let name = option.name;
        if name == "allow_root" {
            // The kernel knows only the owner or everybody; with default_permissions everybody means what the modes say.
            self.allow_other = true;
        }
        if !flag.is_empty() || WITHOUT_EFFECT.contains(&name) || name == "xino" || name.starts_with("x-") {
            return Ok(());
        }
        if name == "plugins" {
            return Err(option.bad("is not supported: layers are directories"));
        }
        if MUST_BE_OFF.contains(&name) {
            return match option.value {
                Some(b"off" | b"nofollow" | b"0") => Ok(()),
                _ => Err(option.bad("can only be off: an upper directory must hold the whole difference")),
            };
        }
        if IGNORED.contains(&name) || name == "comment" {
            self.warnings.push(format!("option {name} has no effect"));
            return Ok(());
        }
        Err(BadOption(format!("unknown option {name}")))
    }

    /// What the options must say together.
    ///
    /// # Errors
    /// `lowerdir` is missing, or only one of `upperdir` and `workdir` is given.
    pub(crate) fn check(&self) -> Result<(), BadOption> {
        if self.lower.is_empty() {
            return Err(BadOption("no lowerdir specified".to_owned()));
        }
        if self.upper.is_some() != self.work.is_some() {
            return Err(BadOption("upperdir and workdir belong together".to_owned()));
        }
        Ok(())
    }
}

/// An option with its name, for the texts.
struct Named<'a> {
    name: &'a str,
    value: Option<&'a [u8]>,
}

impl<'a> Named<'a> {
    fn bad(&self, why: &str) -> BadOption {
        let value = self.value.map(String::from_utf8_lossy);
        match value {
            Some(value) => BadOption(format!("option {}={value}: {} {why}", self.name, self.name)),
            None => BadOption(format!("option {}: {why}", self.name)),
        }
    }

    fn required(&self) -> Result<&'a [u8], BadOption> {
        self.value
            .filter(|value| !value.is_empty())
            .ok_or_else(|| self.bad("needs a value"))
    }

    fn path(&self) -> Result<PathBuf, BadOption> {
        Ok(OsString::from_vec(unescape(self.required()?)).into())
    }

    fn text(&self) -> Result<&'a str, BadOption> {
        std::str::from_utf8(self.required()?).map_err(|_| self.bad("is not text"))
    }

    fn number(&self) -> Result<u32, BadOption> {
        self.text()?
            .parse()
            .map_err(|_| self.bad("is a number from 0 to 4294967295"))
    }

    /// On without a value; else 1 or 0.
    fn switch(&self) -> Result<bool, BadOption> {
        match self.value {
            None | Some(b"1" | b"true" | b"on") => Ok(true),
            Some(b"0" | b"false" | b"off") => Ok(false),
            Some(_) => Err(self.bad("is 0 or 1")),
        }
    }

    fn seconds(&self) -> Result<Duration, BadOption> {
        self.text()?
            .parse()
            .ok()
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .ok_or_else(|| self.bad("is a number of seconds"))
    }

    fn mapping(&self) -> Result<Vec<IdStretch>, BadOption> {
        let text = self.text()?;
        let numbers: Vec<u32> = text
            .split(':')
            .map(|word| word.parse().map_err(|_| self.bad("is a list of numbers")))
            .collect::<Result<_, _>>()?;
        let (triples, rest) = numbers.as_chunks::<3>();
        if !rest.is_empty() {
            return Err(self.bad("is DISK:SHOWN:COUNT, again and again"));
        }
        triples
            .iter()
            .map(|&[disk, shown, count]| {
                let fits = disk.checked_add(count).and(shown.checked_add(count)).is_some();
                let stretch = IdStretch { disk, shown, count };
                fits.then_some(stretch)
                    .ok_or_else(|| self.bad("goes beyond the largest id"))
            })
            .collect()
    }
}

fn lower_path(part: &[u8]) -> Result<PathBuf, BadOption> {
    if part.is_empty() {
        return Err(BadOption("option lowerdir: an empty path".to_owned()));
    }
    if part.starts_with(b"//") {
        let text = String::from_utf8_lossy(part);
        return Err(BadOption(format!(
            "option lowerdir: {text}: plug-ins are not supported"
        )));
    }
    Ok(OsString::from_vec(unescape(part)).into())
}

/// Splits at separators that no backslash precedes; backslashes stay. A security label has commas, and engines put it into
/// quotes instead.
fn split_unescaped(text: &[u8], separator: u8) -> Vec<Vec<u8>> {
    let mut parts = Vec::new();
    let mut part = Vec::new();
    let (mut escaped, mut quoted) = (false, false);
    for &byte in text {
        if byte == separator && !escaped && !quoted {
            parts.push(std::mem::take(&mut part));
            continue;
        }
        quoted = match byte {
            b'"' if quoted => false,
            b'"' => part.ends_with(b"context="),
            _ => quoted,
        };
        escaped = byte == b'\\' && !escaped;
        part.push(byte);
    }
    parts.push(part);
    parts
}

/// Takes backslashes away that protect the byte after them.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b'\\' => out.extend(bytes.next().copied().or(Some(byte))),
            byte => out.push(byte),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options, BadOption> {
        let mut options = Options::default();
        options.add(OsStr::new(text))?;
        Ok(options)
    }

    #[test]
    fn layers_and_escapes() {
        let options = parse(r"lowerdir=/a:/b\:c:l/D\,E,upperdir=/u\,v,workdir=/w").unwrap();
        assert_eq!(options.lower, ["/a", "/b:c", "l/D,E"].map(PathBuf::from));
        assert_eq!(options.upper, Some("/u,v".into()));
        options.check().unwrap();
        assert!(parse("lowerdir=/a").unwrap().check().is_ok());
        for incomplete in ["ro", "lowerdir=/a,upperdir=/u", "lowerdir=/a,workdir=/u"] {
            assert!(parse(incomplete).unwrap().check().is_err(), "{incomplete}");
        }
    }

    #[test]
    fn everything_the_well_known_program_takes() {
        let options = parse(
            "lowerdir=l,uidmapping=0:1000:1:1:100000:65536,gidmapping=0:5:1,squash_to_root,squash_to_gid=7,\
             xattr_permissions=2,static_nlink,noacl,volatile,timeout=1.5,threaded=0,fsync=0,clone_fd,\
             max_idle_threads=10,redirect_dir=off,ro,nodev,nosuid,noexec,allow_other,default_permissions,\
             context=\"system_u:object_r:x:s0:c1,c2\"",
        )
        .unwrap();
        assert_eq!(options.uid_map.len(), 2);
        assert_eq!(
            options.uid_map[1],
            IdStretch {
                disk: 1,
                shown: 100_000,
                count: 65_536
            }
        );
        assert_eq!((options.squash_uid, options.squash_gid), (Some(0), Some(7)));
        assert_eq!(options.permissions, Permissions::UserAttribute);
        assert!(options.static_nlink && options.no_acl && options.is_volatile && options.no_fsync);
        assert!(options.single_threaded && options.read_only && options.allow_other);
        assert_eq!(options.timeout, Some(Duration::from_millis(1500)));
        assert!(options.flags == Some(MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC));
        assert_eq!(options.warnings, ["option context has no effect"]);
    }

    #[test]
    fn refusals_name_the_option() {
        for (text, part) in [
            ("nonsense=1", "unknown option nonsense"),
            ("redirect_dir=on", "redirect_dir can only be off"),
            ("metacopy", "metacopy: can only be off"),
            ("lowerdir=//plugin//x", "plug-ins are not supported"),
            ("lowerdir=/a::/b", "empty path"),
            ("plugins=/x.so", "plugins is not supported"),
            ("uidmapping=0:1", "uidmapping is DISK:SHOWN:COUNT"),
            ("uidmapping=0:4294967295:2", "beyond the largest id"),
            ("xattr_permissions=3", "xattr_permissions is 0, 1 or 2"),
            ("squash_to_uid=me", "squash_to_uid is a number"),
            ("timeout=-1", "number of seconds"),
            ("threaded=maybe", "threaded is 0 or 1"),
            ("upperdir=", "needs a value"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
