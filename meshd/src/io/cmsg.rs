//! Socket addresses and control messages as bytes (cmsg(3), ip(7), ipv6(7), udp(7)), without a pointer.
//!
//! A control message is a header of length (a `size_t`), level and type (two ints), then data, the whole
//! padded to the size of a `size_t`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use mesh_proto::packet::Ecn;

/// A socket address in the kernel's form, IPv4 or IPv6.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(8))]
pub(crate) struct Name(pub(crate) [u8; 32]);

impl Name {
    pub(crate) const EMPTY: Self = Self([0; 32]);

    /// Writes an address and returns its length.
    pub(crate) fn write(&mut self, address: SocketAddr) -> usize {
        self.0[2..4].copy_from_slice(&address.port().to_be_bytes());
        match address {
            SocketAddr::V4(v4) => {
                self.0[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
                self.0[4..8].copy_from_slice(&v4.ip().octets());
                16
            }
            SocketAddr::V6(v6) => {
                self.0[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
                self.0[4..8].copy_from_slice(&v6.flowinfo().to_be_bytes());
                self.0[8..24].copy_from_slice(&v6.ip().octets());
                self.0[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                28
            }
        }
    }

    /// Reads what the kernel wrote; `None` for another family, and for port 0, to which nobody can answer.
    pub(crate) fn read(&self) -> Option<SocketAddr> {
        let family = i32::from(u16::from_ne_bytes(bytes(&self.0, 0)?));
        let port = u16::from_be_bytes(bytes(&self.0, 2)?);
        let address = match family {
            libc::AF_INET => SocketAddrV4::new(Ipv4Addr::from(bytes::<4>(&self.0, 4)?), port).into(),
            libc::AF_INET6 => {
                let ip = Ipv6Addr::from(bytes::<16>(&self.0, 8)?);
                SocketAddrV6::new(ip, port, 0, u32::from_ne_bytes(bytes(&self.0, 24)?)).into()
            }
            _ => return None,
        };
        (port != 0).then_some(address)
    }
}

/// Room for the control messages of one datagram.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(8))]
pub(crate) struct ControlMessages(pub(crate) [u8; CONTROL]);

/// Enough for packet information (36 bytes), segment size, traffic class and overflow count (20 each), padded.
const CONTROL: usize = 128;
const WORD: usize = size_of::<usize>();
const HEADER: usize = WORD + 8;

/// What the kernel told about a datagram.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct DatagramInfo {
    /// The own address that it was sent to.
    pub(crate) local: Option<IpAddr>,
    /// Bytes per datagram, where several were joined.
    pub(crate) segment: Option<usize>,
    /// The ECN field of the outer header.
    pub(crate) ecn: Ecn,
    /// Datagrams lost so far because the buffer was full.
    pub(crate) overflows: Option<u32>,
}

impl ControlMessages {
    pub(crate) const EMPTY: Self = Self([0; CONTROL]);

    /// Writes the source address, the segment size, and the ECN field for that address family, if it is not 0;
    /// returns the bytes used.
    pub(crate) fn write(&mut self, local: Option<IpAddr>, segment: Option<usize>, ecn: (Ecn, bool)) -> usize {
        let mut used = 0;
        match local {
            // struct in_pktinfo: interface, source, (on receipt) destination.
            Some(IpAddr::V4(local)) => {
                let mut info = [0; 12];
                info[4..8].copy_from_slice(&local.octets());
                used = self.put(used, libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            // struct in6_pktinfo: address, interface.
            Some(IpAddr::V6(local)) => {
                let mut info = [0; 20];
                info[..16].copy_from_slice(&local.octets());
                used = self.put(used, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
            None => {}
        }
        if let Some(segment) = segment.and_then(|s| u16::try_from(s).ok()) {
            used = self.put(used, libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
        }
        match ecn {
            (Ecn::NotEct, _) => {}
            (ecn, true) => {
                used = self.put(used, libc::IPPROTO_IP, libc::IP_TOS, &i32::from(ecn.bits()).to_ne_bytes());
            }
            (ecn, false) => {
                used = self.put(used, libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &i32::from(ecn.bits()).to_ne_bytes());
            }
        }
        used
    }

    fn put(&mut self, at: usize, level: i32, kind: i32, data: &[u8]) -> usize {
        let length = HEADER + data.len();
        self.0[at..at + WORD].copy_from_slice(&length.to_ne_bytes());
        self.0[at + WORD..at + WORD + 4].copy_from_slice(&level.to_ne_bytes());
        self.0[at + WORD + 4..at + HEADER].copy_from_slice(&kind.to_ne_bytes());
        self.0[at + HEADER..at + length].copy_from_slice(data);
        at + length.next_multiple_of(WORD)
    }

    /// Reads what the kernel wrote into an empty buffer.
    pub(crate) fn read(&self) -> DatagramInfo {
        let mut told = DatagramInfo::default();
        let mut at = 0;
        while let Some((level, kind, data, next)) = self.message(at) {
            match (level, kind) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    told.local = bytes::<4>(data, 4).map(|ip| Ipv4Addr::from(ip).into());
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    told.local = bytes::<16>(data, 0).map(|ip| Ipv6Addr::from(ip).into());
                }
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    let size = bytes(data, 0).map(i32::from_ne_bytes);
                    told.segment = size.and_then(|s| usize::try_from(s).ok());
                }
                // One byte when the kernel tells it, though an int when it is told.
                (libc::IPPROTO_IP, libc::IP_TOS) => {
                    told.ecn = data.first().copied().map_or(Ecn::NotEct, Ecn::of);
                }
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    told.ecn = bytes(data, 0).map_or(Ecn::NotEct, |class| Ecn::of(i32::from_ne_bytes(class) as u8));
                }
                (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => {
                    told.overflows = bytes(data, 0).map(u32::from_ne_bytes);
                }
                _ => {}
            }
            at = next;
        }
        told
    }

    fn message(&self, at: usize) -> Option<(i32, i32, &[u8], usize)> {
        let length = usize::from_ne_bytes(bytes(&self.0, at)?);
        let level = i32::from_ne_bytes(bytes(&self.0, at + WORD)?);
        let kind = i32::from_ne_bytes(bytes(&self.0, at + WORD + 4)?);
        let end = at.checked_add(length)?;
        let data = self.0.get(at + HEADER..end)?;
        Some((level, kind, data, end.next_multiple_of(WORD)))
    }
}

fn bytes<const N: usize>(from: &[u8], at: usize) -> Option<[u8; N]> {
    from.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_what_it_wrote() {
        for text in ["192.0.2.7:51820", "[2001:db8::7]:51820", "[fe80::7%3]:51820"] {
            let address: SocketAddr = text.parse().expect("written as an address");
            let mut name = Name::EMPTY;
            let length = name.write(address);
            assert_eq!((name.read(), length), (Some(address), if address.is_ipv4() { 16 } else { 28 }));
        }
        assert_eq!(Name::EMPTY.read(), None);
    }

    #[test]
    fn control_messages_read_back_and_rubbish_ends_the_reading() {
        let local: IpAddr = Ipv6Addr::LOCALHOST.into();
        let mut control = ControlMessages::EMPTY;
        let used = control.write(Some(local), Some(1452), (Ecn::Ect0, false));
        control.put(used, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, &7u32.to_ne_bytes());
        let told = control.read();
        assert_eq!((told.local, told.ecn, told.overflows), (Some(local), Ecn::Ect0, Some(7)));

        let mut control = ControlMessages::EMPTY;
        control.put(0, libc::IPPROTO_IP, libc::IP_TOS, &[0xb8 | 3]);
        assert_eq!(control.read().ecn, Ecn::Ce);
        let mut none = ControlMessages::EMPTY;
        assert_eq!(none.write(None, None, (Ecn::NotEct, true)), 0, "what is not marked costs nothing");

        let mut control = ControlMessages::EMPTY;
        let used = control.put(0, libc::SOL_UDP, libc::UDP_GRO, &1452i32.to_ne_bytes());
        control.0[used..].fill(0xff);
        assert_eq!(control.read().segment, Some(1452));
        assert_eq!(ControlMessages([0xff; CONTROL]).read(), DatagramInfo::default());
        assert_eq!(ControlMessages::EMPTY.read(), DatagramInfo::default());
    }
}
