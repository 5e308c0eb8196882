//! Sources that somebody forges, without any key.

use std::net::{Ipv4Addr, SocketAddr};

use super::ground::{AttackGround, BRIDGED, CLUSTER_IP, ECHO, NODE_PORT, PTP, Witness, says};

const GUARD: &str = "sources";
const UNDERLAY: Ipv4Addr = Ipv4Addr::new(172, 31, 1, 11);
/// A port of a pod and of the node that anybody may send to.
const OPEN: u16 = 4000;

/// Heard as the pod whose address was forged.
fn is_the_pod(who: SocketAddr) -> bool {
    matches!(who.ip(), std::net::IpAddr::V4(v4) if v4.octets()[0] == 241 && v4.octets()[3] == BRIDGED.octets()[3])
}

fn as_a_pod(ground: &AttackGround, to: (Ipv4Addr, u16)) {
    let heard = ground.holds(GUARD, &ground.web, |payload| says(&ground.stranger, BRIDGED, payload, to));
    assert!(is_the_pod(heard), "{heard}");
}

pub(crate) fn as_a_pod_to_a_vip(ground: &AttackGround) {
    as_a_pod(ground, (ground.vip("web"), ECHO));
}

pub(crate) fn as_a_pod_to_a_cluster_ip(ground: &AttackGround) {
    as_a_pod(ground, (CLUSTER_IP, ECHO));
}

pub(crate) fn as_a_pod_to_a_node_port(ground: &AttackGround) {
    as_a_pod(ground, (UNDERLAY, NODE_PORT));
}

pub(crate) fn as_a_member_to_a_pod(ground: &AttackGround) {
    let pod = Witness::start(&ground.pods[1], PTP, OPEN).unwrap();
    let member = ground.flat_of_far();
    let heard = ground.holds(GUARD, &pod, |payload| says(&ground.stranger, member, payload, (PTP, OPEN)));
    assert_eq!(heard.ip(), member);
}

pub(crate) fn as_a_member_to_the_node(ground: &AttackGround) {
    let node = Witness::start(&ground.a.namespace, UNDERLAY, OPEN).unwrap();
    let member = ground.b.status().unwrap().node.unwrap().address.0;
    let heard = ground.holds(GUARD, &node, |payload| says(&ground.stranger, member, payload, (UNDERLAY, OPEN)));
    assert_eq!(heard.ip(), member);
}

pub(crate) fn as_another_pod(ground: &AttackGround) {
    let to = (ground.vip("web"), ECHO);
    let heard = ground.holds(GUARD, &ground.web, |payload| says(&ground.pods[1], BRIDGED, payload, to));
    assert!(is_the_pod(heard), "{heard}");
}
