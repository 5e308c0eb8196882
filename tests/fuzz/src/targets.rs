//! What is fuzzed: every parser that a stranger or a damaged disk can reach, and the laws that hold for it.
//!
//! A target takes bytes. That nothing panics or loops is what the fuzzer watches; what else holds is asserted here. Where a
//! sum or a signature would keep the fuzzer out, a target takes the bytes twice: as they are, and as what was signed.

#[path = "agreement.rs"]
mod agreement;
#[path = "laws.rs"]
mod laws;
#[path = "log.rs"]
mod log;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use mesh_proto::base::checksummed_text;
use mesh_proto::base::clock::{Timestamp, UnixTime};
use mesh_proto::base::id::{IdentityKey, MeshName};
use mesh_proto::dataplane::engine::Engine;
use mesh_proto::dataplane::flow::FlowTable;
use mesh_proto::dataplane::verdict::Verdict;
use mesh_proto::dataplane::view::View;
use mesh_proto::model::netmap::{Delta, NetMap};
use mesh_proto::ops::status::Failure;
use mesh_proto::packet::Checksum;
use mesh_proto::services;
use mesh_proto::trust::high_water_mark::Mark;
use mesh_proto::trust::join_token::{JoinToken, TokenSecret};
use mesh_proto::trust::jwt::{Algorithm, Expected, Jwks, Jwt, LEEWAY, NodeClaim};
use mesh_proto::trust::signed_record::{Signature, SignedRecord};
use mesh_proto::verifier::{Admitted, Verifier};
use mesh_proto::wire::{
    About, ErrorBody, JoinRequest, JoinResponse, NodeFacts, Renewal, Report, ReportResponse, WatchEvent,
};

use laws::{again, sum};

/// A function that takes whatever comes.
pub(crate) type Target = fn(&[u8]);

/// All targets by name; the corpus of each is the directory of that name.
pub(crate) const TARGETS: [(&str, Target); 8] = [
    ("control", control),
    ("records", records),
    ("tokens", tokens),
    ("jwt", jwt),
    ("services", services_toml),
    ("cache", cache),
    ("log", log::log),
    ("agreement", agreement::agreement),
];

const NOW: Timestamp = Timestamp::from_millis(5_000_000);

/// Control messages, of both directions: what is read is what is written, and a change leads where it says.
fn control(data: &[u8]) {
    again::<JoinRequest>(data);
    again::<JoinResponse>(data);
    again::<Report>(data);
    again::<Renewal>(data);
    again::<ReportResponse>(data);
    again::<About>(data);
    again::<ErrorBody>(data);
    again::<Failure>(data);
    let Some(event) = again::<WatchEvent>(data) else { return };
    let (before, after) = match event {
        WatchEvent::Snapshot { netmap } => (NetMap { revision: Default::default(), ..first_map() }, *netmap),
        WatchEvent::Delta { delta } => {
            let before = NetMap { revision: delta.from, ..first_map() };
            let after = delta.apply(&before).expect("it begins where the map is");
            (before, after)
        }
        WatchEvent::Alive { .. } | WatchEvent::Fenced | WatchEvent::Leaving | WatchEvent::Unknown => return,
    };
    assert_eq!(Delta::between(&before, &after).apply(&before), Ok(after.clone()), "a delta leads where it says");
    admit(after);
}

