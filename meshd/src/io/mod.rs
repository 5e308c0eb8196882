//! The interface and the sockets.

pub(crate) mod cmsg;
pub mod counters;
pub mod offloads;
pub mod tun;
pub mod tun_outbox;
pub(crate) mod tun_steering_bpf;
pub mod udp;
pub mod udp_outbox;
