//! What must hold for every packet, and what must not happen for any bytes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::sample::{Dice, Sample, address, icmp_error, sample, slow_checksum};
use super::*;

const CALLER: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 10);
const ROUTER: Ipv4Addr = Ipv4Addr::new(241, 1, 0, 1);

fn rewrites() -> impl Strategy<Value = Rewrite> {
    let side = || prop::option::of((address(), any::<u16>()));
    (side(), side()).prop_map(|(source, destination)| Rewrite { source, destination })
}

/// What a packet becomes when it is made anew with the rewritten tuple.
fn made_anew(sample: &Sample, to: &Rewrite) -> Sample {
    let mut anew = sample.clone();
    let t = &mut anew.tuple;
    let ports = match (t.protocol, sample.icmp.0) {
        (TCP | UDP, _) => (true, true),
        (ICMP, 8) => (true, false),
        (ICMP, _) => (false, true),
        _ => (false, false),
    };
    if let Some((address, port)) = to.source {
        t.source = address;
        t.source_port = if ports.0 { port } else { t.source_port };
    }
    if let Some((address, port)) = to.destination {
        t.destination = address;
        t.destination_port = if ports.1 { port } else { t.destination_port };
    }
    anew
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn parsing_reads_what_was_made(sample in sample(), trailing in 0..40usize) {
        let mut bytes = sample.bytes();
        let length = bytes.len();
        bytes.resize(length + trailing, 0xee);

        let header = Header::parse(&bytes).unwrap();

        prop_assert_eq!(header.tuple, sample.tuple);
        prop_assert_eq!(header.total_len, length);
        prop_assert_eq!(header.header_len, 20 + sample.ip_options.len());
        prop_assert_eq!(header.dont_fragment, sample.fragment == 0x4000);
        prop_assert_eq!((header.tos, header.identification), (sample.tos, sample.identification));
        prop_assert_eq!(header.headers_len(&bytes) + sample.payload.len(), length);
        let kind = match (sample.tuple.protocol, sample.icmp.0) {
            (TCP, _) => Kind::Tcp(sample.flags & 0x1f),
            (UDP, _) => Kind::Udp,
            (ICMP, 8) => Kind::EchoRequest,
            (ICMP, _) => Kind::EchoReply,
            _ => Kind::Other,
        };
        prop_assert_eq!(header.kind, kind);
        prop_assert!(verify(&bytes));
    }

    #[test]
    fn a_rewritten_packet_equals_one_made_anew(sample in sample(), to in rewrites()) {
        let mut packet = sample.bytes();
        let header = Header::parse(&packet).unwrap();

        rewrite(&mut packet, &header, &to, Checksum::Complete);

        prop_assert_eq!(packet, made_anew(&sample, &to).bytes());
    }

    #[test]
    fn a_rewritten_packet_with_partial_checksum_equals_one_made_anew(mut sample in sample(), to in rewrites()) {
        sample.tuple.protocol = if sample.tuple.protocol == UDP { UDP } else { TCP };
        let mut packet = sample.partial_bytes();
        let header = Header::parse(&packet).unwrap();

        rewrite(&mut packet, &header, &to, Checksum::Partial);

        let anew = made_anew(&sample, &to);
        prop_assert_eq!(&packet, &anew.partial_bytes());
        let header = Header::parse(&packet).unwrap();
        let at = header.header_len + if header.kind == Kind::Udp { 6 } else { 16 };
        prop_assert_eq!(word(&packet, at), fold(pseudo(&header, header.total_len - header.header_len)));
        complete(&mut packet, &header);
        prop_assert_eq!(packet, anew.bytes());
    }

    #[test]
    fn a_rewrite_and_its_inverse_leave_the_packet_as_it_was(sample in sample(), to in rewrites()) {
        let original = sample.bytes();
        let mut packet = original.clone();
        let header = Header::parse(&packet).unwrap();
        let t = header.tuple;
        let back = Rewrite {
            source: Some((t.source, t.source_port)),
            destination: Some((t.destination, t.destination_port)),
        };

        rewrite(&mut packet, &header, &to, Checksum::Complete);
        let header = Header::parse(&packet).unwrap();
        rewrite(&mut packet, &header, &back, Checksum::Complete);

        prop_assert_eq!(packet, original);
    }

    #[test]
    fn an_icmp_error_is_translated_inside_and_outside(
        sample in sample(),
        length in 28..200usize,
        kind in prop_oneof![Just(3u8), Just(11), Just(12)],
        outer in rewrites(),
        quoted in rewrites(),
    ) {
        let quote = sample.bytes();
        prop_assume!(quote.len() >= 28 + sample.ip_options.len());
        let length = length.max(28 + sample.ip_options.len());
        // Half a checksum cannot be changed by difference, and nobody could check it.
        let length = if length == 20 + sample.ip_options.len() + 17 { length + 1 } else { length };
        let original = icmp_error(kind, ROUTER, CALLER, &quote, length);
        let mut packet = original.clone();
        let header = Header::parse(&packet).unwrap();
        prop_assert_eq!(header.kind, Kind::IcmpError(sample.tuple));

        rewrite_icmp_error(&mut packet, &header, &outer, &quoted);

        let from = outer.source.map_or(ROUTER, |(a, _)| a);
        let to = outer.destination.map_or(CALLER, |(a, _)| a);
        let anew = icmp_error(kind, from, to, &made_anew(&sample, &quoted).bytes(), length);
        prop_assert_eq!(&packet, &anew);
        prop_assert!(verify(&packet));

        let back = |t: FiveTuple| Rewrite {
            source: Some((t.source, t.source_port)),
            destination: Some((t.destination, t.destination_port)),
        };
        let translated = Header::parse(&packet).unwrap();
        rewrite_icmp_error(&mut packet, &translated, &back(header.tuple), &back(sample.tuple));
        prop_assert_eq!(packet, original);
    }

    #[test]
    fn a_clamped_segment_size_leaves_a_right_checksum(sample in sample(), max in any::<u16>(), odd in any::<bool>(), mss in any::<[u8; 2]>()) {
        let [a, b] = mss;
        let tcp_options = if odd { vec![1, 2, 4, a, b, 1, 1, 0] } else { vec![2, 4, a, b] };
        let sample = Sample {
            tuple: FiveTuple { protocol: TCP, ..sample.tuple },
            flags: 0x02,
            tcp_options,
            ..sample
        };
        let (mut complete_form, mut partial_form) = (sample.bytes(), sample.partial_bytes());
        let header = Header::parse(&complete_form).unwrap();

        let clamped = clamp_mss(&mut complete_form, &header, max, Checksum::Complete);
        prop_assert_eq!(clamp_mss(&mut partial_form, &header, max, Checksum::Partial), clamped);

        prop_assert_eq!(clamped, u16::from_be_bytes(mss) > max);
        let at = header.header_len + 20 + if odd { 3 } else { 2 };
        prop_assert_eq!(complete_form[at..at + 2].to_vec(), u16::from_be_bytes(mss).min(max).to_be_bytes());
        prop_assert!(verify(&complete_form));
        complete(&mut partial_form, &header);
        prop_assert_eq!(partial_form, complete_form);
    }

    #[test]
    fn every_answer_is_a_right_packet_to_the_sender(sample in sample()) {
        let packet = sample.bytes();
        let header = Header::parse(&packet).unwrap();
        let mut out = [0; 1500];
        type Answer = fn(&[u8], &Header, &mut [u8]) -> usize;
        let answers: [Answer; 4] = [
            tcp_reset,
            echo_reply,
            |p, h, out| unreachable(p, h, ROUTER, Unreachable::Prohibited, out),
            |p, h, out| unreachable(p, h, ROUTER, Unreachable::TooBig { mtu: 1280 }, out),
        ];
        for answer in answers {
            let length = answer(&packet, &header, &mut out);
            if length > 0 {
                prop_assert!(verify(&out[..length]), "{:02x?}", &out[..length]);
                let reply = Header::parse(&out[..length]).unwrap();
                prop_assert_eq!(reply.total_len, length);
                prop_assert_eq!(reply.tuple.destination, header.tuple.source);
            }
        }
    }
}

