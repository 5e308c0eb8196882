//! Rules of legacy iptables, which the kernel keeps apart from nftables: they are not read here, and that is told.

use std::fs;

/// Where the kernel lists the tables that were ever used in a network namespace.
const IPV4: &str = "/proc/thread-self/net/ip_tables_names";

/// Returns the tables of legacy iptables that are in use, of the network namespace of the calling thread; `None` if
/// there are none.
pub(super) fn tables() -> Option<Vec<String>> {
    let text = fs::read_to_string(IPV4).ok()?;
    let mut tables: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    tables.sort();
    (!tables.is_empty()).then_some(tables)
}

/// Says what that means.
pub(super) fn sentence(tables: &[String]) -> String {
    format!(
        "legacy iptables is in use on this host (tables {}): meshd reads nftables alone, and does not know what rules are there; `iptables-legacy-save` shows them, and none of them may drop what comes from the mesh interface",
        tables.join(", ")
    )
}
