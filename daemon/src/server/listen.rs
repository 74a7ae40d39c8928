//! The sockets of the API: bound here, before any thread exists, or passed by a service manager.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use rustix::fs::Mode;
use rustix::net::{AddressFamily, sockopt};

use crate::config::Host;

/// Number of the first descriptor that a service manager passes (sd_listen_fds(3)).
const FIRST_PASSED: u32 = 3;

/// Sockets that a service manager passed, in its order.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    sockets: Vec<OwnedFd>,
}

impl Passed {
    /// Takes them by `LISTEN_FDS`, if that is meant for this process.
    ///
    /// # Errors
    /// When one of them is not a listening stream socket.
    pub(crate) fn from_environment() -> io::Result<Self> {
        let mut passed = ListenFd::from_env();
        let mut sockets = Vec::new();
        for index in 0..passed.len() {
            let socket = match passed.take_unix_listener(index) {
                Ok(socket) => socket.map(OwnedFd::from),
                Err(_) => passed.take_tcp_listener(index)?.map(OwnedFd::from),
            };
            sockets.extend(socket);
        }
        Ok(Self { sockets })
    }

    /// The descriptors, to be passed on.
    pub(crate) fn sockets(&self) -> &[OwnedFd] {
        &self.sockets
    }
}

/// Takes over what the parent passed on.
impl From<Vec<OwnedFd>> for Passed {
    fn from(sockets: Vec<OwnedFd>) -> Self {
        Self { sockets }
    }
}

/// A bound socket.
#[derive(Debug)]
pub(crate) struct Bound {
    /// The socket, non-blocking.
    pub(crate) socket: Socket,
    /// Where, for the log: a path or `address:port`.
    pub(crate) name: String,
    /// The file to remove at the end, if it is ours.
    pub(crate) file: Option<SocketFile>,
}

/// The file of a unix socket that we bound.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    dev: u64,
    ino: u64,
    /// As long as the socket is open its inode's number is not given to another file.
    _pin: OwnedFd,
}

/// Its kind.
#[derive(Debug)]
pub(crate) enum Socket {
    /// A unix socket.
    Unix(UnixListener),
    /// A TCP socket without TLS.
    Tcp(TcpListener),
}

/// Binds every host. `group` is the group that may use unix sockets, for a daemon that runs as root.
///
/// # Errors
/// The text for the user.
pub(crate) fn bind_all(hosts: &[Host], passed: Passed, group: Option<u32>) -> Result<Vec<Bound>, String> {
    let mut passed: Vec<Option<OwnedFd>> = passed.sockets.into_iter().map(Some).collect();
    let mut bound = Vec::new();
    for host in hosts {
        let fail = |error: io::Error| format!("can't create {host}: {error}");
        match host {
            Host::Unix(path) => bound.push(bind_unix(path, group).map_err(fail)?),
            Host::Tcp(address) => bound.push(bind_tcp(address).map_err(fail)?),
            Host::Fd(None) => {
                if passed.iter().all(Option::is_none) {
                    return Err(format!(
                        "no sockets found via socket activation for {host}: is the socket unit active?"
                    ));
                }
                for socket in passed.iter_mut().filter_map(Option::take) {
                    bound.push(adopt(socket).map_err(fail)?);
                }
            }
            Host::Fd(Some(number)) => {
                let index = number
                    .checked_sub(FIRST_PASSED)
                    .and_then(|index| usize::try_from(index).ok());
                let socket = index.and_then(|index| passed.get_mut(index)?.take());
                let socket = socket.ok_or_else(|| format!("{host}: no such descriptor was passed"))?;
                bound.push(adopt(socket).map_err(fail)?);
            }
        }
    }
    Ok(bound)
}

