//! What happens beneath the tunnel, with the real binaries in namespaces: a node's address changes, the network's MTU
//! changes or comes late, and a router swallows large datagrams without a word.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "what a test binary measured")]

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mesh_proto::ops::status::PeerStatus;
use mesh_tests::daemon::{Binaries, Daemon, wait_until};
use mesh_tests::facts::{Fact, in_namespaces};
use mesh_tests::netns::Namespace;
use mesh_tests::nft;
use mesh_tests::pair::{Pair, PairGround, PairSide, STARTING};
use mesh_tests::topology::{PORT, Underlay};
use mesh_tests::traffic;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::TcpMaxSeg;

/// How long anything may take to go on after a change.
const SOON: Duration = Duration::from_secs(2);
/// How long an established connection may be held up by a hole.
const HELD_UP: Duration = Duration::from_secs(5);
/// How long an answer is waited for, so that what takes too long is measured.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a kernel puts off an acknowledgement, and more.
const QUIET: Duration = Duration::from_millis(300);
/// New connections begun after a change, and the time between two.
const CALLS: u64 = 30;
const EVERY: Duration = Duration::from_millis(60);

const ADDRESS: &[Fact<Pair>] = &[
    ("calls_and_connections_go_on_within_two_seconds", moves_beside_a_coordinator),
    ("the_control_channel_is_dialled_anew_at_once", channel_follows),
    ("without_a_coordinator_they_go_on_just_as_fast", moves_without_a_coordinator),
];
const MTU: &[Fact<Pair>] = &[
    ("interface_peers_and_segments_follow_the_network_down_and_up", mtu_follows),
    ("a_network_that_comes_after_the_daemon_is_followed", mtu_comes_late),
    ("the_key_decides_instead_of_the_network", mtu_is_a_key),
];
const HOLE: &[Fact<Pair>] = &[("an_established_connection_goes_on_and_all_say_why", hole_is_found)];

fn main() -> ExitCode {
    in_namespaces(|run, binaries| {
        let plain = |lanes| PairGround::plain(Underlay::V4, lanes);
        run.scene("address", || set_up(binaries, "ua", plain(2)), ADDRESS);
        run.scene("mtu", || set_up(binaries, "um", plain(1)), MTU);
        run.scene("hole", || set_up(binaries, "uh", plain(2)), HOLE);
    })
}

fn set_up(binaries: &Binaries, word: &str, ground: PairGround) -> io::Result<Pair> {
    let pair = Pair::start_on(ground, word, binaries)?;
    for side in [&pair.a, &pair.b] {
        traffic::serve_tcp(&side.pod, 8080)?;
    }
    for (from, service) in [(&pair.a, "web"), (&pair.b, "back")] {
        let to = (pair.vip(service), 80);
        if !wait_until(STARTING, || traffic::seen_as(&from.pod, to).is_ok()) {
            return Err(io::Error::other(format!("{service} is not reached")));
        }
    }
    Ok(pair)
}

/// Waits until all lanes have a tunnel, and both nodes are past the five round trips that they measure at its beginning, one
/// a second: what they said then would show where they are.
fn settle(pair: &Pair) {
    let settled = |side: &PairSide| {
        let status = side.node.status().unwrap();
        let measured = status.peers.iter().all(|peer| peer.rtt_count >= 5);
        measured && status.lanes.iter().all(|lane| lane.handshakes > 0)
    };
    assert!(wait_until(STARTING, || settled(&pair.a) && settled(&pair.b)));
}

