//! Deciding beside other coordinators that use the same store.
//!
//! A change is decided on what we know and committed only if nobody was quicker. If somebody was, or if it is
//! refused while we are behind, it is decided again on what the store holds now.

use std::sync::Arc;

use mesh_proto::wire::ErrorCode;
use mesh_proto::world::World;

use super::change::Refused;
use crate::store::StoreError;

/// Most times that a change is decided. Who fails was overtaken by somebody who succeeded, so that with three
/// coordinators that write without a pause one change in 400,000 is answered `busy`.
pub(super) const MAX_ATTEMPTS: usize = 32;

/// Why one attempt led to nothing.
pub(super) enum Failed {
    /// It was decided that the change may not happen.
    Decided(Refused),
    /// It could not be stored.
    Stored(StoreError),
}

impl From<Refused> for Failed {
    fn from(refused: Refused) -> Self {
        Self::Decided(refused)
    }
}

/// Keeps of an older world what is alike, so that nobody takes it for news.
pub(super) fn keep_alike(world: &mut World, old: &World) {
    fn keep<T: PartialEq + ?Sized>(new: &mut Arc<T>, old: &Arc<T>) {
        if *new == *old {
            *new = Arc::clone(old);
        }
    }
    keep(&mut world.services, &old.services);
    keep(&mut world.file, &old.file);
    keep(&mut world.vips, &old.vips);
    for (name, record) in Arc::make_mut(&mut world.nodes) {
        old.nodes.get(name).into_iter().for_each(|known| keep(record, known));
    }
    keep(&mut world.nodes, &old.nodes);
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        let code = match error {
            StoreError::Conflict { .. } | StoreError::Full { .. } => ErrorCode::Busy,
            StoreError::TooLarge { .. } => ErrorCode::TooLarge,
            StoreError::Io { .. }
            | StoreError::Locked { .. }
            | StoreError::Exists { .. }
            | StoreError::Damaged { .. }
            | StoreError::Lost { .. }
            | StoreError::WentBack { .. }
            | StoreError::Etcd { .. }
            | StoreError::Unknown { .. } => ErrorCode::Internal,
        };
        Self::new(code, error.to_string())
    }
}