impl SocketFile {
    /// Removes the file, unless another one has taken its place.
    pub(crate) fn remove(self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == (self.dev, self.ino))
        {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn bind_unix(path: &Path, group: Option<u32>) -> io::Result<Bound> {
    clear_stale(path)?;
    // The mode must be right from the first moment on, so it is not left to a chmod afterwards.
    let previous = rustix::process::umask(Mode::from_raw_mode(0o117));
    let result = UnixListener::bind(path);
    rustix::process::umask(previous);
    let listener = result?;
    if let Some(group) = group {
        std::os::unix::fs::lchown(path, None, Some(group))?;
    }
    listener.set_nonblocking(true)?;
    let meta = fs::symlink_metadata(path)?;
    let pin = listener.as_fd().try_clone_to_owned()?;
    let file = SocketFile {
        path: path.to_owned(),
        dev: meta.dev(),
        ino: meta.ino(),
        _pin: pin,
    };
    Ok(Bound {
        socket: Socket::Unix(listener),
        name: path.display().to_string(),
        file: Some(file),
    })
}

/// Removes the socket of a daemon that is gone; anything else in its place stays and is an error.
fn clear_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "the file exists and is not a socket",
            ));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another process listens there",
        )),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn bind_tcp(address: &str) -> io::Result<Bound> {
    let listener = TcpListener::bind(address)?;
    tracing::warn!(
        host = %format!("tcp://{address}"),
        "[DEPRECATION NOTICE]: API is accessible on http://{address} without encryption. Access to the remote API is \
         equivalent to the rights of this user on the host. Refer to the 'Docker daemon attack surface' section in the \
         documentation for more information: https://docs.docker.com/go/attack-surface/. In future versions this will \
         be a hard failure preventing the daemon from starting"
    );
    tcp(listener)
}

fn tcp(listener: TcpListener) -> io::Result<Bound> {
    listener.set_nonblocking(true)?;
    let name = listener.local_addr()?.to_string();
    Ok(Bound {
        socket: Socket::Tcp(listener),
        name,
        file: None,
    })
}

/// The service manager made the file of such a socket, and removes it.
fn adopt(socket: OwnedFd) -> io::Result<Bound> {
    if sockopt::socket_domain(&socket)? == AddressFamily::UNIX {
        let listener = UnixListener::from(socket);
        listener.set_nonblocking(true)?;
        let name = listener
            .local_addr()?
            .as_pathname()
            .map_or_else(|| "fd://".to_owned(), |path| path.display().to_string());
        return Ok(Bound {
            socket: Socket::Unix(listener),
            name,
            file: None,
        });
    }
    tcp(TcpListener::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn bind(path: &Path) -> Result<Vec<Bound>, String> {
        bind_all(&[Host::Unix(path.to_owned())], Passed::default(), None)
    }

    #[test]
    fn a_stale_socket_is_replaced_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("docker.sock");
        let first = bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert!(bind(&path).unwrap_err().contains("another process listens there"));
        drop(first);
        let mut second = bind(&path).unwrap();
        let file = second[0].file.take().unwrap();
        drop(second);
        file.remove();
        assert!(!path.exists());
    }

    #[test]
    fn other_files_are_never_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("docker.sock");
        fs::write(&path, "precious").unwrap();
        assert!(bind(&path).unwrap_err().contains("not a socket"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");

        fs::remove_file(&path).unwrap();
        let mut bound = bind(&path).unwrap();
        let file = bound[0].file.take().unwrap();
        drop(bound);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "somebody else's").unwrap();
        file.remove();
        assert!(path.exists());
    }

    #[test]
    fn passed_sockets_are_used_by_number_or_all() {
        let dir = tempfile::tempdir().unwrap();
        let sockets = || -> Passed {
            ["a", "b"]
                .map(|name| {
                    let path = dir.path().join(name);
                    let _ = fs::remove_file(&path);
                    OwnedFd::from(UnixListener::bind(path).unwrap())
                })
                .into_iter()
                .collect::<Vec<_>>()
                .into()
        };
        assert_eq!(bind_all(&[Host::Fd(None)], sockets(), None).unwrap().len(), 2);
        let one = bind_all(&[Host::Fd(Some(4))], sockets(), None).unwrap();
        assert!(one[0].name.ends_with("/b"));
        assert!(bind_all(&[Host::Fd(Some(5))], sockets(), None).is_err());
        assert!(bind_all(&[Host::Fd(None)], Passed::default(), None).is_err());
    }
}
