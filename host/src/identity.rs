//! An identity: one Ed25519 key, which signs and which TLS presents.

use std::{fmt, io};

use aws_lc_rs::error::{KeyRejected, Unspecified};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use mesh_proto::base::id::IdentityKey;
use mesh_proto::trust::signed_record::Signature;
use rustix::process::DumpableBehavior;
use zeroize::Zeroizing;

/// Keeps the memory of this process, and with it all keys, from other processes of its user and from core dumps. It ends
/// with `exec`; what the kernel swaps out is not covered.
///
/// # Errors
/// If the kernel refuses.
pub fn hide_memory() -> io::Result<()> {
    Ok(rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// A key pair. `Debug` hides the private half.
pub struct Identity {
    pair: Ed25519KeyPair,
    pkcs8: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({:?}, [redacted])", self.public())
    }
}

impl Identity {
    /// Makes a key that lies nowhere yet.
    ///
    /// # Errors
    /// If the machine has no entropy.
    pub fn generate() -> Result<Self, Unspecified> {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())?;
        Self::from_pkcs8(Zeroizing::new(document.as_ref().to_vec())).map_err(|_| Unspecified)
    }

    /// Reads a key in the form of PKCS #8.
    ///
    /// # Errors
    /// If it is anything else.
    pub fn from_pkcs8(pkcs8: Zeroizing<Vec<u8>>) -> Result<Self, KeyRejected> {
        Ok(Self { pair: Ed25519KeyPair::from_pkcs8(&pkcs8)?, pkcs8 })
    }

    /// Returns the public half.
    pub fn public(&self) -> IdentityKey {
        IdentityKey(self.pair.public_key().as_ref().try_into().expect("an Ed25519 key is 32 bytes"))
    }

    /// Returns both halves in the form of PKCS #8.
    pub fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// Signs a message.
    pub fn sign(&self, message: &[u8]) -> Signature {
        Signature(self.pair.sign(message).as_ref().try_into().expect("an Ed25519 signature is 64 bytes"))
    }
}

/// Says whether a signature over a message is that of an identity.
pub fn verify(identity: &IdentityKey, message: &[u8], signature: &Signature) -> bool {
    UnparsedPublicKey::new(&ED25519, identity.0).verify(message, &signature.0).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_hides_the_private_half() {
        let identity = Identity::generate().expect("entropy");
        assert!(format!("{identity:?}").ends_with(", [redacted])"));
    }
}
