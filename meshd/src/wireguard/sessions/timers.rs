//! What tunnels do by the clock: retries, keepalives, rekeys, probes, and what is published about them.

use std::time::Duration;

use mesh_proto::base::clock::Timestamp;
use mesh_proto::base::id::NodeId;
use mesh_proto::dataplane::verdict::Drop;

use super::Sessions;
use crate::io::udp_outbox::Outbox;
use crate::wireguard::timing::{HANDSHAKES_PER_TURN, NUDGES_PER_TURN, REPEATS, ROOM};
use crate::wireguard::tunnel::{INITIATION, Made};

/// How often tunnels are ticked.
const TICK: Duration = Duration::from_millis(250);
/// Pause between two turns of greeting peers.
const GREETING: Duration = Duration::from_millis(10);
/// Peers greeted per turn.
const GREETINGS_PER_TURN: usize = 16;
/// The longest pause before starting again once a tunnel gave up.
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);
/// A peer heard within this time is called again after giving up, even if nothing is to be sent.
const RECENT: Duration = Duration::from_secs(600);
/// A packet that came along within this time means that there is something to send.
const WANTED: Duration = Duration::from_secs(90);
/// Pause between two round trips while they are measured quickly, and after that.
const QUICK_PROBE: Duration = Duration::from_secs(1);
const PROBE: Duration = Duration::from_secs(5);
/// A peer without traffic for this long is not probed.
const PROBED: Duration = Duration::from_secs(30);

impl Sessions {
    /// Starts a turn: new budgets for what strangers may cause.
    pub(crate) fn begin_turn(&mut self) {
        self.handshakes_left = HANDSHAKES_PER_TURN;
        self.nudges_left = NUDGES_PER_TURN;
    }

    /// Does what is due. The outbox must have `ROOM`.
    pub(crate) fn handle_timeout(&mut self, outbox: &mut Outbox, now: Timestamp) {
        self.flush(outbox, now);
        self.race(outbox, now);
        self.tend_talks(outbox, now);
        for _ in 0..GREETINGS_PER_TURN {
            let Some(peer) = self.greeting.pop_first() else { break };
            self.greet_now(peer, outbox, now);
        }
        if self.next_tick.is_none_or(|due| due <= now) {
            let ticking = std::mem::take(&mut self.ticking);
            for &number in &ticking {
                self.tick(number, outbox, now);
            }
            // Those that started to tick meanwhile are at the front; those that stopped are left out.
            let goes_on = |n: &u32| self.slab[*n as usize].as_ref().is_some_and(|s| s.ticking);
            let started = std::mem::take(&mut self.ticking);
            self.ticking = ticking;
            self.ticking.retain(goes_on);
            self.ticking.extend(started);
            self.next_tick = (!self.ticking.is_empty()).then(|| now + TICK);
        }
    }

    /// Returns when `handle_timeout` has something to do; `None` if nothing will be due.
    pub(crate) fn poll_timeout(&self, now: Timestamp) -> Option<Timestamp> {
        let races = self.racing.iter().filter_map(|&n| self.slab[n as usize].as_ref()?.path.poll_timeout());
        let tick = if self.ticking.is_empty() { None } else { Some(self.next_tick.unwrap_or(now)) };
        let greeting = (!self.greeting.is_empty()).then(|| now + GREETING);
        let flushing = (!self.flushing.is_empty()).then_some(now);
        races.chain(tick).chain(greeting).chain(flushing).chain(self.talks.poll_timeout()).min()
    }

    /// Makes sure that a tunnel's timers run, and that its clock is right before it is used.
    pub(super) fn wake(&mut self, number: u32, outbox: &mut Outbox, now: Timestamp) {
        let Some(session) = self.slab.get_mut(number as usize).and_then(Option::as_mut) else { return };
        if session.ticking {
            return;
        }
        let mut message = [0; INITIATION];
        let made = session.tunnel.tick(&mut message);
        session.ready = session.tunnel.has_session();
        if made != Made::Expired {
            self.keep_ticking(number);
            self.send_timed(number, made, &message, outbox, now);
        }
    }

    /// Makes sure that a tunnel's timers go on running.
    pub(super) fn keep_ticking(&mut self, number: u32) {
        let Some(session) = self.slab[number as usize].as_mut() else { return };
        if !session.ticking {
            session.ticking = true;
            self.ticking.push(number);
        }
    }

    /// Sends the initiations that are due.
    pub(super) fn race(&mut self, outbox: &mut Outbox, now: Timestamp) {
        let Self { racing, slab, counters, .. } = self;
        racing.retain(|&number| {
            let Some(session) = slab[number as usize].as_mut() else { return false };
            while let Some((to, initiation)) = session.path.poll(now) {
                if outbox.push(initiation, to) {
                    counters.initiations.add(1);
                }
            }
            session.path.poll_timeout().is_some()
        });
    }

    /// Says whether what waited for a session is still to be sent: before anything newer, lest that overtakes it.
    pub(crate) fn is_flushing(&self) -> bool {
        !self.flushing.is_empty()
    }

    /// Sends what waited for a session, as far as there is room.
    pub(crate) fn flush(&mut self, outbox: &mut Outbox, now: Timestamp) {
        while let Some(&number) = self.flushing.last() {
            let Some(session) = self.slab[number as usize].as_mut() else {
                self.flushing.pop();
                continue;
            };
            let endpoint = session.path.endpoint();
            while outbox.room() >= ROOM {
                match (session.tunnel.flush(outbox.space()), endpoint) {
                    (Made::Message(len), Some(endpoint)) => {
                        session.tx_bytes += len.saturating_sub(crate::wireguard::tunnel::OVERHEAD) as u64;
                        session.waiting = session.waiting.saturating_sub(1);
                        session.carried = Some(now);
                        outbox.commit(len, endpoint);
                    }
                    (Made::Message(_) | Made::Nothing | Made::Initiation | Made::Expired, _) => {
                        session.waiting = 0;
                        session.unanswered.get_or_insert(now);
                        break;
                    }
                }
            }
            if session.waiting > 0 {
                return;
            }
            session.held = None;
            session.peer.cell.set_holds(now, false);
            self.flushing.pop();
        }
    }

