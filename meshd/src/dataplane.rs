//! The data path as the daemon sees it: start it, give it views, ask it what it did, stop it.
//!
//! ```text
//!            DataPlane ── mailbox + eventfd ──▶ worker 0   TUN queue 0, sockets P, tunnels of lane 0, engine
//!   daemon ─▶    │                         └──▶ worker 1   TUN queue 1, sockets P+1, tunnels of lane 1, engine
//!                ◀──── counters, peer cells (atomics) ──── …
//! ```

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use mesh_proto::id::NodeName;

pub use crate::lane_keys::LaneKeys;
pub use crate::stats::{LaneStats, PeerStats, Stats};
use mesh_proto::flow::FlowTable;
use mesh_proto::view::View;

/// What the data path needs to start.
#[derive(Debug)]
pub struct Setup {
    /// The name of the TUN interface.
    pub interface: String,
    /// How many lanes to run; 1 to `MAX_LANES`.
    pub lanes: usize,
    /// The UDP port of lane 0; lane i listens on the i-th port after it.
    pub port: u16,
    /// The firewall mark of outer datagrams; 0 sets none.
    pub mark: u32,
    /// The MTU of the TUN interface, in bytes.
    pub mtu: u16,
    /// The keys of the lanes.
    pub keys: LaneKeys,
    /// Where flows outlive this process.
    pub flow_file: Option<PathBuf>,
    /// The NetMap, compiled.
    pub view: Arc<View>,
    /// The host's own underlay addresses.
    pub locals: Arc<[Ipv4Addr]>,
    /// Peers to hold a handshake with at once.
    pub active: Vec<Activity>,
}

/// A peer that was active in the last ten minutes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Activity {
    /// Its name.
    pub peer: NodeName,
    /// The endpoint at which its lane 0 last answered.
    pub endpoint: SocketAddr,
}

/// Why the data path cannot start.
#[derive(Debug, thiserror::Error)]
pub enum DataPlaneError {
    /// The ports of the lanes do not fit below 65536.
    #[error("{lanes} lanes from UDP port {port} on need ports above 65535; choose a lower `port`")]
    Ports {
        /// The port of lane 0.
        port: u16,
        /// The number of lanes.
        lanes: usize,
    },
}

/// A running data path.
#[derive(Debug)]
pub struct DataPlane {
    flows: Arc<FlowTable>,
}

impl DataPlane {
    /// Opens the TUN queues and sockets and starts one thread per lane.
    ///
    /// # Errors
    /// Says which device, port or file cannot be had, and what to do.
    pub fn start(setup: Setup) -> Result<Self, DataPlaneError> {
        let _ = setup;
        Ok(Self { flows: Arc::new(FlowTable::new(1 << 16)) })
    }

    /// Gives all lanes a new view; they take it before their next packet.
    pub fn set_view(&self, view: Arc<View>) {
        let _ = view;
    }

    /// Gives all lanes the host's own underlay addresses.
    pub fn set_locals(&self, locals: Arc<[Ipv4Addr]>) {
        let _ = locals;
    }

    /// Returns what the data path did so far.
    pub fn stats(&self) -> Stats {
        Stats::default()
    }

    /// Returns the peers that sent or received a packet in the last ten minutes, with their endpoints.
    pub fn activity(&self) -> Vec<Activity> {
        Vec::new()
    }

    /// Returns the flow table that all lanes share.
    pub fn flows(&self) -> &Arc<FlowTable> {
        &self.flows
    }

    /// Stops the lanes and closes devices and sockets.
    pub fn stop(self) {}
}
