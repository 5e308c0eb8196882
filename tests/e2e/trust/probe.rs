//! Traffic that goes on and on, and remembers when it was last answered.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mesh_tests::daemon::wait_until;
use mesh_tests::netns::Namespace;
use mesh_tests::pair::{Pair, STARTING};
use mesh_tests::traffic;

/// Pause between two questions.
const EVERY: Duration = Duration::from_millis(5);
/// How long one wait for an answer takes at most.
const WAIT: Duration = Duration::from_millis(50);

/// Questions and answers over one flow; it ends with the value.
pub(crate) struct Probe {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    /// Whether to ask no more, and whether to end.
    enough: AtomicBool,
    stop: AtomicBool,
    asked: AtomicU64,
    answered: AtomicU64,
    last: Mutex<Option<Instant>>,
}

/// Prints a figure of the report.
#[expect(clippy::print_stdout, reason = "what a test binary prints")]
pub(crate) fn said(text: &str) {
    println!("{text}");
}

/// Opens ten flows between the two nodes, once they reach each other: four of UDP and one of TCP from either.
pub(crate) fn ten(pair: &Pair) -> Vec<Probe> {
    let ways = [(&pair.a.pod, pair.vip("web")), (&pair.b.pod, pair.vip("back"))];
    let mut probes = Vec::new();
    for (from, vip) in ways {
        assert!(wait_until(STARTING, || traffic::seen_as(from, (vip, 80)).is_ok()), "the mesh does not work");
        probes.extend((0..4).map(|_| Probe::udp(from, (vip, 7)).unwrap()));
        probes.push(Probe::tcp(from, (vip, 80)).unwrap());
    }
    probes
}

impl Shared {
    fn heard(&self, answers: usize) {
        self.answered.fetch_add(answers as u64, Ordering::Relaxed);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }
}

impl Probe {
    /// Sends a byte at a time over one connection to an echoing server.
    pub(crate) fn tcp(from: &Namespace, to: (Ipv4Addr, u16)) -> io::Result<Self> {
        Self::tcp_every(EVERY, from, to)
    }

    /// The same with another pause.
    pub(crate) fn tcp_every(pause: Duration, from: &Namespace, to: (Ipv4Addr, u16)) -> io::Result<Self> {
        let mut stream = traffic::connect(from, to)?;
        traffic::greeting(&mut stream)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(WAIT))?;
        stream.set_write_timeout(Some(WAIT))?;
        let (reader, writer) = (stream.try_clone()?, stream);
        Ok(Self::start(
            pause,
            move |shared| {
                let mut writer: &TcpStream = &writer;
                if writer.write(&[7]).is_ok_and(|n| n == 1) {
                    shared.asked.fetch_add(1, Ordering::Relaxed);
                }
            },
            move |shared| {
                let mut reader: &TcpStream = &reader;
                match reader.read(&mut [0; 256]) {
                    Ok(0) => std::thread::sleep(WAIT),
                    Ok(answers) => shared.heard(answers),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => std::thread::sleep(WAIT),
                }
            },
        ))
    }

    /// Sends numbered datagrams from one port to an echoing server.
    pub(crate) fn udp(from: &Namespace, to: (Ipv4Addr, u16)) -> io::Result<Self> {
        Self::udp_every(EVERY, from, to)
    }

    /// The same with another pause.
    pub(crate) fn udp_every(pause: Duration, from: &Namespace, to: (Ipv4Addr, u16)) -> io::Result<Self> {
        let socket = from.run(move || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(to)?;
            Ok::<_, io::Error>(socket)
        })?;
        socket.set_read_timeout(Some(WAIT))?;
        let reader = socket.try_clone()?;
        Ok(Self::start(
            pause,
            move |shared| {
                let number = shared.asked.fetch_add(1, Ordering::Relaxed);
                let _ = socket.send(&number.to_be_bytes());
            },
            move |shared| {
                if reader.recv(&mut [0; 256]).is_ok() {
                    shared.heard(1);
                }
            },
        ))
    }

    fn start(pause: Duration, ask: impl Fn(&Shared) + Send + 'static, hear: impl Fn(&Shared) + Send + 'static) -> Self {
        let shared: Arc<Shared> = Arc::default();
        let (asking, hearing) = (Arc::clone(&shared), Arc::clone(&shared));
        let asks = std::thread::spawn(move || {
            while asking.goes_on() && !asking.enough.load(Ordering::Relaxed) {
                ask(&asking);
                std::thread::sleep(pause);
            }
        });
        let hears = std::thread::spawn(move || {
            while hearing.goes_on() {
                hear(&hearing);
            }
        });
        Self { shared, threads: vec![asks, hears] }
    }

    /// Asks no more, waits for what is on its way, and returns how much was asked and answered.
    pub(crate) fn finish(self) -> (u64, u64) {
        self.shared.enough.store(true, Ordering::Relaxed);
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let all = || count(&self.shared.asked) == count(&self.shared.answered);
        std::thread::sleep(2 * WAIT);
        wait_until(Duration::from_secs(3), all);
        (count(&self.shared.asked), count(&self.shared.answered))
    }

    /// Returns when the last answer came.
    pub(crate) fn last(&self) -> Option<Instant> {
        *self.shared.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether an answer came after some moment.
    pub(crate) fn answered_since(&self, moment: Instant) -> bool {
        self.last().is_some_and(|last| last > moment)
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
