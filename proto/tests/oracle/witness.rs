//! What can be seen of an engine's decision, held against what the oracle asks for.

use std::net::Ipv4Addr;

use etherparse::checksum::Sum16BitWords;
use mesh_proto::base::addr::is_forbidden;
use mesh_proto::dataplane::verdict::{Refuse, Verdict};
use mesh_proto::packet::{ICMP, TCP, UDP};

use crate::model::{End, Model, ModelOutcome, Want};
use crate::packet::{ACK, Body, FIN, Packet, RST, SYN, line, tuple};

/// Says whether the checksums of a whole packet are right, as a library counts them that the product does not use.
fn has_right_sums(bytes: &[u8]) -> bool {
    let is_right = |parts: &[&[u8]]| {
        let sum = parts.iter().fold(Sum16BitWords::new(), |sum, part| sum.add_slice(part));
        sum.ones_complement() == 0
    };
    let (header, transport) = bytes.split_at(usize::from(bytes[0] & 15) * 4);
    let pseudo = |length: usize| [&bytes[12..20], &[0, bytes[9]], &(length as u16).to_be_bytes()].concat();
    let transport_is_right = match bytes[9] {
        ICMP => is_right(&[transport]),
        TCP => is_right(&[&pseudo(transport.len()), transport]),
        UDP if transport[6..8] == [0, 0] => true,
        UDP => {
            let length = usize::from(u16::from_be_bytes([transport[4], transport[5]]));
            let datagram = &transport[..length.min(transport.len())];
            is_right(&[&pseudo(datagram.len()), datagram])
        }
        _ => true,
    };
    is_right(&[header]) && transport_is_right
}

/// Returns the outcome as it happened, if the engine's verdict and bytes fit it.
pub(crate) fn fits(model: &Model, want: &ModelOutcome, verdict: Verdict, bytes: &[u8]) -> Option<ModelOutcome> {
    let right = match want.want {
        Want::Is(wanted) => wanted == verdict,
        Want::Stopped => matches!(verdict, Verdict::Refuse(_) | Verdict::Drop(_)),
    };
    let mut chosen = want.clone();
    if let (true, Some(after)) = (right && want.other_port, &mut chosen.after) {
        let at = if after.tuple.protocol == ICMP { 24 } else { 20 };
        let port = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        after.tuple.source_port = port;
        let flow = chosen.open.as_mut()?;
        flow.sent.source_port = port;
        if port == 0 || model.taken(flow.other, flow.sent, None) {
            return None;
        }
    }
    let same = chosen.after.as_ref().is_none_or(|after| after.bytes() == bytes);
    (right && same).then_some(chosen)
}

/// Holds whatever the oracle says: checksums are right, the target is here, and somebody may call somebody.
pub(crate) fn invariants(
    model: &Model,
    from: End,
    after: &Packet,
    bytes: &[u8],
    verdict: Verdict,
    mtu: usize,
) -> Result<(), String> {
    if !after.partial && after.piece.is_none() && !has_right_sums(bytes) {
        return Err("the checksums are wrong".into());
    }
    if matches!(verdict, Verdict::Forward(_)) && bytes.len() > mtu && !after.partial {
        return Err(format!("{} bytes do not fit into {mtu}", bytes.len()));
    }
    if let (Verdict::Deliver, End::Peer(_)) = (verdict, from) {
        let node = &model.map.node;
        let to = after.tuple.destination;
        // An answer to a process that called through a local address goes back there.
        let own =
            to == node.address.0 || node.blocks.iter().any(|b| b.real.contains(&to)) || model.locals.contains(&to);
        if !own || is_forbidden(to) {
            return Err(format!("delivered to {to}, which is not here"));
        }
    }
    Ok(())
}

