//! The operating system's entropy.

use aws_lc_rs::rand;

/// Fills a buffer that becomes a secret.
///
/// # Panics
/// Without entropy: a key that can be guessed is worse than none.
pub(crate) fn entropy(bytes: &mut [u8]) {
    rand::fill(bytes).expect("the operating system has entropy");
}

/// Returns a number that strangers cannot guess; without entropy 0, for it spreads load and makes no secret.
pub(crate) fn random() -> u64 {
    let mut bytes = [0; 8];
    match rand::fill(&mut bytes) {
        Ok(()) => u64::from_le_bytes(bytes),
        Err(_) => 0,
    }
}

/// Returns a random number from 0 to 1.
pub(crate) fn share() -> f64 {
    random() as f64 / u64::MAX as f64
}
