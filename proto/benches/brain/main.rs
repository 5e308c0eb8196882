//! What the brain costs per packet, without a network: `cargo bench --package mesh-proto`.
//!
//! | bench | what is in it | promised |
//! |---|---|---|
//! | engine/hot … | look-up and rewrite of one packet, or of one super-packet, of a known flow | ≤ 150 ns |
//! | engine/new flow … | look-up, backend, policy of 10,000 rules, both directions remembered, rewrite | ≤ 1 µs |
//! | engine/new flow in a full table … | the same, and a flow that goes for it | |
//! | segment/… | 47 packets of 1,420 bytes: the super-packet split, its segments coalesced | |
//! | view/compile | what a new map costs a node | |
//!
//! A packet is restored before each look-up by copying its headers, which is in the figure (2 ns).

mod mesh;

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput};
use mesh_proto::base::clock::Timestamp;
use mesh_proto::base::id::NodeId;
use mesh_proto::dataplane::engine::Engine;
use mesh_proto::dataplane::flow::FlowTable;
use mesh_proto::dataplane::flow::room::MAX_FLOWS;
use mesh_proto::dataplane::verdict::Verdict;
use mesh_proto::dataplane::view::View;
use mesh_proto::packet::gso::{Gso, SegmentRun, Segments};
use mesh_proto::packet::{Checksum, Header};
use mesh_proto::verifier::VerifiedMap;

use mesh::{ACK, PEER, POD, PORT, SYN, Size, TARGET, backend, netmap, tcp, vip};

const NOW: Timestamp = Timestamp::from_millis(5_000_000);
/// Flows of a table that a minute of new flows fills.
const FEW: usize = 1 << 14;
const SMALL: Size = Size { peers: 1, services: 4, rules: 1 };
const LARGE: Size = Size { peers: 1000, services: 1000, rules: 10_000 };
/// Bytes of headers that a rewrite may touch.
const HEADERS: usize = 52;
/// Payload of a full packet, and packets of a full super-packet.
const PAYLOAD: usize = 1420 - HEADERS;
const SEGMENTS: usize = 47;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    hot(&mut criterion);
    new_flows(&mut criterion);
    segments(&mut criterion);
    compile(&mut criterion);
    criterion.final_summary();
}

fn engine(size: Size, flows: usize) -> Engine {
    let view = View::compile(VerifiedMap::by_hand(netmap(size)));
    Engine::new(Arc::new(view), Arc::new(FlowTable::for_flows(flows, 0)))
}

/// The pod's call to the service that the last rule allows, and the answer to it.
fn call(size: Size) -> Call {
    let service = size.services - 2;
    Call {
        from: (POD, 40_000),
        to: (vip(service), PORT),
        far: (backend(size, service), TARGET),
        image: (Ipv4Addr::new(241, 32, 0, 10), 40_000),
        peer: NodeId(PEER.0 + u32::from(service % size.peers)),
    }
}

/// The ends of a flow: before and after translation, and who carries it.
struct Call {
    from: (Ipv4Addr, u16),
    to: (Ipv4Addr, u16),
    far: (Ipv4Addr, u16),
    image: (Ipv4Addr, u16),
    peer: NodeId,
}

