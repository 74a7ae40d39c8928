//! The FUSE overlay as a file system: compared with the kernel's overlay, and by itself where POSIX says what is right.
//!
//! All through real mounts; run as root, and once more as an unprivileged user inside a user namespace.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests talk, and stop at any error"
)]

mod behaviour;
mod mounts;
mod scenarios;
#[path = "../../archive/tests/support/tree.rs"]
#[expect(dead_code, reason = "shared with the archive's tests, which need more of it")]
mod tree;
#[path = "../../archive/tests/support/userns.rs"]
mod userns;

#[test]
fn in_a_user_namespace() {
    userns::rerun("in_a_user_namespace");
}

/// The program under test, when this binary was started as that.
#[test]
fn server() {
    mounts::serve();
}

/// One test a function; each needs the powers of some root.
macro_rules! conformance {
    ($($module:ident: [$($test:ident),+ $(,)?])+) => {
        $($(
            #[test]
            fn $test() {
                if userns::powers() {
                    $module::$test();
                }
            }
        )+)+
    };
}

conformance! {
    scenarios: [the_kernel_and_we_agree]
    behaviour: [
        unlinked_open_files_stay_usable,
        a_removed_open_directory_is_empty,
        readers_opened_before_a_copy_up_see_the_writes,
        many_opens_leak_nothing,
        new_and_removed_files_do_not_stay_open,
        threads_do_not_disturb_each_other,
        locks_hold_between_processes,
        appends_from_two_processes_are_whole,
        a_file_without_a_name_can_get_one,
        names_may_have_255_bytes,
        odd_names_are_names,
        a_big_directory_is_listed_whole,
        a_listing_survives_removals,
        rewinding_a_listing_shows_new_names,
        inode_numbers_are_stable,
        the_overlay_s_attributes_are_hidden,
        whiteouts_cannot_be_forged,
        redirections_are_refused_as_by_the_kernel,
        new_files_obey_the_creator_s_umask,
        set_group_id_directories_pass_their_group_on,
        permissions_are_checked_for_every_user,
        writing_takes_set_user_id_away,
        file_capabilities_survive_copy_up_and_end_with_a_write,
        access_lists_are_kept_and_obeyed,
        shared_maps_are_written_back,
        programs_run_from_the_mount,
        holes_survive_copy_up,
        files_may_be_larger_than_four_gibibytes,
        space_can_be_reserved_and_holes_punched,
        an_unmount_loses_nothing,
        a_full_disk_is_said_and_survived,
        copies_that_nobody_writes_do_not_wait_in_memory,
        a_killed_server_leaves_errors_not_hangs,
        a_kill_under_load_ends_every_request,
        who_serves_itself_can_be_killed,
        a_late_end_spares_the_next_mount,
        a_refusal_is_said_and_leaves_no_mount,
        without_an_upper_directory_it_is_read_only,
        many_layers_are_stacked,
        odd_directories_can_be_named,
        synced_bytes_survive_a_kill,
        ids_are_mapped,
        owners_are_squashed,
        owners_are_kept_in_attributes,
        links_of_directories_need_not_be_counted,
        access_lists_can_be_switched_off,
        syncs_can_be_switched_off,
        writes_can_be_collected,
        one_thread_can_be_enough,
        caching_can_be_bounded,
        flags_of_mounts_are_set,
        unknown_options_are_named,
    ]
}
