//! The threads that serve.
//!
//! A few threads read and answer; they are as many as the processors, because a request mostly costs processor time.
//! Work that waits for the disk (fsync, copy-up, long copies) would keep them all away from `/dev/fuse`: when the last
//! idle thread takes such a request it first starts another one, which ends when there are enough idle ones again.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, Scope};

use rustix::io::Errno;

use super::Session;
use super::abi::opcode;
use super::dispatch::Outcome;
use super::init::MAX_WRITE;
use super::reply::Reply;
use super::request::Request;

/// Room for the largest request: a full write with its header, and a page as the kernel demands.
pub(super) const REQUEST_ROOM: usize = MAX_WRITE as usize + 4096;
/// Room for the largest answer: a full read; two structures fit into the same.
pub(super) const REPLY_ROOM: usize = MAX_WRITE as usize;

/// Threads that stay.
const MIN_THREADS: usize = 2;
const MAX_THREADS: usize = 8;
/// Threads in all, when disks are slow.
const MOST_THREADS: usize = 64;

/// Who is doing what.
#[derive(Debug)]
struct Pool {
    /// Threads that stay.
    steady: usize,
    /// Threads that wait for a request.
    idle: AtomicUsize,
    threads: AtomicUsize,
}

/// Serves until the end.
pub(super) fn run(session: &Session) -> io::Result<()> {
    let processors = thread::available_parallelism().map_or(MIN_THREADS, usize::from);
    let steady = if session.single_threaded {
        1
    } else {
        processors.clamp(MIN_THREADS, MAX_THREADS)
    };
    let pool = Pool {
        steady,
        idle: AtomicUsize::new(0),
        threads: AtomicUsize::new(steady),
    };
    thread::scope(|scope| {
        let first = (0..steady)
            .map(|_| start(scope, session, &pool))
            .collect::<io::Result<Vec<_>>>()?;
        first.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("a serving thread panicked")))
        })
    })
}

type Serving<'scope> = thread::ScopedJoinHandle<'scope, io::Result<()>>;

fn start<'scope, 'env: 'scope>(
    scope: &'scope Scope<'scope, 'env>,
    session: &'env Session,
    pool: &'env Pool,
) -> io::Result<Serving<'scope>> {
    thread::Builder::new()
        .name("fuse".to_owned())
        .spawn_scoped(scope, move || serve(scope, session, pool))
}

fn serve<'scope, 'env: 'scope>(
    scope: &'scope Scope<'scope, 'env>,
    session: &'env Session,
    pool: &'env Pool,
) -> io::Result<()> {
    // A descriptor of one's own saves waiting for the others; without, one for all works too.
    let clone = if pool.steady > 1 {
        skiff_sys::fuse::clone_device(session.device.as_fd()).ok()
    } else {
        None
    };
    let device = clone.as_ref().unwrap_or(&session.device);
    let mut buffer = vec![0; REQUEST_ROOM];
    let mut reply = Reply::with_room(REPLY_ROOM);
    loop {
        if pool.idle.fetch_add(1, Ordering::Relaxed) >= pool.steady {
            pool.idle.fetch_sub(1, Ordering::Relaxed);
            pool.threads.fetch_sub(1, Ordering::Relaxed);
            return Ok(());
        }
        let next = next(device, &mut buffer);
        let others_idle = pool.idle.fetch_sub(1, Ordering::Relaxed) > 1;
        let Some(length) = next? else { return Ok(()) };
        let Ok(request) = Request::parse(&buffer[..length]) else {
            tracing::error!(length, "malformed FUSE request");
            continue;
        };
        if !others_idle && waits_for_disk(request.opcode) && !session.single_threaded {
            start_another(scope, session, pool);
        }
        answer(session, device, &request, &mut reply)?;
    }
}

/// One thread more, unless there are many. A failure is no reason to stop: the others come back.
fn start_another<'scope, 'env: 'scope>(
    scope: &'scope Scope<'scope, 'env>,
    session: &'env Session,
    pool: &'env Pool,
) {
    if pool.threads.fetch_add(1, Ordering::Relaxed) >= MOST_THREADS || start(scope, session, pool).is_err() {
        pool.threads.fetch_sub(1, Ordering::Relaxed);
    }
}

fn waits_for_disk(kind: u32) -> bool {
    matches!(
        kind,
        opcode::FSYNC
            | opcode::FSYNCDIR
            | opcode::SYNCFS
            | opcode::COPY_FILE_RANGE
            | opcode::FALLOCATE
            | opcode::OPEN
            | opcode::SETATTR
            | opcode::LINK
            | opcode::RENAME
            | opcode::RENAME2
    )
}

/// Reads the next request into `buffer`; `None` when the file system is unmounted.
pub(super) fn next(device: &File, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        match rustix::io::read(device, &mut *buffer) {
            Ok(length) => return Ok(Some(length)),
            // ENOENT: who asked does not wait any more.
            Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => {}
            Err(Errno::NODEV | Errno::CONNABORTED) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn answer(session: &Session, device: &File, request: &Request<'_>, reply: &mut Reply) -> io::Result<()> {
    reply.clear();
    let outcome = catch_unwind(AssertUnwindSafe(|| session.handle(request, reply))).unwrap_or_else(|_| {
        tracing::error!(opcode = request.opcode, node = request.node, "a request panicked");
        Err(Errno::IO)
    });
    if session.debug {
        debug(request, outcome, reply);
    }
    let errno = match outcome {
        Ok(Outcome::Silence) => return Ok(()),
        Ok(Outcome::Answer) => 0,
        Err(errno) if silent(request.opcode) => {
            tracing::debug!(%errno, "bad request without answer");
            return Ok(());
        }
        Err(errno) => errno.raw_os_error(),
    };
    match rustix::io::write(device, reply.message(request.unique, errno)) {
        // ENOENT: who asked does not wait any more. The kernel waits for whatever it has handed out, so this means the
        // end of the connection, like ENODEV; the next read says so.
        Ok(_) | Err(Errno::NOENT | Errno::NODEV | Errno::CONNABORTED) => Ok(()),
        Err(errno) => {
            tracing::error!(opcode = request.opcode, %errno, "cannot answer a request");
            // The kernel did not like the answer; a waiting program must not hang for that.
            match rustix::io::write(device, reply.message(request.unique, Errno::IO.raw_os_error())) {
                Ok(_) | Err(Errno::NOENT | Errno::NODEV | Errno::CONNABORTED) => Ok(()),
                Err(errno) => Err(errno.into()),
            }
        }
    }
}

fn silent(kind: u32) -> bool {
    matches!(kind, opcode::FORGET | opcode::BATCH_FORGET)
}

fn debug(request: &Request<'_>, outcome: Result<Outcome, Errno>, reply: &Reply) {
    use std::io::Write;
    let outcome = match outcome {
        Ok(Outcome::Answer) => format!("{} bytes", reply.payload()),
        Ok(Outcome::Silence) => "no answer".to_owned(),
        Err(errno) => format!("{errno}"),
    };
    let _ = writeln!(
        io::stderr(),
        "unique {} opcode {} node {} uid {} pid {}: {outcome}",
        request.unique,
        request.opcode,
        request.node,
        request.uid,
        request.pid
    );
}
