//! The control channel's TLS: version 1.3 only, raw public keys both ways (RFC 7250), no resumption.
//!
//! The handshake proves that the peer holds the private half of an Ed25519 key, and no more. Whether that
//! key is a member is decided above, on each request: so a revoked member is a stranger at once. A
//! session ticket would let a connection skip the proof, hence none is ever issued.
//!
//! Keys are agreed by X25519MLKEM768 alone: both ends are ours, so nobody is left to fall back for, and what
//! is recorded today stays closed to a quantum computer of tomorrow.

use std::sync::Arc;

use mesh_proto::base::id::IdentityKey;
use mesh_proto::wire;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme};

use crate::keys::identity::Identity;

/// The DER bytes before an Ed25519 public key in a SubjectPublicKeyInfo (RFC 8410 section 4).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Makes the server's side of the channel.
///
/// # Errors
/// The library's error if it cannot use the key.
pub fn server(identity: &Identity) -> Result<Arc<ServerConfig>, Error> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768];
    let provider = Arc::new(provider);
    let verifier = Arc::new(AnyEd25519Key { algorithms: provider.signature_verification_algorithms });
    let own = own_key(identity, &provider)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(own)));
    config.alpn_protocols = vec![wire::ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// Returns the identity as the key that TLS presents.
///
/// # Errors
/// The library's error if it cannot use the key.
pub fn own_key(identity: &Identity, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, Error> {
    let key = provider.key_provider.load_private_key(identity.private_key())?;
    let spki = CertificateDer::from(spki(identity.public()));
    Ok(Arc::new(CertifiedKey::new(vec![spki], key)))
}

/// Wraps an identity key as a SubjectPublicKeyInfo.
pub fn spki(key: IdentityKey) -> Vec<u8> {
    [SPKI_PREFIX.as_slice(), &key.0].concat()
}

/// Unwraps an identity key; none if the bytes are anything but one Ed25519 key.
pub fn identity_of(spki: &[u8]) -> Option<IdentityKey> {
    let key = spki.strip_prefix(&SPKI_PREFIX)?;
    key.try_into().ok().map(IdentityKey)
}

/// Takes any Ed25519 key whose private half the peer proves to hold.
#[derive(Debug)]
struct AnyEd25519Key {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for AnyEd25519Key {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match identity_of(end_entity) {
            Some(_) if intermediates.is_empty() => Ok(ClientCertVerified::assertion()),
            _ => Err(CertificateError::BadEncoding.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let spki = SubjectPublicKeyInfoDer::from(cert.as_ref());
        verify_tls13_signature_with_raw_key(message, &spki, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, clippy::unwrap_in_result, reason = "a test fails by panicking")]
    use rustls::client::AlwaysResolvesClientRawPublicKeys;
    use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
    use rustls::crypto::SupportedKxGroup;
    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, NamedGroup, ServerConnection};

    use super::*;

    /// A client that takes any server and offers these groups.
    fn client(identity: &Identity, groups: &[&'static dyn SupportedKxGroup]) -> ClientConnection {
        let mut provider = aws_lc_rs::default_provider();
        provider.kx_groups = groups.to_vec();
        let provider = Arc::new(provider);
        let own = own_key(identity, &provider).unwrap();
        let verifier = Arc::new(AnyServer(provider.signature_verification_algorithms));
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(own)));
        config.alpn_protocols = vec![wire::ALPN.to_vec()];
        ClientConnection::new(Arc::new(config), ServerName::try_from("mesh").unwrap()).unwrap()
    }

    #[derive(Debug)]
    struct AnyServer(WebPkiSupportedAlgorithms);

    impl ServerCertVerifier for AnyServer {
        fn verify_server_cert(
            &self,
            _end_entity: &CertificateDer<'_>,
            _intermediates: &[CertificateDer<'_>],
            _server_name: &ServerName<'_>,
            _ocsp_response: &[u8],
            _now: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::General("not spoken".into()))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature_with_raw_key(message, &SubjectPublicKeyInfoDer::from(cert.as_ref()), dss, &self.0)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }

        fn requires_raw_public_keys(&self) -> bool {
            true
        }
    }

    /// Shakes hands in memory and returns the group agreed on.
    fn agreed(groups: &[&'static dyn SupportedKxGroup]) -> Result<NamedGroup, Error> {
        let identity = Identity::generate().unwrap();
        let mut near = client(&identity, groups);
        let mut far = ServerConnection::new(server(&identity).unwrap()).unwrap();
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
        assert_eq!(agreed(aws_lc_rs::ALL_KX_GROUPS).unwrap(), NamedGroup::X25519MLKEM768);
        assert!(agreed(&[aws_lc_rs::kx_group::X25519]).is_err());
    }

    #[test]
    fn a_key_survives_its_wrapping_and_other_keys_are_no_identity() {
        let key = IdentityKey([7; 32]);
        let wrapped = spki(key);
        assert_eq!(identity_of(&wrapped), Some(key));
        assert_eq!(identity_of(&wrapped[..43]), None);
        assert_eq!(identity_of(&[wrapped.as_slice(), &[0]].concat()), None);
        let mut x25519 = wrapped;
        x25519[8] = 0x6e;
        assert_eq!(identity_of(&x25519), None);
    }
}
