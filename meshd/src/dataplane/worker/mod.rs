//! The thread of one lane: it moves what there is between the TUN queue, the sockets and the lane, in batches.
//!
//! ```text
//! wait ─▶ mail ─▶ drain UDP ─▶ flush TUN ─▶ drain TUN ─▶ timers ─▶ flush ─▶ write changed flows ─▶ wait
//! ```
//!
//! There is no artificial delay: a batch is what is there. Each drain is bounded, so that one side cannot
//! starve the other; epoll is level-triggered, so what is left is found in the next turn.

mod busy_poll;
pub(crate) mod flow_writer;
mod timerfd;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use mesh_host::clock::now;
use mesh_proto::base::clock::Timestamp;
use mesh_proto::base::id::NodeId;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::time::Timespec;
use tokio::sync::watch;

use self::busy_poll::Patience;
use self::flow_writer::FlowWriter;
use self::timerfd::Alarm;
use crate::dataplane::lane::{Lane, Out};
use crate::dataplane::mailbox::Mailbox;
use crate::io::counters::Counters;
use crate::io::offloads::{Gathers, MAX_PACKET, Offload, Offloads};
use crate::io::tun::{self, Queue};
use crate::io::tun_outbox::Taken;
use crate::io::udp::{BATCH, Inbox, Sockets};
use crate::wireguard::timing::ROOM;

/// Batches of messages read from a socket per turn; each message is one or more datagrams.
const RECEIVES_PER_TURN: usize = 4;
/// Packets read from the TUN per turn.
const READS_PER_TURN: usize = 256;
/// Packets taken over from other lanes per turn.
const HANDOVERS_PER_TURN: usize = 1024;
/// Bytes that may wait on each side: what one call may need, and what may wait before it.
const OUT: usize = ROOM + BURST;
/// Bytes that wait before they are written: six super-packets. Waking whoever comes next on the way costs more than
/// what leaves the cache meanwhile: with 64 KB one stream was a tenth slower (`make bench`).
const BURST: usize = 384 << 10;
/// Pause between two tries to get a lost device back.
const REOPEN: Duration = Duration::from_secs(1);

const MAIL: u64 = 0;
const TUN: u64 = 1;
const TIME: u64 = 2;
const UDP: u64 = 3;

/// Everything that the thread of one lane owns.
pub(crate) struct Worker {
    pub(crate) lane: Lane,
    pub(crate) queue: Queue,
    pub(crate) sockets: Sockets,
    pub(crate) number: usize,
    /// The mailboxes of all lanes.
    pub(crate) mailboxes: Arc<[Mailbox]>,
    pub(crate) flow_file: FlowWriter,
    pub(crate) counters: Arc<Counters>,
    pub(crate) interface: String,
    pub(crate) offload: Offload,
    /// Counts how often others were active than before, or elsewhere.
    pub(crate) activity: watch::Sender<u64>,
    /// What other lanes noticed; empty between two turns.
    pub(crate) unanswered: Vec<(NodeId, Timestamp)>,
}

/// What a worker waits by: made before its thread, so that a kernel that refuses a descriptor refuses the start.
pub(crate) struct Waits {
    epoll: OwnedFd,
    alarm: Alarm,
}

impl Waits {
    /// Makes it.
    ///
    /// # Errors
    /// When the kernel refuses a descriptor.
    pub(crate) fn new() -> Result<Self, Errno> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?, alarm: Alarm::new()? })
    }
}

/// The worker's own buffers, made on its thread.
struct Buffers {
    inbox: Inbox,
    out: Out,
    packet: Box<[u8]>,
}

impl Worker {
    /// Runs until the mailbox says stop.
    ///
    /// # Errors
    /// When the kernel refuses to wait on the descriptors.
    pub(crate) fn run(mut self, waits: Waits) -> Result<(), Errno> {
        let Waits { epoll, mut alarm } = waits;
        watch(&epoll, self.mailbox(), MAIL)?;
        for (i, socket) in self.sockets.each().enumerate() {
            watch(&epoll, socket, UDP + i as u64)?;
        }
        if self.queue.reads() {
            watch(&epoll, &self.queue, TUN)?;
        }
        watch(&epoll, &alarm.timer, TIME)?;
        let mut buffers = Buffers { inbox: Inbox::default(), out: Out::new(OUT), packet: vec![0; MAX_PACKET].into() };
        self.sockets.prepare(&mut buffers.out.udp);
        buffers.out.tun.set_gathers(self.queue.gathers());
        note_offloads(&self.sockets, &self.counters, &buffers.out);
        let mut events = Vec::with_capacity(8);
        let mut lost_device = None;
        let mut patience = Patience::default();
        loop {
            events.clear();
            let due = self.lane.poll_timeout(now()).into_iter().chain(lost_device).chain(self.flow_file.due()).min();
            let timeout = alarm.set(due, now())?;
            let asleep = timeout.is_some() || !self.stays_awake(&epoll, &mut patience, &mut events)?;
            if asleep {
                look(&epoll, &mut events, timeout.as_ref())?;
            }
            let now = now();
            let ready = events.iter().fold(0, |ready, event: &epoll::Event| ready | 1 << event.data.u64());
            if ready & 1 << TIME != 0 {
                alarm.acknowledge();
            }
            if ready & 1 << MAIL != 0 && !self.take_mail(now) {
                return Ok(());
            }
            let before = self.counters.received_bytes();
            let has_device = self.turn(ready, &mut buffers, now);
            patience.moved(self.counters.received_bytes() - before, now);
            if !has_device {
                tracing::error!(interface = self.interface, "the TUN device is gone; trying to get it back");
                let _ = epoll::delete(&epoll, &self.queue);
                lost_device = Some(now + REOPEN);
            }
            if lost_device.is_some_and(|due| due <= now) {
                lost_device = self.reopen(&epoll, &mut buffers, now)?;
            }
        }
    }

