//! What `meshd check` finds wrong with a host, and that the command that it prints mends it: each host is broken as
//! operators and other programs break it, the command is run as printed, and then `check` and `status` are free of it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod ground;
mod mending;
mod notes;
mod rules;
mod ways;

use std::process::ExitCode;

use mesh_tests::facts::{Fact, in_namespaces};
use mesh_tests::skip::in_path;

use ground::BrokenMesh;

const RULES: &[Fact<BrokenMesh>] = &[
    ("a_host_in_order_has_no_problem_and_no_note", rules::in_order),
    ("an_input_policy_that_drops_what_comes_from_the_mesh_is_found", rules::closed_to_the_mesh),
    ("an_input_rule_that_rejects_a_service_is_found", rules::rejects_a_port),
    ("a_zone_of_firewalld_that_does_not_know_the_mesh_is_found", rules::firewalld),
    ("an_input_policy_that_drops_questions_for_names_is_found", rules::closed_to_names),
    ("input_rules_that_let_the_mesh_in_are_understood", rules::open),
    ("input_rules_that_cannot_be_read_are_not_judged", rules::unclear),
];
const WAYS: &[Fact<BrokenMesh>] = &[
    ("a_rule_that_takes_the_tunnel_into_another_is_found", ways::by_a_rule),
    ("halves_of_a_default_route_that_take_the_tunnel_into_another_are_found", ways::by_halves),
    ("a_tunnel_that_is_the_only_way_is_no_trouble", ways::the_only_way),
    ("a_rule_of_this_host_that_drops_the_tunnel_is_found", ways::blocked_here),
    ("a_peer_that_is_blocked_elsewhere_is_named_with_what_to_open", ways::blocked_elsewhere),
];
const NOTES: &[Fact<BrokenMesh>] =
    &[("a_resolver_that_does_not_ask_this_node_is_a_note_and_none_on_kubernetes", notes::resolver)];
const MENDING: &[Fact<BrokenMesh>] = &[
    ("fix_runs_nothing_where_nobody_can_be_asked", mending::unasked),
    ("fix_runs_what_the_operator_agrees_to", mending::asked),
    ("fix_runs_what_is_safe_and_says_what_remains", mending::given),
];
const IPTABLES: &[Fact<BrokenMesh>] = &[
    ("rules_of_iptables_nft_are_read", rules::iptables_nft),
    ("rules_of_ufw_are_read", rules::ufw),
    ("tables_of_legacy_iptables_are_named_as_unread", notes::legacy),
];

fn main() -> ExitCode {
    in_namespaces(|run, binaries| {
        let has = ["nft", "ip"].iter().all(|program| in_path(program).is_some());
        run.needs(has, "install iproute2 and nftables");
        run.scene("rules", || ground::set_up(binaries, "cr"), RULES);
        run.scene("ways", || ground::set_up(binaries, "cw"), WAYS);
        run.scene("notes", || ground::set_up(binaries, "cn"), NOTES);
        run.scene("mending", || ground::set_up(binaries, "cm"), MENDING);
        let has = ["iptables-nft", "iptables-legacy"].iter().all(|program| in_path(program).is_some());
        run.needs(has, "install iptables");
        run.scene("iptables", || ground::set_up(binaries, "ci"), IPTABLES);
    })
}
