//! The loop of a serving thread: read, answer, follow. How many threads there are is `crew.rs`'s business.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::Session;
use super::abi::opcode;
use super::crew::{Crew, Turn};
use super::dispatch::Outcome;
use super::follow::Follower;
use super::init::MAX_WRITE;
use super::reply::Reply;
use super::request::Request;

/// Room for the largest request: a full write with its header, and a page as the kernel demands.
pub(super) const REQUEST_ROOM: usize = MAX_WRITE as usize + 4096;
/// Room for the largest answer: a full read; two structures fit into the same.
pub(super) const REPLY_ROOM: usize = MAX_WRITE as usize;

/// How long, in milliseconds, a request that finds the disk full waits before it tries again. A file's room is free after
/// the kernel has told that it forgot the file, which nobody who removes one waits for: another thread may be about to
/// hear it. Such a request has done nothing yet.
const PAUSES: [u64; 7] = [1, 2, 4, 8, 16, 32, 64];

/// Threads at the device at once, as long as no disk is slow.
const MIN_THREADS: usize = 2;
const MAX_THREADS: usize = 8;

/// Serves until the end.
pub(super) fn run(session: &Session) -> io::Result<()> {
    let processors = thread::available_parallelism().map_or(MIN_THREADS, usize::from);
    let steady = if session.single_threaded {
        1
    } else {
        processors.clamp(MIN_THREADS, MAX_THREADS)
    };
    let crew = Crew::new(steady);
    thread::scope(|scope| {
        crew.enlist();
        serve(scope, session, &crew)
    })
}

/// Starts a thread more. A failure is no reason to stop: the others come back from what holds them up.
fn start<'scope, 'env: 'scope>(scope: &'scope Scope<'scope, 'env>, session: &'env Session, crew: &'env Crew) {
    crew.enlist();
    let work = move || {
        if let Err(error) = serve(scope, session, crew) {
            tracing::error!(%error, "a serving thread ended");
        }
    };
    if let Err(error) = thread::Builder::new()
        .name("fuse".to_owned())
        .spawn_scoped(scope, work)
    {
        tracing::warn!(%error, "cannot start a serving thread");
        crew.strike_off();
    }
}

/// Serves until this thread is not needed any more; when the device is gone, nobody is.
fn serve<'scope, 'env: 'scope>(
    scope: &'scope Scope<'scope, 'env>,
    session: &'env Session,
    crew: &'env Crew,
) -> io::Result<()> {
    let outcome = serve_on(scope, session, crew);
    if !matches!(outcome, Ok(Leave::Dismissed)) {
        crew.disband();
    }
    outcome.map(drop)
}

/// Why a thread ends.
enum Leave {
    Unmounted,
    Dismissed,
}

fn serve_on<'scope, 'env: 'scope>(
    scope: &'scope Scope<'scope, 'env>,
    session: &'env Session,
    crew: &'env Crew,
) -> io::Result<Leave> {
    // A descriptor of one's own saves waiting for the others; without, one for all works too.
    let clone = skiff_sys::fuse::clone_device(session.device.as_fd()).ok();
    let device = clone.as_ref().unwrap_or(&session.device);
    let mut buffer = vec![0; REQUEST_ROOM];
    let mut reply = Reply::with_room(REPLY_ROOM);
    let mut follower = Follower::new();
    let mut glance = Glance::default();
    let mut is_new = true;
    let mut look = None;
    loop {
        match crew.take_turn(is_new) {
            Turn::Read => {}
            Turn::StartAnotherAndRead => start(scope, session, crew),
            Turn::End => return Ok(Leave::Dismissed),
        }
        is_new = false;
        // Only measured where something is to be learnt from it.
        let answered = look.map(|_| Instant::now());
        let soon = look.and_then(|moment| glance.next(device, &mut buffer, moment));
        let (device, length) = match soon {
            Some(found) => found,
            None => match next(device, &mut buffer)? {
                Some(length) => {
                    if let Some(answered) = answered {
                        follower.learn(answered.elapsed());
                    }
                    (device, length)
                }
                None => return Ok(Leave::Unmounted),
            },
        };
        crew.begin();
        let asker = match Request::parse(&buffer[..length]) {
            Ok(request) => {
                answer(session, device, &request, &mut reply)?;
                request.pid
            }
            Err(_) => {
                tracing::error!(length, "malformed FUSE request");
                0
            }
        };
        crew.end(asker);
        look = if crew.is_alone() {
            follower.follow(asker)
        } else {
            follower.stay_anywhere();
            None
        };
    }
}

/// Looks for a request without going to sleep.
#[derive(Debug, Default)]
struct Glance {
    /// A descriptor that does not block; `None` inside: there cannot be one.
    device: Option<Option<File>>,
}

impl Glance {
    /// The next request, if it comes within the `moment`, and the descriptor to answer it through.
    fn next<'a>(
        &'a mut self,
        device: &File,
        buffer: &mut [u8],
        moment: Duration,
    ) -> Option<(&'a File, usize)> {
        if moment.is_zero() {
            return None;
        }
        let open = || {
            let clone = skiff_sys::fuse::clone_device(device.as_fd()).ok()?;
            rustix::fs::fcntl_setfl(&clone, OFlags::NONBLOCK).ok()?;
            Some(clone)
        };
        let device = self.device.get_or_insert_with(open).as_ref()?;
        let end = Instant::now() + moment;
        loop {
            match rustix::io::read(device, &mut *buffer) {
                Ok(length) => return Some((device, length)),
                Err(Errno::AGAIN) if Instant::now() < end => std::hint::spin_loop(),
                // Time is over; or something is wrong, and then reading in the ordinary way says what.
                Err(_) => return None,
            }
        }
    }
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
    let overlay = &session.overlay;
    let mut let_go = overlay.removed_files_let_go();
    let mut outcome = attempt(session, request, reply);
    for pause in PAUSES {
        if !matches!(outcome, Err(Errno::NOSPC | Errno::DQUOT)) {
            break;
        }
        // In this order: a file that was held at the attempt is held still, or has been let go since.
        if overlay.holds_removed_files() {
            thread::sleep(Duration::from_millis(pause));
        } else if overlay.removed_files_let_go() == let_go {
            break;
        }
        let_go = overlay.removed_files_let_go();
        outcome = attempt(session, request, reply);
    }
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

fn attempt(session: &Session, request: &Request<'_>, reply: &mut Reply) -> Result<Outcome, Errno> {
    reply.clear();
    catch_unwind(AssertUnwindSafe(|| session.handle(request, reply))).unwrap_or_else(|_| {
        tracing::error!(opcode = request.opcode, node = request.node, "a request panicked");
        Err(Errno::IO)
    })
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
        "unique {} opcode {} node {} uid {} pid {} {:?}: {outcome}",
        request.unique,
        request.opcode,
        request.node,
        request.uid,
        request.pid,
        request.body
    );
}
