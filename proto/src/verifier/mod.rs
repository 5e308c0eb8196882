//! What a node checks of a map before it acts on it: nothing else reaches the data path.
//!
//! ```text
//!   snapshot, delta, cache ─▶ NetMap ─▶ Verifier::admit ─▶ VerifiedMap ─▶ View::compile ─▶ engine, tunnels, names
//!                                         └─ what is refused is left out, and told in sentences
//! ```
//! A peer is believed if its record is signed by the identity it always had, or by one that this one named
//! (`succession`), is no older than the last one, and says what the map says. A peer whose record is refused keeps its
//! last good one. A pod block must lie in its site's prefixes and nowhere else, a backend must be granted to its node
//! and have an address of that node. Once a map named a lock, a peer needs its signature too, whatever later maps say
//! (`lock`). Who was expelled is left out for good, and has no last record that stays.

mod revocations;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;

use crate::base::addr::{Flat, overlap, overlaps_forbidden};
use crate::base::block_map::BlockMap;
use crate::base::id::{IdentityKey, MeshName, NodeId, NodeName, ServiceKey};
use crate::model::netmap::{Backend, Grant, NetMap, Peer, Service};
use crate::trust::identity_rotation::{ancestors, leads};
use crate::trust::network_lock::{self, LockedMember, NetworkLock, Subject};
use crate::trust::signed_record::{Signature, SignedRecord, Verify};
use crate::wire::NodeFacts;

/// Peers that left the map and are remembered all the same, lest an older record of theirs comes back.
const MAX_GONE: usize = 16_384;
/// Endpoints that a peer may have and did not sign: where the coordinator sees it.
const MAX_OBSERVED: usize = 1;
/// Most sentences of one map; what is more is counted in the last one.
const MAX_SENTENCES: usize = 20;

/// A map of which every part was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedMap(Arc<NetMap>);

impl VerifiedMap {
    /// Takes a map as it is: for those made by hand, in tests and for a node that knows nobody yet.
    pub fn by_hand(map: impl Into<Arc<NetMap>>) -> Self {
        Self(map.into())
    }

    /// Returns the map.
    pub fn netmap(&self) -> &Arc<NetMap> {
        &self.0
    }

    /// Returns the map without all peers but some, and without the backends at the others.
    #[must_use]
    pub fn only(&self, left: &BTreeSet<NodeName>) -> Self {
        let mut map = NetMap::clone(&self.0);
        map.peers.retain(|name, _| left.contains(name));
        for service in map.services.values_mut() {
            service.backends.retain(|backend| backend.node == map.node.name || left.contains(&backend.node));
        }
        Self(Arc::new(map))
    }
}

impl std::ops::Deref for VerifiedMap {
    type Target = NetMap;
    fn deref(&self) -> &NetMap {
        &self.0
    }
}

/// Checks maps, and remembers what it has seen.
#[derive(Debug)]
pub struct Verifier {
    verify: Verify,
    known: BTreeMap<NodeId, Known>,
    refused: u64,
    /// The lock that this node holds to.
    lock: Option<IdentityKey>,
    /// Identities that never come back.
    expelled: Arc<BTreeSet<IdentityKey>>,
    /// The pod blocks that this node claims.
    pods: Vec<Ipv4Net>,
    /// What came of the last map: who has an address or a block keeps it from those who come later.
    last: Option<Arc<NetMap>>,
}

/// What is known of a peer.
#[derive(Debug, Default)]
struct Known {
    identity: Option<IdentityKey>,
    /// The newest good record, and its number.
    record: Option<SignedRecord>,
    sequence: u64,
    /// What the map said last, and under which name; none while the peer is in no map.
    said: Option<(NodeName, Peer)>,
    /// What the lock's signature was found good for.
    admitted: Option<(LockedMember, Signature)>,
    /// Why that is not believed; none if it is.
    doubt: Option<String>,
    /// The peer as it was good last, and under which name.
    good: Option<(NodeName, Peer)>,
}

/// What came of a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// What is left of it.
    pub map: VerifiedMap,
    /// What was refused, in sentences; at most 20.
    pub refused: Vec<String>,
}

impl Verifier {
    /// Knows nobody yet. Signatures are checked by `verify`.
    pub fn new(verify: Verify) -> Self {
        let expelled = Arc::default();
        Self { verify, known: BTreeMap::new(), refused: 0, lock: None, expelled, pods: Vec::new(), last: None }
    }

