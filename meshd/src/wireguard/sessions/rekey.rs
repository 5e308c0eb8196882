//! Keys that change while tunnels carry traffic: ours, and those of peers.

use mesh_proto::base::id::NodeId;

use super::Sessions;
use super::session::Session;
use crate::keys::lanes::LaneKey;
use crate::wireguard::tunnel::Door;

impl Sessions {
    /// Puts other keys of our own in force; tunnels of a key that is gone are closed.
    pub(crate) fn set_keys(&mut self, keys: &LaneKey) {
        self.door = Door::new(&keys.current);
        self.former = keys.former.as_ref().map(Door::new);
        self.calls_by_former = keys.calls_by_former;
        let (present, former) = (self.door.key(), self.former.as_ref().map(Door::key));
        let mut gone = Vec::new();
        for index in 0..self.slab.len() {
            let Some(session) = &mut self.slab[index] else { continue };
            if session.own == present || Some(session.own) == former {
                session.set_fresh(present);
            } else {
                gone.push(index as u32);
            }
        }
        self.remove_all(&gone);
        self.renew();
        self.talks.set_keys(keys);
        self.review_talks();
    }

    /// Shakes hands anew with peers whose tunnels use a former key, while those still carry everything.
    pub(super) fn renew(&mut self) {
        let (calling, present) = (self.caller().key(), self.door.key());
        let is_new = |s: &Session| {
            let theirs = s.peer.lanes.get(s.peer_lane).is_some_and(|lane| lane.key == s.key);
            theirs && (s.own == calling || s.own == present)
        };
        let stale = self.slab.iter().flatten().filter(|session| session.ready && !is_new(session));
        let stale: Vec<NodeId> = stale.map(|session| session.peer.id).collect();
        stale.into_iter().for_each(|peer| self.greet(peer));
    }

    /// The door that we call from.
    pub(super) fn caller(&self) -> &Door {
        self.former.as_ref().filter(|_| self.calls_by_former).unwrap_or(&self.door)
    }
}