/// Signed records: only what the right key signed, and nothing that goes back, is believed.
fn records(data: &[u8]) {
    again::<SignedRecord>(data);
    let Some((&flag, rest)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    let (own, other) = (IdentityKey([2; 32]), IdentityKey([66; 32]));
    let record = SignedRecord { text: text.into(), signature: sign(&own, &SignedRecord::message(text)) };
    assert!(!record.is_by(&other, verify), "another key signed it");
    let Some(facts) = NodeFacts::of(&record) else { return };
    let (read, signed) = (facts.text(), facts.signed.clone());
    assert_eq!(signed, Some(record.clone()));
    let anew = SignedRecord { text: read.as_str().into(), signature: sign(&own, &SignedRecord::message(&read)) };
    let again = NodeFacts::of(&anew).expect("what is written can be read");
    assert_eq!(NodeFacts { signed: None, ..again }, NodeFacts { signed: None, ..facts.clone() });

    // As the record of a peer: good as it is, not by another key, not with another text, not after a newer one.
    let mut map = first_map();
    let Some(peer) = map.peers.values_mut().next() else { return };
    let Some(proof) = &mut peer.proof else { return };
    proof.record = record;
    proof.pods = if flag & 1 == 0 { facts.pods.clone() } else { Vec::new() };
    peer.blocks = proof.pods.iter().filter_map(|pod| image(*pod)).collect();
    peer.lanes.clone_from(&facts.lanes);
    peer.endpoints.clone_from(&facts.endpoints);
    peer.previous.clone_from(&facts.previous);
    (peer.mtu, peer.guarded) = (facts.mtu, facts.guarded);
    let name = map.peers.keys().next().cloned().expect("it has one");
    let good = admit(map.clone());
    let mut verifier = judge();
    verifier.admit(Arc::new(map.clone()));
    let believed = good.map.peers.contains_key(&name);
    for forgery in 0..3 {
        let mut forged = map.clone();
        let proof = forged.peers.get_mut(&name).and_then(|peer| peer.proof.as_mut()).expect("as above");
        match forgery {
            0 => proof.identity = other,
            1 => proof.record.text = format!("{} ", proof.record.text).into(),
            _ => {
                let older = NodeFacts { sequence: facts.sequence.saturating_sub(1), ..facts.clone() }.text();
                proof.record.signature = sign(&own, &SignedRecord::message(&older));
                proof.record.text = older.into();
            }
        }
        if proof.record == map.peers[&name].proof.as_ref().expect("as above").record && proof.identity == own {
            continue;
        }
        let admitted = verifier.admit(Arc::new(forged));
        if believed {
            assert_eq!(admitted.map.peers.get(&name), good.map.peers.get(&name), "forgery {forgery} is believed");
        }
    }
}

/// Join tokens: what is read is what is printed, whatever the bytes.
fn tokens(data: &[u8]) {
    let read = |text: &str| {
        let token: Result<JoinToken, _> = text.parse();
        if let Ok(token) = token {
            assert_eq!(token.to_line().parse(), Ok(token), "a token reads what it prints");
        }
    };
    read(&String::from_utf8_lossy(data));
    // The sum would keep everything out.
    let sum = !data.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    });
    read(&format!("mesh1_{}", BASE64URL_NOPAD.encode(&[data, &sum.to_be_bytes()].concat())));
    // And a token made of the bytes.
    let mut words = data.split(|&byte| byte == 0);
    let coordinators: Vec<String> =
        words.by_ref().take(8).map(|word| String::from_utf8_lossy(word).chars().take(60).collect()).collect();
    let mut pin = [0; 32];
    pin.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
    let token =
        JoinToken { coordinators, pins: vec![IdentityKey(pin)], id: [data.len() as u8; 8], secret: TokenSecret(pin) };
    if !data.is_empty() && token.to_line().len() <= 4096 {
        assert_eq!(token.to_line().parse(), Ok(token), "what is made is read");
    }
}