fn hot(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("engine/hot");
    for (name, size) in [("one peer", SMALL), ("1000 peers", LARGE)] {
        let mut engine = engine(size, MAX_FLOWS);
        let Call { from, to, far, image, peer } = call(size);
        let outbound = Verdict::Forward(peer);
        assert_eq!(engine.outbound(&mut tcp(from, to, SYN, 0, 0), Checksum::Complete, NOW), outbound);
        assert_eq!(engine.inbound(peer, &mut tcp(far, image, SYN | ACK, 0, 0), NOW), Verdict::Deliver);

        let mut ways = |what: &str, template: Vec<u8>, checksum, expected, outbound: bool| {
            let mut packet = template.clone();
            group.bench_function(format!("{what}, {name}"), |b| {
                b.iter(|| {
                    packet[..HEADERS].copy_from_slice(&template[..HEADERS]);
                    let verdict = if outbound {
                        engine.outbound(black_box(&mut packet), checksum, NOW)
                    } else {
                        engine.inbound(peer, black_box(&mut packet), NOW)
                    };
                    assert_eq!(verdict, expected);
                });
            });
        };
        ways("outbound", tcp(from, to, ACK, 1, PAYLOAD), Checksum::Complete, outbound, true);
        ways("outbound super-packet", tcp(from, to, ACK, 1, PAYLOAD * SEGMENTS), Checksum::Partial, outbound, true);
        ways("inbound", tcp(far, image, ACK, 1, PAYLOAD), Checksum::Complete, Verdict::Deliver, false);
    }
    group.finish();
}

fn new_flows(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("engine/new flow");
    for (name, size, flows) in [
        ("outbound through a VIP, 1 rule", SMALL, MAX_FLOWS),
        ("outbound through a VIP, 10000 rules", LARGE, MAX_FLOWS),
        ("in a full table, 1 rule", SMALL, FEW),
    ] {
        let mut engine = engine(size, flows);
        let Call { from, to, .. } = call(size);
        let template = tcp(from, to, SYN, 0, 0);
        let mut packet = template.clone();
        let (mut port, mut now) = (1_u16, NOW.as_millis());
        group.bench_function(name, |b| {
            // A flow per millisecond: when a port comes again, after a minute, its old flow has expired.
            b.iter(|| {
                port = port.wrapping_add(1).max(1);
                packet.copy_from_slice(&template);
                packet[20..22].copy_from_slice(&port.to_be_bytes());
                now += 1;
                let now = Timestamp::from_millis(now);
                let verdict = engine.outbound(black_box(&mut packet), Checksum::Complete, now);
                assert!(matches!(verdict, Verdict::Forward(_)));
            });
        });
    }
    group.finish();
}

fn segments(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("segment");
    group.throughput(Throughput::Bytes((PAYLOAD * SEGMENTS) as u64));
    let Call { from, to, .. } = call(SMALL);
    let whole = tcp(from, to, ACK, 1, PAYLOAD * SEGMENTS);
    group.bench_function("split a super-packet", |b| {
        let split = |packet: &mut Vec<u8>| {
            let header = Header::parse(packet).expect("it is well formed");
            let gso = Gso::Tcp4 { ecn: false };
            let mut segments = Segments::new(packet, &header, gso, PAYLOAD as u16, Checksum::Partial).expect("it fits");
            let mut count = 0;
            while let Some(segment) = segments.next_segment() {
                black_box(segment);
                count += 1;
            }
            assert_eq!(count, SEGMENTS);
        };
        b.iter_batched_ref(|| whole.clone(), split, BatchSize::PerIteration);
    });
    let parts: Vec<Vec<u8>> = (0..SEGMENTS).map(|i| tcp(from, to, ACK, 1 + (i * PAYLOAD) as u32, PAYLOAD)).collect();
    group.bench_function("coalesce its segments", |b| {
        b.iter(|| {
            let mut run = None;
            for packet in black_box(&parts) {
                let header = Header::parse(packet).expect("it is well formed");
                match &mut run {
                    None => run = SegmentRun::start(packet, &header),
                    Some(run) => assert!(run.append(packet, &header)),
                }
            }
            let mut run = run.expect("it began");
            assert_eq!(run.segments(), SEGMENTS);
            black_box(run.finish().is_some())
        });
    });
    group.finish();
}

fn compile(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("view");
    group.sample_size(10);
    let map = Arc::new(netmap(LARGE));
    group.bench_function("compile 1000 peers, 1000 services, 10000 rules", |b| {
        b.iter(|| View::compile(VerifiedMap::by_hand(black_box(Arc::clone(&map)))));
    });
    group.finish();
}