    /// Holds to a lock from the start: the one of former maps.
    pub fn held_to(self, lock: Option<IdentityKey>) -> Self {
        Self { lock, ..self }
    }

    /// Takes as the node's own blocks those that it claims itself; without this, none.
    pub fn claiming(self, pods: Vec<Ipv4Net>) -> Self {
        Self { pods, ..self }
    }

    /// Returns the key that has to have signed every peer, if there is one.
    pub fn held(&self) -> Option<IdentityKey> {
        self.lock
    }

    /// Returns how many records were refused since the start; one that is sent again and again counts once.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Leaves out who has one of these identities, from the next map on. Says whether that concerns the last one, which
    /// is then to be judged again.
    pub fn expel(&mut self, expelled: Arc<BTreeSet<IdentityKey>>) -> bool {
        self.expelled = expelled;
        for known in self.known.values_mut() {
            let said = known.said.as_ref().and_then(|(_, peer)| revocations::revoked(&self.expelled, peer));
            if said.is_some() || known.identity.is_some_and(|identity| self.expelled.contains(&identity)) {
                (known.said, known.good) = (None, None);
            }
        }
        self.last.as_ref().is_some_and(|last| last.peers.values().any(|peer| self.revoked(peer).is_some()))
    }

    /// Returns what came of the last map.
    pub fn last(&self) -> Option<Arc<NetMap>> {
        self.last.clone()
    }

    /// Returns what may be acted on of a map. Only what is new or changed costs a signature.
    pub fn admit(&mut self, map: Arc<NetMap>) -> Admitted {
        let mut refused = Vec::new();
        self.follow_lock(&map, &mut refused);
        let mut changes = BTreeMap::new();
        let mut addresses = BTreeSet::from([map.node.address]);
        let mut numbers = BTreeSet::from([map.node.id]);
        let last = self.last.take();
        for (name, peer) in by_seniority(&map, last.as_deref()) {
            // Or the one would have the other's name, and what that name may call.
            if !numbers.insert(peer.id) {
                refused.push(format!("node `{name}` is left out: its number is another's; look at the coordinator"));
                changes.insert(name.clone(), None);
                continue;
            }
            let own_address = map.mesh.range.nodes().contains(&peer.address.0) && addresses.insert(peer.address);
            let judged = self.judge(&map.mesh.name, name, peer);
            if !own_address {
                refused.push(format!(
                    "node `{name}` is left out: its address {} is no node's, or another's; look at the coordinator",
                    peer.address
                ));
                changes.insert(name.clone(), None);
            } else if let Err(why) = judged {
                let good = self.known.get(&peer.id).and_then(|known| known.good.clone());
                // Names are what rules mention: nobody gets another one by having been good.
                let good = good.filter(|(before, _)| before == name).map(|(_, good)| good);
                let good = good.filter(|good| good.address == peer.address || addresses.insert(good.address));
                let rest = match good {
                    Some(_) => "its last good record stays in force",
                    None => "it is left out",
                };
                refused.push(match self.revoked(peer) {
                    Some(identity) => format!(
                        "node `{name}` was revoked (its identity {identity}), and the coordinator shows it again; {rest}. Look who has the coordinator, and run mesh-coordinator revoke {name}; if that machine may come back, run `meshd leave` there and join anew"
                    ),
                    None => format!(
                        "the record of node `{name}` is refused: {why}; {rest}. Look at that node with `meshd status`, and at the coordinator"
                    ),
                });
                changes.insert(name.clone(), good);
            }
        }
        self.forget(&map);
        let mut changed = map;
        for (name, peer) in changes {
            let peers = &mut Arc::make_mut(&mut changed).peers;
            match peer {
                Some(peer) => peers.insert(name, peer),
                None => peers.remove(&name),
            };
        }
        // What is cached names the lock that is held to, for who reads it without the mark.
        if changed.mesh.lock.as_ref().and_then(|lock| lock.key) != self.lock {
            Arc::make_mut(&mut changed).mesh.lock =
                self.lock.map(|key| NetworkLock { key: Some(key), changes: Vec::new() });
        }
        drop_own_blocks(&mut changed, &self.pods, &mut refused);
        drop_blocks(&mut changed, last.as_deref(), &mut refused);
        drop_backends(&mut changed, &mut refused);
        if refused.len() > MAX_SENTENCES {
            let more = refused.len() - (MAX_SENTENCES - 1);
            refused.truncate(MAX_SENTENCES - 1);
            refused.push(format!("{more} more parts of the map are refused; see the coordinator's log"));
        }
        self.last = Some(Arc::clone(&changed));
        Admitted { map: VerifiedMap(changed), refused }
    }

