//! The frames of a measurement, as they stand in the body of a UDP datagram on the reserved port.
//!
//! ```text
//!         0        4         5      6        7       8     12          16        20   24      32     40      48     56    64
//! Data    │ "MESH" │ version │ kind │ stream │ flags │ run │ sequence  │ clock          │ padding …                       │
//! Report  │ "MESH" │ version │ kind │ stream │ 0     │ run │ highest   │ packets │ 0    │ bytes  │ echo │ first │ last │ CPU │
//! ```
//! Numbers are big-endian; times are microseconds: clock and echo by the sender's clock, first and last by the
//! receiver's. Flags that a version does not know are ignored; a kind that it does not know is dropped.

use std::time::Duration;

use crate::base::clock::Timestamp;

/// The smallest body of a frame, in bytes. A report has just this, so that it is never larger than what asked for it.
pub const BODY: usize = 64;
/// What every frame on the reserved port begins with.
pub(crate) const MAGIC: [u8; 4] = *b"MESH";
/// The version of all frames on the reserved port.
pub(crate) const VERSION: u8 = 1;
/// Kinds 1 and 2 are the probe's.
const DATA: u8 = 3;
const REPORT: u8 = 4;
const WANTS_REPORT: u8 = 1;

/// A frame of a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    /// Something to count.
    Data(Data),
    /// What was counted.
    Report(Report),
}

/// Something to count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Data {
    /// The sender's number for the phase.
    pub run: u32,
    /// The sender's lane.
    pub stream: u8,
    /// Its place in the stream, from 0.
    pub sequence: u32,
    /// When it was made, by the sender's clock.
    pub clock: Timestamp,
    /// Whether the sender wants to know how the stream stands.
    pub wants_report: bool,
}

/// What a receiver counted of a stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// The sender's number for the phase.
    pub run: u32,
    /// The sender's lane.
    pub stream: u8,
    /// The highest sequence that arrived.
    pub highest: u32,
    /// Packets that arrived.
    pub packets: u32,
    /// Their bytes, IP headers included.
    pub bytes: u64,
    /// The clock in the frame that arrived last.
    pub echo: Timestamp,
    /// When the first arrived, by the receiver's clock.
    pub first: Timestamp,
    /// When the last arrived, by the receiver's clock.
    pub last: Timestamp,
    /// CPU time that the receiving process has used since its start.
    pub cpu: Duration,
}

impl Frame {
    /// Reads the body of a datagram; `None` if it is no frame of a measurement.
    pub fn parse(body: &[u8]) -> Option<Self> {
        let body = body.first_chunk::<BODY>()?;
        if body[..4] != MAGIC || body[4] != VERSION {
            return None;
        }
        let (run, stream, place) = (word(body, 8), body[6], word(body, 12));
        match body[5] {
            DATA => Some(Self::Data(Data {
                run,
                stream,
                sequence: place,
                clock: Timestamp::from_micros(long(body, 16)),
                wants_report: body[7] & WANTS_REPORT != 0,
            })),
            REPORT => Some(Self::Report(Report {
                run,
                stream,
                highest: place,
                packets: word(body, 16),
                bytes: long(body, 24),
                echo: Timestamp::from_micros(long(body, 32)),
                first: Timestamp::from_micros(long(body, 40)),
                last: Timestamp::from_micros(long(body, 48)),
                cpu: Duration::from_micros(long(body, 56)),
            })),
            _ => None,
        }
    }
}

impl Data {
    /// Writes the frame over the beginning of a body; the rest is padding and stays as it is.
    pub fn write(&self, body: &mut [u8; BODY]) {
        let flags = if self.wants_report { WANTS_REPORT } else { 0 };
        prelude(body, DATA, self.stream, flags, self.run, self.sequence);
        body[16..24].copy_from_slice(&self.clock.as_micros().to_be_bytes());
    }
}

impl Report {
    /// Writes the frame.
    pub fn write(&self, body: &mut [u8; BODY]) {
        prelude(body, REPORT, self.stream, 0, self.run, self.highest);
        body[16..20].copy_from_slice(&self.packets.to_be_bytes());
        body[20..24].fill(0);
        let cpu = u64::try_from(self.cpu.as_micros()).unwrap_or(u64::MAX);
        let longs = [self.bytes, self.echo.as_micros(), self.first.as_micros(), self.last.as_micros(), cpu];
        for (into, long) in body[24..].chunks_exact_mut(8).zip(longs) {
            into.copy_from_slice(&long.to_be_bytes());
        }
    }
}

fn prelude(body: &mut [u8; BODY], kind: u8, stream: u8, flags: u8, run: u32, place: u32) {
    body[..4].copy_from_slice(&MAGIC);
    body[4..8].copy_from_slice(&[VERSION, kind, stream, flags]);
    body[8..12].copy_from_slice(&run.to_be_bytes());
    body[12..16].copy_from_slice(&place.to_be_bytes());
}

fn word(body: &[u8; BODY], at: usize) -> u32 {
    body[at..].first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

fn long(body: &[u8; BODY], at: usize) -> u64 {
    body[at..].first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn data() -> impl Strategy<Value = Data> {
        (any::<u32>(), any::<u8>(), any::<u32>(), any::<u64>(), any::<bool>()).prop_map(
            |(run, stream, sequence, clock, wants_report)| Data {
                run,
                stream,
                sequence,
                clock: Timestamp::from_micros(clock),
                wants_report,
            },
        )
    }

    fn report() -> impl Strategy<Value = Report> {
        let times = [any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>()];
        (any::<u32>(), any::<u8>(), any::<u32>(), any::<u32>(), any::<u64>(), times).prop_map(
            |(run, stream, highest, packets, bytes, [echo, first, last, cpu])| Report {
                run,
                stream,
                highest,
                packets,
                bytes,
                echo: Timestamp::from_micros(echo),
                first: Timestamp::from_micros(first),
                last: Timestamp::from_micros(last),
                cpu: Duration::from_micros(cpu),
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_is_read(data in data(), report in report(), dirt in any::<u8>()) {
            let mut body = [dirt; BODY];
            data.write(&mut body);
            prop_assert_eq!(Frame::parse(&body), Some(Frame::Data(data)));
            report.write(&mut body);
            prop_assert_eq!(Frame::parse(&body), Some(Frame::Report(report)));
        }

        #[test]
        fn mangled_frames_are_read_without_a_panic(data in data(), at in 0..BODY, byte in any::<u8>(), len in 0..2 * BODY) {
            let mut body = [0; 2 * BODY];
            if let Some(body) = body.first_chunk_mut() {
                data.write(body);
            }
            body[at] = byte;
            let read = Frame::parse(&body[..len]);
            prop_assert_eq!(read.is_some(), len >= BODY && body[..5] == *b"MESH\x01" && matches!(body[5], DATA | REPORT));
        }
    }

    #[test]
    fn an_unknown_kind_or_version_is_no_frame_and_an_unknown_flag_is_ignored() {
        let data = Data { run: 1, stream: 2, sequence: 3, clock: Timestamp::from_micros(4), wants_report: true };
        let mut body = [0; BODY];
        data.write(&mut body);
        let changed = |at: usize, to: u8| {
            let mut body = body;
            body[at] = to;
            Frame::parse(&body)
        };
        assert_eq!((changed(4, 2), changed(5, 5), changed(5, 1)), (None, None, None));
        assert_eq!(changed(7, 0x81), Some(Frame::Data(data)));
    }
}
