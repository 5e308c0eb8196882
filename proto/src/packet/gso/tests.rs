//! Splitting and gathering are each other's inverse, and every checksum on the way is right.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cell::Cell;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;
use crate::packet::sample::{Dice, Sample, sample, slow_checksum};
use crate::packet::{FiveTuple, Rewrite, TCP, UDP, complete, rewrite, verify};

/// Congestion echoed.
const ECE: u8 = 0x40;

/// Super-packets as the kernel makes them: partial checksum, 2 to 64 segments, all fields arbitrary.
fn super_packets() -> impl Strategy<Value = (Sample, u16)> {
    let shape = (sample(), any::<bool>(), 1..1460u16, 2..=64usize, any::<u16>(), any::<u8>());
    shape.prop_map(|(sample, tcp, size, segments, last, byte)| {
        let room = (65_535 - 200) / usize::from(size);
        let segments = segments.min(room).max(2);
        let last = usize::from(last % size) + 1;
        let payload = (0..usize::from(size) * (segments - 1) + last).map(|i| (i * 7) as u8 ^ byte).collect();
        let protocol = if tcp { TCP } else { UDP };
        // No SYN, RST or URG, always ACK, and fragmentable or not.
        let flags = sample.flags & (FIN | PSH | CWR | ECE) | ACK;
        let tuple = FiveTuple { protocol, ..sample.tuple };
        (Sample { tuple, flags, payload, ip_options: Vec::new(), ..sample }, size)
    })
}

fn gso(sample: &Sample) -> Gso {
    if sample.tuple.protocol == UDP { Gso::Udp } else { Gso::Tcp4 { ecn: sample.flags & CWR != 0 } }
}

fn split(mut packet: Vec<u8>, gso: Gso, size: u16, checksum: Checksum) -> Vec<Vec<u8>> {
    let header = Header::parse(&packet).unwrap();
    let mut split = Segments::new(&mut packet, &header, gso, size, checksum).unwrap();
    let mut segments = Vec::new();
    let count = split.remaining();
    while let Some(segment) = split.next_segment() {
        segments.push(segment.to_vec());
    }
    assert_eq!(segments.len(), count);
    segments
}

/// What a receiver does: gathers runs and writes everything in order, a packet that is alone as it came.
fn gather(packets: &[Vec<u8>]) -> Vec<(VnetHeader, Vec<u8>)> {
    let mut out = Vec::new();
    let mut open: Option<(SegmentRun, Vec<&[u8]>)> = None;
    for packet in packets {
        let header = Header::parse(packet).unwrap();
        if let Some((run, taken)) = &mut open
            && run.append(packet, &header)
        {
            taken.push(packet);
            continue;
        }
        out.extend(open.take().map(written));
        match SegmentRun::start(packet, &header) {
            Some(run) => open = Some((run, vec![packet])),
            None => out.push((VnetHeader::default(), packet.clone())),
        }
    }
    out.extend(open.map(written));
    out
}

fn written((mut run, packets): (SegmentRun, Vec<&[u8]>)) -> (VnetHeader, Vec<u8>) {
    match run.finish() {
        None => (VnetHeader::default(), packets[0].to_vec()),
        Some((vnet, headers)) => {
            let payloads = packets.iter().map(|p| &p[headers.len()..]);
            (vnet, [headers].into_iter().chain(payloads).collect::<Vec<_>>().concat())
        }
    }
}

