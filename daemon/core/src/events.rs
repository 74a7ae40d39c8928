//! What happened, for `GET /events`: a bounded history and a live feed.
//!
//! Publishing never blocks; a subscriber that falls more than [`BACKLOG`] events behind is told how many it lost.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use tokio::sync::broadcast;

/// How many events are kept for `since` and for slow subscribers (Docker keeps 256).
pub const BACKLOG: usize = 256;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// `container`, `image`, `network`, …
    pub kind: &'static str,
    /// `create`, `start`, `die`, `pull`, …
    pub action: String,
    /// Id of the object (image events: the reference).
    pub id: String,
    /// `name`, `image`, `exitCode`, labels ….
    pub attributes: BTreeMap<String, String>,
    /// When.
    pub time: Timestamp,
}

/// The event bus.
#[derive(Debug, Clone)]
pub struct Events {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    history: Mutex<VecDeque<Arc<Event>>>,
    feed: broadcast::Sender<Arc<Event>>,
}

impl Default for Events {
    fn default() -> Self {
        let (feed, _) = broadcast::channel(BACKLOG);
        Self {
            shared: Arc::new(Shared {
                history: Mutex::new(VecDeque::with_capacity(BACKLOG)),
                feed,
            }),
        }
    }
}

impl Events {
    /// Records an event that happens now and sends it to all subscribers.
    pub fn publish(
        &self,
        kind: &'static str,
        action: impl Into<String>,
        id: impl Into<String>,
        attributes: BTreeMap<String, String>,
    ) {
        let event = Arc::new(Event {
            kind,
            action: action.into(),
            id: id.into(),
            attributes,
            time: Timestamp::now(),
        });
        let mut history = self.shared.history.lock().unwrap_or_else(PoisonError::into_inner);
        if history.len() == BACKLOG {
            history.pop_front();
        }
        history.push_back(Arc::clone(&event));
        // Sent under the lock, so that `subscribe` sees each event either in the history or in the feed.
        // An error only says that nobody listens.
        let _ = self.shared.feed.send(event);
    }

    /// The kept events, oldest first, and a feed of everything after them.
    pub fn subscribe(&self) -> (Vec<Arc<Event>>, broadcast::Receiver<Arc<Event>>) {
        let history = self.shared.history.lock().unwrap_or_else(PoisonError::into_inner);
        (history.iter().cloned().collect(), self.shared.feed.subscribe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_is_bounded_and_ordered_and_the_feed_goes_on_from_it() {
        let events = Events::default();
        for n in 0..BACKLOG + 3 {
            events.publish("container", "create", n.to_string(), BTreeMap::new());
        }
        let (history, mut feed) = events.subscribe();
        assert_eq!(history.len(), BACKLOG);
        assert_eq!(history[0].id, "3");
        events.publish("container", "die", "x", BTreeMap::new());
        assert_eq!(feed.try_recv().unwrap().action, "die");
        assert!(feed.try_recv().is_err());
    }
}
