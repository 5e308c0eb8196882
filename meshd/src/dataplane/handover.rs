//! The way from the other lanes to lane 0, for packets that only lane 0 has a session for.
//!
//! A bounded ring of finished inner packets; the buffers go back and forth, so that nothing is allocated once
//! it has filled for the first time.

use crossbeam_queue::ArrayQueue;
use mesh_proto::base::id::NodeId;

/// Most packets on the way; more are dropped by the lane that hands over.
const MAX_PACKETS: usize = 1024;

/// Packets on their way to lane 0.
#[derive(Debug)]
pub(crate) struct Handover {
    full: ArrayQueue<(NodeId, Vec<u8>)>,
    empty: ArrayQueue<Vec<u8>>,
}

impl Handover {
    pub(crate) fn new() -> Self {
        Self { full: ArrayQueue::new(MAX_PACKETS), empty: ArrayQueue::new(MAX_PACKETS) }
    }

    /// Hands a packet over. Says whether there was room.
    pub(crate) fn push(&self, peer: NodeId, packet: &[u8]) -> bool {
        if self.full.is_full() {
            return false;
        }
        let mut buffer = self.empty.pop().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(packet);
        self.full.push((peer, buffer)).is_ok()
    }

    /// Takes the oldest packet; `done` gives its buffer back.
    pub(crate) fn pop(&self) -> Option<(NodeId, Vec<u8>)> {
        self.full.pop()
    }

    /// Gives a buffer back.
    pub(crate) fn done(&self, buffer: Vec<u8>) {
        // If all places are taken, so are all buffers that can be on the way: this one is not needed.
        let _ = self.empty.push(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_arrive_in_order_and_buffers_return() {
        let handover = Handover::new();
        assert!(handover.push(NodeId(1), b"one") && handover.push(NodeId(2), b"three"));
        let first = handover.pop().expect("pushed above");
        assert_eq!((first.0, &first.1[..]), (NodeId(1), &b"one"[..]));
        handover.done(first.1);
        assert!(handover.push(NodeId(3), b"x"));
        assert_eq!(handover.pop().map(|p| p.1), Some(b"three".to_vec()));
        assert_eq!(handover.pop().map(|p| p.1), Some(b"x".to_vec()));
        assert_eq!(handover.pop(), None);
    }

    #[test]
    fn it_holds_no_more_than_it_says() {
        let handover = Handover::new();
        let taken = (0..2 * MAX_PACKETS).filter(|_| handover.push(NodeId(1), &[0; 100])).count();
        assert_eq!(taken, MAX_PACKETS);
    }
}
