//! What a node asks about lock mode, and what it brings: the signature of a key that no coordinator holds.

use mesh_proto::wire::{Countersign, LockStanding};

use super::channel::{Channel, ChannelError, Dial};

/// Brings the coordinators, in turn, the lock's signature for a node, if there is one, and asks who else waits for it.
///
/// # Errors
/// What the last one said or failed at.
pub async fn lock_standing(dial: &Dial, signed: Option<&Countersign>) -> Result<LockStanding, ChannelError> {
    let mut last = ChannelError::Malformed("the mesh names no coordinator".into());
    for address in &dial.coordinators {
        let asked = async {
            let mut channel = Channel::open(dial, address).await?;
            match signed {
                Some(signed) => channel.countersign(signed).await,
                None => channel.lock().await,
            }
        };
        match asked.await {
            Ok(standing) => return Ok(standing),
            Err(refused @ ChannelError::Refused(_)) if !refused.may_differ_elsewhere() => return Err(refused),
            Err(error) => last = error,
        }
    }
    Err(last)
}
