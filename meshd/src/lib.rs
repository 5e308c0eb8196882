//! The node of the mesh: the hands and feet of `mesh_proto`.
//!
//! The data path (`dataplane`) runs one thread per lane; a `lane` composes engine and `tunnels` without a
//! syscall, a `worker` moves its packets between `tun` and `udp`.

pub mod dataplane;
pub mod lane_keys;
pub mod stats;