    fn greet_now(&mut self, peer: NodeId, outbox: &mut Outbox, now: Timestamp) {
        let Some(lanes) = self.peers.get(peer).map(|peer| peer.lanes.len()) else { return };
        if self.lane == 0 {
            self.agree(peer, None, outbox, now);
        }
        let Some(number) = self.tunnel_to(peer, self.lane % lanes) else { return };
        let ready = self.slab[number as usize].as_ref().is_some_and(|s| s.ready);
        if !ready {
            self.shake_hands(number, outbox, now);
        }
    }

    fn tick(&mut self, number: u32, outbox: &mut Outbox, now: Timestamp) {
        if self.retire(number, now) {
            return;
        }
        let Some(session) = self.slab[number as usize].as_mut() else { return };
        let mut message = [0; INITIATION];
        let made = session.tunnel.tick(&mut message);
        let was_ready = std::mem::replace(&mut session.ready, session.tunnel.has_session());
        if session.ready && !was_ready {
            let id = session.peer.id;
            self.met.push(id);
            if session.waiting > 0 && !self.flushing.contains(&number) {
                self.flushing.push(number);
            }
            self.opens(number, id, outbox, now);
        }
        let Some(session) = self.slab[number as usize].as_mut() else { return };
        let silent = session.ready && !session.hears(now) && !session.initiated;
        let waited = session.initiated_at.filter(|_| session.initiated).map(|at| now.since(at));
        let overdue = REPEATS.get(session.repeated).is_some_and(|&most| waited.is_some_and(|waited| waited >= most));
        session.repeated += usize::from(overdue);
        if made == Made::Nothing && (silent || overdue) {
            self.initiate(number, outbox, now);
        } else {
            self.send_timed(number, made, &message, outbox, now);
        }
        self.publish(number);
        self.ask_for_probe(number, now);
    }

    /// Sends what a tunnel's timers made.
    fn send_timed(&mut self, number: u32, made: Made, message: &[u8; INITIATION], outbox: &mut Outbox, now: Timestamp) {
        let Some(session) = self.slab[number as usize].as_mut() else { return };
        session.expired &= made == Made::Expired;
        match made {
            Made::Nothing => {}
            Made::Message(len) => {
                if let (Some(endpoint), Some(message)) = (session.path.endpoint(), message.get(..len)) {
                    outbox.push(message, endpoint);
                }
            }
            Made::Initiation => {
                self.scratch[..INITIATION].copy_from_slice(message);
                self.offer_scratch(number, outbox, now);
            }
            Made::Expired => self.give_up(number, outbox, now),
        }
    }

    /// A tunnel gave up. If the peer is still wanted it starts again after a pause, otherwise it rests.
    fn give_up(&mut self, number: u32, outbox: &mut Outbox, now: Timestamp) {
        let Some(session) = self.slab[number as usize].as_mut() else { return };
        if !session.expired {
            session.expired = true;
            self.counters.count_dropped_many(Drop::NoTunnel, std::mem::take(&mut session.waiting));
            session.held = None;
            session.peer.cell.forget_holds();
            let in_doubt = Some(session.peer.id).filter(|_| session.peer.is_plain_meanwhile());
            let recent = |at: Option<_>, span| at.is_some_and(|at| now.since(at) < span);
            // Without an initiation it is the end of a session that nobody used.
            let missed = session.initiated && recent(session.heard, RECENT);
            if recent(session.wanted, WANTED) || missed {
                session.retry = Some(now + session.backoff);
                tracing::info!(peer = %session.peer.id, lane = self.lane, "no answer for 90 s; trying again");
                session.backoff = (session.backoff * 2).min(LONGEST_BACKOFF);
            }
            session.initiated = false;
            session.repeated = 0;
            if let Some(id) = in_doubt {
                self.drop_held(id);
            }
        }
        let Some(session) = self.slab[number as usize].as_mut() else { return };
        match session.retry {
            Some(due) if due <= now => self.initiate(number, outbox, now),
            Some(_) => {}
            None => session.ticking = false,
        }
    }

    /// Makes known what this lane learned about the peer.
    fn publish(&mut self, number: u32) {
        let Some(session) = self.slab[number as usize].as_mut() else { return };
        let cell = &session.peer.cell;
        if session.rx_bytes | session.tx_bytes > 0 {
            cell.add(std::mem::take(&mut session.rx_bytes), std::mem::take(&mut session.tx_bytes));
        }
        if let Some(at) = session.active.take() {
            cell.set_active(at);
        }
    }

    /// Lane 0 measures the round trip to a peer that there is traffic with, on any lane.
    fn ask_for_probe(&mut self, number: u32, now: Timestamp) {
        let Some(session) = self.slab[number as usize].as_mut() else { return };
        let due = session.probe_due.is_none_or(|due| due <= now);
        if self.lane > 0 || session.peer_lane > 0 || !due || !session.hears(now) {
            return;
        }
        if session.quick_probes > 0 {
            session.quick_probes -= 1;
            session.probe_due = Some(now + QUICK_PROBE);
        } else if session.peer.cell.active_within(PROBED, now) {
            session.probe_due = Some(now + PROBE);
        } else {
            return;
        }
        self.probes.push(session.peer.id);
    }
}
