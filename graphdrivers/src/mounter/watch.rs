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
use skiff_sys::identity::{has_ended, is_exiting};

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
    /// What is said of those that died, by target, as long as the mount stays.
    dead: HashMap<PathBuf, String>,
}

#[derive(Debug)]
struct Server {
    target: PathBuf,
    pid: u32,
    /// Closing it ends the watch.
    process: OwnedFd,
}

impl Server {
    /// Its connection is cut when it closes its descriptors, before it is quite gone.
    fn has_died(&self) -> bool {
        has_ended(&self.process).unwrap_or(false) || is_exiting(self.pid)
    }

    fn obituary(&self) -> String {
        obituary(&self.target, &format!(" (process {})", self.pid))
    }
}

impl Watched {
    fn servers(&self) -> MutexGuard<'_, Servers> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch {
    /// Watches the server of `target` from now on.
    pub(super) fn add(&self, target: &Path, pid: u32, process: OwnedFd) -> io::Result<()> {
        let watched = self.watched()?;
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
            process,
        };
        servers.dead.remove(target);
        servers.by_number.insert(number, server);
        Ok(())
    }

    /// The mount is about to go; its server may end.
    pub(super) fn remove(&self, target: &Path) {
        let slot = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(watched) = &*slot {
            let mut servers = watched.servers();
            servers.by_number.retain(|_, server| server.target != target);
            servers.dead.remove(target);
        }
    }

    /// What is to be said of the server of `target` if it died. Right at once: it does not wait for the watching thread.
    pub(super) fn obituary(&self, target: &Path) -> Option<String> {
        let slot = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let servers = slot.as_ref()?.servers();
        let mut watched = servers.by_number.values();
        let unnoticed = watched.find(|server| server.target == target && server.has_died());
        let known = servers.dead.get(target);
        unnoticed.map(Server::obituary).or_else(|| known.cloned())
    }

    /// The server of `target` died before anybody watched it.
    pub(super) fn found_dead(&self, target: &Path) -> io::Result<()> {
        let text = obituary(target, "");
        tracing::error!("{text}");
        self.watched()?.servers().dead.insert(target.to_owned(), text);
        Ok(())
    }

    fn watched(&self) -> io::Result<Arc<Watched>> {
        let mut slot = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(match &*slot {
            Some(watched) => Arc::clone(watched),
            None => Arc::clone(slot.insert(start()?)),
        })
    }
}

/// What a server's death means, for people.
fn obituary(target: &Path, process: &str) -> String {
    format!(
        "the server{process} of the root file system on {} died: what the kernel has not cached of it is ENOTCONN until \
         the container is started again",
        target.display()
    )
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
            let mut servers = watched.servers();
            if let Some(server) = servers.by_number.remove(&event.data.u64()) {
                let text = server.obituary();
                tracing::error!("{text}");
                servers.dead.insert(server.target, text);
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
        let text = watch.obituary(Path::new("/a")).unwrap();
        assert!(text.contains(&format!("process {}", first.id())), "{text}");
        assert_eq!(watch.obituary(Path::new("/b")), None);
        watch.remove(Path::new("/b"));
        assert!(left().is_empty());
        watch.remove(Path::new("/a"));
        assert_eq!(watch.obituary(Path::new("/a")), None);
        watch.found_dead(Path::new("/c")).unwrap();
        assert!(watch.obituary(Path::new("/c")).is_some());
        second.kill().unwrap();
        second.wait().unwrap();
    }
}
