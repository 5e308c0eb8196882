//! Who is believed to be a pod, this node, or another member: real packets, with the guard and without it.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use super::host::{MeshDevice, POD, POD_BLOCK, Packet, Pod, VIP, cni, received, socket, sysctl};
use super::nft::{self, Batch, Expr, Family};
use super::*;
use crate::linux::error::KernelError;
use crate::linux::names::FIRST_NFT_TABLE;

/// The second address of the node.
const SECOND: Ipv4Addr = Ipv4Addr::new(241, 1, 128, 7);
/// A pod of the block that is not the one behind `pod0`.
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 8, 1, 77);

/// Sends from whatever address in the pod's namespace.
fn says(pod: &Pod, source: Ipv4Addr, payload: &'static [u8], to: (Ipv4Addr, u16)) {
    pod.run(move || UdpSocket::bind((source, 0)).unwrap().send_to(payload, to).unwrap());
}

fn gives(pod: &Pod, address: Ipv4Addr) {
    pod.run(move || run(add_address("eth0", &format!("{address}/32"))));
}

fn no_reverse_path_filter() {
    for scope in ["all", "default"] {
        sysctl(&format!("conf/{scope}/rp_filter"), "0");
    }
}

/// Waits until the guards tell of a drop.
fn told(word: &str) -> bool {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        if guards::dropped(&shape(&[])).iter().any(|sentence| sentence.contains(word)) {
            return true;
        }
        std::thread::yield_now();
    }
    false
}

fn take_away() {
    Batch::new().delete_table(Family::Ip, FIRST_NFT_TABLE).commit().unwrap();
}

#[test]
fn a_mesh_source_is_believed_from_the_mesh_alone() {
    in_namespace(|| async {
        no_reverse_path_filter();
        let shape = shape(&[POD_BLOCK]);
        let member = Ipv4Addr::new(241, 1, 0, 3);
        let pod = Pod::start().await;
        gives(&pod, member);
        close_range(&shape).await.unwrap();
        let _mesh = MeshDevice::start(&shape).await;
        let server = socket((Ipv4Addr::new(10, 8, 1, 1), 9999));

        says(&pod, member, b"with the guard", (Ipv4Addr::new(10, 8, 1, 1), 9999));
        assert!(told("forges mesh addresses"), "{:?}", guards::dropped(&shape));
        take_away();
        says(&pod, member, b"without it", (Ipv4Addr::new(10, 8, 1, 1), 9999));

        let (payload, from) = received(&server).unwrap();
        assert_eq!((payload.as_slice(), from.ip()), (&b"without it"[..], member.into()));
    });
}

#[test]
fn a_pod_is_believed_over_the_interface_that_leads_back_to_it() {
    in_namespace(|| async {
        no_reverse_path_filter();
        sysctl("ip_forward", "1");
        let mut shape = shape(&[POD_BLOCK]);
        let pod = Pod::start().await;
        gives(&pod, OTHER);
        let _elsewhere = tun("cali77");
        add_address("cali77", "169.254.1.1/32").await;
        let routes = Routes::open().unwrap();
        let index = routes.link("cali77").await.unwrap().unwrap().index;
        let route = rtnetlink::RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(OTHER, 32);
        routes.handle.route().add(route.output_interface(index).build()).execute().await.unwrap();
        close_range(&shape).await.unwrap();
        let mut mesh = MeshDevice::start(&shape).await;

        says(&pod, OTHER, b"forged", (VIP, 7070));
        says(&pod, POD, b"its own", (VIP, 7070));
        let packet = mesh.next().unwrap();
        assert_eq!((packet.source.0, packet.payload.as_slice()), (POD, &b"its own"[..]));
        assert!(told("forges this node's pods"), "{:?}", guards::dropped(&shape));

        shape.pod_interfaces = vec!["pod*".to_owned()];
        close_range(&shape).await.unwrap();
        says(&pod, OTHER, b"exempt", (VIP, 7070));
        assert_eq!(mesh.next().unwrap().payload, b"exempt");
        assert!(notes(&shape).await.iter().any(|note| note.contains("`pod*`")), "{:?}", notes(&shape).await);

        take_away();
        says(&pod, OTHER, b"without the guard", (VIP, 7070));
        assert_eq!(mesh.next().unwrap().payload, b"without the guard");
    });
}

