//! Notices when the server of a FUSE mount dies under its users, and says so once.
//!
//! One thread waits for all servers. A server that ends because its mount was taken down is not watched any more by then.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::event::epoll;
use rustix::io::Errno;

/// The servers under watch.
#[derive(Debug, Default)]
pub(super) struct Watch {
    watched: Mutex<Option<Arc<Watched>>>,
}

#[derive(Debug)]
struct Watched {
    epoll: OwnedFd,
    servers: Mutex<Servers>,
}

#[derive(Debug, Default)]
struct Servers {
    next: u64,
    by_number: HashMap<u64, Server>,
}

#[derive(Debug)]
struct Server {
    target: PathBuf,
    pid: u32,
    /// Closing it ends the watch.
    _process: OwnedFd,
}

impl Watched {
    fn servers(&self) -> MutexGuard<'_, Servers> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch {
    /// Watches the server of `target` from now on.
    pub(super) fn add(&self, target: &Path, pid: u32, process: OwnedFd) -> io::Result<()> {
        let mut slot = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let watched = match &*slot {
            Some(watched) => Arc::clone(watched),
            None => Arc::clone(slot.insert(start()?)),
        };
        drop(slot);
        let mut servers = watched.servers();
        servers.next += 1;
        let number = servers.next;
        epoll::add(
            &watched.epoll,
            &process,
            epoll::EventData::new_u64(number),
            epoll::EventFlags::IN,
        )?;
        let server = Server {
            target: target.to_owned(),
            pid,
            _process: process,
        };
        servers.by_number.insert(number, server);
        Ok(())
    }

    /// The mount is about to go; its server may end.
    pub(super) fn remove(&self, target: &Path) {
        let slot = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(watched) = &*slot {
            watched
                .servers()
                .by_number
                .retain(|_, server| server.target != target);
        }
    }
}

fn start() -> io::Result<Arc<Watched>> {
    let watched = Arc::new(Watched {
        epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        servers: Mutex::default(),
    });
    let theirs = Arc::clone(&watched);
    thread::Builder::new()
        .name("fuse-watch".to_owned())
        .spawn(move || wait(&theirs))?;
    Ok(watched)
}

fn wait(watched: &Watched) {
    let mut events = Vec::with_capacity(16);
    loop {
        events.clear();
        match epoll::wait(&watched.epoll, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => {
                tracing::error!(%errno, "servers of FUSE mounts are not watched any more");
                return;
            }
        }
        for event in &events {
            let dead = watched.servers().by_number.remove(&event.data.u64());
            if let Some(server) = dead {
                tracing::error!(
                    pid = server.pid,
                    "the server of the root file system on {} died: what the kernel has not cached of it is ENOTCONN \
                     until its container is started again",
                    server.target.display()
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    use std::process::{Command, Stdio};

    #[test]
    fn the_dead_are_forgotten_and_the_rest_stays() {
        let watch = Watch::default();
        let child = || {
            let child = Command::new("/bin/cat")
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            let pid = Pid::from_child(&child);
            (child, pidfd_open(pid, PidfdFlags::empty()).unwrap())
        };
        let ((mut first, a), (mut second, b)) = (child(), child());
        watch.add(Path::new("/a"), first.id(), a).unwrap();
        watch.add(Path::new("/b"), second.id(), b).unwrap();
        let watched = Arc::clone(watch.watched.lock().unwrap().as_ref().unwrap());
        let left = || {
            let servers = watched.servers();
            let mut left: Vec<PathBuf> = servers.by_number.values().map(|s| s.target.clone()).collect();
            left.sort();
            left
        };
        first.kill().unwrap();
        first.wait().unwrap();
        while left().len() > 1 {
            thread::yield_now();
        }
        assert_eq!(left(), [PathBuf::from("/b")]);
        watch.remove(Path::new("/b"));
        assert!(left().is_empty());
        second.kill().unwrap();
        second.wait().unwrap();
    }
}
