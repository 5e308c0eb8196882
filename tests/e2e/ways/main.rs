//! Ways in and ways back, as the programs print them: what is said is followed as it stands.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod joining;

use std::process::ExitCode;

use mesh_tests::facts::{Fact, in_namespaces};

const JOINING: &[Fact<joining::Door>] = &[
    ("join_tells_what_it_waits_for_and_names_the_resolver_that_is_silent", joining::silent_resolver),
    ("join_ends_in_30_seconds_with_what_each_address_answered", joining::ends),
    ("join_waits_for_a_coordinator_that_starts", joining::waits),
];

fn main() -> ExitCode {
    in_namespaces(|run, binaries| {
        run.scene("joining", || joining::set_up(binaries), JOINING);
    })
}
