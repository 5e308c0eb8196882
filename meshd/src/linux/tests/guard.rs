//! The guards against real packets: a pod in its own namespace, a node with a CNI's rules, the mesh interface.

use super::host::{CLUSTER_IP, MeshDevice, POD, POD_BLOCK, Packet, Pod, VIP, cni, received, socket, sysctl};
use super::nft::{self, Batch, Expr, Family};
use super::*;

const NODE: Ipv4Addr = Ipv4Addr::new(241, 1, 0, 7);
const DNS: Ipv4Addr = Ipv4Addr::new(241, 0, 0, 53);

/// Packets that were kept from leaving, and from entering.
fn dropped() -> (u64, u64) {
    let sum = |name: &str| {
        let chain = nft::chain(Family::Ip, "meshd", name).unwrap().unwrap();
        let exprs = nft::rules(&chain).unwrap().into_iter().flat_map(|rule| rule.exprs);
        exprs.map(|expr| if let Expr::Counter { packets, .. } = expr { packets } else { 0 }).sum()
    };
    (sum("leaving"), sum("entering"))
}

fn reply_to(packet: &Packet, payload: &[u8]) -> Packet {
    Packet { source: packet.destination, destination: packet.source, payload: payload.to_vec() }
}

#[test]
fn a_masquerade_rule_does_not_hide_the_pod_and_the_reply_reaches_it_under_strict_rp_filter() {
    in_namespace(|| async {
        for scope in ["all", "default"] {
            sysctl(&format!("conf/{scope}/rp_filter"), "1");
        }
        let shape = shape(&[POD_BLOCK]);
        let pod = Pod::start().await;
        cni();
        close_range(&shape).await.unwrap();
        let mut mesh = MeshDevice::start(&shape).await;
        let client = pod.socket();

        client.send_to(b"hello", (VIP, 7070)).unwrap();

        let packet = mesh.next().unwrap();
        assert_eq!((packet.source.0, packet.destination), (POD, (VIP, 7070)));
        mesh.deliver(&reply_to(&packet, b"world"));
        assert_eq!(received(&client), Some((b"world".to_vec(), (VIP, 7070).into())));
        assert_eq!(dropped(), (0, 0));
    });
}

#[test]
fn a_strict_rp_filter_would_drop_what_comes_from_the_mesh_but_for_the_rule() {
    in_namespace(|| async {
        sysctl("conf/all/rp_filter", "1");
        let shape = shape(&[POD_BLOCK]);
        let pod = Pod::start().await;
        sysctl("ip_forward", "1");
        close_range(&shape).await.unwrap();
        let mut mesh = MeshDevice::start(&shape).await;
        let client = pod.run(|| socket((POD, 4000)));
        let packet =
            |payload: &[u8]| Packet { source: (VIP, 7070), destination: (POD, 4000), payload: payload.to_vec() };
        let routes = Routes::open().unwrap();
        let rules = routes.rules().await.unwrap();
        let ours = rules.into_iter().find(|rule| route::own_rule(rule).is_some()).unwrap();
        routes.handle.rule().del(ours).execute().await.unwrap();

        mesh.deliver(&packet(b"without the rule"));
        close_range(&shape).await.unwrap();
        mesh.deliver(&packet(b"with the rule"));

        assert_eq!(received(&client).unwrap().0, b"with the rule");
    });
}

#[test]
fn without_the_guard_the_same_rule_would_hide_the_pod() {
    in_namespace(|| async {
        let shape = shape(&[POD_BLOCK]);
        let pod = Pod::start().await;
        cni();
        close_range(&shape).await.unwrap();
        let mut mesh = MeshDevice::start(&shape).await;
        Batch::new().delete_table(Family::Ip, "meshd").commit().unwrap();

        pod.socket().send_to(b"hello", (VIP, 7070)).unwrap();

        assert_eq!(mesh.next().unwrap().source.0, NODE);
    });
}

#[test]
fn a_cluster_ip_that_leads_to_a_vip_keeps_the_pod_too_and_the_reply_comes_from_the_cluster_ip() {
    in_namespace(|| async {
        let shape = shape(&[POD_BLOCK]);
        let pod = Pod::start().await;
        cni();
        close_range(&shape).await.unwrap();
        let mut mesh = MeshDevice::start(&shape).await;
        let client = pod.socket();

        client.send_to(b"hello", (CLUSTER_IP, 80)).unwrap();

        let packet = mesh.next().unwrap();
        assert_eq!((packet.source.0, packet.destination), (POD, (VIP, 7070)));
        mesh.deliver(&reply_to(&packet, b"world"));
        assert_eq!(received(&client), Some((b"world".to_vec(), (CLUSTER_IP, 80).into())));
    });
}

