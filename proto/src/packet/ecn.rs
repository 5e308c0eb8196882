//! Explicit congestion notification through a tunnel: what the outer header says of the inner packet and what it
//! brings back (RFC 6040, normal mode). On the way out the inner field is copied to the outer header; on the way in:
//!
//! ```text
//!   inner ╲ outer │ Not-ECT   ECT(0)    ECT(1)    CE
//!   ──────────────┼──────────────────────────────────
//!   Not-ECT       │ Not-ECT   Not-ECT   Not-ECT   drop
//!   ECT(0)        │ ECT(0)    ECT(0)    ECT(1)    CE
//!   ECT(1)        │ ECT(1)    ECT(1)    ECT(1)    CE
//!   CE            │ CE        CE        CE        CE
//! ```

use super::bytes::word;
use super::checksum::{ChecksumDelta, IP_CHECKSUM};
use super::{Checksum, put_word};

/// The ECN field, the two lowest bits of the type of service (RFC 3168 section 5).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ecn {
    /// The sender does not understand marks.
    #[default]
    NotEct,
    /// It does, and asks for the finer ones of L4S (RFC 9331).
    Ect1,
    /// It does.
    Ect0,
    /// Marked: congestion experienced.
    Ce,
}

impl Ecn {
    /// Reads it from a type of service or a traffic class.
    pub fn of(tos: u8) -> Self {
        match tos & 3 {
            0 => Self::NotEct,
            1 => Self::Ect1,
            2 => Self::Ect0,
            _ => Self::Ce,
        }
    }

    /// Reads it from an IPv4 packet; nothing of another kind is marked.
    pub fn of_packet(packet: &[u8]) -> Self {
        match packet {
            [version, tos, ..] if version >> 4 == 4 => Self::of(*tos),
            _ => Self::NotEct,
        }
    }

    /// Returns its two bits.
    pub fn bits(self) -> u8 {
        match self {
            Self::NotEct => 0,
            Self::Ect1 => 1,
            Self::Ect0 => 2,
            Self::Ce => 3,
        }
    }

    /// Returns what the inner field becomes under that outer one; `None` if the packet is to be dropped, because its
    /// loss is all that its sender understands.
    pub fn under(self, outer: Self) -> Option<Self> {
        match (self, outer) {
            (Self::NotEct, Self::Ce) => None,
            (Self::Ect0 | Self::Ect1, Self::Ce) => Some(Self::Ce),
            (Self::Ect0, Self::Ect1) => Some(Self::Ect1),
            (_, Self::NotEct | Self::Ect0) | (Self::NotEct | Self::Ect1, Self::Ect1) | (Self::Ce, _) => Some(self),
        }
    }
}

/// Brings the outer header's field into a packet that came out of a tunnel. Says whether the packet may go on.
pub fn bring_ecn(packet: &mut [u8], outer: Ecn) -> bool {
    // Most packets: the outer field says nothing that the inner one does not.
    if matches!(outer, Ecn::NotEct | Ecn::Ect0) {
        return true;
    }
    let inner = Ecn::of_packet(packet);
    let Some(result) = inner.under(outer) else { return false };
    if result != inner {
        let before = word(packet, 0);
        let after = before & !3 | u16::from(result.bits());
        let mut delta = ChecksumDelta::default();
        delta.change(before, after);
        put_word(packet, 0, after);
        delta.apply(packet, IP_CHECKSUM, Checksum::Complete);
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::sample::sample;
    use crate::packet::verify;

    const FIELDS: [Ecn; 4] = [Ecn::NotEct, Ecn::Ect1, Ecn::Ect0, Ecn::Ce];

    /// RFC 6040 figure 4, row by row; the columns are the outer Not-ECT, ECT(0), ECT(1), CE.
    const FIGURE_4: [(Ecn, [Option<Ecn>; 4]); 4] = [
        (Ecn::NotEct, [Some(Ecn::NotEct), Some(Ecn::NotEct), Some(Ecn::NotEct), None]),
        (Ecn::Ect0, [Some(Ecn::Ect0), Some(Ecn::Ect0), Some(Ecn::Ect1), Some(Ecn::Ce)]),
        (Ecn::Ect1, [Some(Ecn::Ect1), Some(Ecn::Ect1), Some(Ecn::Ect1), Some(Ecn::Ce)]),
        (Ecn::Ce, [Some(Ecn::Ce); 4]),
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn all_sixteen_combinations_are_those_of_the_standard(sample in sample()) {
            for (inner, row) in FIGURE_4 {
                for (outer, expected) in [Ecn::NotEct, Ecn::Ect0, Ecn::Ect1, Ecn::Ce].into_iter().zip(row) {
                    let packet = |ecn: Ecn| {
                        crate::packet::sample::Sample { tos: sample.tos & !3 | ecn.bits(), ..sample.clone() }.bytes()
                    };
                    let mut bytes = packet(inner);

                    let goes_on = bring_ecn(&mut bytes, outer);

                    prop_assert_eq!(goes_on, expected.is_some());
                    // Nothing else changes, and the header's checksum is right.
                    prop_assert_eq!(&bytes, &packet(expected.unwrap_or(inner)));
                    prop_assert!(verify(&bytes));
                }
            }
        }
    }

    #[test]
    fn the_field_is_the_two_lowest_bits_of_an_ipv4_packet() {
        for (bits, field) in (0..4).zip(FIELDS) {
            assert_eq!((Ecn::of(0xb8 | bits), field.bits()), (field, bits));
            assert_eq!(Ecn::of_packet(&[0x45, 0xb8 | bits]), field);
            assert_eq!(Ecn::of_packet(&[0x60, 3]), Ecn::NotEct);
        }
        assert_eq!(Ecn::of_packet(&[0x45]), Ecn::NotEct);
        assert!(bring_ecn(&mut [], Ecn::Ect1));
    }
}
