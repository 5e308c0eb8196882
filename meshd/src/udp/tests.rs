//! Datagrams over the loopback, by the kernel that runs the test.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
use std::net::IpAddr;

use super::*;

/// Sockets on a free port; the port may be taken by another program in between, so it tries several.
fn sockets() -> (Sockets, u16) {
    let free = || std::net::UdpSocket::bind("127.0.0.1:0").and_then(|s| s.local_addr()).map(|a| a.port());
    let open = |_| free().ok().and_then(|port| Some((Sockets::open(port, 0, true).ok()?, port)));
    (0..10).find_map(open).unwrap()
}

fn receive(socket: &Socket) -> Vec<(Endpoint, Vec<u8>)> {
    let mut inbox = Inbox::default();
    let mut got = Vec::new();
    let second = Timespec { tv_sec: 1, tv_nsec: 0 };
    let mut fds = [PollFd::new(socket, PollFlags::IN)];
    poll(&mut fds, Some(&second)).unwrap();
    while socket.receive(&mut inbox).unwrap() > 0 {
        got.extend(inbox.datagrams().map(|(from, datagram)| (from, datagram.to_vec())));
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
    fn of(&self, address: IpAddr) -> Option<&Socket> {
        if address.is_ipv4() { Some(&self.v4) } else { self.v6.as_ref() }
    }
}
