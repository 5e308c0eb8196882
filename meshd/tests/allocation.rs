//! The lanes allocate nothing per packet: none over a million packets through two real data paths.
//!
//! Counted is what happens on threads named `lane-…`, after a warm-up in which buffers grow to their size, tunnels are
//! made and flows become known. So not counted, because it is not per packet, is what a new session, tunnel, map or a
//! handed-over packet costs once, and the renewal of sessions every 120 s, which does not come in the time counted.
//! The timers that run every 250 ms are counted.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unsafe_code, reason = "whoever counts allocations must be the allocator")]

mod namespaces;
mod planes;

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use namespaces::privileged;
use planes::{PlaneNode, flat, pair};

/// Packets to be sealed and opened while allocations are counted.
const PACKETS: u64 = 1_000_000;
/// What the slowest machine may take for them.
const TIME: Duration = Duration::from_secs(120);
/// Traffic before anything is counted.
const WARM_UP: Duration = Duration::from_secs(2);

/// The system's allocator, with a counter.
struct Counting;

static COUNTING: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicU64 = AtomicU64::new(0);
/// Where the first counted allocation was made.
static FIRST: OnceLock<String> = OnceLock::new();

thread_local! {
    /// Whether this thread is a lane's, once that is known.
    static LANE: Cell<Option<bool>> = const { Cell::new(None) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

impl Counting {
    fn count() {
        if COUNTING.load(Ordering::Relaxed) && Self::is_lane() {
            COUNT.fetch_add(1, Ordering::Relaxed);
            if FIRST.get().is_none() {
                // What follows allocates, too.
                LANE.set(Some(false));
                let _ = FIRST.set(Backtrace::force_capture().to_string());
                LANE.set(Some(true));
            }
        }
    }

    fn is_lane() -> bool {
        LANE.get().unwrap_or_else(|| {
            // To learn a thread's name may allocate.
            LANE.set(Some(false));
            let lane = std::thread::current().name().is_some_and(|name| name.starts_with("lane-"));
            LANE.set(Some(lane));
            lane
        })
    }
}

// SAFETY: every call is handed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count();
        // SAFETY: the caller keeps the promises of `GlobalAlloc::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::count();
        // SAFETY: the caller keeps the promises of `GlobalAlloc::alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::count();
        // SAFETY: the caller keeps the promises of `GlobalAlloc::realloc`.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the promises of `GlobalAlloc::dealloc`.
        unsafe { System.dealloc(block, layout) }
    }
}

/// Connections and datagrams from one node to the other, until told to stop.
fn traffic(from: &PlaneNode, to: &PlaneNode, ids: [u8; 2], stop: &Arc<AtomicBool>) -> Vec<JoinHandle<()>> {
    let [own, other] = ids.map(flat);
    let mut threads = Vec::new();
    let listener = to.run(move || TcpListener::bind((other, 7000)).unwrap());
    for _ in 0..4 {
        let mut near = from.run(move || TcpStream::connect((other, 7000)).unwrap());
        let mut far = listener.accept().unwrap().0;
        let stopped = Arc::clone(stop);
        threads.push(std::thread::spawn(move || {
            let data = vec![0; 1 << 16];
            while !stopped.load(Ordering::Relaxed) && near.write_all(&data).is_ok() {}
        }));
        threads.push(std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 18];
            while let Ok(1..) = far.read(&mut buffer) {}
        }));
    }
    let receiver = to.run(move || UdpSocket::bind((other, 7000)).unwrap());
    receiver.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    threads.push(std::thread::spawn(move || while let Ok(1..) = receiver.recv(&mut [0; 2048]) {}));
    let socket = from.run(move || UdpSocket::bind((own, 0)).unwrap());
    socket.connect((other, 7000)).unwrap();
    let stopped = Arc::clone(stop);
    threads.push(std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            for size in [1, 100, 1200, 1200, 1200, 64, 64] {
                let _ = socket.send(&[0; 1200][..size]);
            }
            std::thread::sleep(Duration::from_micros(500));
        }
    }));
    threads
}

/// Lets a thread of that name allocate, and says how often it was counted.
fn counted(name: &str) -> u64 {
    let allocate = || {
        COUNTING.store(true, Ordering::Relaxed);
        (0..3).for_each(|i| drop(std::hint::black_box(vec![i; 1000])));
        COUNTING.store(false, Ordering::Relaxed);
    };
    std::thread::Builder::new().name(name.into()).spawn(allocate).unwrap().join().unwrap();
    COUNT.swap(0, Ordering::Relaxed)
}

/// Packets that the lanes of both sealed so far, each of which was opened too, but for those lost.
fn packets(nodes: &[PlaneNode; 2]) -> u64 {
    let lanes = nodes.iter().flat_map(|node| node.plane().stats().lanes);
    lanes.map(|lane| lane.udp_tx_packets).sum()
}

#[test]
fn a_million_packets_cost_no_allocation() {
    if !privileged("data paths in namespaces") {
        return;
    }
    assert_eq!((counted("lane-9"), counted("another")), (3, 0), "the counter counts");
    let nodes = pair([2, 2]);
    let [a, b] = &nodes;
    let stop = Arc::default();
    let mut threads = traffic(a, b, [1, 2], &stop);
    threads.extend(traffic(b, a, [2, 1], &stop));
    std::thread::sleep(WARM_UP);

    let (before, begin) = (packets(&nodes), Instant::now());
    COUNTING.store(true, Ordering::Relaxed);
    while packets(&nodes) - before < PACKETS {
        assert!(begin.elapsed() < TIME, "only {} packets", packets(&nodes) - before);
        std::thread::sleep(Duration::from_millis(100));
    }
    COUNTING.store(false, Ordering::Relaxed);

    stop.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let count = COUNT.load(Ordering::Relaxed);
    assert_eq!(count, 0, "the first: {}", FIRST.get().map_or("", |place| place));
}
