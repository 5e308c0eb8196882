//! The sending end of one stream: how much may be sent, and when it is over.
//!
//! ```text
//! sending ── the time is up ──▶ draining ── the last frame is reported, or 1 s ──▶ finished
//!    └──────────── no report for 2 s while frames are on the way ────────────────────▲
//! ```
//! When the window is full and nothing is heard, single frames ask for a report, ever more slowly: the report may
//! have been lost.

use std::time::Duration;

use super::frame::{Data, Report};
use super::window::Window;
use crate::base::clock::Timestamp;

/// Most bytes on the way: what 1 Gbit/s with 130 ms of round trip holds.
const MAX_BYTES: usize = 16 << 20;
/// Most frames on the way.
const MAX_FRAMES: u32 = 1 << 15;
/// A report is wanted with the last frame of each burst, and with every so many within one.
const REPORT_EVERY: u32 = 32;
/// How long to wait after a frame that could not be sent.
const PAUSE: Duration = Duration::from_millis(20);
/// How long to wait for a report before asking again; it doubles up to the longest.
const PATIENCE: Duration = Duration::from_millis(20);
const LONGEST_PATIENCE: Duration = Duration::from_millis(500);
/// Without a report for so long the stream ends.
const SILENCE: Duration = Duration::from_secs(2);
/// How long the last report is waited for.
const DRAIN: Duration = Duration::from_secs(1);

/// The sending end of one stream.
#[derive(Debug)]
pub struct Sender {
    run: u32,
    stream: u8,
    until: Timestamp,
    window: Window,
    /// The sequence of the next frame, and so the number of those sent.
    next: u32,
    /// Frames up to the highest that arrived.
    done: u32,
    began: Option<Timestamp>,
    sent: Timestamp,
    heard: Option<Timestamp>,
    /// Frames sent beside the window since the last report.
    asked: u32,
    not_before: Timestamp,
    lost: u32,
    first: Option<Report>,
    latest: Option<Report>,
}

/// Frames to be sent at once.
#[derive(Debug)]
pub struct Burst {
    next: Data,
    left: u32,
}

impl Burst {
    /// Returns how many there still are.
    pub fn left(&self) -> u32 {
        self.left
    }
}

impl Iterator for Burst {
    type Item = Data;

    fn next(&mut self) -> Option<Data> {
        self.left = self.left.checked_sub(1)?;
        let wants_report = self.left == 0 || self.next.sequence % REPORT_EVERY == REPORT_EVERY - 1;
        let data = Data { wants_report, ..self.next };
        self.next.sequence = self.next.sequence.saturating_add(1);
        Some(data)
    }
}

/// What came of a stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Frames sent.
    pub sent: u32,
    /// The first report, from shortly after the beginning.
    pub first: Option<Report>,
    /// The latest report.
    pub latest: Option<Report>,
}

impl Sender {
    /// Begins a stream of packets of that many bytes; it sends up to a time.
    pub fn new(run: u32, stream: u8, packet_bytes: usize, until: Timestamp) -> Self {
        let most = u32::try_from(MAX_BYTES / packet_bytes.max(1)).unwrap_or(MAX_FRAMES).min(MAX_FRAMES);
        Self {
            run,
            stream,
            until,
            window: Window::new(most),
            next: 0,
            done: 0,
            began: None,
            sent: Timestamp::default(),
            heard: None,
            asked: 0,
            not_before: Timestamp::default(),
            lost: 0,
            first: None,
            latest: None,
        }
    }

    /// Returns the frames to send now, at most `most`. They count as sent.
    pub fn next_burst(&mut self, most: u32, now: Timestamp) -> Burst {
        let count = self.allowance(most, now);
        let first = Data { run: self.run, stream: self.stream, sequence: self.next, clock: now, wants_report: false };
        if count > 0 {
            self.asked += u32::from(self.free(now) == 0);
            self.next += count;
            self.began.get_or_insert(now);
            self.sent = now;
        }
        Burst { next: first, left: count }
    }

    /// Takes back that many of the frames of the last burst: they could not be sent, nor could others for a while.
    pub fn postpone(&mut self, count: u32, now: Timestamp) {
        self.next = self.next.saturating_sub(count);
        self.not_before = now + PAUSE;
        if self.next == 0 {
            self.began = None;
        }
    }

    /// Takes a report. One of another run or stream, and one that counts what was never sent, is ignored.
    pub fn handle_report(&mut self, report: &Report, now: Timestamp) {
        let ours = report.run == self.run && report.stream == self.stream;
        let done = report.highest.saturating_add(1);
        if !ours || done > self.next || report.packets > done {
            return;
        }
        self.heard = Some(now);
        self.asked = 0;
        self.first.get_or_insert(*report);
        if self.latest.is_none_or(|latest| latest.packets < report.packets) {
            self.latest = Some(*report);
        }
        let newly = done.saturating_sub(self.done);
        self.done = self.done.max(done);
        let lost = done - report.packets;
        let newly_lost = lost.saturating_sub(self.lost);
        self.lost = lost;
        if newly > 0 {
            self.window.handle(newly, newly_lost, now.since(report.echo), self.done, self.next);
        }
    }

    /// Returns when a frame may be sent, unless a report comes first; `None` once the stream is finished.
    pub fn poll_timeout(&self, now: Timestamp) -> Option<Timestamp> {
        if self.is_finished(now) {
            return None;
        }
        if self.free(now) > 0 {
            return Some(self.not_before.max(now));
        }
        self.ask_at().map(|due| due.max(self.not_before))
    }

    /// Says whether nothing more will come of it.
    pub fn is_finished(&self, now: Timestamp) -> bool {
        let on_the_way = self.next > self.done;
        let silent = self.heard.max(self.began).is_some_and(|since| now.since(since) >= SILENCE);
        let over = now >= self.until && (!on_the_way || now >= self.until + DRAIN);
        over || silent && on_the_way
    }

    /// Says whether the receiver ever reported.
    pub fn is_answered(&self) -> bool {
        self.latest.is_some()
    }

    /// Sends no more than what asks for the last report.
    pub fn stop(&mut self, now: Timestamp) {
        self.until = self.until.min(now);
    }

    /// Returns what came of it so far.
    pub fn tally(&self) -> Tally {
        Tally { sent: self.next, first: self.first, latest: self.latest }
    }

    fn allowance(&self, most: u32, now: Timestamp) -> u32 {
        if now < self.not_before || self.is_finished(now) {
            return 0;
        }
        let free = match self.free(now) {
            0 => u32::from(self.ask_at().is_some_and(|due| due <= now)),
            free => free,
        };
        free.min(most).min(u32::MAX - self.next)
    }

    /// Returns how many frames the window lets through.
    fn free(&self, now: Timestamp) -> u32 {
        if now >= self.until { 0 } else { self.window.size().saturating_sub(self.next - self.done) }
    }

    /// Returns when to ask for a report; `None` if nothing is on the way.
    fn ask_at(&self) -> Option<Timestamp> {
        if self.next == self.done {
            return None;
        }
        let usual = self.window.shortest().map_or(PATIENCE, |shortest| PATIENCE.max(shortest * 2));
        let patience = usual.saturating_mul(1 << self.asked.min(8)).min(LONGEST_PATIENCE.max(usual));
        Some(self.heard.unwrap_or_default().max(self.sent) + patience)
    }
}

#[cfg(test)]
mod tests;
