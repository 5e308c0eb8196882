//! Batches of datagrams between the lanes and the sockets: one arena each, no allocation per datagram.
//!
//! Datagrams of equal size to one endpoint lie back to back and form a *run*, which the kernel takes as one
//! (UDP_SEGMENT) or gives as one (UDP_GRO); the last of a run may be shorter. All have one ECN field.

use std::net::{IpAddr, SocketAddr};

use mesh_proto::packet::Ecn;

/// Most bytes of a run: what one UDP datagram could carry, less room for headers.
const MAX_RUN: usize = 65_000;
/// Most datagrams of a run where nobody said how many the kernel takes.
const MAX_SEGMENTS: usize = 63;

/// A peer's UDP address, with the own address that it speaks to, where that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The peer's address.
    pub remote: SocketAddr,
    /// The own address from which to answer.
    pub local: Option<IpAddr>,
}

impl From<SocketAddr> for Endpoint {
    fn from(remote: SocketAddr) -> Self {
        Self { remote, local: None }
    }
}

/// Datagrams of equal size, but for the last, to or from one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatagramRun {
    /// Where they go or come from.
    pub endpoint: Endpoint,
    /// Where the first begins in the arena.
    pub start: usize,
    /// Bytes of all together.
    pub len: usize,
    /// Bytes of each but the last.
    pub segment: usize,
    /// The ECN field of the header of each.
    pub ecn: Ecn,
}

impl DatagramRun {
    /// Returns how many datagrams there are.
    pub fn count(&self) -> usize {
        self.len.div_ceil(self.segment.max(1)).max(1)
    }

    fn takes(&self, len: usize, endpoint: Endpoint, ecn: Ecn, most: usize) -> bool {
        self.endpoint == endpoint
            && self.ecn == ecn
            && (1..=self.segment).contains(&len)
            && self.len.is_multiple_of(self.segment)
            && self.len + len <= MAX_RUN
            && self.count() < most
    }
}

/// Datagrams waiting to be sent.
#[derive(Debug)]
pub struct Outbox {
    arena: Box<[u8]>,
    used: usize,
    runs: Vec<DatagramRun>,
    /// Most datagrams of a run over IPv4, and of one over IPv6.
    most: [usize; 2],
}

impl Outbox {
    /// Makes an outbox of that many bytes.
    pub fn new(bytes: usize) -> Self {
        Self { arena: vec![0; bytes].into(), used: 0, runs: Vec::with_capacity(256), most: [MAX_SEGMENTS; 2] }
    }

    /// Returns how many bytes are free.
    pub fn room(&self) -> usize {
        self.arena.len() - self.used
    }

    /// Says whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Returns the free bytes, to write a datagram at their start.
    pub fn space(&mut self) -> &mut [u8] {
        &mut self.arena[self.used..]
    }

    /// Takes the first `len` bytes of the free ones as a datagram to `endpoint` that must not be marked.
    pub fn commit(&mut self, len: usize, endpoint: Endpoint) {
        self.commit_with(len, endpoint, Ecn::NotEct);
    }

    /// Takes the first `len` bytes of the free ones as a datagram to `endpoint` with that ECN field.
    pub fn commit_with(&mut self, len: usize, endpoint: Endpoint, ecn: Ecn) {
        let start = self.used;
        self.used += len.min(self.room());
        let most = self.most[usize::from(endpoint.remote.is_ipv6())];
        if let Some(last) = self.runs.last_mut().filter(|run| run.takes(len, endpoint, ecn, most)) {
            last.len += len;
            return;
        }
        self.runs.push(DatagramRun { endpoint, start, len, segment: len, ecn });
    }

    /// The same, but it goes by itself, whatever the kernel could divide: on the way of large packets that vanish somebody may
    /// look at what is not divided yet.
    pub fn commit_alone(&mut self, len: usize, endpoint: Endpoint, ecn: Ecn) {
        let start = self.used;
        self.used += len.min(self.room());
        self.runs.push(DatagramRun { endpoint, start, len, segment: len, ecn });
    }

    /// Appends a datagram. Says whether there was room.
    pub fn push(&mut self, datagram: &[u8], endpoint: Endpoint) -> bool {
        let Some(space) = self.space().get_mut(..datagram.len()) else { return false };
        space.copy_from_slice(datagram);
        self.commit(datagram.len(), endpoint);
        true
    }

    /// Says how many datagrams a run over IPv4, and one over IPv6, may have; 1 where the kernel cannot divide it.
    pub fn set_most(&mut self, ipv4: usize, ipv6: usize) {
        self.most = [ipv4, ipv6];
    }

