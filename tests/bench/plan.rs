//! What is measured, and how much: the columns of the table, rounds, seconds.

use clap::ValueEnum;

/// A column of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Metric {
    /// TCP, one stream, Gbit/s received
    Tcp1,
    /// TCP, four streams, Gbit/s received
    Tcp4,
    /// UDP datagrams of 1,200 bytes delivered, thousand per second
    Udp1200,
    /// UDP datagrams of 64 bytes delivered, thousand per second
    Udp64,
    /// Round trip of 64 bytes on an idle way, median, microseconds
    TripP50,
    /// The same, 99 of 100
    TripP99,
    /// The same beside one full TCP stream, 99 of 100
    LoadedP99,
    /// New connections with one round trip each, per second
    Connects,
    /// CPU seconds of the sender's daemon per Gbit of the one TCP stream
    SenderCpu,
    /// CPU seconds of the receiver's daemon per Gbit of the one TCP stream
    ReceiverCpu,
}

impl Metric {
    /// Every column, in the order of the table.
    pub(crate) const ALL: [Self; 10] = [
        Self::Tcp1,
        Self::Tcp4,
        Self::Udp1200,
        Self::Udp64,
        Self::TripP50,
        Self::TripP99,
        Self::LoadedP99,
        Self::Connects,
        Self::SenderCpu,
        Self::ReceiverCpu,
    ];

    /// Returns the word for programs, and the head of the column.
    pub(crate) fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Tcp1 => ("tcp1_gbps", "TCP 1 stream Gbit/s"),
            Self::Tcp4 => ("tcp4_gbps", "TCP 4"),
            Self::Udp1200 => ("udp1200_kpps", "UDP 1,200 B thousand/s"),
            Self::Udp64 => ("udp64_kpps", "UDP 64 B"),
            Self::TripP50 => ("rr_p50_us", "round trip p50 µs"),
            Self::TripP99 => ("rr_p99_us", "p99"),
            Self::LoadedP99 => ("rr_loaded_p99_us", "p99 beside a stream"),
            Self::Connects => ("crr_per_s", "connects/s"),
            Self::SenderCpu => ("sender_cpu_s_per_gbit", "CPU s/Gbit sender"),
            Self::ReceiverCpu => ("receiver_cpu_s_per_gbit", "receiver"),
        }
    }

    /// Returns how many digits after the point mean something.
    pub(crate) fn digits(self) -> usize {
        match self {
            Self::Tcp1 | Self::Tcp4 => 2,
            Self::SenderCpu | Self::ReceiverCpu => 3,
            Self::Udp1200 | Self::Udp64 => 1,
            Self::TripP50 | Self::TripP99 | Self::LoadedP99 | Self::Connects => 0,
        }
    }
}

/// How much is measured.
#[derive(Debug, Clone)]
pub(crate) struct BenchPlan {
    pub(crate) rounds: usize,
    pub(crate) secs: u64,
    pub(crate) lanes: u16,
    pub(crate) columns: Vec<Metric>,
    pub(crate) thousand: bool,
}
