//! ICMP errors: they pass only if the packet they quote belongs to a live flow, and are translated with it.
//!
//! The quoted packet went the other way, so it looks like the reverse of this direction's packets. Who may speak of it
//! is its receiver, and the host that carries the receiver. That a packet is too large may also be said on the way
//! to the receiver, where a router is the only one to know; nobody shrinks a way below what no way is narrower than.

use crate::dataplane::view::MIN_MTU;
use crate::packet::{self, FiveTuple, Header, Kind, Rewrite};

/// Says whether a message is an ICMP error (RFC 1122 section 3.2.2) of which no quote can belong to a flow: about
/// another error, about a later fragment, a redirect or a source quench.
pub(super) fn quotes_no_flow(bytes: &[u8], header: &Header) -> bool {
    const ERRORS: [u8; 5] = [3, 4, 5, 11, 12];
    header.kind == Kind::IcmpOther && bytes.get(header.header_len).is_some_and(|kind| ERRORS.contains(kind))
}

/// Rewrites an error as packets of its own direction are, and the packet it quotes as those of the other. A size that
/// it asks for is raised to `MIN_MTU`.
pub(super) fn translate(bytes: &mut [u8], header: &Header, to: FiveTuple) {
    packet::raise_mtu(bytes, header, MIN_MTU);
    let outer = Rewrite { source: Some((to.source, 0)), destination: Some((to.destination, 0)) };
    let quoted =
        Rewrite { source: Some((to.destination, to.destination_port)), destination: Some((to.source, to.source_port)) };
    packet::rewrite_icmp_error(bytes, header, &outer, &quoted);
}
