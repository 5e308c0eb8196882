//! Attacks with real packets, from namespaces of their own: each arrives with the guard taken out, and does not with it;
//! honest calls of every kind of pod run beside it. What the reverse path filter would stop is tried without it (0) and
//! with the loose one (2).
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod errors;
mod foreign;
mod forged;
mod ground;

use std::process::ExitCode;

use ground::AttackGround;
use mesh_tests::facts::{Fact, in_namespaces};

const FACTS: &[Fact<AttackGround>] = &[
    ("honest_calls_of_every_kind_of_pod_arrive", ground::honest),
    ("a_stranger_on_the_link_does_not_call_a_vip_as_a_pod", forged::as_a_pod_to_a_vip),
    ("a_stranger_on_the_link_does_not_call_a_cluster_ip_as_a_pod", forged::as_a_pod_to_a_cluster_ip),
    ("a_stranger_on_the_link_does_not_call_a_node_port_as_a_pod", forged::as_a_pod_to_a_node_port),
    ("a_stranger_on_the_link_does_not_reach_a_pod_as_a_member", forged::as_a_member_to_a_pod),
    ("a_stranger_on_the_link_does_not_reach_the_node_as_a_member", forged::as_a_member_to_the_node),
    ("a_pod_does_not_call_as_a_pod_behind_another_interface", forged::as_another_pod),
    ("a_container_network_does_not_call_as_the_node", foreign::as_the_node),
    ("a_container_network_calls_what_a_rule_names_it_for", foreign::as_itself),
    ("check_tells_whom_the_guard_leaves_out_and_what_it_dropped", foreign::told),
    ("a_pod_ends_no_flow_of_another_by_an_invented_router", errors::from_an_invented_router),
];

fn main() -> ExitCode {
    in_namespaces(|run, binaries| {
        for (scene, filter) in [("without_reverse_path_filter", "0"), ("with_the_loose_filter", "2")] {
            run.scene(scene, || AttackGround::start(binaries, filter), FACTS);
        }
    })
}
