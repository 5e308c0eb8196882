//! SHA-256 over what is kept: files that tell whether they are whole, and the chain of the log.

use aws_lc_rs::digest::{Context, SHA256};
use mesh_proto::base::checksummed_text;
use mesh_proto::trust::audit_log::LogHash;

/// Returns the sum of a text in pieces.
pub fn sha256(pieces: &[&[u8]]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    pieces.iter().for_each(|piece| context.update(piece));
    context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// Puts a text's sum above it.
pub fn seal(body: &[u8]) -> Vec<u8> {
    checksummed_text::seal(body, |body| sha256(&[body]))
}

/// Returns the text if the sum above it is its own.
pub fn unseal(bytes: &[u8]) -> Option<&[u8]> {
    checksummed_text::unseal(bytes, |body| sha256(&[body]))
}

/// Returns the hash of an entry of the log and of all before it.
pub fn link(before: &LogHash, body: &[u8]) -> LogHash {
    LogHash(sha256(&[&before.0, body]))
}
