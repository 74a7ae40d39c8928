//! The overlay's core without FUSE: calls of its interface on layers in temporary directories.
//!
//! As root, and once more as an unprivileged user inside a user namespace.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests talk, and stop at any error"
)]

#[path = "core/fs.rs"]
mod fs;
#[path = "../../archive/tests/support/userns.rs"]
mod userns;

#[path = "core/cases.rs"]
mod cases;

#[test]
fn in_a_user_namespace() {
    userns::rerun("in_a_user_namespace");
}

/// One test a function; each needs the powers of some root.
macro_rules! tests {
    ($($module:ident: [$($test:ident),+ $(,)?])+) => {
        $(mod $module {
            $(
                #[test]
                fn $test() {
                    if crate::userns::powers() {
                        crate::cases::$module::$test();
                    }
                }
            )+
        })+
    };
}

tests! {
    layers: [
        the_topmost_layer_that_has_a_name_counts,
        directories_merge,
        a_file_between_directories_ends_the_merge,
        whiteouts_hide_what_is_below,
        opaque_directories_hide_what_is_below,
        whiteouts_as_attributes_are_understood,
        whiteouts_that_are_files_are_understood,
        redirections_are_refused,
        inode_numbers_are_distinct_and_stable,
        directories_count_their_subdirectories,
        names_may_be_as_long_as_below,
        a_read_only_overlay_changes_nothing,
        two_mounts_of_one_upper_directory_are_refused,
        directories_in_one_another_are_refused,
        the_work_directory_is_emptied,
    ]
    copy_up: [
        it_keeps_all_that_a_file_has,
        access_lists_and_capabilities_are_kept_or_it_fails,
        without_access_lists_the_group_gains_nothing,
        files_of_unknown_owners_are_not_copied_up,
        it_keeps_holes,
        symbolic_links_and_pipes_are_copied_up,
        directories_come_with_their_metadata,
        the_parent_looks_untouched,
        truncation_copies_no_contents,
        handles_opened_before_see_the_new_contents,
        one_name_of_several_is_copied_up,
        a_file_without_a_name_is_copied_up_too,
        nothing_is_left_in_the_work_directory,
    ]
    handleless: [
        files_are_read_and_written_without_handles,
        files_are_made_without_handles,
        a_copy_up_is_seen_by_all_ways_to_the_file,
        nameless_files_work_without_handles,
        last_times_of_removed_files_copy_nothing,
        few_descriptors_are_enough_for_many_files,
    ]
    names: [
        new_files_belong_to_the_caller,
        set_group_id_directories_pass_their_group_on,
        default_access_control_lists_replace_the_umask,
        names_come_back_after_whiteouts,
        removing_leaves_one_whiteout,
        a_directory_with_whiteouts_can_be_removed,
        files_called_like_whiteouts_are_files,
        unlinked_files_stay_usable,
        removed_directories_stay_usable,
        hard_links_are_one_file,
        files_without_names_can_get_one,
        renames_of_every_kind,
        renamed_directories_do_not_merge,
        renames_that_are_refused,
        exchanges,
        a_full_disk_leaves_a_rename_undone,
        renames_work_without_the_flag_for_whiteouts,
        whiteouts_cannot_be_made_by_users,
    ]
    listing: [
        offsets_are_stable_and_complete,
        readdirplus_owes_one_forget_an_entry,
        a_listing_is_renewed_when_read_from_the_start,
        each_piece_of_a_listing_is_of_its_own_moment,
        listed_numbers_are_those_of_stat,
    ]
    attributes: [
        overlay_attributes_are_out_of_reach,
        attributes_are_set_listed_and_removed,
        privileges_go_when_others_write,
        ids_are_mapped,
        squashed_owners,
        owners_kept_in_attributes,
        times_and_modes_are_set,
    ]
    load: [
        descriptors_do_not_leak,
        few_descriptors_are_enough_for_many_directories,
        threads_agree_in_the_end,
        deep_trees_work,
    ]
    model: [
        the_overlay_behaves_like_a_plain_directory,
    ]
    kernel: [
        the_kernel_mounts_what_we_wrote,
        we_read_what_the_kernel_wrote,
    ]
}