    /// Returns what waits, in order.
    pub fn runs(&self) -> &[DatagramRun] {
        &self.runs
    }

    /// Returns the bytes of a run.
    pub fn bytes(&self, run: &DatagramRun) -> &[u8] {
        &self.arena[run.start..run.start + run.len]
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.used = 0;
        self.runs.clear();
    }

    /// Returns every waiting datagram by itself.
    #[cfg(any(test, feature = "virtual-time"))]
    pub(crate) fn datagrams(&self) -> impl Iterator<Item = (Endpoint, &[u8])> {
        self.runs.iter().flat_map(|run| {
            let datagrams = self.bytes(run).chunks(run.segment.max(1));
            datagrams.map(|datagram| (run.endpoint, datagram))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(port: u16) -> Endpoint {
        SocketAddr::from(([192, 0, 2, 1], port)).into()
    }

    #[test]
    fn equal_datagrams_to_one_endpoint_form_a_run_that_a_shorter_one_ends() {
        let mut outbox = Outbox::new(10_000);
        for (len, port) in [(100, 1), (100, 1), (60, 1), (60, 1), (100, 1), (100, 2), (101, 2)] {
            assert!(outbox.push(&vec![len as u8; len], endpoint(port)));
        }

        let shape: Vec<_> = outbox.runs().iter().map(|r| (r.endpoint.remote.port(), r.len, r.segment)).collect();
        assert_eq!(shape, [(1, 260, 100), (1, 60, 60), (1, 100, 100), (2, 100, 100), (2, 101, 101)]);
        let lengths: Vec<_> = outbox.datagrams().map(|(_, d)| d.len()).collect();
        assert_eq!(lengths, [100, 100, 60, 60, 100, 100, 101]);
        assert!(outbox.datagrams().all(|(_, d)| d.iter().all(|&b| usize::from(b) == d.len())));
    }

    #[test]
    fn a_run_is_no_longer_than_the_kernel_takes() {
        let mut outbox = Outbox::new(1 << 20);
        (0..64).for_each(|_| assert!(outbox.push(&[0; 100], endpoint(1))));
        (0..50).for_each(|_| assert!(outbox.push(&[0; 1400], endpoint(2))));
        let counts: Vec<_> = outbox.runs().iter().map(DatagramRun::count).collect();
        assert_eq!(counts, [63, 1, 46, 4]);
    }

    #[test]
    fn how_long_a_run_may_be_is_said_for_each_family() {
        let mut outbox = Outbox::new(1 << 20);
        outbox.set_most(1, 127);
        let ipv6 = SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, 1], 1)).into();
        (0..3).for_each(|_| assert!(outbox.push(&[0; 100], endpoint(1))));
        (0..130).for_each(|_| assert!(outbox.push(&[0; 100], ipv6)));
        let counts: Vec<_> = outbox.runs().iter().map(DatagramRun::count).collect();
        assert_eq!(counts, [1, 1, 1, 127, 3]);
    }

    #[test]
    fn a_run_ends_where_the_ecn_field_changes() {
        let mut outbox = Outbox::new(1 << 20);
        for ecn in [Ecn::Ect0, Ecn::Ect0, Ecn::Ce, Ecn::Ect0] {
            outbox.commit_with(100, endpoint(1), ecn);
        }
        outbox.commit(100, endpoint(1));
        let runs: Vec<_> = outbox.runs().iter().map(|run| (run.ecn, run.count())).collect();
        assert_eq!(runs, [(Ecn::Ect0, 2), (Ecn::Ce, 1), (Ecn::Ect0, 1), (Ecn::NotEct, 1)]);
    }

    #[test]
    fn what_is_to_go_by_itself_does() {
        let mut outbox = Outbox::new(1 << 20);
        outbox.commit(100, endpoint(1));
        (0..3).for_each(|_| outbox.commit_alone(100, endpoint(1), Ecn::NotEct));
        let starts: Vec<_> = outbox.runs().iter().map(|run| (run.start, run.count())).collect();
        assert_eq!(starts, [(0, 1), (100, 1), (200, 1), (300, 1)]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut outbox = Outbox::new(150);
        assert!(outbox.push(&[1; 100], endpoint(1)));
        assert!(!outbox.push(&[2; 51], endpoint(1)));
        assert_eq!(outbox.room(), 50);
        outbox.clear();
        assert!(outbox.is_empty() && outbox.room() == 150);
    }
}
