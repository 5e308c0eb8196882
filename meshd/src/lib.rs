//! The node of the mesh: the hands and feet of `mesh_proto`.
//!
//! `daemon` is the only file that sees everybody. The data path (`dataplane`) runs one thread per lane; a
//! `lane` composes engine and `tunnels` without a syscall, a `worker` moves its packets between `tun` and
//! `udp`. Everything else is control: it may be slow, and nothing in the data path waits for it.

// Layer 0: what everything stands on.
pub mod base;
// Layer 1: the machine, and what is exchanged with peers.
pub mod dns;
pub mod io;
pub mod linux;
pub mod psk;
// Layer 2: how a node is set, and its keys.
pub mod config;
pub mod keys;
// Layer 3: tunnels, the coordinator, and the host's own streams.
pub mod control;
pub mod proxy;
pub(crate) mod wireguard;
// Layer 4: the way of packets.
pub mod dataplane;
// Layer 5: what a member of a mesh does.
pub mod node;
// Layer 6: what is measured and asked.
pub mod api;
pub mod telemetry;
// Layer 7: the command line.
pub mod cli;
// Layer 8: where everything meets.
pub mod daemon;

#[cfg(feature = "virtual-time")]
#[path = "../../tests/outage/simulation.rs"]
pub mod outage;
