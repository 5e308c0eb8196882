//! The kernel's announcements. What they say does not matter, only that there was one.

use std::io;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use rtnetlink::MulticastGroup;

/// A socket that hears of changes.
pub(super) struct Events(TokioSocket);

impl Events {
    /// Begins to listen, in the network namespace of the calling thread.
    pub(super) fn open(groups: &[MulticastGroup]) -> io::Result<Self> {
        let mask = groups.iter().map(|&group| 1 << (group as u32 - 1)).sum();
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        socket.socket_mut().bind(&SocketAddr::new(0, mask))?;
        Ok(Self(socket))
    }

    /// Waits for an announcement, and forgets it with those that came meanwhile.
    pub(super) async fn wait(&self) {
        // An overrun (ENOBUFS) is an event as well.
        let _first = self.0.recv(&mut Vec::with_capacity(64)).await;
        // What is left after these is waited for at once.
        for _ in 0..1024 {
            let mut start = Vec::with_capacity(64);
            if self.0.socket_ref().recv(&mut start, libc::MSG_DONTWAIT).is_err() {
                return;
            }
        }
    }
}
