//! How long tunnels wait, and how much one call or one turn of theirs may cost.

use std::time::Duration;

/// Bytes of outbox that one call may need at most: a super-packet of the smallest segments that Linux makes (48
/// bytes of payload, net.ipv4.tcp_min_snd_mss), sealed.
pub(crate) const ROOM: usize = 192 << 10;
/// Handshakes taken in per turn, so that a flood of them does not starve data.
pub(crate) const HANDSHAKES_PER_TURN: u32 = 16;
/// Lost sessions looked into per turn.
pub(crate) const NUDGES_PER_TURN: u32 = 4;
/// Peers looked for per turn by addresses that others have as well: by ports of a gateway that several are behind.
pub(crate) const LOOKUPS_PER_TURN: u32 = 64;
/// A packet that came along within this time means that there is something to send.
pub(crate) const WANTED: Duration = Duration::from_secs(90);
/// A session that was sent to for so long and heard nothing is not used: WireGuard answers data within 10 s.
pub(crate) const SILENCE: Duration = Duration::from_secs(12);
/// How long something stays unanswered before a lane looks into it.
pub(crate) const NOTICED: Duration = Duration::from_millis(500);
/// A way that carried something so recently may still hold it, in the socket of an overloaded peer: a flow that changed
/// to another would overtake itself.
pub(crate) const MOMENT: Duration = Duration::from_secs(1);
/// How long packets that wait for a handshake keep newer ones from going another way.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);
/// Pause before starting again once a tunnel gave up; it doubles with each time.
pub(crate) const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// How long the first initiations wait for an answer; boringtun itself repeats one after 5 s, which a peer
/// that is just starting, or one lost datagram, would make every first call wait for.
pub(crate) const REPEATS: [Duration; 4] =
    [Duration::from_millis(400), Duration::from_millis(800), Duration::from_millis(1200), Duration::from_millis(1600)];
/// As `REPEATS`, all of them, where our clock was set back: what goes out is in turn a word that has the peer call, which one
/// that heard us a moment ago does not heed, and a call, which one that knows the later time does not take.
pub(crate) const LATE_REPEAT: Duration = Duration::from_millis(200);
/// At most one initiation per tunnel in this time because of a data message for an unknown session.
pub(crate) const NUDGE_INTERVAL: Duration = Duration::from_secs(5);
/// A peer heard within this time has our session, whatever else comes from its address. It is less than a restart takes:
/// one whose clock was set back meanwhile has to be called.
pub(crate) const TALKING: Duration = Duration::from_millis(250);
/// Round trips measured quickly after a session starts.
pub(crate) const QUICK_PROBES: u8 = 5;
/// How often tunnels are ticked.
pub(crate) const TICK: Duration = Duration::from_millis(250);
/// Pause between two turns of greeting peers.
pub(crate) const GREETING: Duration = Duration::from_millis(10);
/// Peers greeted per turn.
pub(crate) const GREETINGS_PER_TURN: usize = 16;
/// Words said per turn after this host moved; more wait for the next.
pub(crate) const WORDS_PER_TURN: usize = 256;
