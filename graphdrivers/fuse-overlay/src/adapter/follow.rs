//! Keeps the one serving thread close to the program that asks (`crew.rs` says why): on the same processor, or awake.
//!
//! ```text
//!   follow   the thread is bound to the processor where the asking thread runs: both hand-overs are context switches.
//!            Looked up anew when another thread asks, and now and then
//!   wait     when the asker does not stay there (real-time scheduling moves it away from us): the thread goes where
//!            the scheduler likes, and looks for the next request for a moment before it sleeps, which saves the
//!            slower one of the two hand-overs. How long a moment is depends on how soon requests come: it grows
//!            when a little more would have done, and is nothing when it would not (as KVM polls before it halts)
//! ```

use std::fs::File;
use std::io::Read;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Requests of one asker after which it is looked where it is, first and later.
const FIRST_LOOK: u32 = 32;
const LATER_LOOK: u32 = 256;
/// The same for another asker; short-lived programs are not worth a look.
const OTHER_ASKER: u32 = 6;
/// Looks that found the asker elsewhere after which following is given up, for so many requests.
const MOVED_AWAY: u32 = 2;
const GIVEN_UP: u32 = 8192;
/// How long to look for the next request at first, and at most.
const FIRST_MOMENT: Duration = Duration::from_micros(30);
const LONGEST_MOMENT: Duration = Duration::from_micros(150);

/// The thread's own view of where it should be.
#[derive(Debug)]
pub(super) struct Follower {
    /// Where the thread may be if it follows nobody; `None` where there is nothing to choose.
    home: Option<CpuSet>,
    place: Option<usize>,
    asker: u32,
    /// Requests since the last look, and until the next one.
    since: u32,
    patience: u32,
    /// Looks in a row that found the asker elsewhere.
    moved_away: u32,
    /// Requests until following is tried again.
    given_up: u32,
    /// How long to look for the next request.
    moment: Duration,
}

impl Follower {
    /// For the calling thread.
    pub(super) fn new() -> Self {
        let home = sched_getaffinity(None).ok();
        Self {
            home: home.filter(|home| home.count() > 1),
            place: None,
            asker: 0,
            since: 0,
            patience: OTHER_ASKER,
            moved_away: 0,
            given_up: 0,
            moment: Duration::ZERO,
        }
    }

    /// A request of thread `asker` (0: of nobody who waits) was answered, and no other thread serves. Says for how long
    /// to look for the next request, and with `Some` that [`learn`](Self::learn) wants to know when it came.
    pub(super) fn follow(&mut self, asker: u32) -> Option<Duration> {
        self.home.as_ref()?;
        if self.given_up == 0 {
            if asker != 0 {
                self.keep_up_with(asker);
            }
            return None;
        }
        self.given_up -= 1;
        Some(self.moment)
    }

    fn keep_up_with(&mut self, asker: u32) {
        self.since += 1;
        let same = asker == self.asker;
        if self.since < if same { self.patience } else { OTHER_ASKER } {
            return;
        }
        self.since = 0;
        // A thread that ended, or is not to be seen in this /proc, is followed nowhere.
        let Some(place) = processor_of(asker) else {
            return;
        };
        self.asker = asker;
        if self.place == Some(place) {
            (self.moved_away, self.patience) = (0, LATER_LOOK);
            return;
        }
        if same {
            self.moved_away += 1;
        }
        if self.moved_away >= MOVED_AWAY {
            self.stay_anywhere();
            (self.given_up, self.moment) = (GIVEN_UP, FIRST_MOMENT);
        } else {
            self.patience = FIRST_LOOK;
            self.go(place);
        }
    }

    fn go(&mut self, place: usize) {
        let allowed = self.home.as_ref().is_some_and(|home| home.is_set(place));
        let mut only = CpuSet::new();
        only.set(place);
        if allowed && sched_setaffinity(None, &only).is_ok() {
            self.place = Some(place);
        } else {
            self.stay_anywhere();
        }
    }

    /// The next request came after `time`, too late for the moment.
    pub(super) fn learn(&mut self, time: Duration) {
        self.moment = if time > LONGEST_MOMENT {
            Duration::ZERO
        } else {
            (2 * self.moment).clamp(FIRST_MOMENT, LONGEST_MOMENT)
        };
    }

    /// The scheduler decides again.
    pub(super) fn stay_anywhere(&mut self) {
        if let (Some(home), Some(_)) = (&self.home, self.place.take())
            && let Err(errno) = sched_setaffinity(None, home)
        {
            // The set of processors was changed meanwhile; the kernel has moved the thread into it.
            tracing::debug!(%errno, "cannot leave a processor");
        }
        (self.since, self.patience, self.moved_away) = (0, OTHER_ASKER, 0);
    }
}

/// Field 39 of `/proc/TID/stat` (proc(5)).
fn processor_of(thread: u32) -> Option<usize> {
    let mut buffer = [0; 1024];
    let mut file = File::open(format!("/proc/{thread}/stat")).ok()?;
    let length = file.read(&mut buffer).ok()?;
    parse(&buffer[..length])
}

fn parse(stat: &[u8]) -> Option<usize> {
    // The name, field 2, is in parentheses and may contain anything.
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let field = stat.get(end + 2..)?.split(|byte| *byte == b' ').nth(36)?;
    std::str::from_utf8(field).ok()?.trim_end().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_the_39th_field() {
        let mut stat = b"4242 (a) b (c) S".to_vec();
        for field in 4..=52 {
            stat.extend(format!(" {field}").bytes());
        }
        assert_eq!(parse(&stat), Some(39));
        assert_eq!(parse(b"4242 (a) S 1 2"), None);
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn a_follower_goes_there_and_back() {
        let mut follower = Follower::new();
        let Some(home) = follower.home else {
            return; // One processor: nothing to choose, and nothing to test.
        };
        let own = u32::try_from(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
        for _ in 0..OTHER_ASKER {
            assert_eq!(follower.follow(own), None);
        }
        assert!(follower.place.is_some());
        assert_eq!(sched_getaffinity(None).unwrap().count(), 1);
        follower.stay_anywhere();
        assert_eq!(sched_getaffinity(None).unwrap(), home);
    }

    #[test]
    fn an_asker_that_moves_away_is_waited_for_as_long_as_it_pays() {
        let mut follower = Follower::new();
        if follower.home.is_none() {
            return;
        }
        let own = u32::try_from(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
        while follower.given_up == 0 {
            assert_eq!(follower.follow(own), None);
            // As if the asker were never where we went.
            follower.place = follower.place.map(|_| usize::MAX);
        }
        assert_eq!(follower.follow(own), Some(FIRST_MOMENT));
        follower.learn(LONGEST_MOMENT / 2);
        assert_eq!(
            follower.follow(own),
            Some(2 * FIRST_MOMENT),
            "a little more would have done"
        );
        for _ in 0..10 {
            follower.learn(LONGEST_MOMENT);
        }
        assert_eq!(follower.follow(own), Some(LONGEST_MOMENT));
        follower.learn(2 * LONGEST_MOMENT);
        assert_eq!(follower.follow(own), Some(Duration::ZERO), "in vain");
        follower.learn(FIRST_MOMENT);
        assert_eq!(follower.follow(own), Some(FIRST_MOMENT), "worth while again");
    }
}