/// Reads an engine's own answer and says what is wrong with it.
pub(crate) fn answer(
    model: &Model,
    from: End,
    to: &Packet,
    verdict: Verdict,
    bytes: &[u8],
) -> Result<Option<Packet>, String> {
    let silent = to.later() || matches!(to.body, Body::Error { .. }) || to.flags().is_some_and(|f| f & RST != 0);
    if bytes.is_empty() {
        return if silent { Ok(None) } else { Err(format!("{verdict:?} without an answer")) };
    }
    if silent {
        return Err(format!("{verdict:?} answers what must not be answered"));
    }
    let source = Ipv4Addr::new(bytes[12], bytes[13], bytes[14], bytes[15]);
    let back = to.tuple.reverse();
    let body = match (verdict, bytes[9], &to.body) {
        (Verdict::Reply, ICMP, Body::Echo { len, .. }) => Body::Echo { reply: true, len: *len },
        (Verdict::Refuse(why), TCP, Body::Tcp { flags, seq, ack, len, .. }) if why != Refuse::TooBig => {
            let phantom = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
            let carried = to.piece.map_or(*len, |(_, end)| end - 20) as u32;
            match flags & ACK != 0 {
                true => Body::Tcp { flags: RST, seq: *ack, ack: 0, mss: None, len: 0 },
                false => Body::Tcp { flags: RST | ACK, seq: 0, ack: seq + carried + phantom, mss: None, len: 0 },
            }
        }
        (Verdict::Refuse(why), ICMP, _) => {
            let (code, extra) = match why {
                Refuse::TooBig => (4, u16::from_be_bytes([bytes[26], bytes[27]])),
                Refuse::Denied => (13, 0),
                Refuse::NoBackend
                | Refuse::UnknownService
                | Refuse::NoRoute
                | Refuse::ClosedPort
                | Refuse::BackendGone
                | Refuse::FlowTableFull
                | Refuse::NoSourcePort => (bytes[21], 0),
            };
            Body::Error { kind: 3, code, extra, quote: Box::new(to.clone()), len: bytes.len() - 28 }
        }
        _ => return Err(format!("{verdict:?} is answered by {}", hex(bytes))),
    };
    let error = matches!(body, Body::Error { .. });
    let mut reply = Packet {
        ttl: bytes[8],
        tos: bytes[1],
        id: u16::from_be_bytes([bytes[4], bytes[5]]),
        df: bytes[6] & 0x40 != 0,
        ..Packet::new(if error { tuple(ICMP, source, 0, back.destination, 0) } else { back }, 0, body)
    };
    // The payload of an echo is the asker's.
    if verdict == Verdict::Reply {
        reply.id = to.id;
        let (left, right) = (reply.bytes(), bytes);
        return if left[20..] == right[20..] && has_right_sums(bytes) {
            Ok(None)
        } else {
            Err(format!("bad echo {}", hex(bytes)))
        };
    }
    if let Body::Error { extra, code: 4, .. } = reply.body
        && !model.map.peers.values().any(|p| model.mtu(p.id) == usize::from(extra))
    {
        return Err(format!("{extra} is no way's size"));
    }
    if let (true, End::Peer(_)) = (error, from)
        && source != to.tuple.destination
        && source != model.map.node.address.0
    {
        return Err(format!("an error comes from {source}"));
    }
    if reply.bytes() != bytes || !has_right_sums(bytes) {
        return Err(format!(
            "{verdict:?} is answered by {}\nnot {}\n{}",
            hex(bytes),
            hex(&reply.bytes()),
            line(&reply)
        ));
    }
    Ok(Some(reply))
}

/// Returns what the oracle would have had.
pub(crate) fn wishes(wants: &[ModelOutcome]) -> String {
    let show = |o: &ModelOutcome| {
        let after = o.after.as_ref().map(|p| format!("{} {}", line(p), hex(&p.bytes()))).unwrap_or_default();
        format!("  {:?} {}{after}", o.want, if o.other_port { "(another port) " } else { "" })
    };
    wants.iter().map(show).collect::<Vec<_>>().join("\n")
}

/// Returns the first bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().take(64).map(|b| format!("{b:02x}")).collect::<Vec<_>>().join("")
}
