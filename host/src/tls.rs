//! The control channel's TLS: version 1.3 only, raw public keys both ways (RFC 7250), no certificates, no clock.
//!
//! The handshake proves that the peer holds the private half of an Ed25519 key. A node takes the pinned ones. The
//! coordinator takes any, and decides above whether it is a member, on each request: so a revoked member is a stranger
//! at once. A session ticket would let a connection skip the proof, hence nobody issues or uses one.
//!
//! Keys are agreed by X25519MLKEM768 alone: both ends are ours, so nobody is left to fall back for, and what
//! is recorded today stays closed to a quantum computer of tomorrow.

use std::sync::Arc;

use mesh_proto::base::id::IdentityKey;
use mesh_proto::wire::ALPN;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
};

use crate::identity::Identity;

/// An Ed25519 SubjectPublicKeyInfo (RFC 8410 section 4) up to the 32 bytes of the key.
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Makes a node's side of the channel: who answers has to prove one of the pinned keys.
///
/// # Errors
/// The library's error if it cannot use the key.
pub fn client(identity: &Identity, pins: &[IdentityKey]) -> Result<ClientConfig, Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(RawKeys { pins: Some(pins.to_vec()) }))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(own_key(identity)?)));
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// Makes the coordinator's side of the channel.
///
/// # Errors
/// The library's error if it cannot use the key.
pub fn server(identity: &Identity) -> Result<ServerConfig, Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(RawKeys { pins: None }))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(own_key(identity)?)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Ok(config)
}

/// Returns the identity key that a handshake proved; none if the bytes are anything but one Ed25519 key.
pub fn identity_of(spki: &[u8]) -> Option<IdentityKey> {
    spki.strip_prefix(&SPKI_PREFIX)?.try_into().ok().map(IdentityKey)
}

fn provider() -> Arc<CryptoProvider> {
    let kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768];
    Arc::new(CryptoProvider { kx_groups, ..aws_lc_rs::default_provider() })
}

fn own_key(identity: &Identity) -> Result<Arc<CertifiedKey>, Error> {
    let signer = aws_lc_rs::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(identity.pkcs8()))?;
    let spki = [&SPKI_PREFIX[..], &identity.public().0].concat();
    Ok(Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki)], signer)))
}

/// Takes an Ed25519 key whose private half the peer proves to hold: one of the pins, or any where there are none.
#[derive(Debug)]
struct RawKeys {
    pins: Option<Vec<IdentityKey>>,
}

impl RawKeys {
    fn check(&self, key: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Result<(), Error> {
        let takes = |key| self.pins.as_ref().is_none_or(|pins| pins.contains(&key));
        match identity_of(key) {
            Some(key) if others.is_empty() && takes(key) => Ok(()),
            _ => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }
}

/// What rustls asks of both verifiers in the same words.
macro_rules! raw_ed25519_keys {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::General("TLS 1.2 is not spoken".into()))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            key: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
            verify_tls13_signature_with_raw_key(message, &SubjectPublicKeyInfoDer::from(key.as_ref()), dss, &algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }

        fn requires_raw_public_keys(&self) -> bool {
            true
        }
    };
}

impl ServerCertVerifier for RawKeys {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(key, others).map(|()| ServerCertVerified::assertion())
    }

    raw_ed25519_keys!();
}

impl ClientCertVerifier for RawKeys {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        key: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(key, others).map(|()| ClientCertVerified::assertion())
    }

    raw_ed25519_keys!();
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, clippy::unwrap_in_result, reason = "a test fails by panicking")]
    use rustls::crypto::SupportedKxGroup;
    use rustls::{ClientConnection, NamedGroup, ServerConnection};

    use super::*;

    /// Shakes hands in memory, the client offering these groups, and returns the group agreed on.
    fn agreed(
        groups: &[&'static dyn SupportedKxGroup],
        pin: impl Fn(&Identity) -> IdentityKey,
    ) -> Result<NamedGroup, Error> {
        let identity = Identity::generate().unwrap();
        let mut provider = aws_lc_rs::default_provider();
        provider.kx_groups = groups.to_vec();
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(RawKeys { pins: Some(vec![pin(&identity)]) }))
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(own_key(&identity).unwrap())));
        config.alpn_protocols = vec![ALPN.to_vec()];
        let mut near = ClientConnection::new(Arc::new(config), ServerName::try_from("mesh").unwrap()).unwrap();
        let mut far = ServerConnection::new(Arc::new(server(&identity).unwrap())).unwrap();
        while near.is_handshaking() || far.is_handshaking() {
            let mut bytes = Vec::new();
            near.write_tls(&mut bytes).unwrap();
            far.read_tls(&mut &*bytes).unwrap();
            far.process_new_packets()?;
            bytes.clear();
            far.write_tls(&mut bytes).unwrap();
            near.read_tls(&mut &*bytes).unwrap();
            near.process_new_packets()?;
        }
        Ok(far.negotiated_key_exchange_group().unwrap().name())
    }

    #[test]
    fn keys_are_agreed_by_the_post_quantum_hybrid_and_by_nothing_less() {
        assert_eq!(agreed(aws_lc_rs::ALL_KX_GROUPS, Identity::public).unwrap(), NamedGroup::X25519MLKEM768);
        assert!(agreed(&[aws_lc_rs::kx_group::X25519], Identity::public).is_err());
        let offered = client(&Identity::generate().unwrap(), &[]).unwrap();
        let offered: Vec<_> = offered.crypto_provider().kx_groups.iter().map(|group| group.name()).collect();
        assert_eq!(offered, [NamedGroup::X25519MLKEM768]);
    }

    #[test]
    fn another_key_than_the_pinned_one_is_refused() {
        assert!(agreed(aws_lc_rs::ALL_KX_GROUPS, |_| IdentityKey([7; 32])).is_err());
    }

    #[test]
    fn a_key_survives_its_wrapping_and_other_keys_are_no_identity() {
        let key = IdentityKey([7; 32]);
        let wrapped = [&SPKI_PREFIX[..], &key.0].concat();
        assert_eq!(identity_of(&wrapped), Some(key));
        assert_eq!(identity_of(&wrapped[..43]), None);
        assert_eq!(identity_of(&[wrapped.as_slice(), &[0]].concat()), None);
        let mut x25519 = wrapped;
        x25519[8] = 0x6e;
        assert_eq!(identity_of(&x25519), None);
    }
}
