//! Measures storage drivers on a user's own disk: `skiffd bench storage`, and the same workloads under criterion.
