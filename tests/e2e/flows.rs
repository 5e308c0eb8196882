//! One pod opens more flows than its share: it is answered, and nobody else notices.
//!
//! Pod a asks `web`, which pod b backs; pod b calls `back`, which pod a backs.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mesh_tests::daemon::{Binaries, wait_until};
use mesh_tests::facts::{Fact, in_namespaces};
use mesh_tests::netns::Namespace;
use mesh_tests::pair::{POD, Pair, STARTING};
use mesh_tests::topology::Underlay;
use mesh_tests::traffic;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket};

/// Source ports, one flow each: more than 20,000 flows.
const PORTS: std::ops::Range<u16> = 10_000..31_000;
/// How many ask at once.
const ASKERS: u16 = 4;
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(5);
/// Half-open connections per second, and for how long.
const SYNS: u32 = 10_000;
const FLOOD: Duration = Duration::from_secs(8);
/// How often the flood is fed, and by how many at once.
const STEP: Duration = Duration::from_millis(10);
const BURST: u32 = 300;

const FACTS: &[Fact<Pair>] = &[
    ("one_pod_asks_from_21000_source_ports_and_each_is_answered", asks_from_21000_source_ports),
    ("ten_thousand_half_open_connections_a_second_disturb_nobody", ten_thousand_syns_a_second),
];

fn main() -> ExitCode {
    in_namespaces(|run, binaries| run.scene("one_pod", || set_up(binaries), FACTS))
}

fn set_up(binaries: &Binaries) -> io::Result<Pair> {
    let pair = Pair::start("fl", binaries, Underlay::V4, 2)?;
    for side in [&pair.a, &pair.b] {
        traffic::serve_tcp(&side.pod, 8080)?;
        traffic::serve_udp(&side.pod, 7)?;
    }
    let works = |from: &Namespace, vip| wait_until(STARTING, || traffic::seen_as(from, (vip, 80)).is_ok());
    assert!(works(&pair.a.pod, pair.vip("web")) && works(&pair.b.pod, pair.vip("back")));
    Ok(pair)
}

/// A connection that says nothing until it is asked whether it is still there.
struct Idle(TcpStream);

impl Idle {
    fn open(from: &Namespace, vip: Ipv4Addr) -> Self {
        Self(call(from, vip).unwrap())
    }

    fn lives(&mut self) -> io::Result<bool> {
        self.0.write_all(b"there?")?;
        let mut answer = [0; 6];
        self.0.read_exact(&mut answer)?;
        Ok(&answer == b"there?")
    }
}

/// Calls a service, and waits for its greeting; a SYN that a busy machine lost is sent again.
fn call(from: &Namespace, vip: Ipv4Addr) -> io::Result<TcpStream> {
    let mut stream = from.run(move || TcpStream::connect_timeout(&(vip, 80).into(), ANSWER))?;
    stream.set_read_timeout(Some(ANSWER))?;
    traffic::greeting(&mut stream)?;
    Ok(stream)
}

/// Does something that loads the mesh, while pod b goes on calling pod a: new connections, and one that stays. Returns
/// what of that failed.
fn beside(pair: &Pair, load: impl FnOnce()) -> Vec<String> {
    let back = pair.vip("back");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| {
            let mut failed = Vec::new();
            let mut stays = Idle::open(&pair.b.pod, back);
            while !stop.load(Ordering::Relaxed) {
                if let Err(error) = call(&pair.b.pod, back) {
                    failed.push(format!("a new connection: {error}"));
                }
                if !stays.lives().is_ok_and(|lives| lives) {
                    failed.push("the connection that stays".to_owned());
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            failed
        });
        load();
        stop.store(true, Ordering::Relaxed);
        caller.join().unwrap()
    })
}

/// Asks from one source port, once. Says whether it was answered.
fn ask(pod: &Namespace, port: u16, to: SocketAddr) -> bool {
    let socket = pod.run(move || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap();
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(ANSWER)).unwrap();
    let question = port.to_be_bytes();
    let mut answer = [0; 8];
    socket.send(&question).is_ok() && socket.recv(&mut answer).is_ok_and(|length| answer[..length] == question)
}

