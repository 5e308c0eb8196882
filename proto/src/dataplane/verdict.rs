//! Every fate a packet can have. Each reason is at once a metric label, a log field, a status line and a test.

use crate::base::id::NodeId;

/// What becomes of a packet. `Forward` and `Deliver` rewrote it in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Seal it and send it to this peer.
    Forward(NodeId),
    /// Hand it to the kernel.
    Deliver,
    /// Send the engine's own answer (`Engine::reply`) back to where the packet came from.
    Reply,
    /// Refuse it; if `Engine::reply` is not empty, send that back to where the packet came from.
    Refuse(Refuse),
    /// Forget it.
    Drop(Drop),
    /// An answer to one of our own probes: the peer's round trip is this many microseconds.
    RoundTrip(u32),
    /// It belongs to a measurement between the two nodes, a peer's or our own, and the kernel sees nothing of it.
    Bench,
}

macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($(#[doc = $text:literal])* $variant:ident = $label:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[doc = $text])* $variant),+ }

        impl $name {
            /// Every reason, in the order of the counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Returns the metric label.
            pub fn label(self) -> &'static str {
                match self { $(Self::$variant => $label),+ }
            }

            /// Returns the sentence for the operator.
            pub fn sentence(self) -> &'static str {
                match self { $(Self::$variant => concat!($($text),+).trim_ascii()),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.label())
            }
        }
    };
}

reasons!(
    /// Why a packet is refused: the sender gets a quick error (TCP RST, or an ICMP error) instead of silence.
    Refuse {
        /// No rule allows this caller to call this target.
        Denied = "denied",
        /// The service has no live backend.
        NoBackend = "no_backend",
        /// The address lies in the VIP range but belongs to no service.
        UnknownService = "unknown_service",
        /// The service has no such port.
        ClosedPort = "closed_port",
        /// No node owns the address.
        NoRoute = "no_route",
        /// The backend of this connection is gone.
        BackendGone = "backend_gone",
        /// The packet is larger than the way to the peer takes, and must not be fragmented.
        TooBig = "too_big",
        /// The flow table is full, and nothing in it may go for a flow of whoever holds most.
        FlowTableFull = "flow_table_full",
        /// Each source port that was tried for a call is taken by another call to the same place; a protocol without
        /// ports has room for one.
        NoSourcePort = "no_source_port",
    }
);

reasons!(
    /// Why a packet is dropped without an answer.
    Drop {
        /// The packet is cut short, or its lengths contradict each other.
        Malformed = "malformed",
        /// The packet inside the tunnel is not IPv4.
        NotIpv4 = "not_ipv4",
        /// The source address does not belong to who sent it.
        SpoofedSource = "spoofed_source",
        /// The destination is not on this node.
        NotHere = "not_here",
        /// The destination is loopback, link-local, multicast or another address that nobody may reach.
        ForbiddenDestination = "forbidden_destination",
        /// A fragment whose first fragment was not seen, or was not let through.
        FragmentUnmatched = "fragment_unmatched",
        /// An ICMP error that quotes no packet of a live flow.
        IcmpUnmatched = "icmp_unmatched",
        /// Answers of our own making are limited, and the limit is reached.
        ReplyLimited = "reply_limited",
        /// The packet may not be fragmented by us, is larger than the way takes, and asks for no error.
        Oversized = "oversized",
        /// There is no tunnel to the peer yet, and the queue for it is full.
        NoTunnel = "no_tunnel",
        /// The peer has no endpoint that answers.
        NoEndpoint = "no_endpoint",
        /// Another lane's inbox is full.
        LaneFull = "lane_full",
        /// The kernel did not take the packet.
        DeviceFull = "device_full",
        /// The socket did not take the datagram.
        SocketFull = "socket_full",
        /// A datagram that is no WireGuard message.
        NotWireguard = "not_wireguard",
        /// A datagram for a session that does not exist.
        UnknownSession = "unknown_session",
        /// A datagram that does not authenticate, or was seen before.
        Unauthenticated = "unauthenticated",
        /// A handshake from a key that is no member's.
        UnknownPeer = "unknown_peer",
        /// A handshake above the limit of its sender.
        HandshakeLimited = "handshake_limited",
        /// A packet on the reserved port inside the tunnel that is no probe and no measurement's, or comes too often.
        BadProbe = "bad_probe",
        /// The way marked congestion on a packet whose sender does not understand marks, but loss (RFC 6040).
        CongestionMarked = "congestion_marked",
    }
);

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn labels_are_distinct_and_sentences_are_sentences() {
        let labels = Refuse::ALL.iter().map(|r| (r.label(), r.sentence()));
        let labels: Vec<_> = labels.chain(Drop::ALL.iter().map(|r| (r.label(), r.sentence()))).collect();
        assert_eq!(labels.iter().map(|(l, _)| l).collect::<BTreeSet<_>>().len(), labels.len());
        assert!(labels.iter().all(|(_, s)| s.ends_with('.') && s.len() > 10), "{labels:?}");
    }
}
