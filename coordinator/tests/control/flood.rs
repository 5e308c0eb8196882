//! Members come before strangers: whatever half-open connections there are, a member's is up within a second.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mesh_proto::wire::WatchEvent;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::common::{TestCoordinator, TestNode, until};

/// Half-open connections that are held at a time, and the addresses that they come from.
const HELD: usize = 1300;
const ADDRESSES: usize = 251;
/// Reconnections of members that are measured.
const RECONNECTS: usize = 240;
/// How long all but one in a hundred of them may take.
const LIMIT: Duration = Duration::from_secs(1);

/// Holds one half-open connection, and makes another one whenever it is ended.
async fn hold(number: usize, to: watch::Receiver<SocketAddr>) {
    let from = IpAddr::from([127, 7, 7, u8::try_from(1 + number % ADDRESSES).unwrap()]);
    loop {
        let target = *to.borrow();
        if let Ok(mut stream) = connect(from, target).await {
            // Some say nothing, some begin a handshake.
            if number.is_multiple_of(2) {
                let _ = stream.write_all(&[0x16, 3, 1, 2, 0]).await;
            }
            let _ = stream.read(&mut [0]).await;
        }
        sleep(Duration::from_millis(5)).await;
    }
}

async fn connect(from: IpAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    socket.connect(to).await
}

/// Connects as a node does, trying again as often as it is hung up on, until its watch is told of its map.
async fn reconnect(node: &TestNode) -> Duration {
    let began = Instant::now();
    let stream = loop {
        if let Ok(stream) = node.dial().await {
            break stream;
        }
    };
    let mut channel = node.speak(stream).await;
    let mut lines = channel.watch(None).await.unwrap();
    assert!(matches!(lines.next().await, Some(WatchEvent::Snapshot { .. })));
    began.elapsed()
}

/// Holds connections until nobody says any more where to.
fn flood(target: &watch::Receiver<SocketAddr>) {
    // As if it were on another machine: its turns are none of the coordinator's.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut end = target.clone();
    runtime.block_on(async {
        let mut held = JoinSet::new();
        for number in 0..HELD {
            held.spawn(hold(number, target.clone()));
        }
        while end.changed().await.is_ok() {}
        held.shutdown().await;
    });
}

fn descriptors(wanted: u64) {
    let limit = getrlimit(Resource::Nofile);
    let current = limit.maximum.unwrap_or(u64::MAX).min(wanted.max(limit.current.unwrap_or(0)));
    setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum: limit.maximum }).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::print_stdout, reason = "the figures of the run")]
async fn a_flood_of_half_open_connections_delays_no_member() {
    descriptors(8192);
    let mut coordinator = TestCoordinator::start().await;
    let mut members = Vec::new();
    for name in ["n1", "n2", "n3", "n4", "n5", "n6"] {
        members.push(coordinator.join(name).await.0);
    }
    let (aim, target) = watch::channel(coordinator.address());
    let flood = std::thread::spawn(move || flood(&target));
    let mut times = Vec::new();
    let mut least = usize::MAX;
    for round in 0..RECONNECTS {
        if round == RECONNECTS / 2 {
            coordinator = coordinator.restart().await;
            aim.send_replace(coordinator.address());
            members.iter_mut().for_each(|member| member.address = coordinator.address());
        }
        if round % (RECONNECTS / 2) == 0 {
            until("the strangers' places are shown full", async || {
                let status = coordinator.status().await;
                status.strangers == status.strangers_max && status.warnings.iter().any(|line| line.contains("places"))
            })
            .await;
        }
        times.push(reconnect(&members[round % members.len()]).await);
        least = least.min(coordinator.status().await.strangers);
    }
    times.sort_unstable();
    let (half, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    let most = coordinator.status().await.strangers_max;
    println!("{RECONNECTS} reconnections: p50 {half:?}, p99 {p99:?}; strangers {least} of {most} at the least");
    assert!(p99 <= LIMIT, "p99 is {p99:?}, the longest took {:?}", times.last());
    assert!(least >= most * 9 / 10, "{least} strangers of {most}");
    let metrics = coordinator.metrics().await;
    assert!(metrics.contains(&format!("coordinator_strangers_max {most}\n")), "{metrics}");

    // A stranger from elsewhere finds a place too.
    let (token, stranger) = (coordinator.token().await, TestNode::new(&coordinator, "n7"));
    let began = Instant::now();
    let stream = connect(IpAddr::from([127, 8, 8, 8]), coordinator.address()).await.unwrap();
    stranger.connect_over(stream).await.join(&token).await.unwrap();
    assert!(began.elapsed() <= 2 * LIMIT, "{:?}", began.elapsed());
    drop(aim);
    flood.join().unwrap();
}
