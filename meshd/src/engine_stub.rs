//! Stands in for the engine of `mesh_proto` until that is there: forwards by node address, delivers the rest.
#![expect(missing_docs, reason = "a stand-in")]

use std::net::Ipv4Addr;
use std::sync::Arc;

use mesh_proto::clock::Timestamp;
use mesh_proto::id::{NodeId, NodeName};
use mesh_proto::netmap::{NetMap, Peer};
use mesh_proto::packet::Checksum;
use mesh_proto::verdict::{Drop, Verdict};

#[derive(Debug)]
pub struct View(Arc<NetMap>);

impl View {
    pub fn compile(netmap: Arc<NetMap>) -> Self {
        Self(netmap)
    }
    pub fn netmap(&self) -> &Arc<NetMap> {
        &self.0
    }
    pub fn peer_name(&self, id: NodeId) -> Option<&NodeName> {
        self.0
            .peers
            .iter()
            .find(|(_, p)| p.id == id)
            .map(|(n, _)| n)
    }
    pub fn peer(&self, id: NodeId) -> Option<&Peer> {
        self.0.peers.values().find(|p| p.id == id)
    }
}

#[derive(Debug)]
pub struct FlowTable(usize);

impl FlowTable {
    pub const ENTRY_BYTES: usize = 128;
    pub fn new(slots: usize) -> Self {
        Self(slots)
    }
    pub fn restore(&self, _slot: usize, _bytes: &[u8], _now: Timestamp) -> bool {
        false
    }
    pub fn slots(&self) -> usize {
        self.0
    }
}

#[derive(Debug)]
pub struct Engine {
    view: Arc<View>,
}

impl Engine {
    pub fn new(view: Arc<View>, _flows: Arc<FlowTable>) -> Self {
        Self { view }
    }
    pub fn set_view(&mut self, view: Arc<View>) {
        self.view = view;
    }
    pub fn set_locals(&mut self, _locals: Arc<[Ipv4Addr]>) {}
    pub fn outbound(&mut self, packet: &mut [u8], _: Checksum, _: Timestamp) -> Verdict {
        let Some(to) = packet.get(16..20) else {
            return Verdict::Drop(Drop::Malformed);
        };
        let to = Ipv4Addr::new(to[0], to[1], to[2], to[3]);
        let peers = self.view.0.peers.values();
        let peer = peers.into_iter().find(|p| p.address.0 == to);
        peer.map_or(Verdict::Drop(Drop::NotHere), |p| Verdict::Forward(p.id))
    }
    pub fn inbound(&mut self, _: NodeId, packet: &mut [u8], _: Timestamp) -> Verdict {
        if packet.len() < 20 {
            return Verdict::Drop(Drop::Malformed);
        }
        Verdict::Deliver
    }
    pub fn reply(&self) -> &[u8] {
        &[]
    }
    pub fn probe(&mut self, _: NodeId, _: Timestamp) -> bool {
        false
    }
    pub fn drain_dirty(&mut self, _: impl FnMut(usize, &[u8])) {}
}
