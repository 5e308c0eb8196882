//! Texts that tell by the sum above them whether they are whole.

use aws_lc_rs::digest::{SHA256, digest};
use mesh_proto::base::checksummed_text;

/// Puts a text's sum above it.
pub(crate) fn seal(body: &[u8]) -> Vec<u8> {
    checksummed_text::seal(body, sum)
}

/// Returns the text if the sum above it is its own.
pub(crate) fn unseal(bytes: &[u8]) -> Option<&[u8]> {
    checksummed_text::unseal(bytes, sum)
}

fn sum(bytes: &[u8]) -> [u8; 32] {
    let mut sum = [0; 32];
    sum.copy_from_slice(digest(&SHA256, bytes).as_ref());
    sum
}
