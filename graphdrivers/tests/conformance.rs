//! The contract of [`GraphDriver`] as scenarios, run with every driver: as root, and once more as an unprivileged user
//! inside a user namespace.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests talk, and stop at any error"
)]

#[path = "../archive/tests/support/mod.rs"]
mod support;

mod scenarios;

use support::userns;

#[test]
fn in_a_user_namespace() {
    userns::rerun("in_a_user_namespace");
}

/// One module a driver, one test a scenario.
macro_rules! conformance {
    ($($module:ident = $driver:literal),+: $scenarios:tt) => {
        $(conformance!(@ $module $driver $scenarios);)+
    };
    (@ $module:ident $driver:literal [$($scenario:ident),+ $(,)?]) => {
        mod $module {
            $(
                #[test]
                fn $scenario() {
                    if super::userns::powers() {
                        super::scenarios::$scenario(&super::scenarios::Fixture::new($driver));
                    }
                }
            )+
        }
    };
}

conformance!(vfs = "vfs", overlay2 = "overlay2": [
    prepare_twice_with_one_key_already_exists,
    a_parent_must_be_a_committed_layer,
    commit_is_atomic_and_checked,
    a_parent_with_children_is_in_use,
    siblings_prepare_concurrently,
    depth_beyond_the_limit_says_the_limit,
    bytes_written_through_a_mount_equal_the_difference,
    a_layer_is_read_only,
    layers_are_seen_through_each_other,
    a_restart_finds_everything_again,
    half_made_snapshots_are_orphans,
    clean_up_keeps_what_live_snapshots_need,
    removal_is_immediate_and_space_is_freed_later,
    usage_counts_the_snapshot_alone,
    another_engines_directory_is_refused,
    mounts_are_counted_and_survive_a_restart,
    the_root_directory_is_as_the_parents,
    a_kill_at_any_instant_leaves_a_sound_state,
    a_volatile_mount_can_be_made_again,
    long_data_roots_and_odd_names_work,
]);

/// The other side of `a_kill_at_any_instant_leaves_a_sound_state`: does nothing in an ordinary run.
#[test]
fn crash_child() {
    scenarios::crash::child();
}
