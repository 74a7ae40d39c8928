//! Pauses between attempts.

use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use crate::config::RetryPolicy;
use crate::error::{Error, Result, Transient};

/// Counts attempts and pauses between them.
#[derive(Debug)]
pub(crate) struct Backoff {
    policy: RetryPolicy,
    /// Failed attempts since the start or the last progress.
    failures: u32,
    /// Whether a refused connection is worth another attempt.
    connect: bool,
}

impl Backoff {
    pub(crate) fn new(policy: &RetryPolicy) -> Self {
        Self {
            policy: policy.clone(),
            failures: 0,
            connect: false,
        }
    }

    /// From here on refused connections count as passing failures: the server was there a moment ago.
    pub(crate) fn persist(&mut self) {
        self.connect = true;
    }

    /// Something came through: start counting again.
    pub(crate) fn progressed(&mut self) {
        self.failures = 0;
    }

    /// Waits before the next attempt, or gives `error` back when there shall be none.
    pub(crate) async fn pause(&mut self, error: Error) -> Result<()> {
        let asked = match error.transient() {
            Transient::No => return Err(error),
            Transient::Connect if !self.connect => return Err(error),
            Transient::Connect | Transient::Yes => None,
            Transient::After(asked) if asked > self.policy.longest_pause => return Err(error),
            Transient::After(asked) => Some(asked),
        };
        self.failures += 1;
        if self.failures >= self.policy.attempts {
            return Err(error);
        }
        let pause = asked.unwrap_or_else(|| self.next_pause());
        tracing::debug!(error = %error, failures = self.failures, ?pause, "trying again");
        tokio::time::sleep(pause).await;
        Ok(())
    }

    fn next_pause(&self) -> Duration {
        let doublings = (self.failures - 1).min(16);
        let longest = self
            .policy
            .initial_pause
            .saturating_mul(1 << doublings)
            .min(self.policy.longest_pause);
        // Clients cut off together must not come back together.
        longest / 2 + (longest / 2).mul_f64(random_fraction())
    }
}

/// Between 0 and 1, differently in each process and call. The standard library's hash keys are the randomness at hand.
fn random_fraction() -> f64 {
    let random = std::hash::RandomState::new().build_hasher().finish();
    f64::from((random >> 32) as u32) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn failure(transient: Transient) -> Error {
        Error::new(ErrorKind::Unavailable, "x").retryable(transient)
    }

    #[tokio::test(start_paused = true)]
    async fn counts_attempts_and_doubles() {
        let policy = RetryPolicy {
            attempts: 4,
            initial_pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(3),
        };
        let mut backoff = Backoff::new(&policy);
        for longest in [1, 2, 3] {
            let start = tokio::time::Instant::now();
            backoff.pause(failure(Transient::Yes)).await.unwrap();
            let waited = start.elapsed();
            let longest = Duration::from_secs(longest);
            assert!(
                waited >= longest / 2 && waited <= longest + Duration::from_millis(2),
                "{waited:?}"
            );
        }
        backoff.pause(failure(Transient::Yes)).await.unwrap_err();
        backoff.progressed();
        backoff.pause(failure(Transient::Yes)).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn lasting_failures_are_not_repeated() {
        let mut backoff = Backoff::new(&RetryPolicy::default());
        backoff.pause(failure(Transient::No)).await.unwrap_err();
        backoff.pause(failure(Transient::Connect)).await.unwrap_err();
        backoff
            .pause(failure(Transient::After(Duration::from_secs(3600))))
            .await
            .unwrap_err();
        backoff.persist();
        backoff.pause(failure(Transient::Connect)).await.unwrap();
        let start = tokio::time::Instant::now();
        backoff
            .pause(failure(Transient::After(Duration::from_secs(7))))
            .await
            .unwrap();
        assert!(start.elapsed() >= Duration::from_secs(7));
    }
}
