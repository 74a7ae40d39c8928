//! How many threads wait at `/dev/fuse`.
//!
//! A request is a hand-over from the program that asks to the thread that serves, and back. Between two processors each
//! hand-over is an interrupt, which costs more than the work (in virtual machines several times as much); on one
//! processor it is a context switch. The kernel gives a request to whichever thread has waited longest, and prefers an
//! idle processor for it. So:
//!
//! ```text
//!   follow   one program asks at a time        one thread at the device, on the processor of the program that asks
//!                                              (`follow.rs`); the others are parked
//!   spread   several ask at once               a thread for each processor at the device, wherever the scheduler
//!                                              likes
//! ```
//!
//! Which of the two is decided anew every [`WINDOW`] requests, by how often the asking thread changed. Threads that are
//! held up by a disk must not hold up other programs: one of the parked threads, the sentinel, looks after them every
//! [`TICK`] as long as there is work, and steps in when nobody was at the device all the time.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Requests between two decisions.
const WINDOW: u32 = 64;
/// Changes of the asking thread in a window from which on several are at it.
const MANY_CHANGES: u32 = WINDOW / 5;
/// How often the sentinel looks.
const TICK: Duration = Duration::from_millis(5);
/// Looks without any work after which it sleeps until there is some.
const QUIET_TICKS: u32 = 50;
/// Threads in all, when disks are slow.
const MOST_THREADS: usize = 64;
/// Parked threads that are kept.
const RESERVE: usize = 2;

/// The threads of a session.
#[derive(Debug)]
pub(super) struct Crew {
    /// Threads at the device when the work is spread.
    steady: usize,
    /// Threads that shall be at the device or busy with a request.
    wanted: AtomicUsize,
    /// Threads that are.
    at_work: AtomicUsize,
    /// Threads busy with a request.
    busy: AtomicUsize,
    /// Requests done.
    done: AtomicU64,
    /// Who asked last.
    asker: AtomicU32,
    /// Of this window: requests, changes of the asker, whether the sentinel stepped in.
    requests: AtomicU32,
    changes: AtomicU32,
    held_up: AtomicBool,
    sentinel_asleep: AtomicBool,
    parked: Mutex<Parked>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct Parked {
    /// All threads, parked or not.
    threads: usize,
    parked: usize,
    has_sentinel: bool,
    over: bool,
}

/// What a thread is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// To the device.
    Read,
    /// To the device, after starting another thread: nobody is left to look after things.
    StartAnotherAndRead,
    /// Home.
    End,
}

/// What the sentinel has seen.
#[derive(Debug, Default)]
struct Looks {
    mine: bool,
    done: u64,
    quiet: u32,
}

impl Crew {
    /// A crew of at most `steady` threads for ordinary work; none has begun.
    pub(super) fn new(steady: usize) -> Self {
        Self {
            steady,
            wanted: AtomicUsize::new(1),
            at_work: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            done: AtomicU64::new(0),
            asker: AtomicU32::new(0),
            requests: AtomicU32::new(0),
            changes: AtomicU32::new(0),
            held_up: AtomicBool::new(false),
            sentinel_asleep: AtomicBool::new(false),
            parked: Mutex::default(),
            wake: Condvar::new(),
        }
    }

    fn parked(&self) -> MutexGuard<'_, Parked> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new thread is about to come.
    pub(super) fn enlist(&self) {
        self.parked().threads += 1;
    }

    /// A thread that was to come does not.
    pub(super) fn strike_off(&self) {
        self.parked().threads -= 1;
    }

    /// A new thread comes, or one comes back from a request; returns when there is something to do.
    pub(super) fn take_turn(&self, is_new: bool) -> Turn {
        if !is_new && !self.leave() {
            return Turn::Read;
        }
        let mut parked = self.parked();
        if parked.parked > RESERVE {
            parked.threads -= 1;
            return Turn::End;
        }
        parked.parked += 1;
        let mut looks = Looks::default();
        while !parked.over && !self.join() {
            if parked.has_sentinel && !looks.mine {
                parked = self.wake.wait(parked).unwrap_or_else(PoisonError::into_inner);
            } else {
                (parked.has_sentinel, looks.mine) = (true, true);
                parked = self.look(parked, &mut looks);
            }
        }
        parked.parked -= 1;
        if looks.mine {
            // Somebody else looks from now on.
            parked.has_sentinel = false;
            self.wake.notify_all();
        }
        match (parked.over, parked.parked) {
            (true, _) => Turn::End,
            (false, 0) if self.steady > 1 && parked.threads < MOST_THREADS => Turn::StartAnotherAndRead,
            (false, _) => Turn::Read,
        }
    }

