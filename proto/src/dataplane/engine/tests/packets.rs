//! Packets with right checksums, built by hand: the engine's tests must not lean on the code they test.

use std::net::Ipv4Addr;

use crate::packet::{ICMP, TCP, UDP};

use super::DF;

pub(super) fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

/// Builds an IPv4 packet with right checksums.
pub(super) fn ipv4(protocol: u8, source: &str, destination: &str, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut p = vec![0x45, 0, 0, 0, 0x12, 0x34, 0, 0, 64, protocol, 0, 0];
    p[6..8].copy_from_slice(&flags.to_be_bytes());
    p.extend_from_slice(&ip(source).octets());
    p.extend_from_slice(&ip(destination).octets());
    p.extend_from_slice(body);
    let length = p.len() as u16;
    p[2..4].copy_from_slice(&length.to_be_bytes());
    let sum = sum(&p[..20], 0);
    p[10..12].copy_from_slice(&sum.to_be_bytes());
    let at = match protocol {
        TCP => Some(36),
        UDP => Some(26),
        ICMP => Some(22),
        _ => None,
    };
    if let Some(at) = at.filter(|&at| flags & 0x1fff == 0 && p.len() >= at + 2) {
        let pseudo = if protocol == ICMP { 0 } else { pseudo(&p) };
        let sum = self::sum(&p[20..], pseudo);
        p[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    p
}

pub(super) fn pseudo(p: &[u8]) -> u32 {
    let words = p[12..20].chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    words.sum::<u32>() + u32::from(p[9]) + (p.len() as u32 - 20)
}

pub(super) fn sum(bytes: &[u8], start: u32) -> u16 {
    let word = |w: &[u8]| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0));
    let mut sum = bytes.chunks(2).map(word).sum::<u32>() + start;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

pub(super) fn tcp(source: &str, sport: u16, destination: &str, dport: u16, flags: u8) -> Vec<u8> {
    let mut body = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
    body.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 2, 0x60, flags, 0xff, 0xff, 0, 0, 0, 0, 2, 4, 0x05, 0xb4]);
    ipv4(TCP, source, destination, DF, &body)
}

pub(super) fn udp(source: &str, sport: u16, destination: &str, dport: u16) -> Vec<u8> {
    let mut body = [sport.to_be_bytes(), dport.to_be_bytes(), 12u16.to_be_bytes()].concat();
    body.extend_from_slice(&[0, 0, 1, 2, 3, 4]);
    ipv4(UDP, source, destination, 0, &body)
}

pub(super) fn echo(source: &str, destination: &str, kind: u8, id: u16) -> Vec<u8> {
    let mut body = vec![kind, 0, 0, 0];
    body.extend_from_slice(&id.to_be_bytes());
    body.extend_from_slice(&[0, 1, 7, 7]);
    ipv4(ICMP, source, destination, 0, &body)
}

pub(super) fn icmp_error(source: &str, destination: &str, quoted: &[u8]) -> Vec<u8> {
    let mut body = vec![3, 1, 0, 0, 0, 0, 0, 0];
    body.extend_from_slice(&quoted[..quoted.len().min(28)]);
    ipv4(ICMP, source, destination, 0, &body)
}