    /// Takes up the lock that a map names, if this node may follow to it. All are judged anew by another one.
    fn follow_lock(&mut self, map: &NetMap, refused: &mut Vec<String>) {
        match network_lock::lock_after(self.lock, map.mesh.lock.as_ref(), &map.mesh.name, self.verify) {
            Ok(key) if key == self.lock => {}
            Ok(key) => {
                self.lock = key;
                for known in self.known.values_mut() {
                    (known.said, known.admitted) = (None, None);
                    // Nobody stays for having been good under no lock or another one.
                    known.good = known.good.take().filter(|_| key.is_none());
                }
            }
            Err(mismatch) => refused.push(mismatch.to_string()),
        }
    }

    /// Says whether a peer may be believed, and takes note of it.
    fn judge(&mut self, mesh: &MeshName, name: &NodeName, peer: &Peer) -> Result<(), String> {
        let known = self.known.get(&peer.id);
        if let Some(known) =
            known.filter(|known| known.said.as_ref().is_some_and(|said| (&said.0, &said.1) == (name, peer)))
        {
            return known.doubt.clone().map_or(Ok(()), Err);
        }
        let lock = self.lock.as_ref();
        let admitted = match self.revoked(peer) {
            Some(_) => Err("it was revoked".to_owned()),
            None => check_lock(mesh, name, peer, known, lock, self.verify),
        };
        match admitted.and_then(|admitted| Ok((admitted, check(peer, known, self.verify)?))) {
            Ok((admitted, sequence)) => {
                let known = Known {
                    identity: peer.proof.as_ref().map(|proof| proof.identity),
                    record: peer.proof.as_ref().map(|proof| proof.record.clone()),
                    sequence,
                    said: Some((name.clone(), peer.clone())),
                    admitted,
                    doubt: None,
                    good: Some((name.clone(), peer.clone())),
                };
                self.known.insert(peer.id, known);
                Ok(())
            }
            Err(why) => {
                self.refused += 1;
                let known = self.known.entry(peer.id).or_default();
                known.said = Some((name.clone(), peer.clone()));
                known.doubt = Some(why.clone());
                Err(why)
            }
        }
    }

    /// Keeps of peers that left the map only what is needed to know them again.
    fn forget(&mut self, map: &NetMap) {
        let here: BTreeSet<NodeId> = map.peers.values().map(|peer| peer.id).collect();
        let mut gone = 0;
        self.known.retain(|id, known| {
            if here.contains(id) {
                return true;
            }
            (known.said, known.good) = (None, None);
            gone += 1;
            gone <= MAX_GONE && known.identity.is_some()
        });
    }

    fn revoked(&self, peer: &Peer) -> Option<IdentityKey> {
        revocations::revoked(&self.expelled, peer)
    }
}

/// Returns what the lock's signature admits of a peer; nothing where there is no lock.
fn check_lock(
    mesh: &MeshName,
    name: &NodeName,
    peer: &Peer,
    known: Option<&Known>,
    lock: Option<&IdentityKey>,
    verify: Verify,
) -> Result<Option<(LockedMember, Signature)>, String> {
    let Some(lock) = lock else { return Ok(None) };
    let what =
        |what: &str| format!("{what}; if you admitted it, run `meshd lock sign {name}` where the lock's key lies");
    let signature = peer.countersigned.ok_or_else(|| what("the lock's signature is missing"))?;
    let member = peer.member(name).ok_or_else(|| what("it has no key"))?;
    let admitted = Some((member, signature));
    if known.is_some_and(|known| known.admitted == admitted) {
        return Ok(admitted);
    }
    // What was signed for a former key holds for the keys that it named.
    let is_good = admitted.as_ref().is_some_and(|(member, signature)| {
        let former = peer.proof.iter().flat_map(|proof| ancestors(&proof.lineage, peer.id, proof.identity, verify));
        let former = former.map(|key| LockedMember { subject: Subject::Identity(key), ..member.clone() });
        std::iter::once(member.clone()).chain(former).any(|member| member.is_by(mesh, lock, signature, verify))
    });
    if is_good { Ok(admitted) } else { Err(what("its countersignature is not the lock's")) }
}

