//! The parser against another one, over packets as made and with wrong bytes.

use etherparse::{Icmpv4Slice, Icmpv4Type, Ipv4HeaderSlice, TcpHeaderSlice, UdpHeaderSlice};
use proptest::prelude::*;

use super::sample::sample;
use super::{Header, ICMP, Kind, TCP, UDP};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn the_parser_agrees_with_another(sample in sample(), flips in prop::collection::vec((0..60usize, any::<u8>()), 0..4), cut in 0..400usize) {
        let mut bytes = sample.bytes();
        for (at, value) in flips {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        if cut < bytes.len() && cut % 3 == 0 {
            bytes.truncate(cut);
        }
        agree(&bytes)?;
    }
}

/// Compares with etherparse. It knows nothing of our stricter rules (UDP lengths, tiny fragments, quotes), so
/// these are the only cases in which it may accept what we refuse.
fn agree(bytes: &[u8]) -> Result<(), TestCaseError> {
    let ours = Header::parse(bytes);
    let Ok(theirs) = Ipv4HeaderSlice::from_slice(bytes) else {
        prop_assert!(ours.is_err(), "they refuse the IPv4 header, we do not");
        return Ok(());
    };
    let header_len = theirs.slice().len();
    let total_len = usize::from(theirs.total_len());
    if total_len < header_len || total_len > bytes.len() {
        prop_assert!(ours.is_err(), "lengths contradict");
        return Ok(());
    }
    let transport = &bytes[header_len..total_len];
    let offset = theirs.fragments_offset().value();
    let first_fragment = theirs.more_fragments() && offset == 0;
    let expected = match (offset, theirs.protocol().0) {
        (1 | 2, TCP) => None,
        (1.., _) => Some((Kind::LaterFragment, (0, 0))),
        (0, TCP) => TcpHeaderSlice::from_slice(transport).ok().map(|tcp| {
            let bits = [tcp.fin(), tcp.syn(), tcp.rst(), tcp.psh(), tcp.ack()];
            let flags = bits.iter().rev().fold(0, |flags, &bit| flags << 1 | u8::from(bit));
            (Kind::Tcp(flags), (tcp.source_port(), tcp.destination_port()))
        }),
        (0, UDP) => UdpHeaderSlice::from_slice(transport).ok().and_then(|udp| {
            let length = usize::from(udp.length());
            let sound = length >= 8 && (first_fragment || length <= transport.len());
            sound.then_some((Kind::Udp, (udp.source_port(), udp.destination_port())))
        }),
        (0, ICMP) => match Icmpv4Slice::from_slice(transport) {
            // It also checks the length of timestamp messages, which we leave to the receiver.
            Err(_) if matches!(transport, [13 | 14, _, _, _, _, _, _, _, ..]) => return Ok(()),
            Err(_) => None,
            Ok(icmp) => {
                if let Icmpv4Type::EchoRequest(echo) = icmp.icmp_type() {
                    Some((Kind::EchoRequest, (echo.id, 0)))
                } else if let Icmpv4Type::EchoReply(echo) = icmp.icmp_type() {
                    Some((Kind::EchoReply, (0, echo.id)))
                } else {
                    return Ok(());
                }
            }
        },
        (0, _) => Some((Kind::Other, (0, 0))),
    };
    match (expected, ours) {
        (None, ours) => prop_assert!(ours.is_err(), "they refuse the transport header, we do not"),
        (Some((kind, ports)), ours) => {
            let ours = ours.map_err(|e| TestCaseError::fail(format!("we refuse what they read: {e}")))?;
            prop_assert_eq!(ours.kind, kind);
            prop_assert_eq!((ours.tuple.source_port, ours.tuple.destination_port), ports);
            prop_assert_eq!(
                (ours.tuple.source, ours.tuple.destination),
                (theirs.source_addr(), theirs.destination_addr())
            );
            prop_assert_eq!((ours.header_len, ours.total_len), (header_len, total_len));
            prop_assert_eq!((ours.first_fragment, ours.dont_fragment), (first_fragment, theirs.dont_fragment()));
            prop_assert_eq!((ours.identification, ours.tos), (theirs.identification(), bytes[1]));
        }
    }
    Ok(())
}
