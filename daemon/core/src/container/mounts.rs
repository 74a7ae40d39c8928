//! `-v`, `--mount` and `--tmpfs`: from a client's words to resolved mounts.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use super::view::MountPoint;
use crate::config::{HostConfig, Mount};
use crate::error::{Error, Result};
use crate::runtime::{MountKind, MountSpec};

/// Where clients expect the engine's socket; a bind of it means *this* daemon's socket.
const DOCKER_SOCKETS: [&str; 2] = ["/var/run/docker.sock", "/run/docker.sock"];

/// Resolves all mounts of a container; makes missing sources of `-v` (as Docker does), but nothing else.
///
/// # Errors
/// `InvalidParameter` for malformed, duplicate or missing ones; `NotImplemented` for volumes.
pub(super) fn resolve(host: &HostConfig, own_socket: Option<&Path>) -> Result<Vec<MountPoint>> {
    let mut points = Vec::new();
    for bind in host.binds.iter().flatten() {
        points.push(parse_bind(bind, own_socket)?);
    }
    for mount in host.mounts.iter().flatten() {
        points.push(structured(mount, own_socket)?);
    }
    for (target, options) in host.tmpfs.iter().flatten() {
        points.push(MountPoint {
            kind: "tmpfs".to_owned(),
            source: String::new(),
            destination: clean_target(target)?,
            mode: options.clone(),
            rw: !options.split(',').any(|o| o == "ro"),
            propagation: String::new(),
        });
    }
    let mut seen = BTreeSet::new();
    match points
        .iter()
        .find(|point| !seen.insert(point.destination.as_str()))
    {
        Some(point) => Err(Error::invalid(format!(
            "Duplicate mount point: {}",
            point.destination
        ))),
        None => Ok(points),
    }
}

/// What the runtime mounts for `points`, in an order in which a parent comes before what lies in it.
pub(super) fn specs(points: &[MountPoint]) -> Vec<MountSpec> {
    let mut specs: Vec<MountSpec> = points.iter().map(spec).collect();
    specs.sort_by_key(|spec| Path::new(&spec.target).components().count());
    specs
}

fn spec(point: &MountPoint) -> MountSpec {
    let kind = if point.kind == "tmpfs" {
        MountKind::Tmpfs {
            options: tmpfs_options(&point.mode),
        }
    } else {
        MountKind::Bind {
            source: PathBuf::from(&point.source),
            propagation: if point.propagation.is_empty() {
                "rprivate".to_owned()
            } else {
                point.propagation.clone()
            },
            recursive: !point.mode.split(',').any(|o| o == "bind-nonrecursive"),
        }
    };
    MountSpec {
        target: point.destination.clone(),
        kind,
        read_only: !point.rw,
    }
}

/// Docker's defaults with the user's words behind them, so that those win.
fn tmpfs_options(text: &str) -> Vec<String> {
    let given: Vec<&str> = text.split(',').filter(|o| !o.is_empty()).collect();
    let opposite = |default: &str| default.strip_prefix("no").map(str::to_owned);
    let mut options: Vec<String> = ["noexec", "nosuid", "nodev"]
        .into_iter()
        .filter(|default| {
            !given.contains(default) && opposite(default).is_none_or(|o| !given.contains(&o.as_str()))
        })
        .map(str::to_owned)
        .collect();
    options.extend(given.into_iter().map(str::to_owned));
    options
}

fn parse_bind(text: &str, own_socket: Option<&Path>) -> Result<MountPoint> {
    let invalid = || Error::invalid(format!("invalid volume specification: '{text}'"));
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, mode) = match parts[..] {
        [target] => return Err(volumes_unsupported(target)),
        [source, target] => (source, target, ""),
        [source, target, mode] => (source, target, mode),
        _ => return Err(invalid()),
    };
    if source.is_empty() || target.is_empty() {
        return Err(invalid());
    }
    if !source.starts_with('/') {
        return Err(volumes_unsupported(source));
    }
    let (mut rw, mut propagation) = (true, "rprivate");
    for option in mode.split(',').filter(|o| !o.is_empty()) {
        match option {
            "ro" => rw = false,
            "rw" | "z" | "Z" | "consistent" | "cached" | "delegated" | "nocopy" | "bind-nonrecursive" => {}
            "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave" => propagation = option,
            _ => return Err(Error::invalid(format!("invalid mode: {mode}"))),
        }
    }
    let destination = clean_target(target)?;
    let source = host_source(source, own_socket);
    if !source.exists() {
        make_source(&source)?;
    }
    Ok(MountPoint {
        kind: "bind".to_owned(),
        source: source.display().to_string(),
        destination,
        mode: mode.to_owned(),
        rw,
        propagation: propagation.to_owned(),
    })
}

