//! Datagrams over the loopback, by the kernel that runs the test.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
use std::net::IpAddr;

use mesh_proto::packet::Ecn;

use super::*;

/// Sockets on a free port; the port may be taken by another program in between, so it tries several.
fn sockets() -> (Sockets, u16) {
    let free = || std::net::UdpSocket::bind("127.0.0.1:0").and_then(|s| s.local_addr()).map(|a| a.port());
    let open = |_| free().ok().and_then(|port| Some((Sockets::open(port, 0, true).ok()?, port)));
    (0..10).find_map(open).unwrap()
}

fn receive(socket: &UdpSocket) -> Vec<(Endpoint, Vec<u8>)> {
    let mut inbox = Inbox::default();
    let mut got = Vec::new();
    let second = Timespec { tv_sec: 1, tv_nsec: 0 };
    let mut fds = [PollFd::new(socket, PollFlags::IN)];
    poll(&mut fds, Some(&second)).unwrap();
    while socket.receive(&mut inbox).unwrap() > 0 {
        got.extend(inbox.datagrams().map(|(from, _, datagram)| (from, datagram.to_vec())));
    }
    got
}

#[test]
fn batches_arrive_whole_and_in_order_and_so_without_segmentation() {
    for segments in [true, false] {
        let ((a, from), (b, to)) = (sockets(), sockets());
        if !segments {
            a.v4.most.set(1);
        }
        let mut outbox = Outbox::new(1 << 20);
        let target = Endpoint::from(SocketAddr::from(([127, 0, 0, 1], to)));
        let sizes = [1400; 70].into_iter().chain([900, 33, 1, 65_000, 1400]);
        let expected: Vec<Vec<u8>> = sizes.enumerate().map(|(i, size)| vec![i as u8; size]).collect();
        expected.iter().for_each(|datagram| assert!(outbox.push(datagram, target)));

        let sent = a.send(&mut outbox);

        let bytes = expected.iter().map(|d| d.len() as u64).sum();
        assert_eq!((sent.datagrams, sent.bytes, sent.lost), (75, bytes, 0));
        // Runs that were formed before the socket knew.
        assert_eq!((sent.super_packets, sent.fallbacks), if segments { (3, 0) } else { (0, 3) });
        let got = receive(&b.v4);
        assert!(got.iter().all(|(endpoint, _)| endpoint.remote.port() == from));
        assert!(got.into_iter().map(|(_, datagram)| datagram).eq(expected), "segments: {segments}");
    }
}

#[test]
fn an_answer_leaves_from_the_address_that_was_addressed() {
    let ((a, from), (b, to)) = (sockets(), sockets());
    let mut outbox = Outbox::new(1 << 17);
    for (host, own) in [("127.0.0.7", "127.0.0.1"), ("::1", "::1")] {
        let (host, own): (IpAddr, IpAddr) = (host.parse().unwrap(), own.parse().unwrap());
        let (Some(asker), Some(answerer)) = (a.of(host), b.of(host)) else { continue };
        outbox.push(b"question", SocketAddr::new(host, to).into());
        a.send(&mut outbox);
        let (endpoint, question) = receive(answerer).remove(0);
        assert_eq!(
            (endpoint.local, endpoint.remote, &question[..]),
            (Some(host), SocketAddr::new(own, from), &b"question"[..])
        );

        outbox.push(b"answer", endpoint);
        b.send(&mut outbox);
        let (endpoint, answer) = receive(asker).remove(0);
        assert_eq!((endpoint.remote, &answer[..]), (SocketAddr::new(host, to), &b"answer"[..]));
    }
}

#[test]
fn an_own_address_that_is_gone_does_not_stop_datagrams() {
    let ((a, _), (b, to)) = (sockets(), sockets());
    let mut outbox = Outbox::new(1 << 17);
    let remote = SocketAddr::from(([127, 0, 0, 1], to));
    outbox.push(b"hello", Endpoint { remote, local: Some([192, 0, 2, 1].into()) });
    assert_eq!(a.send(&mut outbox).datagrams, 1);
    assert_eq!(receive(&b.v4).remove(0).1, b"hello");
}

#[test]
fn lost_data_is_counted_and_lost_handshakes_are_not() {
    let (a, _) = sockets();
    let mut outbox = Outbox::new(1 << 17);
    let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
    outbox.push(&[4, 0, 0, 0], nowhere.into());
    outbox.push(&[1, 0, 0, 0, 0], nowhere.into());
    assert_eq!(a.send(&mut outbox), Sent { lost: 1, ..Sent::default() });
}

#[test]
fn the_ecn_field_arrives_by_both_families() {
    let ((a, _), (b, to)) = (sockets(), sockets());
    for host in [IpAddr::from([127, 0, 0, 1]), Ipv6Addr::LOCALHOST.into()] {
        let Some(socket) = b.of(host) else { continue };
        let fields = [Ecn::NotEct, Ecn::Ect0, Ecn::Ect0, Ecn::Ect1, Ecn::Ce, Ecn::NotEct];
        let mut outbox = Outbox::new(1 << 17);
        fields.into_iter().for_each(|ecn| outbox.commit_with(100, SocketAddr::new(host, to).into(), ecn));
        assert_eq!((outbox.runs().len(), a.send(&mut outbox).datagrams), (5, 6));

        let mut inbox = Inbox::default();
        socket.receive(&mut inbox).unwrap();
        assert!(inbox.datagrams().map(|(_, ecn, _)| ecn).eq(fields), "{host}");
    }
}

