//! The contract of [`GraphDriver`] as scenarios, run with every driver: as root, and once more as an unprivileged user
//! inside a user namespace.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests talk, and stop at any error"
)]

#[expect(dead_code, reason = "each test binary uses a part of it")]
#[path = "../archive/tests/support/mod.rs"]
mod support;

mod disks;
mod scenarios;

/// Root can run the others as they are; these need a file system that has to be made.
#[test]
fn as_root_on_disks() {
    disks::as_root("btrfs");
}

/// One module a driver, one test a scenario.
macro_rules! conformance {
    ($($module:ident = $driver:literal),+: $scenarios:tt) => {
        $(conformance!(@ $module $driver $scenarios);)+

        /// Everything once more as an unprivileged user.
        mod in_a_user_namespace {
            $(
                #[test]
                fn $module() {
                    super::disks::in_a_user_namespace(concat!(stringify!($module), "::"));
                }
            )+

            #[test]
            fn only() {
                super::disks::in_a_user_namespace("only::");
            }
        }

        /// A driver without conformance is no driver.
        #[test]
        fn every_driver_is_tested() {
            let mut tested = vec![$($driver),+];
            tested.sort_unstable();
            let mut drivers: Vec<&str> = skiff_graphdrivers::drivers().collect();
            drivers.sort_unstable();
            assert_eq!(tested, drivers);
        }
    };
    (@ $module:ident $driver:literal [$($scenario:ident),+ $(,)?]) => {
        mod $module {
            $(
                #[test]
                fn $scenario() {
                    if let Some(fixture) = super::scenarios::Fixture::find($driver) {
                        super::scenarios::$scenario(&fixture);
                    }
                }
            )+
        }
    };
}

conformance!(vfs = "vfs", overlay2 = "overlay2", fuse_overlayfs = "fuse-overlayfs", btrfs = "btrfs": [
    prepare_twice_with_one_key_already_exists,
    a_parent_must_be_a_committed_layer,
    commit_is_atomic_and_checked,
    a_damaged_layer_is_replaced_below_what_stands_on_it,
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
    a_kill_at_each_step_leaves_a_sound_state,
    a_volatile_mount_can_be_made_again,
    long_data_roots_and_odd_names_work,
    layers_stacked_late_equal_layers_prepared_in_order,
    what_lies_below_is_seen_as_it_is,
    a_probe_says_what_it_found_and_leaves_nothing,
    rows_for_inspect_name_directories_that_exist,
]);

/// Scenarios of one driver.
mod only {
    use super::scenarios::{self, Fixture};

    #[test]
    fn subvolumes_nested_in_a_container_on_btrfs() {
        if let Some(fixture) = Fixture::find("btrfs") {
            scenarios::subvolumes::nested_ones_go_with_their_snapshot(&fixture);
        }
    }

    #[test]
    fn committed_subvolumes_are_flat_and_read_only_on_btrfs() {
        if let Some(fixture) = Fixture::find("btrfs") {
            scenarios::subvolumes::a_layer_is_one_read_only_subvolume(&fixture);
        }
    }

    #[test]
    fn changes_that_keep_size_and_time_are_found_on_btrfs() {
        if let Some(fixture) = Fixture::find("btrfs") {
            scenarios::subvolumes::changes_that_keep_size_and_time_are_found(&fixture);
        }
    }

    #[test]
    fn removal_without_the_mount_option_on_btrfs() {
        if let Some(fixture) = Fixture::find_on(super::disks::BTRFS_PLAIN, "btrfs") {
            scenarios::subvolumes::removal_without_the_mount_option(&fixture);
        }
    }

    #[test]
    fn copies_share_blocks_on_btrfs() {
        if let Some(fixture) = Fixture::find_on(super::disks::BTRFS, "vfs") {
            scenarios::copies::copies_share_blocks(&fixture);
        }
    }

    #[test]
    fn layers_mount_under_the_kernel_s_overlay_and_under_ours() {
        if let (true, Some(fixture)) = (super::support::userns::inside(), Fixture::find("overlay2")) {
            scenarios::formats::layers_mount_under_either(&fixture);
        }
    }

    #[test]
    fn selection_on_btrfs() {
        if let Some(fixture) = Fixture::find("btrfs") {
            scenarios::subvolumes::chosen_where_overlay2_is_not(&fixture);
        }
    }
}

/// The other side of `a_kill_at_any_instant_leaves_a_sound_state`: does nothing in an ordinary run.
#[test]
fn crash_child() {
    scenarios::crash::child();
}

/// The other side of `a_kill_at_each_step_leaves_a_sound_state`: does nothing in an ordinary run.
#[test]
fn step_child() {
    scenarios::steps::child();
}
