//! What could not be stored or mended is shown and tried again: real daemons whose disk is full, whose interface is renamed,
//! whose socket is removed, whose meshd.toml is broken.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod checked;
mod common;
mod disk;
mod kernel;
mod settings;

use std::process::ExitCode;

use mesh_tests::facts::{Fact, in_namespaces};
use mesh_tests::pair::Pair;

use common::{on_disks, set_up};

const DISKS: &[Fact<Pair>] = &[
    ("what_a_full_disk_refused_is_stored_once_there_is_room_and_a_removed_permission_stays_removed", disk::full),
    ("a_key_that_the_disk_refuses_is_changed_once_there_is_room", disk::keys),
    ("on_a_read_only_disk_a_node_starts_from_its_cache", disk::read_only),
    ("flows_that_could_not_be_saved_are_saved_once_there_is_room", disk::flows),
];
const KERNEL: &[Fact<Pair>] = &[
    ("an_interface_is_renamed_back_once", kernel::renamed_once),
    ("who_renames_it_again_is_told_of_until_its_name_is_right", kernel::renamed_again),
    ("a_socket_that_is_removed_is_there_again", kernel::socket),
];
const SETTINGS: &[Fact<Pair>] = &[
    ("a_start_with_a_broken_file_runs_the_one_accepted_last", settings::broken),
    ("a_daemon_that_does_not_stay_up_is_told_with_the_cause", settings::crash_loop),
];
const CHECK: &[Fact<Pair>] = &[
    ("check_finds_no_device_for_the_tunnel_and_names_the_command", checked::no_tun),
    ("check_finds_that_the_keys_are_gone", checked::no_keys),
    ("check_says_that_the_machine_has_not_joined", checked::not_joined),
];

fn main() -> ExitCode {
    in_namespaces(|run, binaries| {
        run.scene("disk", || on_disks(set_up(binaries, "sd")?), DISKS);
        run.scene("kernel", || set_up(binaries, "sk"), KERNEL);
        run.scene("check", || set_up(binaries, "sx"), CHECK);
        run.scene("settings", || set_up(binaries, "ss"), SETTINGS);
    })
}