#[test]
fn mesh_addresses_are_closed_to_pods_but_for_dns_and_open_to_the_node_itself() {
    in_namespace(|| async {
        let shape = shape(&[POD_BLOCK]);
        let pod = Pod::start().await;
        cni();
        close_range(&shape).await.unwrap();
        let _mesh = MeshDevice::start(&shape).await;
        let server = socket((NODE, 9999));
        let dns = socket((DNS, 53));
        let client = pod.socket();

        client.send_to(b"around the mesh", (NODE, 9999)).unwrap();
        client.send_to(b"not port 53", (DNS, 9999)).unwrap();
        client.send_to(b"question", (DNS, 53)).unwrap();

        let (question, from) = received(&dns).unwrap();
        assert_eq!((question.as_slice(), from.ip()), (&b"question"[..], POD.into()));
        dns.send_to(b"answer", from).unwrap();
        assert_eq!(received(&client), Some((b"answer".to_vec(), (DNS, 53).into())));
        assert_eq!(dropped(), (0, 2));
        // What is local comes by lo, and is the first that the server sees.
        socket((NODE, 0)).send_to(b"local", (NODE, 9999)).unwrap();
        assert_eq!(received(&server).unwrap().0, b"local");
    });
}

#[test]
fn dns_is_closed_to_whoever_is_no_pod_of_ours() {
    in_namespace(|| async {
        let shape = shape(&["10.9.0.0/24"]);
        let pod = Pod::start().await;
        close_range(&shape).await.unwrap();
        let _mesh = MeshDevice::start(&shape).await;
        let _dns = socket((DNS, 53));
        let witness = socket((Ipv4Addr::new(10, 8, 1, 1), 7070));

        let client = pod.socket();
        client.send_to(b"question", (DNS, 53)).unwrap();
        // A second packet, which passes, tells that the first had its chance.
        client.send_to(b"hello", (Ipv4Addr::new(10, 8, 1, 1), 7070)).unwrap();

        assert_eq!(received(&witness).unwrap().0, b"hello");
        assert_eq!(dropped(), (0, 1));
    });
}

#[test]
fn nothing_for_the_mesh_leaves_in_clear_whatever_the_routes_say() {
    in_namespace(|| async {
        let shape = shape(&[]);
        let pod = Pod::start().await;
        close_range(&shape).await.unwrap();
        let routes = Routes::open().unwrap();
        // Someone removes the rule, and the pod's link is the default route, as an underlay would be.
        routes.remove(shape.range, &[TABLE]).await.unwrap();
        let via = rtnetlink::RouteMessageBuilder::<Ipv4Addr>::new().gateway(POD).build();
        routes.handle.route().add(via).execute().await.unwrap();
        let witness = pod.run(|| socket((Ipv4Addr::UNSPECIFIED, 7070)));
        let sender = socket((Ipv4Addr::UNSPECIFIED, 0));

        let refused = sender.send_to(b"in clear", (VIP, 7070));
        sender.send_to(b"not for the mesh", (POD, 7070)).unwrap();

        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert_eq!(received(&witness).unwrap().0, b"not for the mesh");
        assert_eq!(dropped(), (1, 0));
    });
}

#[test]
fn a_tunnel_packet_never_enters_the_tunnel() {
    in_namespace(|| async {
        let shape = shape(&[]);
        close_range(&shape).await.unwrap();
        let mut mesh = MeshDevice::start(&shape).await;
        let outer = socket((Ipv4Addr::UNSPECIFIED, 0));
        nix::sys::socket::setsockopt(&outer, nix::sys::socket::sockopt::Mark, &MARK).unwrap();

        let refused = outer.send_to(b"sealed", (VIP, 51820));
        socket((Ipv4Addr::UNSPECIFIED, 0)).send_to(b"plain", (VIP, 7070)).unwrap();

        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EPERM));
        let packet = mesh.next().unwrap();
        assert_eq!((packet.source.0, packet.payload.as_slice()), (NODE, &b"plain"[..]));
    });
}

#[test]
fn the_most_pod_blocks_that_a_node_may_claim_fit_into_one_batch() {
    in_namespace(|| async {
        let blocks: Vec<String> = (0..=255).map(|n| format!("10.8.{n}.0/25")).collect();
        let blocks: Vec<&str> = blocks.iter().map(String::as_str).collect();
        let guards = close_range(&shape(&blocks)).await.unwrap();
        assert_eq!(guards.missing, Vec::<String>::new());
        assert!(!guards::ensure(&shape(&blocks), true).written);
    });
}