/// Issuers' tokens and keys: a token that passes is for us, of its time, and by the key whose algorithm it states.
fn jwt(data: &[u8]) {
    let mut parts = data.splitn(3, |&byte| byte == b'\n');
    let (header, claims, keys) =
        (parts.next().unwrap_or_default(), parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let keys = [Jwks::parse(keys), Jwks::parse(data)];
    let part = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
    let encoded = format!("{}.{}.{}", part(header), part(claims), part(b"signature"));
    for text in [encoded.as_str(), &String::from_utf8_lossy(data)] {
        let Ok(jwt) = Jwt::parse(text) else { continue };
        assert!(text.as_bytes().starts_with(jwt.signed) && text.as_bytes()[jwt.signed.len()] == b'.');
        for keys in keys.iter().flatten() {
            assert!(!keys.is_empty() && keys.len() <= mesh_proto::trust::jwt::MAX_KEYS);
            if let Some(key) = keys.key(&jwt) {
                assert_eq!(key.algorithm(), jwt.algorithm, "the key decides the algorithm");
            }
        }
        for node in [NodeClaim::Subject, NodeClaim::Kubernetes, NodeClaim::Path(vec!["a".into(), "b".into()])] {
            let expected = Expected {
                issuer: "https://issuer.example".into(),
                audience: "mesh".into(),
                subjects: vec!["system:serviceaccount:*:meshd".into(), "*a*b*".into()],
                node,
                algorithms: vec![Algorithm::Es256, Algorithm::EdDsa],
                max_lifetime: Duration::from_secs(3600),
            };
            let now = UnixTime(1_000_000);
            let Ok(said) = expected.check(&jwt, now) else { continue };
            assert_eq!(jwt.issuer(), Ok("https://issuer.example"));
            assert!(jwt.algorithm != Algorithm::Rs256, "an algorithm that is not taken");
            assert!(said.over > now && said.over.since(now) <= expected.max_lifetime + 2 * LEEWAY);
            assert!(!said.node.is_empty() && !said.subject.is_empty());
        }
    }
}

/// services.toml, of the coordinator and of a node: taken the same way twice, or refused with places that exist.
fn services_toml(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let fine = |list: &[services::Diagnostic]| {
        list.iter().for_each(|one| assert!(one.span.start <= one.span.end && one.span.end <= text.len(), "{one:?}"));
    };
    match services::parse(&text, "services.toml") {
        Ok(parsed) => {
            fine(&parsed.warnings);
            assert_eq!(services::parse(&text, "services.toml").as_ref(), Ok(&parsed));
            assert!(services::evaluate(&parsed.services).is_empty(), "its own tests pass");
        }
        Err(refused) => {
            assert!(refused.summary().contains("error"));
            // Drawing takes most of the time.
            if data.len().is_multiple_of(4) {
                assert!(!refused.render(true).is_empty() && !refused.lines().is_empty());
                refused.to_json();
            }
        }
    }
    match services::parse_node(&text, "services.toml") {
        Ok((_, warnings)) => fine(&warnings),
        Err(refused) => assert!(refused.summary().contains("error")),
    }
}

/// The cached map and the files beside it: nothing passes without its sum, and nobody speaks for another with it.
fn cache(data: &[u8]) {
    assert_eq!(checksummed_text::unseal(&checksummed_text::seal(data, sum), sum), Some(data));
    if let Some(body) = checksummed_text::unseal(data, sum) {
        assert_eq!(checksummed_text::seal(body, sum), data, "there is one way to seal it");
    }
    again::<Mark>(data);
    if let Ok(map) = serde_json::from_slice::<NetMap>(data) {
        admit(resigned(map.clone()));
        admit(map);
    }
}

/// Checks a map, and puts what is left of it in force for a few packets.
fn admit(map: NetMap) -> Admitted {
    let map = Arc::new(map);
    let mut verifier = judge();
    let first = verifier.admit(Arc::clone(&map));
    assert_eq!(verifier.admit(map), first, "the same map is judged the same");
    let read = judge().admit(Arc::clone(first.map.netmap()));
    assert_eq!(read.map, first.map, "what was admitted may be cached and read back: {:?}", read.refused);
    let ids: BTreeSet<_> = first.map.peers.values().map(|peer| peer.id).collect();
    assert_eq!(ids.len(), first.map.peers.len(), "two peers of one number");

    let view = Arc::new(View::compile(first.map.clone()));
    let mut engine = Engine::new(view, Arc::new(FlowTable::new(64)));
    let own = first.map.node.address.0;
    let addresses: Vec<_> = first.map.peers.values().take(4).map(|peer| (peer.id, peer.address.0)).collect();
    let services: Vec<Ipv4Addr> = first.map.services.values().take(4).map(|service| service.vip.0).collect();
    for &(from, address) in &addresses {
        for &(_, spoofed) in addresses.iter().filter(|&&(_, other)| other != address) {
            let verdict = engine.inbound(from, &mut packet(spoofed, own), NOW);
            assert!(!matches!(verdict, Verdict::Deliver), "a peer speaks for another");
        }
        engine.inbound(from, &mut packet(address, own), NOW);
        engine.outbound(&mut packet(own, address), Checksum::Complete, NOW);
    }
    for vip in services {
        engine.outbound(&mut packet(own, vip), Checksum::Complete, NOW);
        for &(from, _) in &addresses {
            let verdict = engine.inbound(from, &mut packet(vip, own), NOW);
            assert!(!matches!(verdict, Verdict::Deliver), "a peer speaks for a service");
        }
    }
    first
}

/// A datagram with a right header.
fn packet(from: Ipv4Addr, to: Ipv4Addr) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..12].copy_from_slice(&[0x45, 0, 0, 32, 0, 1, 0, 0, 64, 17, 0, 0]);
    bytes[12..16].copy_from_slice(&from.octets());
    bytes[16..20].copy_from_slice(&to.octets());
    let mut sum = bytes[..20].chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    bytes[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    bytes[20..28].copy_from_slice(&[0x9c, 0x40, 0, 80, 0, 12, 0, 0]);
    bytes
}

/// The block of the mesh that a pod block is translated to.
fn image(pod: ipnet::Ipv4Net) -> Option<ipnet::Ipv4Net> {
    let at = u32::from(Ipv4Addr::new(241, 2, 0, 0)) | (u32::from(pod.network()) & 0x000f_ffff);
    ipnet::Ipv4Net::new(Ipv4Addr::from(at), pod.prefix_len()).ok().map(|net| net.trunc())
}

/// Knows nobody yet, and claims the blocks of the first map's node.
fn judge() -> Verifier {
    Verifier::new(verify).claiming(first_map().node.blocks.iter().map(|block| block.real).collect())
}

/// Signs every record of a map by the identity that it names.
fn resigned(mut map: NetMap) -> NetMap {
    for proof in map.peers.values_mut().filter_map(|peer| peer.proof.as_mut()) {
        proof.record.signature = sign(&proof.identity, &SignedRecord::message(&proof.record.text));
    }
    map
}

/// A stand-in for Ed25519 that only whoever has the key can make here.
fn sign(key: &IdentityKey, message: &[u8]) -> Signature {
    let sum = sum(message);
    let mut bytes = [0; 64];
    bytes[..32].copy_from_slice(&key.0);
    bytes[32..].copy_from_slice(&sum);
    Signature(bytes)
}

fn verify(key: &IdentityKey, message: &[u8], signature: &Signature) -> bool {
    sign(key, message) == *signature
}

/// A small map in which everything is proven.
fn first_map() -> NetMap {
    static FIRST: std::sync::OnceLock<NetMap> = std::sync::OnceLock::new();
    let read = || {
        let map: NetMap = serde_json::from_slice(include_bytes!("../first.json")).expect("it is a map");
        let name: &MeshName = &map.mesh.name;
        assert_eq!(name.as_str(), "boutique");
        resigned(map)
    };
    FIRST.get_or_init(read).clone()
}