fn asks_from_21000_source_ports(pair: &Pair) {
    let web = pair.vip("web");
    let mut idle = Idle::open(&pair.a.pod, web);
    let answered = AtomicUsize::new(0);
    let failed = beside(pair, || {
        std::thread::scope(|scope| {
            for first in 0..ASKERS {
                let answered = &answered;
                scope.spawn(move || {
                    // A few that are not answered are enough, and each of them takes its time.
                    let mut unanswered = 0;
                    for port in PORTS.skip(first.into()).step_by(ASKERS.into()) {
                        match ask(&pair.a.pod, port, (web, 7).into()) {
                            true => drop(answered.fetch_add(1, Ordering::Relaxed)),
                            false => unanswered += 1,
                        }
                        if unanswered == 3 {
                            return;
                        }
                    }
                });
            }
        });
    });
    let answered = answered.into_inner();
    let status = pair.a.node.status().unwrap();
    assert_eq!(answered, PORTS.len(), "answered, with {:?} and {:?}", status.flows, status.drops["flow_table_full"]);
    assert_eq!(failed, Vec::<String>::new(), "beside it");
    assert!(idle.lives().unwrap(), "an idle connection of the same pod");
    for node in [&pair.a.node, &pair.b.node] {
        let status = node.status().unwrap();
        assert!(status.flows.used >= PORTS.len(), "{:?}", status.flows);
        assert_eq!((status.drops["flow_table_full"], status.flows.displaced), (0, 0));
    }
}

/// A SYN that its receiver ignores, since its sum is wrong: its connection stays half-open.
fn syn(to: Ipv4Addr, port: u16) -> [u8; 40] {
    let mut packet = [0; 40];
    packet[..4].copy_from_slice(&[0x45, 0, 0, 40]);
    packet[8..10].copy_from_slice(&[64, 6]);
    packet[12..16].copy_from_slice(&POD.octets());
    packet[16..20].copy_from_slice(&to.octets());
    packet[20..22].copy_from_slice(&port.to_be_bytes());
    packet[22..24].copy_from_slice(&80_u16.to_be_bytes());
    packet[32..34].copy_from_slice(&[0x50, 2]);
    packet[34..36].copy_from_slice(&[0xff, 0xff]);
    packet[36..38].copy_from_slice(&[0xbe, 0xef]);
    packet
}

fn ten_thousand_syns_a_second(pair: &Pair) {
    let web = pair.vip("web");
    let mut idle = Idle::open(&pair.a.pod, web);
    let raw: OwnedFd = pair
        .a
        .pod
        .run(|| socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw))
        .unwrap();
    let target = SockaddrIn::from(std::net::SocketAddrV4::new(web, 0));
    let mut sent = 0;
    let failed = beside(pair, || {
        let began = Instant::now();
        let mut ports = (1024..=u16::MAX).cycle();
        while began.elapsed() < FLOOD {
            let due = (began.elapsed().as_secs_f64() * f64::from(SYNS)) as u32;
            // What a busy machine kept us from sending is no burst that overflows the queue of a device.
            let count = (due - sent).min(BURST);
            for port in ports.by_ref().take(count as usize) {
                sendto(raw.as_raw_fd(), &syn(web, port), &target, MsgFlags::empty()).unwrap();
            }
            sent += count;
            std::thread::sleep(STEP);
        }
    });
    assert!(sent > SYNS * 6, "{sent} were sent");
    assert_eq!(failed, Vec::<String>::new(), "beside it");
    assert!(idle.lives().unwrap(), "an idle connection of the same pod");
    assert!(call(&pair.a.pod, web).is_ok(), "a new connection of the same pod");
    let status = pair.a.node.status().unwrap();
    assert!(status.flows.used > 55_000, "{:?}", status.flows);
    assert_eq!((status.drops["flow_table_full"], status.flows.displaced), (0, 0));
}