    /// Waits without sleeping, if that is likely to pay. Says whether anything came.
    fn stays_awake(
        &self,
        epoll: &OwnedFd,
        patience: &mut Patience,
        events: &mut Vec<epoll::Event>,
    ) -> Result<bool, Errno> {
        const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut time = now();
        let Some(until) = patience.awake_until(time) else { return Ok(false) };
        while events.is_empty() && time < until {
            std::thread::yield_now();
            look(epoll, events, Some(&AT_ONCE))?;
            time = now();
        }
        patience.learn(!events.is_empty());
        Ok(!events.is_empty())
    }

    /// Does one turn of the loop. Says whether the device is still there.
    fn turn(&mut self, ready: u64, buffers: &mut Buffers, now: Timestamp) -> bool {
        self.lane.begin_turn();
        self.send_waiting(buffers, now);
        if ready & 1 << MAIL != 0 {
            self.take_over(buffers, now);
        }
        self.drain_udp(ready, buffers, now);
        self.send_waiting(buffers, now);
        self.flush(buffers);
        let device = ready & 1 << TUN == 0 || self.drain_tun(buffers, now);
        self.make_room(buffers);
        self.lane.handle_timeout(&mut buffers.out, now);
        self.flush(buffers);
        self.write_flows(now);
        if self.lane.take_handed_over() {
            self.mailboxes[0].ring();
        }
        if let Some(narrow) = self.lane.take_narrow() {
            let others = self.mailboxes.iter().enumerate().filter(|(lane, _)| *lane != self.number);
            others.for_each(|(_, mailbox)| mailbox.set_narrow(Arc::clone(&narrow)));
        }
        while let Some((peer, clock)) = self.lane.next_answer() {
            self.mailboxes[0].answer(peer, clock);
        }
        while let Some(peer) = self.lane.next_met() {
            let others = self.mailboxes.iter().enumerate().filter(|(lane, _)| *lane != self.number);
            others.for_each(|(_, mailbox)| mailbox.greet(peer));
        }
        while let Some((peer, sent)) = self.lane.next_noticed() {
            self.mailboxes[0].watch(peer, sent);
        }
        if self.lane.take_news() {
            self.activity.send_modify(|changes| *changes += 1);
        }
        device
    }

    fn mailbox(&self) -> &Mailbox {
        &self.mailboxes[self.number]
    }

    /// Sends what waited for a session, before anything newer.
    fn send_waiting(&mut self, buffers: &mut Buffers, now: Timestamp) {
        while self.lane.is_flushing() {
            self.flush(buffers);
            self.lane.flush(&mut buffers.out, now);
        }
    }

    /// Takes what is in the mailbox. Says whether to go on.
    fn take_mail(&mut self, now: Timestamp) -> bool {
        let Self { lane, mailboxes, number, unanswered, .. } = self;
        let Some(mail) = mailboxes[*number].take() else { return false };
        if let Some((view, peers)) = mail.view {
            lane.set_view(view, peers);
        }
        if let Some(told) = mail.told {
            lane.set_log_position(told);
        }
        if let Some(date) = mail.date {
            lane.set_date(date);
        }
        if let Some(locals) = mail.locals {
            lane.set_locals(locals);
        }
        if let Some(next_hops) = mail.next_hops {
            lane.set_next_hops(next_hops);
        }
        if let Some(key) = mail.key {
            lane.set_key(&key);
        }
        if let Some(mtu) = mail.mtu {
            lane.set_mtu(mtu);
        }
        if let Some((own, calls)) = mail.own {
            lane.move_to(&own, now);
            calls.into_iter().for_each(|peer| lane.greet(peer));
        }
        if let Some(narrow) = mail.narrow {
            lane.set_narrow(narrow);
        }
        mail.answers.into_iter().for_each(|(peer, clock)| lane.hear_size(peer, clock, now));
        mail.pings.into_iter().for_each(|peer| lane.ping(peer));
        mail.greets.into_iter().for_each(|peer| lane.greet(peer));
        mailboxes[*number].take_unanswered(unanswered);
        unanswered.drain(..).for_each(|(peer, sent)| lane.watch(peer, sent));
        true
    }

