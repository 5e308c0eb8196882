//! Which coordinators serve the mesh: each enters itself, and nodes are told of all.
//!
//! A record says what nodes need to go from one coordinator to another: its key and its addresses. That it is there
//! does not say that it runs.

use std::sync::Arc;

use mesh_proto::base::clock::UnixTime;
use mesh_proto::base::id::IdentityKey;
use mesh_proto::model::netmap::Coordinator;
use mesh_proto::trust::signed_record::NextKey;
use mesh_proto::wire::ErrorCode;

use super::change::Refused;
use super::state::State;
use super::state::coordinators::CoordinatorRecord;

/// Most coordinators of one mesh; a join token has room for as many keys.
const MAX_COORDINATORS: usize = 8;

impl State {
    /// Enters a coordinator. One that has its store for itself is the only one.
    pub(super) fn enter_coordinator(
        &mut self,
        key: IdentityKey,
        addresses: Vec<String>,
        software: String,
        is_alone: bool,
        now: UnixTime,
    ) -> Result<(), Refused> {
        // Its former self.
        let is_former = |record: &CoordinatorRecord| record.next.is_some_and(|next| next.key == key);
        Arc::make_mut(&mut self.coordinators).retain(|other, record| *other == key || !is_former(record));
        let known = self.coordinators.get(&key);
        if known.is_none() && !is_alone && self.coordinators.len() >= MAX_COORDINATORS {
            let text = format!(
                "this mesh has {MAX_COORDINATORS} coordinators already; forget one with mesh-coordinator forget KEY, then start this one again"
            );
            return Err(Refused::new(ErrorCode::Busy, text));
        }
        let since = known.map_or(now, |known| known.since);
        let next = known.and_then(|known| known.next);
        let coordinators = Arc::make_mut(&mut self.coordinators);
        if is_alone {
            coordinators.retain(|other, _| *other == key);
        }
        coordinators.insert(key, CoordinatorRecord { addresses, software, since, next });
        self.tell_coordinators();
        Ok(())
    }

    /// Lets nodes trust the key that a coordinator will go on with, too.
    pub(super) fn announce_key(&mut self, key: &IdentityKey, next: NextKey) -> Result<(), Refused> {
        let coordinators = Arc::make_mut(&mut self.coordinators);
        let Some(record) = coordinators.get_mut(key).filter(|_| next.is_by(key, mesh_host::identity::verify)) else {
            return Err(Refused::new(
                ErrorCode::Internal,
                "this coordinator did not sign for its next key; restart it, and try again",
            ));
        };
        record.next = Some(next);
        self.tell_coordinators();
        Ok(())
    }

    /// Takes a coordinator out, so that nodes neither dial nor trust it any more.
    pub(super) fn forget_coordinator(&mut self, key: &IdentityKey) -> Result<(), Refused> {
        if Arc::make_mut(&mut self.coordinators).remove(key).is_none() {
            let text = format!("there is no coordinator with the key {key}; see mesh-coordinator status");
            return Err(Refused::new(ErrorCode::UnknownNode, text));
        }
        self.tell_coordinators();
        Ok(())
    }

    /// Puts the coordinators into what nodes are told.
    pub(super) fn tell_coordinators(&mut self) {
        let told = self.coordinators.iter();
        let told = told
            .map(|(&key, record)| Coordinator { key, addresses: record.addresses.clone(), next: record.next })
            .collect();
        if self.world.mesh.coordinators != told {
            Arc::make_mut(&mut self.world).mesh.coordinators = told;
        }
    }
}
