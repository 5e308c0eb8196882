//! kill -9 of either node under traffic: forwarding again within a second, nothing lost, nothing in clear.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mesh_tests::capture::{Capture, hex_dump};
use mesh_tests::classify::{Class, Known};
use mesh_tests::daemon::wait_until;
use mesh_tests::pair::{Pair, STARTING};
use mesh_tests::topology::{COORDINATOR_PORT, PORT};
use mesh_tests::traffic;

use crate::probe::{Probe, said};

const KILLS: usize = 50;
/// The promise: from the kill to the next answer.
const MOST: Duration = Duration::from_secs(1);
/// What is transferred meanwhile: a part between any two kills, a few bytes at a time.
const BYTES: usize = 10_000_000;
const PART: usize = BYTES / KILLS;
const CHUNK: usize = 10_000;
const EVERY: Duration = Duration::from_millis(10);
/// How long TCP may take to come back by itself: it doubles its patience with every try that meets a dead node.
const TCP: Duration = Duration::from_secs(30);

pub(crate) fn fifty_times(pair: &Pair) {
    let known = Known {
        tunnel_ports: (PORT..PORT + 2).collect(),
        coordinators: [SocketAddr::new(pair.network.ip(3, 11), COORDINATOR_PORT)].into(),
    };
    let web = pair.vip("web");
    assert!(wait_until(STARTING, || traffic::seen_as(&pair.a.pod, (web, 80)).is_ok()));
    let capture = Capture::start(&pair.network.router, known).unwrap();
    // Of several ports, so that flows of both lanes are among them.
    let probes: Vec<Probe> = (0..4).map(|_| Probe::udp(&pair.a.pod, (web, 7)).unwrap()).collect();
    let mut stream = traffic::connect(&pair.a.pod, (web, 80)).unwrap();
    traffic::greeting(&mut stream).unwrap();
    stream.set_read_timeout(Some(TCP)).unwrap();
    let transfer = Transfer::default();
    let running = {
        let transfer = transfer.clone();
        std::thread::spawn(move || transfer.run(&stream))
    };

    let mut outages = Vec::new();
    for round in 0..KILLS {
        transfer.may.store((round + 1) * PART, Ordering::Relaxed);
        let flows = || transfer.back.load(Ordering::Relaxed) >= round * PART + CHUNK;
        assert!(wait_until(TCP, flows) || running.is_finished(), "the transfer stands still before kill {round}");
        let node = if round % 2 == 0 { &pair.a.node } else { &pair.b.node };
        let killed = Instant::now();
        node.kill();
        let dead = Instant::now();
        node.start().unwrap();
        let all = || probes.iter().all(|p| p.answered_since(dead));
        assert!(wait_until(Duration::from_secs(10), all), "nothing is forwarded after kill {round} of {}", node.name);
        outages.push(killed.elapsed());
    }

    assert!(running.join().unwrap().unwrap(), "the transfer is damaged");
    outages.sort();
    let (median, longest) = (outages[KILLS / 2], outages[KILLS - 1]);
    said(&format!("{KILLS} kills: forwarding again after {median:?} at the median and {longest:?} at most"));
    assert!(longest <= MOST, "an outage of {longest:?}");
    let seen = capture.seen();
    let leak = seen.leaks.first().map(|(_, bytes)| hex_dump(bytes)).unwrap_or_default();
    assert_eq!((seen.count(Class::Leak), seen.lost), (0, 0), "{leak}");
    assert!(seen.count(Class::Tunnel) > BYTES as u64 / 1500, "the observer sees no traffic");
}

/// Bytes to an echoing server and back.
#[derive(Clone, Default)]
struct Transfer {
    /// How many may be sent so far.
    may: Arc<AtomicUsize>,
    /// How many came back.
    back: Arc<AtomicUsize>,
}

impl Transfer {
    /// Says whether all that was sent came back as it was.
    fn run(&self, stream: &TcpStream) -> io::Result<bool> {
        let byte = |i: usize| (i * 7 + i / 251) as u8;
        let (mut writer, may) = (stream.try_clone()?, Arc::clone(&self.may));
        let writes = std::thread::spawn(move || {
            for start in (0..BYTES).step_by(CHUNK) {
                let chunk: Vec<u8> = (start..start + CHUNK).map(byte).collect();
                std::thread::sleep(EVERY);
                while may.load(Ordering::Relaxed) <= start {
                    std::thread::sleep(EVERY);
                }
                writer.write_all(&chunk)?;
            }
            Ok::<_, io::Error>(())
        });
        let (mut reader, mut buffer) = (stream, [0; 65_536]);
        let mut at = 0;
        while at < BYTES {
            let length = reader.read(&mut buffer)?;
            if length == 0 || !buffer[..length].iter().zip(at..).all(|(&b, i)| b == byte(i)) {
                return Ok(false);
            }
            at += length;
            self.back.store(at, Ordering::Relaxed);
        }
        Ok(writes.join().is_ok_and(|written| written.is_ok()))
    }
}
