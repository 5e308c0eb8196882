//! What a node asks about lock mode, and what it brings: the signature of a key that no coordinator holds.

use mesh_proto::wire::{Countersign, LockStanding};

use super::channel::{Channel, ChannelError, Dial};

/// Brings a coordinator, the first that answers, the lock's signature for a node, if there is one, and asks who else
/// waits for it.
///
/// # Errors
/// What the last one said or failed at.
pub async fn lock_standing(dial: &Dial, signed: Option<&Countersign>) -> Result<LockStanding, ChannelError> {
    let mut left = dial.candidates(0);
    let mut last = None;
    loop {
        let (mut channel, address) = match Channel::open_first(dial, &left).await {
            Ok(opened) => opened,
            Err(error) => return Err(last.unwrap_or(error)),
        };
        let asked = match signed {
            Some(signed) => channel.countersign(signed).await,
            None => channel.lock().await,
        };
        match asked {
            Ok(standing) => return Ok(standing),
            Err(refused @ ChannelError::Refused(_)) if !refused.may_differ_elsewhere() => return Err(refused),
            Err(error) => last = Some(error),
        }
        left.retain(|other| *other != address);
    }
}
