//! Interfaces whose pods are routed back over another one: what comes in by them cannot be judged by its way back.

use ipnet::Ipv4Net;
use mesh_proto::base::addr::overlap;

use super::route::{self, Routes};
use crate::linux::shape::Shape;

/// Cilium routes a node's whole pod block over one device, and takes what its pods send from a device of each pod's own.
const BACK: &str = "cilium_host";
/// How Cilium names the devices of pods.
const PODS: &str = "lxc*";
/// The kernel's main table, in which Cilium routes the block.
const MAIN: u32 = 254;

/// Returns the shape with those that are found on this host, besides those that the operator named.
pub(super) async fn found(routes: &Routes, shape: &Shape) -> Shape {
    let mut shape = shape.clone();
    if is_cilium(routes, &shape).await && !shape.pod_interfaces.iter().any(|named| named == PODS) {
        shape.pod_interfaces.push(PODS.to_owned());
    }
    shape
}

/// What the kernel does not answer is taken for not there: the guard then holds for everybody.
async fn is_cilium(routes: &Routes, shape: &Shape) -> bool {
    let Ok(Some(link)) = routes.link(BACK).await else { return false };
    // The device's own address is routed there in any case; with a route for each pod, pods are routed back rightly.
    let leads_there = |net: Ipv4Net| net.prefix_len() < 32 && shape.pods.iter().any(|&pods| overlap(pods, net));
    let main = routes.table(MAIN).await.unwrap_or_default();
    main.iter().any(|route| route::output(route) == Some(link.index) && leads_there(route::destination(route)))
}

/// Says in sentences for which interfaces the guard against forged pods is not in force, and what closes the rest.
pub(super) fn exempt(shape: &Shape) -> Vec<String> {
    let named = |name: &String| {
        let closes = match name.as_str() {
            PODS => {
                "; Cilium itself drops sources that are not the pod's own. Where it forwards in BPF, this node's nftables sees no packets of pods at all: set `bpf.hostLegacyRouting=true`"
            }
            _ => "; what closes it is a network plugin that drops sources that are not the pod's own",
        };
        format!(
            "pods behind `{name}` are routed back over another interface: that none of them calls in the name of another pod of this node is not held by meshd{closes}"
        )
    };
    shape.pod_interfaces.iter().map(named).collect()
}
