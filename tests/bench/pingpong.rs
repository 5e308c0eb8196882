//! Questions and answers of 64 bytes over TCP: round trips on one connection, then connections one after another,
//! each with one round trip and ended by a reset, so that no port waits.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt::Linger};
use serde::{Deserialize, Serialize};

/// Bytes of a question and of an answer.
const SIZE: usize = 64;
/// Most round trips whose times are kept.
const MOST: usize = 4_000_000;
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What one asker found.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct PongAnswer {
    /// Median round trip, in microseconds.
    pub(crate) p50: f64,
    /// The round trip that 99 of 100 do not exceed, in microseconds.
    pub(crate) p99: f64,
    /// Connections per second.
    pub(crate) connects: f64,
}

/// Answers until killed, one thread per connection.
pub(crate) fn serve(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        std::thread::spawn(move || echo(stream));
    }
    Ok(())
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = [0; SIZE];
    loop {
        stream.read_exact(&mut bytes)?;
        stream.write_all(&bytes)?;
    }
}

/// Asks for so long on one connection, then connects for so long, and prints an `Answer` as JSON.
pub(crate) fn ask(to: SocketAddr, trips: Duration, connects: Duration) -> io::Result<()> {
    let (p50, p99) = round_trips(to, trips)?;
    let answer = PongAnswer { p50, p99, connects: connections(to, connects)? };
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, &answer)?;
    writeln!(out)
}

fn round_trips(to: SocketAddr, limit: Duration) -> io::Result<(f64, f64)> {
    if limit.is_zero() {
        return Ok((0.0, 0.0));
    }
    let mut stream = connect(to)?;
    trip(&mut stream)?;
    let mut times = Vec::with_capacity(1 << 16);
    let began = Instant::now();
    while began.elapsed() < limit && times.len() < MOST {
        let asked = Instant::now();
        trip(&mut stream)?;
        times.push(asked.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    let at = |share: usize| times.get(times.len() * share / 100).copied();
    at(50).zip(at(99)).ok_or_else(|| io::Error::other("not one answer came"))
}

fn connections(to: SocketAddr, limit: Duration) -> io::Result<f64> {
    if limit.is_zero() {
        return Ok(0.0);
    }
    let began = Instant::now();
    let mut count = 0_u32;
    while began.elapsed() < limit {
        let mut stream = connect(to)?;
        trip(&mut stream)?;
        setsockopt(&stream, Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })?;
        count += 1;
    }
    Ok(f64::from(count) / began.elapsed().as_secs_f64())
}

fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn trip(stream: &mut TcpStream) -> io::Result<()> {
    let mut bytes = [0; SIZE];
    stream.write_all(&bytes)?;
    stream.read_exact(&mut bytes)
}