    /// The sentinel's part: waits for a moment; calls for one more (itself) when nobody has been at the device.
    fn look<'a>(&self, parked: MutexGuard<'a, Parked>, looks: &mut Looks) -> MutexGuard<'a, Parked> {
        if looks.quiet >= QUIET_TICKS {
            looks.quiet = 0;
            self.sentinel_asleep.store(true, Ordering::SeqCst);
            // Work that began before the store is seen here, work that begins after it sees the store.
            if self.busy.load(Ordering::SeqCst) == 0 {
                return self.wake.wait(parked).unwrap_or_else(PoisonError::into_inner);
            }
            self.sentinel_asleep.store(false, Ordering::SeqCst);
        }
        let (parked, _) = self
            .wake
            .wait_timeout(parked, TICK)
            .unwrap_or_else(PoisonError::into_inner);
        let done = self.done.load(Ordering::Relaxed);
        let busy = self.busy.load(Ordering::SeqCst);
        if done != looks.done {
            looks.quiet = 0;
        } else if busy == 0 {
            looks.quiet += 1;
        } else if busy >= self.at_work.load(Ordering::SeqCst) {
            self.held_up.store(true, Ordering::Relaxed);
            self.wanted.fetch_max(busy + 1, Ordering::SeqCst);
        }
        looks.done = done;
        parked
    }

    /// One more at work, if one is wanted.
    fn join(&self) -> bool {
        self.at_work
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |now| {
                (now < self.wanted.load(Ordering::SeqCst)).then_some(now + 1)
            })
            .is_ok()
    }

    /// One less, if there are too many.
    fn leave(&self) -> bool {
        if self.at_work.load(Ordering::Relaxed) <= self.wanted.load(Ordering::Relaxed) {
            return false;
        }
        self.at_work
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |now| {
                (now > self.wanted.load(Ordering::SeqCst)).then(|| now - 1)
            })
            .is_ok()
    }

    /// A request was read.
    pub(super) fn begin(&self) {
        self.busy.fetch_add(1, Ordering::SeqCst);
        if self.sentinel_asleep.load(Ordering::SeqCst) {
            // Under the lock: between its look at `busy` and its sleep the sentinel holds it.
            let _parked = self.parked();
            self.sentinel_asleep.store(false, Ordering::SeqCst);
            self.wake.notify_all();
        }
    }

    /// A request is done. `asker` is the thread that waits for it, 0 if none does.
    pub(super) fn end(&self, asker: u32) {
        self.done.fetch_add(1, Ordering::Relaxed);
        self.busy.fetch_sub(1, Ordering::SeqCst);
        if asker == 0 {
            return;
        }
        if self.asker.load(Ordering::Relaxed) != asker {
            self.asker.store(asker, Ordering::Relaxed);
            self.changes.fetch_add(1, Ordering::Relaxed);
        }
        if self.requests.fetch_add(1, Ordering::Relaxed) + 1 >= WINDOW {
            self.requests.store(0, Ordering::Relaxed);
            self.decide();
        }
    }

    fn decide(&self) {
        let changes = self.changes.swap(0, Ordering::Relaxed);
        let wanted = if changes >= MANY_CHANGES { self.steady } else { 1 };
        let before = self.wanted.load(Ordering::SeqCst);
        if self.held_up.swap(false, Ordering::Relaxed) && before > wanted {
            return;
        }
        self.wanted.store(wanted, Ordering::SeqCst);
        if before < wanted {
            let _parked = self.parked();
            self.wake.notify_all();
        }
    }

    /// One program asks at a time, and the caller is the only thread at the device.
    pub(super) fn is_alone(&self) -> bool {
        self.steady > 1
            && self.wanted.load(Ordering::Relaxed) == 1
            && self.at_work.load(Ordering::Relaxed) == 1
    }

    /// The device is gone: sends everybody home.
    pub(super) fn disband(&self) {
        self.parked().over = true;
        self.wake.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn one_asker_needs_one_thread_and_several_need_all() {
        let crew = Crew::new(4);
        let window = |askers: u32| {
            for n in 0..WINDOW {
                crew.begin();
                crew.end(1 + n % askers);
            }
            crew.wanted.load(Ordering::SeqCst)
        };
        assert_eq!(window(1), 1);
        assert_eq!(window(2), 4);
        assert_eq!(window(1), 1);
        assert_eq!(window(3), 4);
        for _ in 0..10 * WINDOW {
            crew.begin();
            crew.end(0);
        }
        assert_eq!(
            crew.wanted.load(Ordering::SeqCst),
            4,
            "nobody waits: nothing is learnt"
        );
    }

    #[test]
    fn the_sentinel_steps_in_for_a_thread_that_is_held_up() {
        let crew = Crew::new(2);
        crew.enlist();
        assert_eq!(crew.take_turn(true), Turn::StartAnotherAndRead);
        assert!(crew.is_alone());
        // Long asleep by now, or not yet: both must work.
        thread::scope(|scope| {
            crew.enlist();
            let second = scope.spawn(|| crew.take_turn(true));
            crew.begin();
            // The first thread does not come back; the second is let in all the same.
            assert_eq!(second.join().unwrap(), Turn::StartAnotherAndRead);
        });
        assert!(!crew.is_alone());
        // The one that was held up goes on, and both stay until the next decisions.
        crew.end(7);
        assert_eq!(crew.take_turn(false), Turn::Read);
        for _ in 0..2 * WINDOW {
            crew.begin();
            crew.end(7);
        }
        thread::scope(|scope| {
            let extra = scope.spawn(|| crew.take_turn(false));
            while crew.parked().parked == 0 {
                thread::yield_now();
            }
            assert!(crew.is_alone());
            crew.disband();
            assert_eq!(extra.join().unwrap(), Turn::End);
        });
    }

    #[test]
    fn a_sleeping_sentinel_is_woken_by_work() {
        let crew = Crew::new(2);
        crew.enlist();
        crew.take_turn(true);
        thread::scope(|scope| {
            crew.enlist();
            let sentinel = scope.spawn(|| crew.take_turn(true));
            while !crew.sentinel_asleep.load(Ordering::SeqCst) {
                thread::yield_now();
            }
            crew.begin();
            assert_eq!(sentinel.join().unwrap(), Turn::StartAnotherAndRead);
        });
    }
}
