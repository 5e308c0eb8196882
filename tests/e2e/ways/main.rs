//! Ways in and ways back, as the programs print them: what is said is followed as it stands.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod back;
mod joining;

use std::process::ExitCode;

use mesh_tests::facts::{Fact, in_namespaces};

const JOINING: &[Fact<joining::Door>] = &[
    ("join_tells_what_it_waits_for_and_names_the_resolver_that_is_silent", joining::silent_resolver),
    ("join_ends_in_30_seconds_with_what_each_address_answered", joining::ends),
    ("join_waits_for_a_coordinator_that_starts", joining::waits),
];

const BACK: &[Fact<back::WaysBack>] = &[
    ("who_leaves_keeps_no_key_and_comes_back_by_what_leave_says", back::left),
    ("a_machine_that_was_set_up_anew_comes_back_by_what_the_refusals_say", back::set_up_anew),
    ("a_revoked_machine_comes_back_by_what_its_status_says_and_is_never_open", back::revoked),
    ("a_machine_that_lost_its_identity_comes_back_by_what_its_last_words_say", back::without_identity),
    ("a_machine_that_a_restored_backup_does_not_know_comes_back_by_what_its_status_says", back::restored),
    ("a_coordinator_without_its_store_is_back_by_the_lines_that_it_prints", back::without_store),
    ("join_leaves_a_mesh_on_the_word_of_its_own_coordinator_alone", back::on_whose_word),
];

fn main() -> ExitCode {
    in_namespaces(|run, binaries| {
        run.scene("joining", || joining::set_up(binaries), JOINING);
        run.scene("back", || back::set_up(binaries), BACK);
    })
}
