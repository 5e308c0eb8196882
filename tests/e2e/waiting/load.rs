//! What users of a node notice of it: how long names take, and how long a download stands still.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mesh_tests::daemon::wait_until;
use mesh_tests::netns::Namespace;
use mesh_tests::traffic;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Pause between two questions: 200 a second.
const QUESTION: Duration = Duration::from_millis(5);
/// Pause between two pieces of the download. Without one, both ends and their nodes would fill a small machine, and
/// what is measured would be its scheduler.
const PIECE: Duration = Duration::from_millis(2);
/// Bytes of a piece.
const BYTES: usize = 16 * 1024;
/// How long an answer may take before it counts as missing.
const LOST: Duration = Duration::from_secs(2);
/// How often each CPU is asked whether it is free.
const BEAT: Duration = Duration::from_millis(2);
/// How often is looked whether all is to end.
const LOOK: Duration = Duration::from_millis(100);

/// The worst that users met in some time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Worst {
    /// How many questions were asked.
    pub(crate) asked: usize,
    /// The slowest answer to a question of that time.
    pub(crate) answer: Duration,
    /// The longest time without a byte of the download that was not over before.
    pub(crate) stall: Duration,
    /// How late a thread that only sleeps was woken, on whichever CPU it was latest: what the machine itself adds.
    pub(crate) late: Duration,
}

/// Questions and a download that go on until the value goes.
pub(crate) struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// Questions by number: when each was asked, and how long its answer took. At most 65,536, which is all that their
    /// numbers can tell apart.
    questions: Mutex<Vec<(Instant, Option<Duration>)>>,
    /// When bytes came: some 500 a second for as long as questions are asked.
    pieces: Mutex<Vec<Instant>>,
    /// When a CPU was late by a millisecond or more, and how late.
    late: Mutex<Vec<(Instant, Duration)>>,
}

impl Load {
    /// Asks the name server of a node for `name` from that node, and downloads what `serve` serves from another.
    pub(crate) fn start(asker: &Namespace, name: &str, caller: &Namespace, from: SocketAddr) -> io::Result<Self> {
        let (query, server) = (query(name), SocketAddr::from((Ipv4Addr::new(241, 0, 0, 53), 53)));
        let asking = asker.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
        asking.connect(server)?;
        asking.set_read_timeout(Some(LOOK))?;
        let SocketAddr::V4(from) = from else { return Err(io::ErrorKind::InvalidInput.into()) };
        let mut download = traffic::connect(caller, (*from.ip(), from.port()))?;
        download.set_read_timeout(Some(LOOK))?;
        let shared = Arc::new(Shared::default());
        let hearing = asking.try_clone()?;
        let mut load = Self { shared, threads: Vec::new() };
        load.spawn("asks", move |shared| shared.ask(&asking, query))?;
        load.spawn("hears", move |shared| shared.hear(&hearing))?;
        load.spawn("downloads", move |shared| shared.download(&mut download))?;
        for cpu in 0..std::thread::available_parallelism()?.get() {
            load.spawn("beats", move |shared| shared.beat(cpu))?;
        }
        Ok(load)
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce(&Shared) + Send + 'static) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        self.threads.push(std::thread::Builder::new().name(name.into()).spawn(move || work(&shared))?);
        Ok(())
    }

    /// Returns the worst between two moments.
    ///
    /// # Panics
    /// If an answer does not come within 2 s.
    pub(crate) fn worst(&self, since: Instant, until: Instant) -> Worst {
        let of_then = |questions: &[(Instant, Option<Duration>)]| {
            let of_then = questions.iter().filter(|(asked, _)| (since..=until).contains(asked));
            of_then.map(|(_, took)| *took).collect::<Vec<_>>()
        };
        let took = || of_then(&self.shared.questions.lock().unwrap_or_else(PoisonError::into_inner));
        let all = || took().iter().all(|took| took.is_some_and(|took| took < LOST));
        assert!(wait_until(LOST, all), "a question had no answer in {LOST:?}");
        let took = took();
        let pieces = self.shared.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        // What came before and after counts as well: a pause may have begun earlier, and not be over.
        let first = pieces.partition_point(|at| *at < since).saturating_sub(1);
        let mut last = pieces.get(first).copied().unwrap_or(since);
        let mut stall = Duration::ZERO;
        for at in pieces[first.min(pieces.len())..].iter().copied().chain([Instant::now()]) {
            stall = stall.max(at - last);
            last = at;
            if at > until {
                break;
            }
        }
        let late = self.shared.late.lock().unwrap_or_else(PoisonError::into_inner);
        let late = late.iter().filter(|(at, _)| (since..=until).contains(at)).map(|(_, late)| *late).max();
        let answer = took.iter().copied().flatten().max().unwrap_or(LOST);
        Worst { asked: took.len(), answer, stall, late: late.unwrap_or_default() }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

impl Shared {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn ask(&self, socket: &UdpSocket, mut query: Vec<u8>) {
        let mut due = Instant::now();
        while self.goes_on() {
            // By the clock: a late question does not put off those after it.
            due += QUESTION;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            {
                let mut questions = self.questions.lock().unwrap_or_else(PoisonError::into_inner);
                let Ok(number) = u16::try_from(questions.len()) else { return };
                query[..2].copy_from_slice(&number.to_be_bytes());
                questions.push((Instant::now(), None));
            }
            // One that is refused has no answer.
            let _ = socket.send(&query);
        }
    }

    fn hear(&self, socket: &UdpSocket) {
        let mut answer = [0; 2048];
        while self.goes_on() {
            let Ok(length) = socket.recv(&mut answer) else { continue };
            let now = Instant::now();
            let is_good = length >= 12 && answer[3] & 15 == 0 && answer[6..8] != [0, 0];
            let number = usize::from(u16::from_be_bytes([answer[0], answer[1]]));
            let mut questions = self.questions.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((asked, took)) = questions.get_mut(number).filter(|_| is_good) {
                took.get_or_insert(now - *asked);
            }
        }
    }

    fn beat(&self, cpu: usize) {
        let mut own = CpuSet::new();
        // Where a CPU is not ours to choose, the scheduler's choice is asked.
        let _ = own.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &own));
        while self.goes_on() {
            let began = Instant::now();
            std::thread::sleep(BEAT);
            let late = began.elapsed().saturating_sub(BEAT);
            if late >= Duration::from_millis(1) {
                self.late.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), late));
            }
        }
    }

    fn download(&self, stream: &mut impl Read) {
        let mut buffer = vec![0; 4 * BYTES];
        while self.goes_on() {
            match stream.read(&mut buffer) {
                // It stands still for good, which is seen.
                Ok(0) => return,
                Ok(_) => self.pieces.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now()),
                Err(_) => {}
            }
        }
    }
}

/// Sends whoever connects to a loopback address a piece every 2 ms, until he goes. It ends with the process.
pub(crate) fn serve(namespace: &Namespace, at: SocketAddr) -> io::Result<()> {
    let listener = namespace.run(move || TcpListener::bind(at))?;
    std::thread::Builder::new().name("serves".into()).spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            std::thread::spawn(move || {
                let _ = stream.set_nodelay(true);
                let piece = vec![0x5A; BYTES];
                while stream.write_all(&piece).is_ok() {
                    std::thread::sleep(PIECE);
                }
            });
        }
    })?;
    Ok(())
}

/// Builds a question for a type-A record; its first two bytes are its number.
fn query(name: &str) -> Vec<u8> {
    let mut query = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).unwrap_or(63));
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    query
}