/// Returns the number of a peer's record if all is as it should be.
fn check(peer: &Peer, known: Option<&Known>, verify: Verify) -> Result<u64, String> {
    let before = known.and_then(|known| known.identity);
    let Some(proof) = &peer.proof else {
        return match before {
            Some(_) => Err("its signature is missing".into()),
            None if is_plain(peer) => Ok(0),
            None => Err("it is not signed; upgrade its meshd".into()),
        };
    };
    if before.is_some_and(|before| !leads(&proof.lineage, peer.id, &before, &proof.identity, verify)) {
        return Err("it has another identity key than before, which the former one did not name; if it changed its identity more than 16 times while this node was away, run `meshd leave` here and join again".into());
    }
    let newest = known.and_then(|known| known.record.as_ref());
    if newest != Some(&proof.record) && !proof.record.is_by(&proof.identity, verify) {
        return Err("its signature is not that of its identity key".into());
    }
    let facts = NodeFacts::of(&proof.record).ok_or("it cannot be read; do both run matching versions?")?;
    if let Some(known) = known.filter(|known| known.record.is_some()) {
        if facts.sequence < known.sequence {
            return Err(format!("it went back from number {} to {}", known.sequence, facts.sequence));
        }
        if facts.sequence == known.sequence && newest != Some(&proof.record) {
            return Err(format!("there are two of number {}", facts.sequence));
        }
    }
    agrees(peer, &proof.pods, &facts).map(|()| facts.sequence)
}

/// Says whether a peer is what a static node can be, which signs nothing.
fn is_plain(peer: &Peer) -> bool {
    peer.lanes.len() == 1 && peer.blocks.is_empty() && peer.previous.is_empty() && peer.agreement.is_empty()
}

/// Says whether the map repeats what the node signed.
fn agrees(peer: &Peer, pods: &[Ipv4Net], facts: &NodeFacts) -> Result<(), String> {
    let differs = |what: &str| Err(format!("its {what} are not what it signed"));
    if peer.lanes != facts.lanes || peer.previous != facts.previous || peer.agreement != facts.agreement {
        return differs("tunnel keys");
    }
    if peer.mtu != facts.mtu || peer.guarded != facts.guarded {
        return differs("properties");
    }
    let signed = |endpoint: &&std::net::SocketAddr| {
        facts.endpoints.iter().any(|own| own.port() == endpoint.port() && own.ip().to_canonical() == endpoint.ip())
    };
    if peer.endpoints.len() - peer.endpoints.iter().filter(signed).count() > MAX_OBSERVED {
        return differs("endpoints");
    }
    let images = peer.blocks.len() == pods.len()
        && peer.blocks.iter().zip(pods).all(|(flat, real)| flat.prefix_len() == real.prefix_len());
    if !images || !pods.iter().all(|pod| facts.pods.contains(pod)) {
        return differs("pod blocks");
    }
    Ok(())
}

/// Takes out blocks of this node that it did not claim: no coordinator makes it a router to where it says.
fn drop_own_blocks(map: &mut Arc<NetMap>, claims: &[Ipv4Net], refused: &mut Vec<String>) {
    let range = map.mesh.range.net();
    let good = |block: &BlockMap| {
        claims.contains(&block.real)
            && block.real.prefix_len() == block.flat.prefix_len()
            && !overlaps_forbidden(block.real)
            && !overlap(block.real, range)
    };
    for block in map.node.blocks.iter().filter(|block| !good(block)) {
        refused.push(format!(
            "the pod block {} is refused: this node does not claim it; if it should, write it as `pods` in meshd.toml and restart meshd",
            block.real
        ));
    }
    if !map.node.blocks.iter().all(good) {
        Arc::make_mut(map).node.blocks.retain(good);
    }
}

/// Returns the peers, those first that have what they had in the last map.
fn by_seniority<'a>(map: &'a NetMap, last: Option<&NetMap>) -> impl Iterator<Item = (&'a NodeName, &'a Peer)> {
    let had = |name: &NodeName, peer: &Peer| {
        let before = last.and_then(|last| last.peers.get(name));
        before.is_some_and(|b| (b.id, b.address, &b.blocks) == (peer.id, peer.address, &peer.blocks))
    };
    let (old, new): (Vec<_>, Vec<_>) = map.peers.iter().partition(|(name, peer)| had(name, peer));
    old.into_iter().chain(new)
}

