//! WireGuard, by boringtun: the only file that names it.
//!
//! A `Door` is what a lane shows to strangers: it sorts datagrams, checks mac1 and cookies, and reads
//! who a handshake is from. A `Tunnel` is one relation between two lane keys. Neither knows addresses,
//! peers or when to do what; `sessions` does. boringtun panics on buffers that are too short, so every buffer is checked
//! here, before it sees one.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use mesh_host::clock::{now, time_of_day};
use mesh_proto::base::clock::Timestamp;
use mesh_proto::base::id::TunnelKey;

use crate::psk::PresharedKey;

/// Bytes that sealing adds to a packet.
pub(crate) const OVERHEAD: usize = 32;
/// Bytes of an initiation, the longest of the handshake's messages.
pub(crate) const INITIATION: usize = 148;
/// Most packets that wait in a tunnel for its session; boringtun's own bound.
pub(crate) const MAX_WAITING: u64 = 256;
/// Tunnels that one lane can number: boringtun keeps 8 of 32 bits for itself, and half of the rest are for agreements.
pub(crate) const MAX_TUNNELS: u32 = 1 << 23;
/// The number of the first tunnel between agreement keys.
pub(crate) const FIRST_AGREEMENT: u32 = MAX_TUNNELS;
/// Bytes of a cookie reply.
const COOKIE: usize = 64;

/// What a datagram is, by its first bytes; tunnels are named by their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Message {
    /// Somebody wants a session.
    Initiation,
    /// The answer to our initiation.
    Response(u32),
    /// A demand to show a cookie with the next initiation.
    Cookie(u32),
    /// A sealed packet, or a keepalive.
    Data(u32),
}

/// What an initiation shows before anything is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Credentials {
    /// It knows our key, and has a cookie that proves its source.
    Cookie,
    /// It knows our key; a demand for a cookie of this many bytes was written, to be sent if need be.
    Key(usize),
    /// None: it is not meant for this key.
    None,
}

/// What a lane shows to strangers.
pub(crate) struct HandshakeResponder {
    secret: StaticSecret,
    public: PublicKey,
    /// Demands a cookie of everybody; whether the demand is sent is decided elsewhere.
    front: RateLimiter,
    /// Given to every tunnel, which checks again what the door let in: without a limit, for that is kept elsewhere.
    inner: Arc<RateLimiter>,
}

impl HandshakeResponder {
    pub(crate) fn new(secret: &StaticSecret) -> Self {
        let public = PublicKey::from(secret);
        Self {
            secret: secret.clone(),
            public,
            front: RateLimiter::new(&public, 0),
            inner: Arc::new(RateLimiter::new(&public, u64::MAX)),
        }
    }

    /// Returns the key that it answers to.
    pub(crate) fn key(&self) -> TunnelKey {
        TunnelKey(self.public.to_bytes())
    }

    /// Says what a datagram is; `None` if it is no WireGuard message.
    pub(crate) fn sort(datagram: &[u8]) -> Option<Message> {
        match Tunn::parse_incoming_packet(datagram).ok()? {
            Packet::HandshakeInit(_) => Some(Message::Initiation),
            Packet::HandshakeResponse(p) => Some(Message::Response(p.receiver_idx >> 8)),
            Packet::PacketCookieReply(p) => Some(Message::Cookie(p.receiver_idx >> 8)),
            Packet::PacketData(p) => Some(Message::Data(p.receiver_idx >> 8)),
        }
    }

    /// Checks an initiation's mac1 and cookie, and writes a demand for one to `reply`.
    pub(crate) fn check(&self, source: IpAddr, datagram: &[u8], reply: &mut [u8]) -> Credentials {
        if reply.len() < COOKIE {
            return Credentials::None;
        }
        match self.front.verify_packet(Some(source), datagram, reply) {
            Ok(_) => Credentials::Cookie,
            Err(TunnResult::WriteToNetwork(demand)) => Credentials::Key(demand.len()),
            Err(_) => Credentials::None,
        }
    }