/// 200,000 buffers, from pure noise to packets with a few wrong bytes.
#[test]
fn no_bytes_make_anything_panic() {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let mut read = 0;
    let mut out = [0; 700];
    let quoted = Sample::default().bytes();
    let seeds = [
        Sample { flags: 2, tcp_options: vec![1, 2, 4, 5, 180, 3, 3, 7], ..Sample::default() }.bytes(),
        Sample { tuple: FiveTuple { protocol: UDP, ..Sample::default().tuple }, ..Sample::default() }.bytes(),
        Sample { tuple: FiveTuple { protocol: ICMP, ..Sample::default().tuple }, ..Sample::default() }.bytes(),
        icmp_error(3, ROUTER, CALLER, &quoted, 48),
    ];
    for round in 0..200_000 {
        let mut bytes = seeds[round % seeds.len()].clone();
        if round % 5 == 0 {
            bytes = (0..dice.below(90)).map(|_| dice.roll() as u8).collect();
        }
        for _ in 0..dice.below(6) {
            let (at, value) = (dice.below(bytes.len().max(1)), dice.roll() as u8);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        bytes.truncate(dice.below(bytes.len() * 3 + 1));

        verify(&bytes);
        let Ok(header) = Header::parse(&bytes) else { continue };
        read += 1;
        let to = Rewrite { source: Some((ROUTER, 1)), destination: Some((CALLER, 2)) };
        let checksum = if dice.below(2) == 0 { Checksum::Complete } else { Checksum::Partial };
        let room = dice.below(out.len());
        tcp_reset(&bytes, &header, &mut out[..room]);
        echo_reply(&bytes, &header, &mut out[..room]);
        unreachable(&bytes, &header, ROUTER, Unreachable::Host, &mut out[..room]);
        clamp_mss(&mut bytes, &header, 1000, checksum);
        rewrite(&mut bytes, &header, &to, checksum);
        rewrite_icmp_error(&mut bytes, &header, &to, &to);
        complete(&mut bytes, &header);
    }
    assert!(read > 50_000, "only {read} buffers parsed: the test tests nothing");
}

#[test]
fn fragments_are_told_apart() {
    let first = Sample { fragment: 0x2000, ..Sample::default() }.bytes();
    let later = Sample { fragment: 0x2005, ..Sample::default() }.bytes();
    let overwriting = Sample { fragment: 1, ..Sample::default() }.bytes();
    let tiny = &Sample { fragment: 0x2000, ..Sample::default() }.bytes()[..36];

    let first = Header::parse(&first).unwrap();
    let later = Header::parse(&later).unwrap();

    assert_eq!((first.kind, first.first_fragment), (Kind::Tcp(16), true));
    assert_eq!((later.kind, later.first_fragment), (Kind::LaterFragment, false));
    assert_eq!((later.tuple.source_port, later.tuple.destination_port), (0, 0));
    assert_eq!(Header::parse(&overwriting), Err(Malformed::Truncated));
    assert_eq!(Header::parse(tiny), Err(Malformed::Truncated));
}

#[test]
fn a_later_fragment_changes_its_addresses_alone() {
    let mut packet = Sample { fragment: 5, ..Sample::default() }.bytes();
    let payload = packet[20..].to_vec();
    let header = Header::parse(&packet).unwrap();

    rewrite(&mut packet, &header, &Rewrite { source: Some((ROUTER, 9)), destination: None }, Checksum::Complete);

    assert_eq!(packet[20..], payload);
    assert_eq!(Header::parse(&packet).unwrap().tuple.source, ROUTER);
    assert!(verify(&packet));
}

/// The whole packet is rewritten before it is cut, and cut before it is rewritten: both must agree.
#[test]
fn a_first_fragment_changes_as_the_whole_packet_does() {
    let to = Rewrite { source: Some((ROUTER, 9)), destination: Some((CALLER, 77)) };
    let whole = Sample { fragment: 0, payload: vec![7; 999], ..Sample::default() };
    let mut fragment = Sample { fragment: 0x2000, ..whole.clone() }.bytes();
    let header = Header::parse(&fragment).unwrap();

    rewrite(&mut fragment, &header, &to, Checksum::Complete);

    assert_eq!(fragment[20..], made_anew(&whole, &to).bytes()[20..]);
}

#[test]
fn a_udp_checksum_of_zero_stays_none() {
    let tuple = FiveTuple { protocol: UDP, ..Sample::default().tuple };
    let mut packet = Sample { tuple, ..Sample::default() }.bytes();
    packet[26..28].fill(0);
    let header = Header::parse(&packet).unwrap();
    let to = Rewrite { source: Some((ROUTER, 9)), destination: None };

    rewrite(&mut packet, &header, &to, Checksum::Complete);

    assert_eq!(packet[26..28], [0, 0]);
    assert!(verify(&packet));
    let mut error = icmp_error(3, ROUTER, CALLER, &packet, 40);
    let header = Header::parse(&error).unwrap();
    rewrite_icmp_error(&mut error, &header, &to, &Rewrite { source: Some((CALLER, 3)), destination: None });
    assert_eq!(error[28 + 26..28 + 28], [0, 0]);
    assert!(verify(&error));
}

/// Payload chosen so that the sum comes out as 0, which on the wire would mean "none".
#[test]
fn a_udp_checksum_that_comes_out_as_zero_is_sent_as_ffff() {
    let tuple = FiveTuple { protocol: UDP, ..Sample::default().tuple };
    let base = Sample { tuple, payload: vec![0, 0], ..Sample::default() }.bytes();
    let payload = word(&base, 26).to_be_bytes().to_vec();
    let sample = Sample { tuple, payload, ..Sample::default() };

    let mut packet = sample.partial_bytes();
    let header = Header::parse(&packet).unwrap();
    complete(&mut packet, &header);
    assert_eq!(packet[26..28], [0xff, 0xff]);

    let away = Rewrite { source: Some((ROUTER, 9)), destination: None };
    rewrite(&mut packet, &header, &away, Checksum::Complete);
    assert_ne!(packet[26..28], [0xff, 0xff]);
    let header = Header::parse(&packet).unwrap();
    let back = Rewrite { source: Some((tuple.source, tuple.source_port)), destination: None };
    rewrite(&mut packet, &header, &back, Checksum::Complete);
    assert_eq!(packet, sample.bytes());
}

#[test]
fn an_error_about_an_error_or_a_later_fragment_is_no_error_to_us() {
    let error = icmp_error(3, ROUTER, CALLER, &Sample::default().bytes(), 28);
    let later = Sample { fragment: 5, ..Sample::default() }.bytes();
    for quote in [error, later] {
        let packet = icmp_error(3, ROUTER, CALLER, &quote, 60);
        assert_eq!(Header::parse(&packet).map(|h| h.kind), Ok(Kind::IcmpOther));
    }
    let short = icmp_error(3, ROUTER, CALLER, &Sample::default().bytes(), 27);
    assert_eq!(Header::parse(&short), Err(Malformed::Truncated));
}

#[test]
fn a_reset_follows_the_rules_of_sequence_numbers() {
    let mut out = [0; 40];
    let mut reset = |flags: u8, payload: &[u8]| {
        let packet = Sample { flags, payload: payload.to_vec(), ..Sample::default() }.bytes();
        let header = Header::parse(&packet).unwrap();
        let length = tcp_reset(&packet, &header, &mut out);
        let number = |at: usize| u32::from_be_bytes(out[at..at + 4].try_into().unwrap());
        (length, out[33], number(24), number(28))
    };
    // SYN: sequence 0, acknowledges the SYN and its payload.
    assert_eq!(reset(0x02, b""), (40, 0x14, 0, 1_000_001));
    assert_eq!(reset(0x02, b"abc"), (40, 0x14, 0, 1_000_004));
    // FIN without ACK counts as one.
    assert_eq!(reset(0x01, b"abc"), (40, 0x14, 0, 1_000_004));
    // ACK: takes its sequence number from there and acknowledges nothing.
    assert_eq!(reset(0x10, b"abc"), (40, 0x04, 2_000_000, 0));
    // A reset is never answered.
    assert_eq!(reset(0x14, b"").0, 0);
}

#[test]
fn what_must_stay_unanswered_stays_so() {
    let mut out = [0; 1500];
    let mut answers = |packet: &[u8]| {
        let header = Header::parse(packet).unwrap();
        tcp_reset(packet, &header, &mut out)
            + echo_reply(packet, &header, &mut out)
            + unreachable(packet, &header, ROUTER, Unreachable::Port, &mut out)
    };
    for source in [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1], [255, 255, 255, 255]] {
        for protocol in [TCP, UDP, ICMP] {
            let t = FiveTuple { protocol, source: source.into(), ..Sample::default().tuple };
            assert_eq!(answers(&Sample { tuple: t, ..Sample::default() }.bytes()), 0, "from {source:?}");
            let t = FiveTuple { protocol, destination: source.into(), ..Sample::default().tuple };
            assert_eq!(answers(&Sample { tuple: t, ..Sample::default() }.bytes()), 0, "to {source:?}");
        }
    }
    assert_eq!(answers(&icmp_error(3, ROUTER, CALLER, &Sample::default().bytes(), 28)), 0);
    assert_eq!(answers(&Sample { fragment: 5, ..Sample::default() }.bytes()), 0);
    assert_ne!(answers(&Sample::default().bytes()), 0);
}

