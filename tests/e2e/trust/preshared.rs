//! Two nodes make a preshared key by themselves, keep it, and make another where one is lost.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use mesh_proto::ops::status::PresharedStatus;
use mesh_tests::daemon::{Daemon, wait_until};
use mesh_tests::netns::Namespace;
use mesh_tests::pair::{Pair, PairSide, STARTING};
use mesh_tests::traffic;

use crate::probe::{Probe, said};

/// The promises: for the first call ever, and for the first after a start.
const FIRST: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_secs(1);
const OFF: &str = "\n[keys]\npreshared = \"off\"\n";

/// Calls until somebody answers, and says how long that took.
#[track_caller]
fn calls(from: &Namespace, pair: &Pair, service: &str) -> Duration {
    let (vip, began) = (pair.vip(service), Instant::now());
    let answered = wait_until(STARTING, || traffic::seen_as(from, (vip, 80)).is_ok());
    assert!(answered, "{service} is not reached");
    began.elapsed()
}

fn is_post_quantum(node: &Daemon) -> bool {
    let peers = node.status().map(|status| status.peers).unwrap_or_default();
    !peers.is_empty() && peers.iter().all(|peer| peer.post_quantum)
}

/// What a node has stored: the keys, whoever they are shared with.
fn stored(side: &PairSide) -> BTreeSet<String> {
    let text = fs::read_to_string(side.node.folder.join("state/preshared.keys")).unwrap_or_default();
    text.lines().filter_map(|line| line.split(' ').nth(1)).map(Into::into).collect()
}

#[track_caller]
fn have_one_key(pair: &Pair) -> BTreeSet<String> {
    let (a, b) = (&pair.a, &pair.b);
    let same = || stored(a).len() == 1 && stored(a) == stored(b);
    assert!(wait_until(Duration::from_secs(5), same), "the stored keys differ");
    stored(a)
}

pub(crate) fn first_call(pair: &Pair) {
    assert!(!is_post_quantum(&pair.a.node) && !is_post_quantum(&pair.b.node), "nobody called yet");
    pair.coordinator.kill();

    let took = calls(&pair.a.pod, pair, "web");

    said(&format!("the first call ever, with the coordinator dead, took {took:?}"));
    assert!(took <= FIRST, "{took:?}");
    assert!(is_post_quantum(&pair.a.node) && is_post_quantum(&pair.b.node));
    calls(&pair.b.pod, pair, "back");
    have_one_key(pair);
    // The exit code says that there is no coordinator.
    let text = |verb| String::from_utf8(pair.a.node.verb(&[verb]).unwrap().stdout).unwrap();
    assert!(text("status").contains("1 of them post-quantum"), "{}", text("status"));
    assert!(text("peers").contains(" pq "), "{}", text("peers"));
}

pub(crate) fn after_a_restart(pair: &Pair) {
    let before = have_one_key(pair);
    let probe = Probe::udp(&pair.a.pod, (pair.vip("web"), 7)).unwrap();
    for side in [&pair.a, &pair.b] {
        side.node.kill();
        let began = Instant::now();
        side.node.start().unwrap();
        assert!(wait_until(STARTING, || probe.answered_since(began)));
        let took = began.elapsed();
        said(&format!("after the start of {} the first call took {took:?}", side.node.name));
        assert!(took <= AGAIN, "{took:?}");
    }
    assert_eq!(have_one_key(pair), before, "no new key was made");
    assert!(is_post_quantum(&pair.a.node) && is_post_quantum(&pair.b.node));
}

pub(crate) fn after_a_loss(pair: &Pair) {
    let probe = Probe::udp(&pair.a.pod, (pair.vip("web"), 7)).unwrap();
    for side in [&pair.a, &pair.b] {
        let before = have_one_key(pair);
        side.node.kill();
        fs::remove_file(side.node.folder.join("state/preshared.keys")).unwrap();
        let began = Instant::now();
        side.node.start().unwrap();
        assert!(wait_until(STARTING, || probe.answered_since(began)), "no new key is made");
        let took = began.elapsed();
        said(&format!("after the start of {} without its keys the first call took {took:?}", side.node.name));
        assert!(took <= FIRST, "{took:?}");
        assert_ne!(have_one_key(pair), before);
    }
    pair.coordinator.start().unwrap();
    let connected = || [&pair.a, &pair.b].iter().all(|s| s.node.status().is_ok_and(|s| s.coordinator.connected));
    assert!(wait_until(STARTING, connected));
}

pub(crate) fn off_and_on(pair: &Pair) {
    let config = fs::read_to_string(pair.b.node.config()).unwrap();
    for (text, post_quantum) in [(config.clone() + OFF, false), (config, true)] {
        fs::write(pair.b.node.config(), text).unwrap();
        pair.b.node.kill();
        pair.b.node.start().unwrap();
        calls(&pair.a.pod, pair, "web");
        calls(&pair.b.pod, pair, "back");
        let told = || [&pair.a, &pair.b].iter().all(|side| is_post_quantum(&side.node) == post_quantum);
        assert!(wait_until(STARTING, told), "post-quantum {post_quantum}");
        calls(&pair.a.pod, pair, "web");
    }
}

/// How long a tunnel that another took the place of may stay open.
const REPLACED: Duration = Duration::from_secs(6);

pub(crate) fn switched_meanwhile(pair: &Pair) {
    let (a, b) = (&pair.a.node, &pair.b.node);
    let config = fs::read_to_string(b.config()).unwrap();
    let off = (config.clone() + OFF, "still uses its preshared keys", false);
    let on = (config, "waits for the coordinator to know its agreement key", true);
    for (text, sentence, post_quantum) in [off, on] {
        pair.coordinator.kill();
        fs::write(b.config(), text).unwrap();
        b.kill();
        b.start().unwrap();
        let took = calls(&pair.b.pod, pair, "back");
        calls(&pair.a.pod, pair, "web");
        assert!(took <= FIRST, "{took:?}");
        let status = b.status().unwrap();
        assert!(status.warnings.iter().any(|text| text.contains(sentence)), "{:?}", status.warnings);
        assert_eq!(status.node.unwrap().preshared, PresharedStatus::Waits);
        assert!(is_post_quantum(a) != post_quantum && is_post_quantum(b) != post_quantum, "as before");

        let probe = |from, service| Probe::udp(from, (pair.vip(service), 7)).unwrap();
        let probes = [probe(&pair.a.pod, "web"), probe(&pair.b.pod, "back")];
        pair.coordinator.start().unwrap();
        let turned = || [a, b].iter().all(|node| is_post_quantum(node) == post_quantum);
        assert!(wait_until(STARTING, turned), "post-quantum {post_quantum}");
        std::thread::sleep(REPLACED);
        let sums = probes.map(Probe::finish);
        said(&format!("preshared keys {post_quantum}: {sums:?} asked and answered while the mesh heard of it"));
        assert!(sums.iter().all(|(asked, answered)| asked == answered), "lost: {sums:?}");
        assert!(b.status().unwrap().warnings.iter().all(|text| !text.contains(sentence)));
    }
}