/// Takes out pod blocks that nobody may have, and those that somebody else has.
fn drop_blocks(map: &mut Arc<NetMap>, last: Option<&NetMap>, refused: &mut Vec<String>) {
    let mut taken: BTreeMap<Ipv4Addr, Ipv4Net> = BTreeMap::new();
    taken.extend(map.node.blocks.iter().map(|block| (block.flat.network(), block.flat)));
    let mut drops: BTreeMap<NodeName, Vec<usize>> = BTreeMap::new();
    for (name, peer) in by_seniority(map, last) {
        let pods = peer.proof.as_ref().map_or(&[][..], |proof| &proof.pods);
        let within = map.sites.get(&peer.site).map_or(&[][..], Vec::as_slice);
        for (place, (&flat, &real)) in peer.blocks.iter().zip(pods).enumerate() {
            let range = map.mesh.range;
            let why = if overlaps_forbidden(real) || overlap(real, range.net()) {
                Some("nobody may claim it".to_owned())
            } else if !within.iter().any(|prefix| prefix.contains(&real)) {
                Some(format!("it lies outside the `pods` of site `{}`", peer.site))
            } else if !range.net().contains(&flat) || flat.network() < range.first_block_address() {
                Some(format!("its image {flat} is no block of the mesh"))
            } else if shares(&taken, flat) {
                Some(format!("its image {flat} belongs to another node"))
            } else {
                taken.insert(flat.network(), flat);
                None
            };
            if let Some(why) = why {
                refused.push(format!(
                    "the pod block {real} of node `{name}` is refused: {why}; correct `pods` in that node's meshd.toml or in services.toml"
                ));
                drops.entry(name.clone()).or_default().push(place);
            }
        }
    }
    for (name, places) in drops {
        let Some(peer) = Arc::make_mut(map).peers.get_mut(&name) else { continue };
        // Both, so that the map still says what the node signed when it is read back from the cache.
        let kept = |list: &mut Vec<Ipv4Net>| {
            let mut place = 0..;
            list.retain(|_| place.next().is_none_or(|place| !places.contains(&place)));
        };
        kept(&mut peer.blocks);
        if let Some(proof) = &mut peer.proof {
            kept(&mut proof.pods);
        }
    }
}

/// Says whether a prefix shares an address with one of several that share none.
fn shares(taken: &BTreeMap<Ipv4Addr, Ipv4Net>, net: Ipv4Net) -> bool {
    let before = taken.range(..=net.network()).next_back();
    let after = taken.range(net.network()..).next();
    before.into_iter().chain(after).any(|(_, &other)| overlap(other, net))
}

/// Takes out backends that their nodes were not granted, or whose addresses are others'.
fn drop_backends(map: &mut Arc<NetMap>, refused: &mut Vec<String>) {
    let mut drops: BTreeMap<ServiceKey, Vec<usize>> = BTreeMap::new();
    for (key, service) in &map.services {
        for (place, backend) in service.backends.iter().enumerate() {
            if let Err(why) = carries(map, key, service, backend) {
                let (node, address) = (&backend.node, backend.address);
                refused.push(format!("the backend {address} of `{key}` at node `{node}` is refused: {why}"));
                drops.entry(key.clone()).or_default().push(place);
            }
        }
    }
    for (key, places) in drops {
        let Some(service) = Arc::make_mut(map).services.get_mut(&key) else { continue };
        let mut place = 0..;
        service.backends.retain(|_| place.next().is_none_or(|place| !places.contains(&place)));
    }
}

/// Says whether a backend's node may carry it, and has its address.
fn carries(map: &NetMap, key: &ServiceKey, service: &Service, backend: &Backend) -> Result<(), String> {
    let own = backend.node == map.node.name;
    let peer = map.peers.get(&backend.node).filter(|_| !own);
    let has = |address: Flat| match peer {
        Some(peer) => address == peer.address || peer.blocks.iter().any(|block| block.contains(&address.0)),
        None => own && (address == map.node.address || map.node.blocks.iter().any(|b| b.flat.contains(&address.0))),
    };
    if !has(backend.address) {
        return Err("the address is not one of that node".into());
    }
    let offers = || {
        let record = peer.and_then(|peer| peer.proof.as_ref()).and_then(|proof| NodeFacts::of(&proof.record));
        own || record.is_some_and(|facts| facts.serve.iter().any(|offer| offer.service == *key))
    };
    match service.grants.get(&backend.node) {
        Some(Grant::File) => Ok(()),
        Some(Grant::Token) if offers() => Ok(()),
        Some(Grant::Token) => Err("the node signed no offer to serve it".into()),
        None => Err(format!(
            "neither its token nor the file grants it; name the node in a backend of `{key}`, or join it with a token made with --serve {key}"
        )),
    }
}

#[cfg(test)]
mod tests;