#[test]
fn an_icmp_error_quotes_what_fits_into_576_bytes() {
    let packet = Sample { payload: vec![7; 1400], ..Sample::default() }.bytes();
    let header = Header::parse(&packet).unwrap();
    let mut out = [0; 1500];

    let length = unreachable(&packet, &header, ROUTER, Unreachable::TooBig { mtu: 1280 }, &mut out);

    assert_eq!(length, LONGEST_ERROR);
    assert_eq!(out[20..22], [3, 4]);
    assert_eq!(word(&out, 26), 1280);
    assert_eq!(out[28..length], packet[..length - 28]);
    assert_eq!(Header::parse(&out[..length]).map(|h| h.kind), Ok(Kind::IcmpError(header.tuple)));
    assert_eq!(unreachable(&packet, &header, ROUTER, Unreachable::Host, &mut out[..55]), 0);
    assert_eq!(unreachable(&packet, &header, ROUTER, Unreachable::Host, &mut out[..56]), 56);
}

#[test]
fn an_echo_reply_repeats_the_request() {
    let tuple = FiveTuple { protocol: ICMP, destination_port: 0, ..Sample::default().tuple };
    let packet = Sample { tuple, payload: b"ping payload!".to_vec(), ..Sample::default() }.bytes();
    let header = Header::parse(&packet).unwrap();
    let mut out = [0; 100];

    let length = echo_reply(&packet, &header, &mut out);

    let reply = Header::parse(&out[..length]).unwrap();
    assert_eq!((reply.tuple, reply.kind), (header.tuple.reverse(), Kind::EchoReply));
    assert_eq!(out[24..length], packet[24..]);
    assert!(verify(&out[..length]));
    assert_eq!(echo_reply(&packet, &header, &mut out[..length - 1]), 0);
}