    /// Reads whose initiation it is; `None` if it does not decrypt. Costs a Diffie-Hellman.
    pub(crate) fn initiator(&self, datagram: &[u8]) -> Option<TunnelKey> {
        let Ok(Packet::HandshakeInit(initiation)) = Tunn::parse_incoming_packet(datagram) else { return None };
        let half = parse_handshake_anon(&self.secret, &self.public, &initiation).ok()?;
        Some(TunnelKey(half.peer_static_public))
    }

    /// Makes a tunnel to a peer's key, with a preshared key where the two have one; `None` for a key that no secret leads to (a point of low order, with
    /// which anybody could compute the session's keys). Costs two Diffie-Hellmans.
    pub(crate) fn tunnel(&self, peer: TunnelKey, number: u32, preshared: Option<&PresharedKey>) -> Option<Tunnel> {
        let key = PublicKey::from(peer.0);
        if number >= 2 * MAX_TUNNELS || !self.secret.diffie_hellman(&key).was_contributory() {
            return None;
        }
        let limiter = Some(Arc::clone(&self.inner));
        let preshared = preshared.map(|key| *key.bytes());
        Some(Tunnel(Tunn::new(self.secret.clone(), key, preshared, None, number, limiter), Born::now()))
    }
}

impl std::fmt::Debug for HandshakeResponder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Door({:?}, [redacted])", TunnelKey(self.public.to_bytes()))
    }
}

/// A relation between two lane keys: sessions, their renewal, and packets that wait for the first.
pub(crate) struct Tunnel(Tunn, Born);

/// When a tunnel was made: by the time of day, which its handshakes count on from, and since boot.
struct Born(Duration, Timestamp);

impl Born {
    fn now() -> Self {
        Self(time_of_day(), now())
    }
}

/// What a tunnel wants sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Made {
    /// Nothing.
    Nothing,
    /// A data message, keepalive, response or cookie demand of this length.
    Message(usize),
    /// An initiation, `INITIATION` bytes long.
    Initiation,
    /// Nothing, for it gave up: no answer for 90 s, or no session for 9 minutes.
    Expired,
}

/// Why a message of the handshake is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bad {
    /// It belongs to our handshake and does not open: forged, or the other side has another preshared key.
    Undecryptable,
    /// It is forged, repeated, or belongs to no handshake of ours.
    Other,
}

/// What was in a data message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Opened<'a> {
    /// An IPv4 packet.
    Packet(&'a mut [u8]),
    /// A keepalive.
    Keepalive,
    /// It is genuine, but what is inside is not an IPv4 packet.
    NotIpv4,
    /// It is genuine, but what is inside is cut short.
    Malformed,
    /// It belongs to no session of this tunnel.
    UnknownSession,
    /// It is forged, damaged, repeated or too old.
    Unauthenticated,
}

impl Tunnel {
    /// Seals a packet into `into`, or keeps it until there is a session.
    pub(crate) fn seal(&mut self, packet: &[u8], into: &mut [u8]) -> Option<Made> {
        if into.len() < INITIATION.max(packet.len() + OVERHEAD) {
            return None;
        }
        Some(made(self.0.encapsulate(packet, into)))
    }

