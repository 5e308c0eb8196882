//! What sealing and opening cost, without a network: `cargo bench --package meshd`.
//!
//! `Tunn` is called as `tunnels` calls it, from a buffer into another; the figures are those of the unmodified library
//! and of the copy that its interface asks for. Beside them stands the bare cipher in place, of another library: what
//! remains between the two is what a change of the protocol's library could win.

use std::hint::black_box;

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use boringtun::noise::{Tunn, TunnResult};
use criterion::{BatchSize, Criterion, Throughput};
use x25519_dalek::{PublicKey, StaticSecret};

/// A full packet, and how many of them a full super-packet is.
const PACKET: usize = 1420;
const SEGMENTS: usize = 47;
const ROOM: usize = PACKET + 148;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let packet = packet();
    let mut group = criterion.benchmark_group("tunnel");
    for (name, count) in [("1420 bytes", 1), ("a super-packet of 47", SEGMENTS)] {
        let (mut a, mut b) = pair();
        let mut out = vec![0; ROOM * count];
        group.throughput(Throughput::Bytes((PACKET * count) as u64));
        group.bench_function(format!("seal {name}"), |bench| {
            bench.iter(|| {
                for out in out.chunks_mut(ROOM) {
                    let result = a.encapsulate(black_box(&packet), out);
                    assert!(matches!(result, TunnResult::WriteToNetwork(_)));
                }
            });
        });
        let mut seal = || -> Vec<Vec<u8>> { (0..count).map(|_| sealed(&mut a, &packet)).collect() };
        group.bench_function(format!("open {name}"), |bench| {
            let open = |datagrams: &mut Vec<Vec<u8>>| {
                for (datagram, out) in datagrams.iter().zip(out.chunks_mut(ROOM)) {
                    let result = b.decapsulate(None, black_box(datagram), out);
                    assert!(matches!(result, TunnResult::WriteToTunnelV4(..)));
                }
            };
            bench.iter_batched_ref(&mut seal, open, BatchSize::PerIteration);
        });
    }
    let key = UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).expect("32 bytes are a key");
    let (key, mut bytes) = (LessSafeKey::new(key), packet.clone());
    group.throughput(Throughput::Bytes(PACKET as u64));
    group.bench_function("bare cipher, 1420 bytes in place", |bench| {
        bench.iter(|| {
            let nonce = Nonce::assume_unique_for_key([0; 12]);
            key.seal_in_place_separate_tag(nonce, Aad::empty(), black_box(&mut bytes)).expect("it is short enough")
        });
    });
    group.finish();
    criterion.final_summary();
}

/// An IPv4 packet of full size; a tunnel looks at its length and addresses only.
fn packet() -> Vec<u8> {
    let mut packet = vec![0x5a; PACKET];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(PACKET as u16).to_be_bytes());
    packet
}

/// Two tunnels that have shaken hands.
fn pair() -> (Tunn, Tunn) {
    let secrets = [[1; 32], [2; 32]].map(StaticSecret::from);
    let [a, b] = [(0, 1), (1, 0)].map(|(own, other)| {
        Tunn::new(secrets[own].clone(), PublicKey::from(&secrets[other]), None, None, own as u32, None)
    });
    let (mut a, mut b) = (a, b);
    let mut initiation = [0; ROOM];
    let initiation = written(a.format_handshake_initiation(&mut initiation, false));
    let mut response = [0; ROOM];
    let response = written(b.decapsulate(None, &initiation, &mut response));
    let mut keepalive = [0; ROOM];
    let keepalive = written(a.decapsulate(None, &response, &mut keepalive));
    b.decapsulate(None, &keepalive, &mut [0; ROOM]);
    (a, b)
}

fn sealed(tunnel: &mut Tunn, packet: &[u8]) -> Vec<u8> {
    let mut out = [0; ROOM];
    written(tunnel.encapsulate(packet, &mut out))
}

fn written(result: TunnResult<'_>) -> Vec<u8> {
    match result {
        TunnResult::WriteToNetwork(datagram) => datagram.to_vec(),
        TunnResult::Done | TunnResult::Err(_) | TunnResult::WriteToTunnelV4(..) | TunnResult::WriteToTunnelV6(..) => {
            panic!("the tunnel wrote nothing")
        }
    }
}