fn structured(mount: &Mount, own_socket: Option<&Path>) -> Result<MountPoint> {
    let invalid =
        |why: &str| Error::invalid(format!("invalid mount config for type {:?}: {why}", mount.kind));
    if mount.target.is_empty() {
        return Err(invalid("field Target must not be empty"));
    }
    let destination = clean_target(&mount.target)?;
    let point = |source: String, mode: String, propagation: String| MountPoint {
        kind: mount.kind.clone(),
        source,
        destination: destination.clone(),
        mode,
        rw: !mount.read_only,
        propagation,
    };
    match mount.kind.as_str() {
        "bind" => {
            if mount.source.is_empty() {
                return Err(invalid("field Source must not be empty"));
            }
            if !mount.source.starts_with('/') {
                return Err(invalid(&format!(
                    "invalid mount path: '{}' mount path must be absolute",
                    mount.source
                )));
            }
            let options = mount.bind_options.clone().unwrap_or_default();
            let source = host_source(&mount.source, own_socket);
            if !source.exists() {
                if !options.create_mountpoint {
                    return Err(invalid(&format!(
                        "bind source path does not exist: {}",
                        source.display()
                    )));
                }
                make_source(&source)?;
            }
            let propagation = if options.propagation.is_empty() {
                "rprivate".to_owned()
            } else {
                options.propagation
            };
            let mode = if options.non_recursive {
                "bind-nonrecursive"
            } else {
                ""
            };
            Ok(point(source.display().to_string(), mode.to_owned(), propagation))
        }
        "tmpfs" => {
            if !mount.source.is_empty() {
                return Err(invalid("field Source must not be specified"));
            }
            let options = mount.tmpfs_options.clone().unwrap_or_default();
            let mut words = Vec::new();
            if options.size_bytes > 0 {
                words.push(format!("size={}", options.size_bytes));
            }
            if options.mode != 0 {
                words.push(format!("mode={:o}", options.mode));
            }
            Ok(point(String::new(), words.join(","), String::new()))
        }
        "volume" => Err(volumes_unsupported(if mount.source.is_empty() {
            &mount.target
        } else {
            &mount.source
        })),
        other => Err(Error::invalid(format!("mount type unknown: {other:?}"))),
    }
}

fn volumes_unsupported(name: &str) -> Error {
    Error::not_implemented(format!(
        "volumes are not supported by skiff yet ({name:?} names one); bind a host directory by its absolute path"
    ))
}

fn host_source(source: &str, own_socket: Option<&Path>) -> PathBuf {
    match own_socket {
        Some(socket) if DOCKER_SOCKETS.contains(&source) => socket.to_path_buf(),
        _ => lexically_clean(Path::new(source)),
    }
}

fn make_source(source: &Path) -> Result<()> {
    std::fs::create_dir_all(source).map_err(|e| {
        Error::invalid(format!(
            "error while creating mount source path '{}'",
            source.display()
        ))
        .caused_by(e)
    })
}

fn clean_target(target: &str) -> Result<String> {
    if !target.starts_with('/') {
        return Err(Error::invalid(format!(
            "invalid mount path: '{target}' mount path must be absolute"
        )));
    }
    let clean = lexically_clean(Path::new(target));
    if clean == Path::new("/") {
        return Err(Error::invalid("invalid specification: destination can't be '/'"));
    }
    Ok(clean.display().to_string())
}

/// Removes `.`, `..` and doubled slashes without looking at the disk, as Go's `filepath.Clean` does.
fn lexically_clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(binds: &[&str]) -> HostConfig {
        HostConfig {
            binds: Some(binds.iter().map(|&b| b.to_owned()).collect()),
            ..HostConfig::default()
        }
    }

    #[test]
    fn binds_are_cleaned_and_missing_sources_made() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("a/b");
        let points = resolve(&host(&[&format!("{}:/x/../y/:ro", missing.display())]), None).unwrap();
        assert!(missing.is_dir());
        assert_eq!((points[0].destination.as_str(), points[0].rw), ("/y", false));
    }

    #[test]
    fn bad_ones_are_refused_in_docker_s_words() {
        let text = |bind: &str| resolve(&host(&[bind]), None).unwrap_err().to_string();
        assert_eq!(
            text("/a:b"),
            "invalid mount path: 'b' mount path must be absolute"
        );
        assert_eq!(text("/a:/b:c:d"), "invalid volume specification: '/a:/b:c:d'");
        assert_eq!(text("/tmp:/b:wild"), "invalid mode: wild");
        assert_eq!(text("/tmp:/"), "invalid specification: destination can't be '/'");
        let twice = resolve(&host(&["/tmp:/b", "/usr:/b/"]), None).unwrap_err();
        assert_eq!(twice.to_string(), "Duplicate mount point: /b");
        let volume = resolve(&host(&["data:/b"]), None).unwrap_err();
        assert_eq!(volume.kind(), crate::ErrorKind::NotImplemented);
    }

    #[test]
    fn the_docker_socket_means_ours() {
        let directory = tempfile::tempdir().unwrap();
        let ours = directory.path().join("docker.sock");
        std::fs::write(&ours, "").unwrap();
        let points = resolve(&host(&["/var/run/docker.sock:/var/run/docker.sock"]), Some(&ours)).unwrap();
        assert_eq!(points[0].source, ours.display().to_string());
    }

    #[test]
    fn tmpfs_defaults_yield_to_the_user() {
        assert_eq!(
            tmpfs_options("size=1m,exec"),
            ["nosuid", "nodev", "size=1m", "exec"]
        );
        assert_eq!(tmpfs_options(""), ["noexec", "nosuid", "nodev"]);
    }

    #[test]
    fn parents_are_mounted_before_what_lies_in_them() {
        let points = resolve(&host(&["/usr:/a/b/c", "/usr:/a"]), None).unwrap();
        let targets: Vec<String> = specs(&points).into_iter().map(|spec| spec.target).collect();
        assert_eq!(targets, ["/a", "/a/b/c"]);
    }
}
