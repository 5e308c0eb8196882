//! By which numbers and names the kernel knows a mesh. All follow from its range, so that several live on one host,
//! and each finds its own again without having written anything down.
//!
//! ```text
//! range            rules         routing table   nftables table          claim
//! 241.0.0.0/8      priority 105  24105           meshd                   meshd-claim-241.0.0.0-8
//! 100.96.0.0/12    priority 105  2410009612      meshd-100.96.0.0-12     meshd-claim-100.96.0.0-12
//! ```
//! Rules share one priority, for each names its range. Versions before this one knew a single mesh, and used the
//! first line for whatever range it had.

use ipnet::Ipv4Net;
use mesh_proto::base::addr::MeshRange;

use super::error::KernelError;
use crate::linux::shape::TABLE;

/// The nftables table of the default range, and of any range in versions before this one.
pub(super) const FIRST_NFT_TABLE: &str = "meshd";
const NFT_TABLE: &str = "meshd-";
const CLAIM: &str = "meshd-claim-";
/// Before the digits of a range: a range has at most 16 bits, so that its first two numbers and its length tell it.
const TABLES: u32 = 2_400_000_000;

/// Returns the routing table of a range.
pub fn table(range: MeshRange) -> u32 {
    if range == MeshRange::default() {
        return TABLE;
    }
    let [first, second, _, _] = range.net().network().octets();
    TABLES + u32::from(first) * 100_000 + u32::from(second) * 100 + u32::from(range.net().prefix_len())
}

/// Returns the nftables table that guards a range.
pub fn nft_table(range: MeshRange) -> String {
    if range == MeshRange::default() { FIRST_NFT_TABLE.to_owned() } else { format!("{NFT_TABLE}{}", word(range)) }
}

/// Returns the nftables table that says who holds a range.
pub(super) fn claim(range: MeshRange) -> String {
    format!("{CLAIM}{}", word(range))
}

/// Returns the range whose guards a table holds; `None` for tables that are not ours, and for the first one, in
/// which earlier versions kept any range.
pub(super) fn guarded(table: &str) -> Option<MeshRange> {
    read(table.strip_prefix(NFT_TABLE)?)
}

/// Returns the range that a table says the holder of; `None` for tables that are not ours.
pub(super) fn claimed(table: &str) -> Option<MeshRange> {
    read(table.strip_prefix(CLAIM)?)
}

/// Refuses what cannot be the name of an interface.
pub(super) fn check_name(interface: &str) -> Result<(), KernelError> {
    let good = |b: u8| b.is_ascii_graphic() && b != b'/';
    let fits = (1..=15).contains(&interface.len()) && interface != "." && interface != "..";
    if fits && interface.bytes().all(good) { Ok(()) } else { Err(KernelError::Name(interface.to_owned())) }
}

/// A slash would end the name where others read it.
fn word(range: MeshRange) -> String {
    range.to_string().replace('/', "-")
}

fn read(word: &str) -> Option<MeshRange> {
    let net: Ipv4Net = word.replace('-', "/").parse().ok()?;
    net.try_into().ok()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::collections::BTreeSet;
    use std::net::Ipv4Addr;

    use super::*;

    fn range(text: &str) -> MeshRange {
        text.parse().unwrap()
    }

    #[test]
    fn the_default_range_keeps_the_names_that_it_always_had() {
        let default = MeshRange::default();
        assert_eq!((table(default), nft_table(default).as_str()), (24_105, "meshd"));
        assert_eq!(claim(default), "meshd-claim-241.0.0.0-8");
    }

    #[test]
    fn another_range_is_read_from_its_names() {
        let other = range("100.96.0.0/12");
        assert_eq!(table(other), 2_410_009_612);
        assert_eq!(nft_table(other), "meshd-100.96.0.0-12");
        assert_eq!(guarded(&nft_table(other)), Some(other));
        assert_eq!(claimed(&claim(other)), Some(other));
        for foreign in ["meshd", "meshd-", "meshd-claim-100.96.0.0-12", "meshd-100.96.0.1-12", "cni", "meshd-x"] {
            assert_eq!(guarded(foreign), None, "{foreign}");
        }
        for foreign in ["meshd-claim-", "meshd-100.96.0.0-12", "meshd-claim-1.2.3.4-33"] {
            assert_eq!(claimed(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn no_two_ranges_share_a_number_or_a_name() {
        let ranges = (8..=16).flat_map(|length: u8| {
            let step = 1u32 << (32 - length);
            (0..1u32 << length)
                .filter_map(move |i| MeshRange::try_from(Ipv4Net::new_assert(Ipv4Addr::from(i * step), length)).ok())
        });
        let ranges: Vec<MeshRange> = ranges.collect();
        let tables: BTreeSet<u32> = ranges.iter().map(|&range| table(range)).collect();
        let names: BTreeSet<String> = ranges.iter().map(|&range| nft_table(range)).collect();
        assert_eq!((tables.len(), names.len()), (ranges.len(), ranges.len()));
        // The kernel's own tables, and those that others give themselves, are smaller.
        assert!(tables.iter().all(|&table| table == TABLE || table > TABLES));
    }
}