    /// Sends what other lanes handed over; only lane 0 has such.
    fn take_over(&mut self, buffers: &mut Buffers, now: Timestamp) {
        if self.number > 0 {
            return;
        }
        for _ in 0..HANDOVERS_PER_TURN {
            self.make_room(buffers);
            if !self.lane.handle_handover(&mut buffers.out, now) {
                return;
            }
        }
        self.mailbox().ring();
    }

    fn drain_udp(&mut self, ready: u64, buffers: &mut Buffers, now: Timestamp) {
        for i in 0..2 {
            if ready & 1 << (UDP + i) == 0 {
                continue;
            }
            for _ in 0..RECEIVES_PER_TURN {
                let Some(socket) = self.sockets.each().nth(i as usize) else { break };
                let Ok(count @ 1..) = socket.receive(&mut buffers.inbox) else { break };
                self.take_datagrams(i as usize, buffers, now);
                if count < BATCH {
                    break;
                }
            }
        }
    }

    fn take_datagrams(&mut self, socket: usize, buffers: &mut Buffers, now: Timestamp) {
        let Buffers { inbox, out, .. } = buffers;
        self.counters.received(socket, inbox.received());
        for run in inbox.runs() {
            if out.is_full() {
                self.lane.finish_train(out, now);
                write_out(&self.queue, &self.sockets, &self.counters, out);
            }
            self.lane.handle_datagrams(run, inbox.bytes(run), out, now);
        }
        self.lane.finish_train(out, now);
    }

    /// Says whether the device is still there.
    fn drain_tun(&mut self, buffers: &mut Buffers, now: Timestamp) -> bool {
        for _ in 0..READS_PER_TURN {
            let (len, vnet) = match self.queue.read(&mut buffers.packet) {
                Ok(Some(read)) => read,
                Ok(None) => return true,
                Err(_) => return false,
            };
            self.counters.tun_rx_packets.add(1);
            self.counters.tun_rx_bytes.add(len as u64);
            self.make_room(buffers);
            self.lane.handle_packet(&mut buffers.packet[..len], vnet, &mut buffers.out, now);
        }
        true
    }

    fn make_room(&self, buffers: &mut Buffers) {
        if buffers.out.is_full() {
            self.flush(buffers);
        }
    }

    fn flush(&self, buffers: &mut Buffers) {
        write_out(&self.queue, &self.sockets, &self.counters, &mut buffers.out);
    }

    fn write_flows(&mut self, now: Timestamp) {
        let Self { lane, flow_file, counters, .. } = self;
        lane.drain_dirty(|slot, entry| flow_file.write(slot, entry, counters, now));
        flow_file.catch_up(counters, now);
    }

    /// Opens the device again after somebody deleted it. Returns when to try next, if it did not work.
    fn reopen(&mut self, epoll: &OwnedFd, buffers: &mut Buffers, now: Timestamp) -> Result<Option<Timestamp>, Errno> {
        match tun::reopen(&self.interface, self.mailboxes.len(), self.offload.tun) {
            Ok(queue) => {
                self.queue = queue;
                buffers.out.tun.set_gathers(self.queue.gathers());
                note_offloads(&self.sockets, &self.counters, &buffers.out);
                watch(epoll, &self.queue, TUN)?;
                tracing::info!(interface = self.interface, "the TUN device is back");
                Ok(None)
            }
            Err(_) => Ok(Some(now + REOPEN)),
        }
    }
}

fn note_offloads(sockets: &Sockets, counters: &Counters, out: &Out) {
    let Gathers { tcp, udp } = out.tun.gathers();
    let (udp_segment, udp_gro) = (sockets.segments(), sockets.joins());
    counters.set_offloads(Offloads { tun_tcp: tcp, tun_udp: udp, udp_segment, udp_gro });
}

fn write_out(queue: &Queue, sockets: &Sockets, counters: &Counters, out: &mut Out) {
    let mut fallbacks = 0;
    if !out.tun.is_empty() {
        let drained = out.tun.drain(|parts| match queue.write(parts) {
            Ok(()) => Taken::Yes,
            Err(Errno::INVAL) => Taken::Invalid,
            Err(_) => Taken::No,
        });
        fallbacks += drained.fallbacks;
        counters.drained(drained);
    }
    if !out.udp.is_empty() {
        let sent = sockets.send(&mut out.udp);
        fallbacks += sent.fallbacks;
        counters.sent(sent);
    }
    if fallbacks > 0 {
        note_offloads(sockets, counters, out);
    }
}

/// Waits for events, no longer than `timeout`.
fn look(epoll: &OwnedFd, events: &mut Vec<epoll::Event>, timeout: Option<&Timespec>) -> Result<(), Errno> {
    match epoll::wait(epoll, rustix::buffer::spare_capacity(events), timeout) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error),
    }
}

fn watch(epoll: &OwnedFd, fd: impl std::os::fd::AsFd, token: u64) -> Result<(), Errno> {
    epoll::add(epoll, fd, epoll::EventData::new_u64(token), epoll::EventFlags::IN)
}