/// What comes out of a tunnel: mostly packets that continue each other, of sizes and with fields as they come.
fn streams() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let steps = prop::collection::vec((0..50u8, any::<u8>()), 1..150);
    (sample(), any::<bool>(), 2..1400usize, steps).prop_map(|(sample, tcp, size, steps)| {
        let tuple = FiveTuple { protocol: if tcp { TCP } else { UDP }, ..sample.tuple };
        let mut next = Sample { tuple, ip_options: Vec::new(), ..sample };
        let step = |(what, value): (u8, u8)| {
            match what {
                0 => next.tos = value,
                1 => next.ttl = value,
                2 => next.fragment ^= 0x4000,
                3 => next.tcp_options = vec![1, 1, 8, 10, 0, 0, 0, value, 0, 0, 0, 0],
                4 => next.window = value.into(),
                5 => next.acknowledgment = next.acknowledgment.wrapping_add(value.into()),
                6 => next.sequence = next.sequence.wrapping_add(value.into()),
                7 => next.identification = next.identification.wrapping_add(value.into()),
                8 => next.tuple.source_port ^= 1,
                _ => {}
            }
            let special = usize::from(what).checked_sub(9).and_then(|i| [FIN, SYN, RST, PSH, URG, ECE, CWR].get(i));
            let flags = special.copied().unwrap_or(0);
            let length = match what {
                16 => usize::from(value) % size,
                17 => size + usize::from(value),
                _ => size,
            };
            let payload = (0..length).map(|i| (i * 3) as u8 ^ value).collect();
            let bytes = Sample { flags: ACK | flags, payload, ..next.clone() }.bytes();
            next.sequence = next.sequence.wrapping_add(length as u32);
            next.identification = next.identification.wrapping_add(1);
            if what == 18 && !tcp { without_checksum(bytes) } else { bytes }
        };
        steps.into_iter().map(step).collect()
    })
}

fn without_checksum(mut datagram: Vec<u8>) -> Vec<u8> {
    datagram[26..28].fill(0);
    datagram
}