/// Twenty datagrams that go together.
fn run_to(port: u16) -> Outbox {
    let mut outbox = Outbox::new(1 << 17);
    let target = SocketAddr::from(([127, 0, 0, 1], port)).into();
    (0..20).for_each(|_| assert!(outbox.push(&[4; 1000], target)));
    assert_eq!(outbox.runs().len(), 1);
    outbox
}

#[test]
fn a_route_that_cannot_divide_is_told_from_a_run_that_is_refused() {
    for (error, most) in [(Errno::IO, 1), (Errno::INVAL, most_segments()), (Errno::MSGSIZE, most_segments())] {
        let ((a, _), (b, to)) = (sockets(), sockets());
        let mut outbox = run_to(to);
        let mut sent = Sent::default();

        a.v4.send_again(&outbox, &outbox.runs()[0], error, &mut sent);
        a.prepare(&mut outbox);

        assert_eq!(sent, Sent { datagrams: 20, bytes: 20_000, fallbacks: 1, ..Sent::default() }, "{error}");
        assert_eq!(receive(&b.v4).len(), 20);
        assert_eq!((a.v4.most.get(), a.v6.as_ref().map_or(most, |v6| v6.most.get())), (most, most_segments()));
        outbox.clear();
        let target = SocketAddr::from(([127, 0, 0, 1], to)).into();
        (0..20).for_each(|_| assert!(outbox.push(&[4; 1000], target)));
        assert_eq!(outbox.runs().len(), if most == 1 { 20 } else { 1 }, "{error}");
    }
}

#[test]
fn a_run_is_as_long_as_the_running_kernel_takes() {
    let versions =
        [("6.8.12-generic", 63), ("6.9.0", 127), ("6.18.44-fc", 127), ("5.15.0", 63), ("10.0", 127), ("", 63)];
    for (release, most) in versions {
        assert_eq!(most_segments_of(release), most, "{release}");
    }
    let ((a, _), (b, to)) = (sockets(), sockets());
    let mut outbox = Outbox::new(1 << 17);
    a.prepare(&mut outbox);
    let target = SocketAddr::from(([127, 0, 0, 1], to)).into();
    (0..127).for_each(|_| assert!(outbox.push(&[4; 100], target)));
    let messages = outbox.runs().len() as u64;
    assert_eq!(messages, 127u64.div_ceil(most_segments() as u64));
    let sent = a.send(&mut outbox);
    assert_eq!((sent.super_packets, sent.super_segments, sent.fallbacks), (messages, 127, 0));
    assert_eq!(receive(&b.v4).len(), 127);
}

#[test]
fn without_offload_the_kernel_neither_divides_nor_joins() {
    let ((a, _), (b, to)) = (sockets(), sockets());
    let plain = |port| Sockets::open(port, 0, false).ok().map(|sockets| (sockets, port));
    let (c, from_c) = (40_000..50_000).find_map(plain).unwrap();
    assert!(a.segments() && a.joins() && !c.segments() && !c.joins());

    let mut inbox = Inbox::default();
    let mut outbox = run_to(to);
    c.prepare(&mut outbox);
    outbox.clear();
    let target = SocketAddr::from(([127, 0, 0, 1], to)).into();
    (0..20).for_each(|_| assert!(outbox.push(&[4; 1000], target)));
    assert_eq!(c.send(&mut outbox), Sent { datagrams: 20, bytes: 20_000, ..Sent::default() });
    assert_eq!(receive(&b.v4).len(), 20);
    assert_eq!(a.send(&mut run_to(from_c)).super_packets, 1);
    c.v4.receive(&mut inbox).unwrap();
    assert_eq!(inbox.received(), ReceivedBatch { datagrams: 20, bytes: 20_000, ..ReceivedBatch::default() });
}

#[test]
fn what_a_full_buffer_loses_is_told_for_its_socket_alone() {
    let ((a, _), (b, to)) = (sockets(), sockets());
    let plain = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    // More than the largest buffer that the kernel grants, doubled as it does.
    let full = 4 * BUFFER / 60_000;
    (0..full).for_each(|_| assert!(plain.send_to(&[0; 60_000], ("127.0.0.1", to)).is_ok()));
    let kept = receive(&b.v4).len();
    plain.send_to(b"after", ("127.0.0.1", to)).unwrap();

    let mut inbox = Inbox::default();
    b.v4.receive(&mut inbox).unwrap();

    let lost = inbox.received().overflows.unwrap();
    assert_eq!(kept + lost as usize, full);
    if let (Some(_), Some(v6)) = (&a.v6, &b.v6) {
        let mut outbox = Outbox::new(1 << 17);
        outbox.push(b"hello", SocketAddr::from((Ipv6Addr::LOCALHOST, to)).into());
        a.send(&mut outbox);
        v6.receive(&mut inbox).unwrap();
        assert_eq!((inbox.received().datagrams, inbox.received().overflows), (1, None));
    }
}

#[test]
fn an_empty_datagram_is_one() {
    let ((_, _), (b, to)) = (sockets(), sockets());
    let plain = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    plain.send_to(&[], ("127.0.0.1", to)).unwrap();
    assert_eq!(receive(&b.v4).len(), 1);
}

#[test]
fn a_taken_port_is_said_to_be_taken() {
    let (_holder, port) = sockets();
    let error = Sockets::open(port, 0, true).unwrap_err();
    assert!(matches!(error, UdpError::InUse { port: p } if p == port), "{error}");
}

impl Sockets {
    fn of(&self, address: IpAddr) -> Option<&UdpSocket> {
        if address.is_ipv4() { Some(&self.v4) } else { self.v6.as_ref() }
    }
}
