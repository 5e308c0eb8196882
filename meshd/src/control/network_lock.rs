//! What a node asks about lock mode, and what it brings: the signature of a key that no coordinator holds.

use mesh_proto::wire::{Countersign, LockStanding};

use super::channel::{Channel, Dial, LinkError};

/// Asks the coordinators, in turn, who waits for the lock's signature.
///
/// # Errors
/// What the last one said or failed at.
pub async fn standing(dial: &Dial) -> Result<LockStanding, LinkError> {
    in_turn(dial, None).await
}

/// Brings the coordinators, in turn, the lock's signature for a node.
///
/// # Errors
/// What the last one said or failed at.
pub async fn countersign(dial: &Dial, signed: &Countersign) -> Result<LockStanding, LinkError> {
    in_turn(dial, Some(signed)).await
}

async fn in_turn(dial: &Dial, signed: Option<&Countersign>) -> Result<LockStanding, LinkError> {
    let mut last = LinkError::Malformed("the mesh names no coordinator".into());
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
            Err(refused @ LinkError::Refused(_)) if !refused.may_differ_elsewhere() => return Err(refused),
            Err(error) => last = error,
        }
    }
    Err(last)
}
