//! What a node signs of itself, as it comes in: only what its key signed is looked at, and only that is stored.

use mesh_host::identity::verify;
use mesh_proto::base::id::IdentityKey;
use mesh_proto::wire::{ErrorCode, NodeFacts};

use crate::registry::Refused;

/// How much longer a signed text may be than what is understood of it, in bytes: fields of newer versions.
const MAX_UNKNOWN: usize = 1024;

/// Returns what a node says of itself, as it signed it with the key that the channel proved.
///
/// # Errors
/// `Refused` if it signed nothing, or something else.
pub(crate) fn facts(identity: &IdentityKey, facts: &NodeFacts) -> Result<NodeFacts, Refused> {
    let refuse = |message: &str| Refused::new(ErrorCode::Malformed, message);
    let Some(record) = &facts.signed else {
        return Err(refuse(
            "what the node says of itself is not signed, so that no other node would believe it; upgrade its meshd",
        ));
    };
    if !record.is_by(identity, verify) {
        return Err(refuse(
            "what the node says of itself is signed by another key than the channel's; run `meshd leave` there and join again",
        ));
    }
    let Some(facts) = NodeFacts::of(record) else {
        return Err(refuse("what the node signed cannot be read; are both ends of one version?"));
    };
    if record.text.len() > facts.text().len() + MAX_UNKNOWN {
        return Err(refuse(
            "what the node signed is more than 1 KiB longer than what it says in it, and every node would have to keep that; upgrade the coordinator, or its meshd",
        ));
    }
    Ok(facts)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use mesh_proto::trust::signed_record::SignedRecord;

    use super::*;
    use mesh_host::identity::Identity;

    fn signed(by: &Identity, facts: NodeFacts) -> NodeFacts {
        let text = facts.text();
        let signature = by.sign(&SignedRecord::message(&text));
        NodeFacts { signed: Some(SignedRecord { text: text.into(), signature }), ..facts }
    }

    #[test]
    fn only_what_the_channels_key_signed_counts() {
        let (own, other) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let plain = NodeFacts { mtu: 1420, sequence: 3, ..NodeFacts::default() };
        let good = signed(&own, plain.clone());

        assert_eq!(facts(&own.public(), &good), Ok(good.clone()));
        let dressed_up = NodeFacts { mtu: 9000, guarded: true, ..good.clone() };
        assert_eq!(facts(&own.public(), &dressed_up), Ok(good.clone()), "what stands beside the signature is nothing");
        assert!(facts(&own.public(), &plain).is_err());
        assert!(facts(&own.public(), &signed(&other, plain.clone())).is_err());
        let dressed = |more: usize| {
            let text = plain.text().replacen('{', &format!("{{\"new\":\"{}\",", "x".repeat(more)), 1);
            let signature = own.sign(&SignedRecord::message(&text));
            NodeFacts { signed: Some(SignedRecord { text: text.into(), signature }), ..plain.clone() }
        };
        assert!(facts(&own.public(), &dressed(1000)).is_ok());
        assert!(facts(&own.public(), &dressed(1100)).unwrap_err().message.contains("1 KiB longer"));
        let mut bent = good;
        bent.signed.as_mut().unwrap().signature.0[5] ^= 1;
        assert!(facts(&own.public(), &bent).is_err());
    }
}
