//! The product on booted Debian systems: packages, units, journal, reboots, removal, by the lines that README prints.
//!
//! The debs are those of `make package`, or of the folder that `MESH_PACKAGES` names. The base systems are made by the first
//! run, in minutes, and kept in the user's cache.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod disk;
mod installed;
mod journal;
mod lost;
mod mesh;
mod readme;
mod removed;

use std::process::ExitCode;

use mesh_tests::facts::{Fact, as_root};
use mesh_tests::machines::base::DebianSuite;
use mesh_tests::machines::lacking;

use mesh::{BootedMesh, Packages, set_up};

const FACTS: &[Fact<BootedMesh>] = &[
    ("the_lines_of_the_readme_lead_to_a_call_by_vip", installed::works),
    ("a_healthy_machine_shows_no_problem", installed::is_healthy),
    ("the_journal_has_the_priority_of_each_line_and_one_time", journal::priorities),
    ("a_journal_that_nobody_reads_freezes_nothing", journal::nobody_reads),
    ("a_journal_that_ended_freezes_nothing", journal::ended),
    ("what_a_full_disk_refused_is_told_and_heals", disk::full),
    ("on_a_read_only_state_directory_the_unit_starts_from_the_cache", disk::read_only),
    ("a_lost_store_ends_the_unit_once_and_the_command_it_names_brings_it_back", lost::store),
    ("a_lost_key_ends_the_unit_once", lost::key),
    ("a_reboot_without_a_coordinator_brings_the_tunnel_back", installed::reboots),
    ("a_stopped_and_a_removed_node_stay_closed_and_a_purged_one_leaves_nothing", removed::node),
];

fn main() -> ExitCode {
    let packages = Packages::find();
    as_root(|run| {
        let missing = lacking();
        run.needs(missing.is_none(), missing.as_deref().unwrap_or_default());
        run.needs(packages.is_some(), "make package");
        for suite in DebianSuite::ALL {
            run.scene(suite.name(), || set_up(suite, packages.as_ref()), FACTS);
        }
    })
}