/// Calls again and again on threads inside the namespace; each call says how long it took, or what it failed at.
fn call(from: &Namespace, to: (Ipv4Addr, u16)) -> Vec<JoinHandle<io::Result<Duration>>> {
    let calls = move |i: u64| {
        std::thread::spawn(move || {
            std::thread::sleep(EVERY * u32::try_from(i).unwrap_or(0));
            let began = Instant::now();
            let mut stream = TcpStream::connect_timeout(&SocketAddr::from(to), PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            traffic::greeting(&mut stream)?;
            Ok(began.elapsed())
        })
    };
    from.run(move || (0..CALLS).map(calls).collect())
}

/// Says how long the slowest of these calls took.
fn slowest(calls: Vec<JoinHandle<io::Result<Duration>>>) -> Duration {
    let took = calls.into_iter().map(|call| call.join().unwrap().expect("every call is answered"));
    took.max().unwrap_or_default()
}

/// A connection through a service that echoes.
fn connection(from: &Namespace, to: (Ipv4Addr, u16)) -> TcpStream {
    let mut stream = traffic::connect(from, to).unwrap();
    traffic::greeting(&mut stream).unwrap();
    stream
}

/// Says how long a connection takes to bring bytes there and back.
fn echo(stream: &TcpStream, bytes: usize) -> Duration {
    let began = Instant::now();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(traffic::echoes(stream, bytes).unwrap());
    began.elapsed()
}

/// Moves `b`, and says how long new calls and established connections take at most. Those to `b` come first, while it has
/// nothing to say that would show where it is.
fn move_b(pair: &Pair, from: u8, to: u8) -> Duration {
    settle(pair);
    let [web, back] = ["web", "back"].map(|service| (pair.vip(service), 80));
    // As many as it takes for each lane to have some.
    let streams: Vec<TcpStream> = (0..8).map(|_| connection(&pair.a.pod, web)).collect();
    for stream in &streams {
        echo(stream, 1000);
    }
    // What is not acknowledged yet `b` would send again, and show by that where it is.
    std::thread::sleep(QUIET);
    pair.network.renumber(&pair.b.node.namespace, 2, from, to).unwrap();
    let calls = call(&pair.a.pod, web);
    let echoes: Vec<JoinHandle<Duration>> =
        streams.into_iter().map(|stream| std::thread::spawn(move || echo(&stream, 1000))).collect();
    let established = echoes.into_iter().map(|echo| echo.join().unwrap()).max().unwrap();
    let new = slowest(calls);
    let from_b = slowest(call(&pair.b.pod, back));
    println!("new calls took at most {new:?}, and {from_b:?} from there; established connections {established:?}");
    new.max(established).max(from_b)
}

fn moves_beside_a_coordinator(pair: &Pair) {
    let took = move_b(pair, 11, 21);
    assert!(took <= SOON, "{took:?}");
}

fn channel_follows(pair: &Pair) {
    let connected = || pair.b.node.status().is_ok_and(|s| s.coordinator.connected);
    assert!(wait_until(STARTING, connected));
    pair.network.renumber(&pair.b.node.namespace, 2, 21, 22).unwrap();
    let address = SocketAddr::new(pair.network.ip(2, 22), PORT).to_string();
    let told = wait_until(SOON, || {
        let nodes = pair.coordinator.json(&["nodes"]).unwrap_or_default().to_string();
        nodes.contains(&address)
    });
    assert!(told, "{}", pair.coordinator.json(&["nodes"]).unwrap());
    assert!(connected());
}

fn moves_without_a_coordinator(pair: &Pair) {
    pair.coordinator.kill();
    let took = move_b(pair, 22, 23);
    pair.coordinator.start().unwrap();
    assert!(took <= SOON, "{took:?}");
}

fn peer(node: &Daemon, name: &str) -> Option<PeerStatus> {
    node.status().ok()?.peers.into_iter().find(|peer| peer.name.as_str() == name)
}

/// The segment size that both ends of a new connection agree on; from `b`, whose pod's kernel has not been told by ICMP
/// of a smaller one, which it would keep for minutes.
fn segment(pair: &Pair) -> Option<u32> {
    let stream = traffic::connect(&pair.b.pod, (pair.vip("back"), 80)).ok()?;
    getsockopt(&stream, TcpMaxSeg).ok()
}

/// Waits until interface, peers and new connections have this MTU; says how long that took, if it was soon.
fn follows(pair: &Pair, mtu: u16) -> Option<Duration> {
    let began = Instant::now();
    let own = || pair.b.node.namespace.mtu_of("mesh0").unwrap() == u32::from(mtu);
    let told = || peer(&pair.a.node, "b").is_some_and(|peer| peer.mtu == mtu);
    // Twelve of the header's bytes are a timestamp's.
    let segments = || segment(pair) == Some(u32::from(mtu) - 40 - 12);
    (wait_until(SOON, || own() && told()) && wait_until(SOON, segments)).then(|| began.elapsed())
}

fn mtu_follows(pair: &Pair) {
    let mut stream = connection(&pair.a.pod, (pair.vip("web"), 80));
    for (underlay, mtu) in [(1500, 1420), (1400, 1320), (1300, 1220), (1500, 1420)] {
        pair.network.mtu(&pair.b.node.namespace, 2, 11, underlay).unwrap();
        let took = follows(pair, mtu);
        let seen =
            (pair.b.node.namespace.mtu_of("mesh0").unwrap(), peer(&pair.a.node, "b").map(|p| p.mtu), segment(pair));
        println!("underlay {underlay}: {took:?}, {seen:?}");
        assert!(took.is_some_and(|took| took <= SOON), "{underlay}: {took:?}, {seen:?}");
        assert!(echo(&stream, 300_000) <= HELD_UP);
    }
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
}

fn mtu_comes_late(pair: &Pair) {
    let (node, home) = (&pair.b.node, &pair.b.node.namespace);
    node.kill();
    home.remove_address("eth0", pair.network.ip(2, 11)).unwrap();
    pair.network.mtu(home, 2, 11, 1400).unwrap();
    node.start().unwrap();
    assert!(wait_until(STARTING, || node.status().is_ok() && home.mtu_of("mesh0").is_ok()));
    home.address("eth0", "172.31.2.11/24".parse().unwrap()).unwrap();
    home.default_route(pair.network.ip(2, 1)).unwrap();
    let took = follows(pair, 1320);
    assert!(took.is_some(), "mesh0 has {}, a says {:?}", home.mtu_of("mesh0").unwrap(), peer(&pair.a.node, "b"));
}

fn mtu_is_a_key(pair: &Pair) {
    let node = &pair.b.node;
    let config = std::fs::read_to_string(node.config()).unwrap();
    std::fs::write(node.config(), format!("mtu = 1200\n{config}")).unwrap();
    node.kill();
    node.start().unwrap();
    let has = |mtu| wait_until(STARTING, || node.namespace.mtu_of("mesh0").is_ok_and(|found| found == mtu));
    assert!(has(1200), "mesh0 has {:?}", node.namespace.mtu_of("mesh0"));
    pair.network.mtu(&node.namespace, 2, 11, 1500).unwrap();
    assert!(follows(pair, 1200).is_some());
    std::fs::write(node.config(), format!("mtu = 575\n{config}")).unwrap();
    let refused = node.config_verb(&["check"]).unwrap();
    let said = String::from_utf8_lossy(&[refused.stdout, refused.stderr].concat()).into_owned();
    assert!(!refused.status.success() && said.contains("`mtu` is ") && said.contains("576"), "{said}");
    std::fs::write(node.config(), config).unwrap();
}

fn hole_is_found(pair: &Pair) {
    let vip = (pair.vip("web"), 80);
    let streams: Vec<TcpStream> = (0..4).map(|_| connection(&pair.a.pod, vip)).collect();
    for stream in &streams {
        echo(stream, 100_000);
    }
    assert_eq!(peer(&pair.a.node, "b").and_then(|peer| peer.narrow_s), None);

    nft::swallow(&pair.network.router, "172.31.2.0/24".parse().unwrap(), 1024).unwrap();
    let began = Instant::now();
    let echoes: Vec<JoinHandle<Duration>> =
        streams.into_iter().map(|stream| std::thread::spawn(move || echo(&stream, 200_000))).collect();
    let took = echoes.into_iter().map(|echo| echo.join().unwrap()).max().unwrap();
    println!("established connections were held up for {took:?}");
    assert!(took <= HELD_UP, "{took:?}");
    // A kernel that has heard how much gets through sends no more of it in super-packets either.
    assert!(echo(&connection(&pair.a.pod, vip), 1 << 20) <= HELD_UP);

    let found = peer(&pair.a.node, "b").unwrap();
    assert!((576..=1023 - 60).contains(&found.mtu), "{found:?}");
    assert!(found.narrow_s.is_some_and(|seconds| seconds <= began.elapsed().as_secs()), "{found:?}");
    let text = |words: &[&str]| String::from_utf8_lossy(&pair.a.node.verb(words).unwrap().stdout).into_owned();
    assert!(text(&["peers"]).contains(&format!("{} (narrow)", found.mtu)), "{}", text(&["peers"]));
    assert!(text(&["status"]).contains("larger packets vanish on the way to `b`"), "{}", text(&["status"]));
    assert!(text(&["why", "back", "web"]).contains("vanish on the way to b"), "{}", text(&["why", "back", "web"]));
    assert_eq!(pair.a.node.verb(&["status"]).unwrap().status.code(), Some(0), "nothing stands in the way");
    // The other direction is as wide as ever.
    let back = peer(&pair.b.node, "a").unwrap();
    assert_eq!((back.mtu, back.narrow_s), (1420, None));
    nft::remove_table(&pair.network.router, "hole").unwrap();
}
