//! Words of 16 bits in a packet, in network order.

/// Reads a big-endian word; beyond the end it is 0.
pub(crate) fn word(bytes: &[u8], at: usize) -> u16 {
    match bytes.get(at..at + 2) {
        Some(&[high, low]) => u16::from_be_bytes([high, low]),
        _ => 0,
    }
}

/// Writes a big-endian word; beyond the end it writes nothing.
pub(crate) fn put_word(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(place) = bytes.get_mut(at..at + 2) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}
