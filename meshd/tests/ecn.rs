//! Congestion that a router between two nodes marks reaches the applications (RFC 6040), over IPv4 and IPv6.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod namespaces;
mod planes;

use std::io::{IoSliceMut, Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Duration;

use namespaces::privileged;
use namespaces::skip::skip;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, setsockopt, sockopt};
use planes::{PORT, PlaneNode, PlaneOptions, cabled, connect, flat, netmap};

/// Two nodes over IPv4 or IPv6.
fn pair(ipv6: bool) -> [PlaneNode; 2] {
    let [mut a, mut b] = cabled();
    let at = |id: u8| {
        let ip = if ipv6 { format!("fd00::{id}").parse().unwrap() } else { planes::outer(id).into() };
        vec![SocketAddr::new(ip, PORT)]
    };
    a.start(1, netmap(1, 2, 1, at(2)), PlaneOptions::lanes(1));
    b.start(2, netmap(2, 1, 1, at(1)), PlaneOptions::lanes(1));
    [a, b]
}

/// Lets the way to a node mark the tunnel's datagrams that have one of these fields. Says whether it can.
fn congest(node: &PlaneNode, ipv6: bool, fields: &'static str) -> bool {
    let family = if ipv6 { "ip6" } else { "ip" };
    let chain = "type filter hook prerouting priority -300;";
    let rule = format!("udp dport {PORT} {family} ecn {{ {fields} }} {family} ecn set ce;");
    let table = format!("table {family} way {{ chain in {{ {chain} {rule} }}; }};");
    let Ok(status) = node.run(move || Command::new("nft").arg(table).status()) else {
        skip("congestion on the way", "apt-get install nftables");
        return false;
    };
    assert!(status.success(), "nft refuses the rule");
    true
}

/// The payload and the type of service of the next datagram.
fn next(server: &UdpSocket) -> (u8, u8) {
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!(u8);
    let message = recvmsg::<SockaddrIn>(server.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty()).unwrap();
    let tos = |message| if let ControlMessageOwned::Ipv4Tos(tos) = message { Some(tos) } else { None };
    let tos = message.cmsgs().unwrap().find_map(tos);
    (byte[0], tos.unwrap())
}

#[test]
fn a_mark_of_the_way_reaches_the_application_and_a_sender_without_marks_loses_a_packet() {
    if !privileged("congestion in namespaces") {
        return;
    }
    for ipv6 in [false, true] {
        let [a, b] = pair(ipv6);
        let server = b.run(|| UdpSocket::bind((flat(2), 7000)).unwrap());
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        setsockopt(&server, sockopt::IpRecvTos, &true).unwrap();
        let client = a.run(|| UdpSocket::bind((flat(1), 0)).unwrap());
        client.connect((flat(2), 7000)).unwrap();
        let send = |tag: u8, tos: u8| {
            setsockopt(&client, sockopt::Ipv4Tos, &i32::from(tos)).unwrap();
            client.send(&[tag]).unwrap();
        };
        const EF: u8 = 0xb8;

        // Through a way that marks nothing all arrives as it was sent.
        for ecn in 0..4 {
            send(ecn, EF | ecn);
            assert_eq!(next(&server), (ecn, EF | ecn), "IPv6 {ipv6}");
        }
        if !congest(&b, ipv6, "not-ect, ect0, ect1, ce") {
            return;
        }
        for ecn in 0..4 {
            send(ecn, EF | ecn);
        }

        for ecn in 1..4 {
            assert_eq!(next(&server), (ecn, EF | 3), "IPv6 {ipv6}");
        }
        assert!(b.plane().stats().drops["congestion_marked"] >= 1);
    }
}

#[test]
fn a_tcp_sender_is_told_of_congestion_inside_the_tunnel() {
    if !privileged("congestion in namespaces") {
        return;
    }
    let [a, b] = pair(false);
    for node in [&a, &b] {
        node.run(|| std::fs::write("/proc/sys/net/ipv4/tcp_ecn", "1").unwrap());
    }
    if !congest(&b, false, "ect0") {
        return;
    }
    let listener = b.run(|| TcpListener::bind((flat(2), 7000)).unwrap());
    let mut near = connect(&a, 2);
    let (mut far, _) = listener.accept().unwrap();
    let data: Vec<u8> = (0..2 << 20).map(|i: u32| (i % 251) as u8).collect();
    let expected = data.clone();
    let reader = std::thread::spawn(move || {
        let mut got = Vec::new();
        far.read_to_end(&mut got).unwrap();
        assert!(got == expected, "the bytes arrive as they were sent");
    });
    near.write_all(&data).unwrap();
    near.shutdown(std::net::Shutdown::Write).unwrap();
    reader.join().unwrap();

    let counts = a.run(|| std::fs::read_to_string("/proc/thread-self/net/netstat").unwrap());
    let mut lines = counts.lines().filter(|line| line.starts_with("TcpExt:")).map(str::split_whitespace);
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let told = names.zip(values).find(|(name, _)| *name == "TCPDeliveredCE").unwrap().1;
    assert!(told.parse::<u64>().unwrap() > 10, "{told} packets of the sender came marked");
    assert!(a.drops().is_empty() && b.drops().is_empty(), "{:?} {:?}", a.drops(), b.drops());
}
