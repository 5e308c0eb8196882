//! What the rest of the daemon, and other lanes, want from a lane.
//!
//! It has a lock, and is looked into only after its bell rang: never for a packet.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use mesh_proto::base::clock::Timestamp;
use mesh_proto::base::id::NodeId;
use mesh_proto::base::wall_clock::BootDate;
use mesh_proto::dataplane::engine::NextHop;
use mesh_proto::dataplane::view::View;
use mesh_proto::trust::audit_log::LogPosition;
use rustix::io::Errno;

use crate::dataplane::bell::Bell;
use crate::dataplane::lane::NarrowWays;
use crate::keys::lanes::LaneKey;
use crate::wireguard::peers::TunnelPeers;

/// Most peers that may wait to be pinged.
const PINGS: usize = 64;
/// Most answers about sizes that may wait for lane 0; lost are those after, as any datagram may be.
const ANSWERS: usize = 256;
/// Most peers that may wait to be greeted; others are when there is something to send.
const GREETS: usize = 1024;

/// Most peers that may wait to be watched; others are noticed again.
const UNANSWERED: usize = 1024;

/// What others want from a lane: the newest of each, and a bell.
#[derive(Debug)]
pub(crate) struct Mailbox {
    bell: Bell,
    stop: AtomicBool,
    /// Whether somebody waits for the mail to be taken.
    asked: AtomicBool,
    mail: Mutex<Mail>,
    /// Apart, because lanes put it in by themselves, as often as twice a second, and may not allocate.
    unanswered: Mutex<Vec<(NodeId, Timestamp)>>,
}

/// What lies in a mailbox.
#[derive(Debug, Default)]
pub(crate) struct Mail {
    pub(crate) view: Option<(Arc<View>, Arc<TunnelPeers>)>,
    pub(crate) locals: Option<Arc<[Ipv4Addr]>>,
    pub(crate) next_hops: Option<Arc<[NextHop]>>,
    pub(crate) told: Option<LogPosition>,
    pub(crate) date: Option<BootDate>,
    pub(crate) key: Option<LaneKey>,
    pub(crate) pings: Vec<NodeId>,
    pub(crate) greets: Vec<NodeId>,
    pub(crate) mtu: Option<u16>,
    /// The addresses of this host, after they changed, and whom to call then; no more than there are peers.
    pub(crate) own: Option<(Arc<BTreeSet<IpAddr>>, Vec<NodeId>)>,
    pub(crate) narrow: Option<NarrowWays>,
    /// Who answered which of lane 0's questions.
    pub(crate) answers: Vec<(NodeId, u64)>,
}

impl Mailbox {
    pub(crate) fn new() -> Result<Self, Errno> {
        let (stop, asked) = (AtomicBool::new(false), AtomicBool::new(false));
        let unanswered = Mutex::new(Self::room_for_unanswered());
        Ok(Self { bell: Bell::new()?, stop, asked, mail: Mutex::default(), unanswered })
    }

    /// Puts something in, and wakes the lane.
    fn put(&self, write: impl FnOnce(&mut Mail)) {
        write(&mut self.mail.lock().unwrap_or_else(PoisonError::into_inner));
        self.ring();
    }

    pub(crate) fn set_view(&self, view: Arc<View>, peers: Arc<TunnelPeers>) {
        self.put(|mail| mail.view = Some((view, peers)));
    }

    pub(crate) fn set_locals(&self, locals: Arc<[Ipv4Addr]>) {
        self.put(|mail| mail.locals = Some(locals));
    }

    pub(crate) fn set_next_hops(&self, next_hops: Arc<[NextHop]>) {
        self.put(|mail| mail.next_hops = Some(next_hops));
    }

    pub(crate) fn set_log_position(&self, told: LogPosition) {
        self.put(|mail| mail.told = Some(told));
    }

    pub(crate) fn set_date(&self, date: BootDate) {
        self.put(|mail| mail.date = Some(date));
    }

    pub(crate) fn set_key(&self, key: LaneKey) {
        self.put(|mail| mail.key = Some(key));
    }

    pub(crate) fn ping(&self, peer: NodeId) {
        self.put(|mail| add(&mut mail.pings, peer, PINGS));
    }

    /// Another lane has a session with a peer: this one will be wanted, too.
    pub(crate) fn greet(&self, peer: NodeId) {
        self.put(|mail| add(&mut mail.greets, peer, GREETS));
    }

    pub(crate) fn set_mtu(&self, mtu: u16) {
        self.put(|mail| mail.mtu = Some(mtu));
    }

    /// This host has these addresses now, and no others; these peers are to hear of it even without a tunnel.
    pub(crate) fn move_to(&self, own: Arc<BTreeSet<IpAddr>>, calls: Vec<NodeId>) {
        self.put(|mail| mail.own = Some((own, calls)));
    }

    /// Lane 0 found which peers large packets do not reach.
    pub(crate) fn set_narrow(&self, narrow: NarrowWays) {
        self.put(|mail| mail.narrow = Some(narrow));
    }

    /// A peer answered a question of lane 0's to another lane.
    pub(crate) fn answer(&self, peer: NodeId, clock: u64) {
        self.put(|mail| {
            if mail.answers.len() < ANSWERS {
                mail.answers.push((peer, clock));
            }
        });
    }

    /// Another lane sent something to a peer at a time and heard nothing since.
    pub(crate) fn watch(&self, peer: NodeId, sent: Timestamp) {
        {
            let mut unanswered = self.unanswered.lock().unwrap_or_else(PoisonError::into_inner);
            let known = unanswered.iter().any(|(other, _)| *other == peer);
            if !known && unanswered.len() < UNANSWERED {
                unanswered.push((peer, sent));
            }
        }
        self.ring();
    }

    /// Takes out, into an empty list, what other lanes sent and heard nothing after. Neither list ever grows.
    pub(crate) fn take_unanswered(&self, into: &mut Vec<(NodeId, Timestamp)>) {
        std::mem::swap(&mut *self.unanswered.lock().unwrap_or_else(PoisonError::into_inner), into);
    }

    /// Makes a list that holds as many as may wait.
    pub(crate) fn room_for_unanswered() -> Vec<(NodeId, Timestamp)> {
        Vec::with_capacity(UNANSWERED)
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.ring();
    }

    /// Asks for the mail to be taken, and says whether it was not since this was asked last.
    pub(crate) fn is_asked_in_vain(&self) -> bool {
        let in_vain = self.asked.swap(true, Ordering::AcqRel);
        self.ring();
        in_vain
    }

    /// Takes everything out and silences the bell; none if the lane is to stop.
    pub(crate) fn take(&self) -> Option<Mail> {
        self.bell.silence();
        self.asked.store(false, Ordering::Release);
        if self.stop.load(Ordering::Acquire) {
            return None;
        }
        Some(std::mem::take(&mut *self.mail.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Returns what wakes the lane.
    pub(crate) fn bell(&self) -> Bell {
        self.bell.clone()
    }

    /// Wakes the lane.
    pub(crate) fn ring(&self) {
        self.bell.ring();
    }
}

impl AsFd for Mailbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

fn add(peers: &mut Vec<NodeId>, peer: NodeId, most: usize) {
    if peers.len() < most && !peers.contains(&peer) {
        peers.push(peer);
    }
}