#[test]
fn a_network_that_is_no_pod_block_speaks_as_the_nodes_second_address() {
    in_namespace(|| async {
        let shape = shape(&["10.9.0.0/24"]);
        let pod = Pod::start().await;
        cni();
        close_range(&shape).await.unwrap();
        let mut mesh = MeshDevice::start(&shape).await;

        let client = pod.socket();
        client.send_to(b"as itself", (VIP, 7070)).unwrap();
        let packet = mesh.next().unwrap();
        assert_eq!((packet.source.0, packet.payload.as_slice()), (SECOND, &b"as itself"[..]));
        mesh.deliver(&Packet { source: (VIP, 7070), destination: packet.source, payload: b"answer".to_vec() });
        assert_eq!(received(&client), Some((b"answer".to_vec(), (VIP, 7070).into())));

        socket((Ipv4Addr::UNSPECIFIED, 0)).send_to(b"the node", (VIP, 7070)).unwrap();
        assert_eq!(mesh.next().unwrap().source.0, shape.address.0, "the node's own calls stay its own");

        take_away();
        says(&pod, POD, b"without the guard", (VIP, 7070));
        let packet = mesh.next().unwrap();
        assert_eq!((packet.source.0, packet.payload.as_slice()), (shape.address.0, &b"without the guard"[..]));
    });
}

#[test]
fn where_it_cannot_be_translated_a_network_that_is_no_pod_block_is_kept_out() {
    in_namespace(|| async {
        let shape = shape(&["10.9.0.0/24"]);
        let pod = Pod::start().await;
        cni();
        close_range(&shape).await.unwrap();
        take_away();
        guards::mend(&shape, &guards::read(FIRST_NFT_TABLE).unwrap(), true, without_fib);
        let mut mesh = MeshDevice::start(&shape).await;

        says(&pod, POD, b"as the node", (VIP, 7070));
        assert!(told("docker0"), "{:?}", guards::dropped(&shape));
        take_away();
        says(&pod, POD, b"without the guard", (VIP, 7070));

        let packet = mesh.next().unwrap();
        assert_eq!((packet.source.0, packet.payload.as_slice()), (shape.address.0, &b"without the guard"[..]));
    });
}

/// A kernel without the module that asks the routing tables.
fn without_fib(content: &guards::Content) -> Result<(), KernelError> {
    let asks = |exprs: &Vec<Expr>| exprs.iter().any(|expr| matches!(expr, Expr::Fib(_)));
    if content.iter().any(|(_, rules)| rules.iter().any(asks)) {
        return Err(KernelError::nft("set nftables rules", &std::io::Error::from_raw_os_error(libc::ENOENT)));
    }
    guards::write(&shape(&[]), content)
}

#[test]
fn a_kernel_without_nft_fib_keeps_the_rest_of_the_table_and_says_so() {
    in_namespace(|| async {
        let shape = shape(&[POD_BLOCK]);
        let ensured = guards::mend(&shape, &guards::read(FIRST_NFT_TABLE).unwrap(), true, without_fib);

        let Guards { masquerade, filter, sources, missing } = ensured.guards;
        assert!(ensured.written && masquerade && filter && !sources);
        assert!(missing.len() == 1 && missing[0].contains("modprobe nft_fib_ipv4"), "{missing:?}");
        assert_eq!(nft::chain(Family::Ip, FIRST_NFT_TABLE, "unreturned").unwrap(), None);
        let sources = nft::chain(Family::Ip, FIRST_NFT_TABLE, "sources").unwrap().unwrap();
        assert_eq!(nft::rules(&sources).unwrap().len(), 1, "mesh sources need no look-up");
        let again = guards::mend(&shape, &guards::read(FIRST_NFT_TABLE).unwrap(), true, without_fib);
        assert!(!again.written && again.guards.missing.len() == 1, "{again:?}");
        // A kernel that takes it at the next attempt gets the rest.
        assert!(guards::ensure(&shape, true).guards.sources);
    });
}

#[test]
fn a_device_that_cilium_routes_pods_back_over_exempts_its_pods() {
    in_namespace(|| async {
        let shape = shape(&[POD_BLOCK]);
        let routes = Routes::open().unwrap();
        assert_eq!(pod_interfaces::found(&routes, &shape).await.pod_interfaces, Vec::<String>::new());
        let _back = tun("cilium_host");
        add_address("cilium_host", "10.8.1.2/32").await;
        let endpoint_routes = pod_interfaces::found(&routes, &shape).await;
        assert_eq!(endpoint_routes.pod_interfaces, Vec::<String>::new(), "its own address alone");
        add_address("cilium_host", "10.8.1.1/24").await;
        assert_eq!(pod_interfaces::found(&routes, &shape).await.pod_interfaces, ["lxc*"]);
        let elsewhere = super::shape(&["10.9.0.0/24"]);
        assert_eq!(pod_interfaces::found(&routes, &elsewhere).await.pod_interfaces, Vec::<String>::new());
        let told = notes(&shape).await;
        assert!(told.iter().any(|note| note.contains("hostLegacyRouting")), "{told:?}");
    });
}
