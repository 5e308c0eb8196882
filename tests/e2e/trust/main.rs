//! Trust, with the real binaries in namespaces: what is revoked is cut off, and a killed node loses nothing.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fork;
mod identity;
mod killed;
mod lease;
mod lock;
mod outage;
mod preshared;
mod probe;
mod revoke;
mod rotate;
mod stolen;

use std::io;
use std::process::ExitCode;

use mesh_tests::daemon::Binaries;
use mesh_tests::facts::{Fact, in_namespaces};
use mesh_tests::pair::Pair;
use mesh_tests::topology::Underlay;
use mesh_tests::traffic;

const REVOKE: &[Fact<Pair>] = &[
    ("a_revoked_node_is_cut_off_at_once", revoke::at_once),
    ("a_node_that_was_down_cuts_it_off_after_its_restart", revoke::after_a_restart),
    ("a_node_that_was_out_of_touch_cuts_it_off_by_a_snapshot", revoke::by_a_snapshot),
];
const ROTATE: &[Fact<Pair>] = &[("keys_change_under_traffic_and_nothing_is_lost", rotate::under_traffic)];
const IDENTITY: &[Fact<Pair>] = &[
    ("identities_change_under_traffic_and_nothing_is_lost", identity::under_traffic),
    ("they_are_known_after_restarts", identity::after_restarts),
    ("a_node_that_was_killed_half_way_goes_on", identity::killed_half_way),
    ("a_copy_of_the_former_key_does_not_join", identity::copied),
    ("the_lock_holds_for_the_next_key", identity::locked),
];
const LOCK: &[Fact<Pair>] = &[
    ("a_node_that_waits_is_reached_once_it_is_signed_for", lock::signed),
    ("a_coordinator_without_the_key_adds_nobody_to_a_locked_mesh", lock::stolen),
];
const PRESHARED: &[Fact<Pair>] = &[
    ("two_nodes_that_never_met_make_a_key_without_the_coordinator", preshared::first_call),
    ("later_starts_use_it_at_once", preshared::after_a_restart),
    ("a_node_that_lost_its_keys_makes_new_ones", preshared::after_a_loss),
    ("a_node_may_speak_plain_wireguard", preshared::off_and_on),
    ("switched_without_a_coordinator_nobody_is_cut_off_and_nothing_is_lost", preshared::switched_meanwhile),
];
const FORK: &[Fact<Pair>] = &[("a_forked_log_warns_on_both_sides", fork::on_both_sides)];
const STOLEN: &[Fact<Pair>] = &[
    ("a_revoked_machine_comes_back_with_another_identity", stolen::with_another_identity),
    ("a_coordinator_that_shows_a_revoked_node_again_brings_nobody_back", stolen::brings_nobody_back),
];
const OUTAGE: &[Fact<Pair>] = &[
    ("the_first_tunnel_of_all_needs_no_coordinator", outage::first_tunnel),
    ("without_a_coordinator_no_request_is_lost", outage::nothing_lost),
    ("without_a_coordinator_a_node_starts_within_a_second", outage::restarts),
];
const LEASE: &[Fact<Pair>] = &[("without_a_coordinator_for_too_long_nobody_new_is_spoken_to", lease::runs_out)];
const KILLED: &[Fact<Pair>] = &[("fifty_kills_lose_no_byte_and_leak_none", killed::fifty_times)];

fn main() -> ExitCode {
    in_namespaces(|run, binaries| {
        run.scene("revoke", || set_up(binaries, "rv"), REVOKE);
        run.scene("rotate", || with_keys(set_up(binaries, "rt")?), ROTATE);
        run.scene("identity", || set_up(binaries, "id"), IDENTITY);
        run.scene("lock", || set_up(binaries, "lk"), LOCK);
        run.scene("preshared", || set_up(binaries, "pk"), PRESHARED);
        run.scene("fork", || set_up(binaries, "fk"), FORK);
        run.scene("stolen", || set_up(binaries, "st"), STOLEN);
        run.scene("outage", || set_up(binaries, "ou"), OUTAGE);
        run.scene("lease", || set_up(binaries, "le"), LEASE);
        run.scene("killed", || set_up(binaries, "kl"), KILLED);
    })
}

/// Starts both nodes again, with a section of their configuration added.
fn with_keys(pair: Pair) -> io::Result<Pair> {
    for node in [&pair.a.node, &pair.b.node] {
        let config = std::fs::read_to_string(node.config())?;
        std::fs::write(node.config(), config + rotate::KEYS)?;
        node.kill();
        node.start()?;
    }
    Ok(pair)
}

/// Two nodes of two lanes, with programs in their pods.
fn set_up(binaries: &Binaries, word: &str) -> io::Result<Pair> {
    let pair = Pair::start(word, binaries, Underlay::V4, 2)?;
    for side in [&pair.a, &pair.b] {
        traffic::serve_tcp(&side.pod, 8080)?;
        traffic::serve_udp(&side.pod, 7)?;
    }
    Ok(pair)
}
