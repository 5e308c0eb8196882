//! A member gone bad: it holds a real key of the mesh, and none of the checks of a real meshd.
//!
//! It speaks WireGuard by itself and sends whatever inner packets it likes. What it sends carries a marker,
//! and an observer on the victim's side looks for it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use nix::sys::socket::{MsgFlags, recv};

use crate::capture;
use crate::netns::Namespace;

/// What every evil packet carries.
pub const MARKER: &[u8; 16] = b"EVIL-PACKET-HERE";
/// How long a handshake may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// A tunnel to one victim, without any check on this side.
pub struct Attacker {
    tunnel: Tunn,
    socket: UdpSocket,
}

impl Attacker {
    /// Shakes hands with a victim from a socket inside the attacker's namespace.
    ///
    /// # Errors
    /// If the socket cannot be bound or the victim does not answer.
    pub fn connect(
        home: &Namespace,
        from: SocketAddr,
        secret: StaticSecret,
        victim: [u8; 32],
        endpoint: SocketAddr,
    ) -> io::Result<Self> {
        let socket = home.run(move || {
            let socket = UdpSocket::bind(from)?;
            socket.connect(endpoint)?;
            socket.set_read_timeout(Some(Duration::from_millis(100)))?;
            Ok::<_, io::Error>(socket)
        })?;
        let tunnel = Tunn::new(secret, PublicKey::from(victim), None, None, 7, None);
        let mut attacker = Self { tunnel, socket };
        attacker.shake_hands()?;
        Ok(attacker)
    }

    fn shake_hands(&mut self) -> io::Result<()> {
        let (mut out, mut inbox) = ([0; 2048], [0; 2048]);
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            let started = self.tunnel.format_handshake_initiation(&mut out, true);
            if let TunnResult::WriteToNetwork(packet) = started {
                self.socket.send(packet)?;
            }
            let again = Instant::now() + Duration::from_millis(500);
            while Instant::now() < again {
                let Ok(length) = self.socket.recv(&mut inbox) else {
                    continue;
                };
                let answer = self.tunnel.decapsulate(None, &inbox[..length], &mut out);
                // The first packet after the response is our keepalive: it confirms the session.
                if let TunnResult::WriteToNetwork(packet) = answer {
                    self.socket.send(packet)?;
                    if self.tunnel.time_since_last_handshake().is_some() {
                        return Ok(());
                    }
                }
            }
        }
        Err(io::Error::other("the victim does not shake hands with the attacker"))
    }

    /// Seals an inner packet and sends it.
    ///
    /// # Errors
    /// If there is no session.
    pub fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        let mut out = [0; 2048];
        match self.tunnel.encapsulate(packet, &mut out) {
            TunnResult::WriteToNetwork(sealed) => self.socket.send(sealed).map(|_| ()),
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => Err(io::Error::other("the session is gone")),
        }
    }
}

/// Kinds of inner packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forgery {
    /// A connection attempt.
    Syn,
    /// A reply-direction packet: SYN and ACK.
    SynAck,
    /// A reply-direction packet in the middle of a connection, with data.
    Data,
    /// A reset.
    Reset,
    /// A datagram.
    Udp,
    /// A ping.
    Echo,
    /// A ping's answer.
    EchoReply,
    /// An ICMP error that quotes a packet of the victim.
    Error,
    /// The first fragment of a datagram.
    FirstFragment,
    /// A later fragment.
    LaterFragment,
}

impl Forgery {
    /// Every kind.
    pub const ALL: [Self; 10] = [
        Self::Syn,
        Self::SynAck,
        Self::Data,
        Self::Reset,
        Self::Udp,
        Self::Echo,
        Self::EchoReply,
        Self::Error,
        Self::FirstFragment,
        Self::LaterFragment,
    ];
}

