//! What a node signs of itself, as it comes in: only what its key signed is looked at, and only that is stored.

use mesh_proto::id::IdentityKey;
use mesh_proto::wire::NodeFacts;

use crate::keys::verify;
use crate::registry::Refused;

/// Returns what a node says of itself, as it signed it with the key that the channel proved.
///
/// # Errors
/// `Refused` if it signed nothing, or something else.
pub(crate) fn facts(identity: &IdentityKey, facts: &NodeFacts) -> Result<NodeFacts, Refused> {
    let refuse = |message: &str| Refused { word: "malformed", message: message.into() };
    let Some(record) = &facts.signed else {
        return Err(refuse(
            "what the node says of itself is not signed, so that no other node would believe it; upgrade its meshd",
        ));
    };
    if !record.is_by(identity, verify) {
        return Err(refuse(
            "what the node says of itself is signed by another key than the channel's; run meshd leave there and join again",
        ));
    }
    NodeFacts::of(record).ok_or_else(|| refuse("what the node signed cannot be read; are both ends of one version?"))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use mesh_proto::record::SignedRecord;

    use super::*;
    use crate::keys::Identity;

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
        assert!(facts(&own.public(), &signed(&other, plain)).is_err());
        let mut bent = good;
        bent.signed.as_mut().unwrap().signature.0[5] ^= 1;
        assert!(facts(&own.public(), &bent).is_err());
    }
}