#[test]
fn only_a_syn_is_clamped_and_broken_options_are_left_alone() {
    let clamp = |flags, tcp_options: &[u8]| {
        let mut packet = Sample { flags, tcp_options: tcp_options.to_vec(), ..Sample::default() }.bytes();
        let header = Header::parse(&packet).unwrap();
        clamp_mss(&mut packet, &header, 1200, Checksum::Complete)
    };
    assert!(clamp(0x02, &[2, 4, 5, 180]));
    assert!(clamp(0x12, &[2, 4, 5, 180]));
    assert!(clamp(0xc2, &[3, 3, 7, 2, 4, 5, 180, 0]));
    assert!(!clamp(0x10, &[2, 4, 5, 180]));
    assert!(!clamp(0x02, &[0, 0, 0, 0, 2, 4, 5, 180]));
    assert!(!clamp(0x02, &[3, 0, 2, 4]));
    assert!(!clamp(0x02, &[1, 1, 2, 4]));
    assert!(!clamp(0x02, &[2, 3, 5, 180]));
    assert!(!clamp(0x02, &[1, 1, 1, 2]));
}

#[test]
fn a_wrong_checksum_is_seen() {
    let good = Sample::default().bytes();
    assert!(verify(&good));
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        assert!(!verify(&bad), "byte {at}");
    }
    assert_eq!(slow_checksum(&good[..20]), 0);
}