/// Builds an inner packet with the marker in it. `port` is the victim's service, from which or to which it goes.
pub fn packet(kind: Forgery, from: Ipv4Addr, to: Ipv4Addr, port: u16) -> Vec<u8> {
    let tcp = |ports: (u16, u16), flags: u8| {
        let mut segment = Vec::new();
        segment.extend(ports.0.to_be_bytes());
        segment.extend(ports.1.to_be_bytes());
        segment.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xFF, 0xFF, 0, 0, 0, 0]);
        segment.extend(MARKER);
        segment
    };
    let udp = || {
        let mut datagram = Vec::new();
        datagram.extend(40000u16.to_be_bytes());
        datagram.extend(port.to_be_bytes());
        datagram.extend([0, 24, 0, 0]);
        datagram.extend(MARKER);
        datagram
    };
    let icmp = |kind: u8, code: u8, rest: &[u8]| {
        let mut message = vec![kind, code, 0, 0, 0, 1, 0, 1];
        message.extend(rest);
        let sum = checksum(&message, 0);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        message
    };
    let (protocol, fragment, mut payload) = match kind {
        Forgery::Syn => (6, 0, tcp((40000, port), 2)),
        Forgery::SynAck => (6, 0, tcp((port, 40000), 18)),
        Forgery::Data => (6, 0, tcp((port, 40000), 24)),
        Forgery::Reset => (6, 0, tcp((port, 40000), 4)),
        Forgery::Udp => (17, 0, udp()),
        Forgery::Echo => (1, 0, icmp(8, 0, MARKER)),
        Forgery::EchoReply => (1, 0, icmp(0, 0, MARKER)),
        Forgery::Error => {
            let quoted = packet(Forgery::Data, to, from, port);
            (1, 0, icmp(3, 3, &quoted))
        }
        Forgery::FirstFragment => (17, 0x2000, udp()),
        Forgery::LaterFragment => (17, 0x0003, MARKER.repeat(2)),
    };
    if protocol == 6 {
        let sum = checksum(&payload, pseudo(from, to, 6, payload.len()));
        payload[16..18].copy_from_slice(&sum.to_be_bytes());
    }
    let total = u16::try_from(20 + payload.len()).unwrap_or(u16::MAX);
    let mut packet = vec![0x45, 0];
    packet.extend(total.to_be_bytes());
    packet.extend([0x12, 0x34]);
    packet.extend(u16::to_be_bytes(fragment));
    packet.extend([64, protocol, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum = checksum(&packet, 0);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    packet
}

fn pseudo(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, length: usize) -> u32 {
    let mut header = Vec::new();
    header.extend(from.octets());
    header.extend(to.octets());
    header.extend([0, protocol]);
    header.extend(u16::try_from(length).unwrap_or(0).to_be_bytes());
    sum(&header)
}

fn sum(bytes: &[u8]) -> u32 {
    let pair = |p: &[u8]| u32::from(p[0]) << 8 | u32::from(p.get(1).copied().unwrap_or(0));
    bytes.chunks(2).map(pair).sum()
}

fn checksum(bytes: &[u8], start: u32) -> u16 {
    let mut total = start + sum(bytes);
    while total > 0xFFFF {
        total = (total & 0xFFFF) + (total >> 16);
    }
    !u16::try_from(total).unwrap_or(0)
}

/// Looks for the marker on every link of a namespace.
pub struct Observer {
    found: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Observer {
    /// Starts looking.
    ///
    /// # Errors
    /// If a packet socket cannot be opened.
    pub fn start(namespace: &Namespace) -> io::Result<Self> {
        let socket = namespace.run(capture::open)?;
        let (found, stop): (Arc<AtomicU64>, Arc<AtomicBool>) = (Arc::default(), Arc::default());
        let (count, stopped) = (Arc::clone(&found), Arc::clone(&stop));
        let thread = std::thread::Builder::new().name("observer".into()).spawn(move || {
            let mut buffer = vec![0; 66_000];
            while !stopped.load(Ordering::Relaxed) {
                let Ok(length) = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) else {
                    continue;
                };
                let marked = buffer[..length].windows(MARKER.len()).any(|w| w == MARKER);
                if marked {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        })?;
        Ok(Self { found, stop, thread: Some(thread) })
    }

    /// Returns how many marked frames were seen.
    pub fn found(&self) -> u64 {
        self.found.load(Ordering::Relaxed)
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evil_packets_are_well_formed_so_that_only_policy_can_stop_them() {
        let (from, to) = (Ipv4Addr::new(241, 1, 0, 1), Ipv4Addr::new(241, 2, 0, 9));
        for kind in Forgery::ALL {
            let packet = packet(kind, from, to, 50051);
            assert_eq!(checksum(&packet[..20], 0), 0, "{kind:?}");
            assert!(packet.windows(16).any(|w| w == MARKER), "{kind:?}");
            if packet[9] == 6 {
                let length = packet.len() - 20;
                assert_eq!(checksum(&packet[20..], pseudo(from, to, 6, length)), 0);
            }
            let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
            assert_eq!(total, packet.len());
        }
        let syn = packet(Forgery::Syn, from, to, 1);
        assert!(mesh_proto::packet::Header::parse(&syn).is_ok());
    }
}