/// The same without what nobody may look at: the identification of a packet that cannot be fragmented (RFC 6864).
fn essence(mut packet: Vec<u8>) -> Vec<u8> {
    if Header::parse(&packet).unwrap().dont_fragment {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
        let sum = slow_checksum(&packet[..20]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// The other half of being each other's inverse: whatever comes is written so that splitting it as the kernel does gives
/// the very packets that came, in order, flags, identifications and checksums included.
#[test]
fn splitting_what_was_gathered_gives_every_packet_back() {
    let gathered = Cell::new(0);
    let law = |stream: Vec<Vec<u8>>| {
        let mut back = Vec::new();
        for (vnet, packet) in gather(&stream) {
            if vnet.gso == Gso::None {
                prop_assert_eq!(vnet, VnetHeader::default());
                back.push(packet);
                continue;
            }
            let header = Header::parse(&packet).unwrap();
            let place = 20 + usize::from(vnet.checksum_offset);
            prop_assert_eq!(slow_checksum(&packet[..20]), 0);
            let pseudo = [&packet[12..20], &[0, packet[9]], &(packet.len() as u16 - 20).to_be_bytes()].concat();
            prop_assert_eq!(word(&packet, place), !slow_checksum(&pseudo));
            let mut whole = packet.clone();
            complete(&mut whole, &header);
            prop_assert!(verify(&whole));
            let segments = split(packet, vnet.gso, vnet.gso_size, Checksum::Partial);
            prop_assert!((2..=MOST_SEGMENTS).contains(&segments.len()));
            gathered.set(gathered.get() + segments.len());
            back.extend(segments);
        }
        let whole = |packets: Vec<Vec<u8>>| packets.into_iter().map(essence).collect::<Vec<_>>();
        prop_assert!(whole(back) == whole(stream));
        Ok(())
    };
    TestRunner::new(ProptestConfig::with_cases(300)).run(&streams(), law).unwrap();
    assert!(gathered.get() > 5000, "only {} packets were gathered: the test tests nothing", gathered.get());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn gathering_what_was_split_gives_the_super_packet_back((sample, size) in super_packets()) {
        let original = sample.partial_bytes();

        let segments = split(original.clone(), gso(&sample), size, Checksum::Partial);
        let gathered = gather(&segments);

        prop_assert_eq!(gathered.len(), 1);
        let (vnet, packet) = &gathered[0];
        prop_assert!(*packet == original, "the packet differs");
        let at = if sample.tuple.protocol == UDP { 6 } else { 16 };
        let expected = VnetHeader { needs_checksum: true, gso: gso(&sample), gso_size: size, checksum_start: 20, checksum_offset: at };
        prop_assert_eq!(*vnet, expected);
    }

    #[test]
    fn every_segment_is_a_right_packet((sample, size) in super_packets(), options in 0..=10usize, complete in any::<bool>()) {
        let sample = Sample { ip_options: vec![1; options * 4], ..sample };
        let (bytes, checksum) = if complete {
            (sample.bytes(), Checksum::Complete)
        } else {
            (sample.partial_bytes(), Checksum::Partial)
        };

        let segments = split(bytes, gso(&sample), size, checksum);

        let expected = sample.payload.chunks(usize::from(size));
        prop_assert_eq!(segments.len(), expected.len());
        for (index, (segment, payload)) in segments.iter().zip(expected).enumerate() {
            let last = index + 1 == segments.len();
            let fragmentable = sample.fragment & 0x4000 == 0;
            let single = Sample {
                payload: payload.to_vec(),
                identification: if fragmentable { sample.identification.wrapping_add(index as u16) } else { sample.identification },
                sequence: sample.sequence.wrapping_add((index * usize::from(size)) as u32),
                flags: sample.flags & !(if last { 0 } else { FIN | PSH }) & !(if index == 0 { 0 } else { CWR }),
                ..sample.clone()
            };
            prop_assert_eq!(segment, &single.bytes());
            prop_assert!(verify(segment));
        }
    }

    #[test]
    fn rewriting_before_splitting_equals_rewriting_each_segment((sample, size) in super_packets()) {
        let to = Rewrite { source: Some(([241, 16, 5, 10].into(), 4000)), destination: Some(([241, 17, 1, 2].into(), 80)) };
        let mut first = sample.partial_bytes();
        let header = Header::parse(&first).unwrap();
        rewrite(&mut first, &header, &to, Checksum::Partial);

        let mut after = split(sample.partial_bytes(), gso(&sample), size, Checksum::Partial);
        for segment in &mut after {
            let header = Header::parse(segment).unwrap();
            rewrite(segment, &header, &to, Checksum::Complete);
        }

        prop_assert!(split(first, gso(&sample), size, Checksum::Partial) == after);
    }

    #[test]
    fn rewriting_the_first_of_a_run_equals_rewriting_the_super_packet((sample, size) in super_packets()) {
        let to = Rewrite { source: Some(([241, 16, 5, 10].into(), 4000)), destination: Some(([241, 17, 1, 2].into(), 80)) };
        let mut whole = sample.partial_bytes();
        let header = Header::parse(&whole).unwrap();
        rewrite(&mut whole, &header, &to, Checksum::Partial);

        let mut segments = split(sample.partial_bytes(), gso(&sample), size, Checksum::Partial);
        let header = |packet: &[u8]| Header::parse(packet).unwrap();
        let mut run = SegmentRun::start(&segments[0], &header(&segments[0])).unwrap();
        prop_assert!(segments[1..].iter().all(|packet| run.append(packet, &header(packet))));
        let first = header(&segments[0]);
        rewrite(&mut segments[0], &first, &to, Checksum::Complete);

        let (vnet, headers) = run.finish_as(&segments[0]).unwrap();
        prop_assert_eq!(headers, &whole[..headers.len()]);
        prop_assert_eq!((vnet.gso, vnet.gso_size), (gso(&sample), size));
    }
}

fn tcp(index: u32) -> Sample {
    Sample {
        sequence: 1_000_000 + index * 100,
        identification: 9 + index as u16,
        payload: vec![index as u8; 100],
        ..Sample::default()
    }
}

fn udp() -> Sample {
    let tuple = FiveTuple { protocol: UDP, ..Sample::default().tuple };
    Sample { tuple, payload: vec![3; 100], ..Sample::default() }
}

fn continues(first: &Sample, second: &[u8]) -> bool {
    let first = first.bytes();
    let mut run = SegmentRun::start(&first, &Header::parse(&first).unwrap()).unwrap();
    run.append(second, &Header::parse(second).unwrap())
}

#[test]
fn only_a_packet_that_continues_its_predecessor_is_gathered() {
    assert!(continues(&tcp(0), &tcp(1).bytes()));
    let other = FiveTuple { source_port: 1, ..tcp(1).tuple };
    let different = [
        ("a gap", tcp(2)),
        ("a repetition", tcp(0)),
        ("another flow", Sample { tuple: other, ..tcp(1) }),
        ("another type of service", Sample { tos: 4, ..tcp(1) }),
        ("congestion experienced", Sample { tos: 3, ..tcp(1) }),
        ("another TTL", Sample { ttl: 63, ..tcp(1) }),
        ("may be fragmented", Sample { fragment: 0, ..tcp(1) }),
        ("a fragment", Sample { fragment: 0x2000, ..tcp(1) }),
        ("another acknowledgment", Sample { acknowledgment: 1, ..tcp(1) }),
        ("another window", Sample { window: 1, ..tcp(1) }),
        ("congestion echoed", Sample { flags: 0x50, ..tcp(1) }),
        ("window reduced", Sample { flags: 0x90, ..tcp(1) }),
        ("SYN", Sample { flags: 0x12, ..tcp(1) }),
        ("RST", Sample { flags: 0x14, ..tcp(1) }),
        ("URG", Sample { flags: 0x30, ..tcp(1) }),
        ("TCP options", Sample { tcp_options: vec![1; 4], ..tcp(1) }),
        ("IP options", Sample { ip_options: vec![1; 4], ..tcp(1) }),
        ("no payload", Sample { payload: Vec::new(), ..tcp(1) }),
        ("a longer payload", Sample { payload: vec![1; 101], ..tcp(1) }),
        ("UDP", udp()),
    ];
    for (what, second) in different {
        assert!(!continues(&tcp(0), &second.bytes()), "{what}");
    }
    let options = |last| Sample { tcp_options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, last], ..tcp(0) };
    assert!(!continues(&options(1), &Sample { sequence: 1_000_100, ..options(2) }.bytes()), "other option values");
    let fragmentable = |index| Sample { fragment: 0, ..tcp(index) };
    assert!(continues(&fragmentable(0), &fragmentable(1).bytes()));
    let jumped = Sample { identification: 99, ..fragmentable(1) };
    assert!(!continues(&fragmentable(0), &jumped.bytes()), "an identification out of order");
}

#[test]
fn a_datagram_without_a_checksum_is_never_gathered() {
    assert!(continues(&udp(), &udp().bytes()));
    let mut bare = udp().bytes();
    bare[26..28].fill(0);
    assert!(!continues(&udp(), &bare));
    assert!(SegmentRun::start(&bare, &Header::parse(&bare).unwrap()).is_none());
}

#[test]
fn push_and_fin_and_a_short_payload_end_a_run() {
    for last in
        [Sample { flags: 0x18, ..tcp(1) }, Sample { flags: 0x11, ..tcp(1) }, Sample { payload: vec![1; 99], ..tcp(1) }]
    {
        let (first, last) = (tcp(0).bytes(), last.bytes());
        let mut run = SegmentRun::start(&first, &Header::parse(&first).unwrap()).unwrap();
        assert!(!run.is_closed());
        assert!(run.append(&last, &Header::parse(&last).unwrap()));
        assert!(run.is_closed());
        let third = tcp(2).bytes();
        assert!(!run.append(&third, &Header::parse(&third).unwrap()));
    }
    assert!(!continues(&Sample { flags: 0x18, ..tcp(0) }, &tcp(1).bytes()));
}

#[test]
fn a_run_ends_at_64_packets_and_at_65535_bytes() {
    let run_of = |size: usize| {
        let packet =
            |i: usize| Sample { sequence: (i * size) as u32, payload: vec![0; size], ..Sample::default() }.bytes();
        let first = packet(0);
        let mut run = SegmentRun::start(&first, &Header::parse(&first).unwrap()).unwrap();
        let mut count = 1;
        while count < 100 && run.append(&packet(count), &Header::parse(&packet(count)).unwrap()) {
            count += 1;
        }
        assert_eq!(run.segments(), count);
        count
    };
    assert_eq!(run_of(10), MOST_SEGMENTS);
    assert_eq!(run_of(30_000), 2);
    assert_eq!(run_of((65_535 - 40) / 5), 5);
}

#[test]
fn what_is_one_segment_comes_out_as_it_is_with_a_complete_checksum() {
    let sample = tcp(0);
    for (gso, size) in [(Gso::None, 0), (Gso::Tcp4 { ecn: false }, 100), (Gso::Tcp4 { ecn: false }, 9000)] {
        let segments = split(sample.partial_bytes(), gso, size, Checksum::Partial);
        assert_eq!(segments, [sample.bytes()]);
    }
}

#[test]
fn a_device_header_that_contradicts_the_packet_is_an_error() {
    let refuse = |sample: Sample, gso, size| {
        let mut packet = sample.partial_bytes();
        let header = Header::parse(&packet).unwrap();
        Segments::new(&mut packet, &header, gso, size, Checksum::Partial).err()
    };
    let tso = Gso::Tcp4 { ecn: false };
    assert_eq!(refuse(udp(), tso, 10), Some(SplitError::Kind));
    assert_eq!(refuse(tcp(0), Gso::Udp, 10), Some(SplitError::Kind));
    assert_eq!(refuse(Sample { flags: 0x12, ..tcp(0) }, tso, 10), Some(SplitError::Kind));
    assert_eq!(refuse(Sample { fragment: 0x2000, ..tcp(0) }, tso, 10), Some(SplitError::Kind));
    assert_eq!(refuse(tcp(0), Gso::Tcp6 { ecn: false }, 10), Some(SplitError::Kind));
    assert_eq!(refuse(tcp(0), tso, 0), Some(SplitError::Size));
    assert_eq!(refuse(tcp(0), tso, 10), None);
}

#[test]
fn the_device_header_reads_what_it_writes_and_nothing_else() {
    let tcp = [false, true].into_iter().flat_map(|ecn| [Gso::Tcp4 { ecn }, Gso::Tcp6 { ecn }]);
    for gso in tcp.chain([Gso::None, Gso::Udp]) {
        let header = VnetHeader { needs_checksum: true, gso, gso_size: 1400, checksum_start: 20, checksum_offset: 16 };
        assert_eq!(VnetHeader::parse(&header.to_bytes(40)), Some(header));
    }
    for kind in [3, 0x80, 0x83, 0x85, 2, 6] {
        assert_eq!(VnetHeader::parse(&[0, kind, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    }
}

#[test]
fn a_checksum_deeper_inside_is_completed_on_the_spot() {
    // UDP that carries a whole TCP packet, whose checksum is the partial one.
    let inner = tcp(0);
    let outer = |payload| Sample { payload, ..udp() };
    let mut packet = outer(inner.partial_bytes()).bytes();
    packet[26..28].fill(0);
    let header = Header::parse(&packet).unwrap();
    let vnet = VnetHeader { needs_checksum: true, checksum_start: 48, checksum_offset: 16, ..VnetHeader::default() };

    assert_eq!(vnet.finish_checksum(&mut packet, &header), Some(Checksum::Complete));

    assert_eq!(packet[28..], inner.bytes());
    let own = VnetHeader { checksum_start: 20, checksum_offset: 6, ..vnet };
    assert_eq!(own.finish_checksum(&mut packet, &header), Some(Checksum::Partial));
    assert_eq!(VnetHeader::default().finish_checksum(&mut packet, &header), Some(Checksum::Complete));
    for (start, offset) in [(10, 16), (48, 2000), (9999, 0), (u16::MAX, u16::MAX)] {
        let wild = VnetHeader { checksum_start: start, checksum_offset: offset, ..vnet };
        assert_eq!(wild.finish_checksum(&mut packet, &header), None, "{start} {offset}");
    }
}

/// 100,000 pairs of damaged packets and arbitrary device headers.
#[test]
fn no_bytes_make_splitting_or_gathering_panic() {
    let mut dice = Dice(0x0123_4567_89ab_cdef);
    let seeds = [tcp(0).partial_bytes(), udp().partial_bytes(), tcp(1).bytes(), udp().bytes()];
    let mut segments = 0;
    let mut last: Option<SegmentRun> = None;
    for round in 0..100_000 {
        let mut bytes = seeds[round % seeds.len()].clone();
        for _ in 0..dice.below(4) {
            let at = dice.below(44);
            bytes[at] = dice.roll() as u8;
        }
        let Ok(header) = Header::parse(&bytes) else { continue };
        match last.as_mut().map(|run| run.append(&bytes, &header)) {
            Some(true) => {}
            Some(false) | None => {
                last.as_mut().map(|run| run.finish().is_some());
                last = SegmentRun::start(&bytes, &header);
            }
        }
        let mut raw = [0; VnetHeader::LEN];
        raw.fill_with(|| dice.roll() as u8 % 24);
        let Some(vnet) = VnetHeader::parse(&raw) else { continue };
        let Some(checksum) = vnet.finish_checksum(&mut bytes, &header) else { continue };
        let size = u16::from(raw[4]);
        if let Ok(mut split) = Segments::new(&mut bytes, &header, vnet.gso, size, checksum) {
            while split.next_segment().is_some() {
                segments += 1;
            }
        }
    }
    assert!(segments > 10_000, "only {segments} segments: the test tests nothing");
}