    /// Opens a data message into `into`.
    pub(crate) fn open<'a>(&mut self, source: IpAddr, datagram: &[u8], into: &'a mut [u8]) -> Opened<'a> {
        if into.len() < datagram.len().max(INITIATION) {
            return Opened::Malformed;
        }
        match self.0.decapsulate(Some(source), datagram, into) {
            TunnResult::WriteToTunnelV4(packet, _) => Opened::Packet(packet),
            TunnResult::WriteToTunnelV6(..) => Opened::NotIpv4,
            TunnResult::Done => Opened::Keepalive,
            TunnResult::Err(WireGuardError::NoCurrentSession | WireGuardError::WrongIndex) => Opened::UnknownSession,
            TunnResult::Err(WireGuardError::InvalidPacket) => Opened::Malformed,
            TunnResult::Err(_) | TunnResult::WriteToNetwork(_) => Opened::Unauthenticated,
        }
    }

    /// Takes a message of the handshake and writes what is to be sent in return.
    pub(crate) fn handshake(&mut self, source: IpAddr, datagram: &[u8], into: &mut [u8]) -> Result<Made, Bad> {
        if into.len() < INITIATION {
            return Err(Bad::Other);
        }
        match self.0.decapsulate(Some(source), datagram, into) {
            TunnResult::Err(WireGuardError::InvalidAeadTag) => Err(Bad::Undecryptable),
            TunnResult::Err(_) => Err(Bad::Other),
            result @ (TunnResult::Done
            | TunnResult::WriteToNetwork(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..)) => Ok(made(result)),
        }
    }

    /// Writes an initiation, also while an earlier one has no answer.
    pub(crate) fn initiate(&mut self, into: &mut [u8; INITIATION]) -> bool {
        made(self.0.format_handshake_initiation(into, true)) == Made::Initiation
    }

    /// Seals the next packet that waited for a session; `Nothing` when none is left.
    pub(crate) fn flush(&mut self, into: &mut [u8]) -> Made {
        if into.len() < usize::from(u16::MAX) + OVERHEAD {
            return Made::Nothing;
        }
        made(self.0.decapsulate(None, &[], into))
    }

    /// Runs the timers; to be called every 250 ms, and before anything else after a pause.
    pub(crate) fn tick(&mut self, into: &mut [u8; INITIATION]) -> Made {
        made(self.0.update_timers(into))
    }

    /// Returns the time that an initiation of now shows, as time since 1970: the time of day at which the tunnel was
    /// made, and how long ago that was.
    pub(crate) fn stamp(&self) -> Duration {
        self.1.0 + now().since(self.1.1)
    }

    /// Writes what makes a peer initiate that knows where we are: a data message of a session that it does not have.
    pub(crate) fn write_nudge(into: &mut [u8; INITIATION]) {
        into.fill(0);
        into[0] = 4;
        // The highest number of all, which no lane has come to.
        into[4..8].copy_from_slice(&((MAX_TUNNELS - 1) << 8).to_le_bytes());
    }

    /// Says whether a packet would be sealed at once.
    pub(crate) fn has_session(&self) -> bool {
        self.0.time_since_last_handshake().is_some()
    }
}

fn made(result: TunnResult<'_>) -> Made {
    match result {
        TunnResult::WriteToNetwork(message) if message.len() == INITIATION && message[0] == 1 => Made::Initiation,
        TunnResult::WriteToNetwork(message) => Made::Message(message.len()),
        TunnResult::Err(WireGuardError::ConnectionExpired) => Made::Expired,
        TunnResult::Done | TunnResult::Err(_) | TunnResult::WriteToTunnelV4(..) | TunnResult::WriteToTunnelV6(..) => {
            Made::Nothing
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_low_order_makes_no_tunnel() {
        let door = HandshakeResponder::new(&StaticSecret::from([7; 32]));
        let one = std::array::from_fn(|i| u8::from(i == 0));
        assert!(door.tunnel(TunnelKey([0; 32]), 1, None).is_none());
        assert!(door.tunnel(TunnelKey(one), 1, None).is_none());
        assert!(door.tunnel(TunnelKey(PublicKey::from(&StaticSecret::from([8; 32])).to_bytes()), 1, None).is_some());
    }

    #[test]
    fn short_buffers_are_refused_and_do_not_panic() {
        let door = HandshakeResponder::new(&StaticSecret::from([7; 32]));
        let peer = TunnelKey(PublicKey::from(&StaticSecret::from([8; 32])).to_bytes());
        let mut tunnel = door.tunnel(peer, 1, None).expect("a good key");
        let source = IpAddr::from([127, 0, 0, 1]);
        let mut data = vec![0; 1000];
        data[0] = 4;

        assert_eq!(tunnel.seal(&[0; 1400], &mut [0; 1431]), None);
        assert_eq!(tunnel.seal(&[0; 10], &mut [0; 147]), None);
        assert_eq!(tunnel.open(source, &data, &mut [0; 999]), Opened::Malformed);
        assert_eq!(tunnel.open(source, &data, &mut [0; 1000]), Opened::UnknownSession);
        assert_eq!(tunnel.handshake(source, &data, &mut [0; 147]), Err(Bad::Other));
        assert_eq!(tunnel.flush(&mut [0; 100]), Made::Nothing);
        assert_eq!(door.check(source, &data, &mut [0; 63]), Credentials::None);
    }
}
