//! What a user sees of both programs is what was recorded: `--help`, JSON, metrics, files, log words, the wire.
//!
//! ```text
//! MESH_RECORD=1                     writes the recordings in surface/recorded anew
//! MESH_RECORD=more                  marks with `? ` what is there in one of two runs only
//! MESH_BINARIES=FOLDER              lets built programs be compared, instead of this tree's
//! ```
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod help;
mod life;
mod recorded;
mod shape;
mod wire;

use std::collections::BTreeSet;
use std::process::ExitCode;

use mesh_tests::facts::{Fact, in_namespaces};
use meshd::base::warning_id::WarningId;

use life::Surface;

const FACTS: &[Fact<Surface>] = &[
    ("the_help_of_meshd_is_as_recorded", |seen| recorded::compare("help-meshd", &seen.help[0])),
    ("the_help_of_the_coordinator_is_as_recorded", |seen| recorded::compare("help-coordinator", &seen.help[1])),
    ("documents_have_the_recorded_shapes", |seen| recorded::compare("json", &seen.json)),
    ("the_ids_of_status_are_as_recorded", |_| recorded::compare("warning-ids", &ids())),
    ("metrics_are_as_recorded", |seen| recorded::compare("metrics", &seen.metrics)),
    ("files_are_as_recorded", |seen| recorded::compare("files", &seen.files)),
    ("both_daemons_say_what_is_recorded", |seen| recorded::compare("log", &seen.log)),
    ("documents_of_the_wire_are_sent_as_recorded", |_| wire::stays()),
];

/// The words by which programs know the warnings of `meshd status`.
fn ids() -> BTreeSet<String> {
    WarningId::ALL.iter().map(|id| id.word().to_owned()).collect()
}

fn main() -> ExitCode {
    in_namespaces(|run, binaries| run.scene("life", || life::live(binaries), FACTS))
}
