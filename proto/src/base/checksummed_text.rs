//! A text with its sum above it, so that a file which is torn, or of which a bit flipped, is known for what it is.
//!
//! ```text
//!   sha256 6f1c…\n
//!   the text, to the end
//! ```

use data_encoding::HEXLOWER;

/// SHA-256, of whoever has it.
pub type Sum = fn(&[u8]) -> [u8; 32];

const LABEL: &[u8] = b"sha256 ";

/// Puts a text's sum above it.
pub fn seal(body: &[u8], sum: Sum) -> Vec<u8> {
    [LABEL, HEXLOWER.encode(&sum(body)).as_bytes(), b"\n", body].concat()
}

/// Returns the text if the sum above it is its own.
pub fn unseal(bytes: &[u8], sum: Sum) -> Option<&[u8]> {
    let (told, body) = bytes.strip_prefix(LABEL)?.split_at_checked(64)?;
    let body = body.strip_prefix(b"\n")?;
    (HEXLOWER.encode(&sum(body)).as_bytes() == told).then_some(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> [u8; 32] {
        let mut sum = [bytes.len() as u8; 32];
        bytes.iter().enumerate().for_each(|(at, byte)| sum[at % 32] = sum[at % 32].wrapping_mul(31) ^ byte);
        sum
    }

    #[test]
    fn what_is_sealed_is_unsealed_and_no_cut_or_flipped_bit_passes() {
        for body in [&b""[..], b"a", b"{\"a\":1}\n{}"] {
            let sealed = seal(body, sum);
            assert_eq!(unseal(&sealed, sum), Some(body));
            for cut in 0..sealed.len() {
                assert_eq!(unseal(&sealed[..cut], sum), None, "cut at {cut}");
            }
            for bit in 0..sealed.len() * 8 {
                let mut flipped = sealed.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(unseal(&flipped, sum), None, "bit {bit}");
            }
        }
    }
}
