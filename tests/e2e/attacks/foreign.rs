//! Networks of a node that are no pods of it, and that somebody masquerades.

use std::net::Ipv4Addr;
use std::time::Duration;

use mesh_tests::daemon::wait_until;

use super::ground::{AttackGround, BRIDGED, ECHO, PTP, says};

pub(crate) fn as_the_node(ground: &AttackGround) {
    let to = (ground.vip("web"), ECHO);
    let own = ground.a.status().unwrap().node.unwrap().address.0;
    let container = Ipv4Addr::new(172, 17, 0, 5);
    let heard = ground.holds("keep_source", &ground.web, |payload| says(&ground.container, container, payload, to));
    assert_eq!(heard.ip(), own, "masqueraded, it is heard as the node");
}

pub(crate) fn as_itself(ground: &AttackGround) {
    let own = ground.a.status().unwrap().node.unwrap().address.0;
    let mut heard = None;
    let answered = wait_until(Duration::from_secs(10), || {
        heard = ground.asks(&ground.container, (ground.vip("lan"), 70));
        heard.is_some()
    });
    assert!(answered, "what a rule names may call");
    let [a, b, c, d] = own.octets();
    assert_eq!(heard.unwrap().ip(), Ipv4Addr::new(a, b, c ^ 128, d), "the node's second address");
    assert_eq!(ground.asks(&ground.a.namespace, (ground.vip("lan"), 70)), None, "the rule is not about the node");
    assert_eq!(ground.asks(&ground.pods[0], (ground.vip("lan"), 70)), None, "nor about its pods");
}

pub(crate) fn told(ground: &AttackGround) {
    let to = (ground.vip("web"), ECHO);
    let mut said = String::new();
    let tells = wait_until(Duration::from_secs(10), || {
        says(&ground.stranger, BRIDGED, ground.word("forged"), to);
        says(&ground.stranger, ground.flat_of_far(), ground.word("forged"), (PTP, 4000));
        let output = ground.a.config_verb(&["check"]).unwrap();
        said = String::from_utf8_lossy(&output.stdout).into_owned();
        let notes: Vec<_> = said.lines().filter(|line| line.starts_with("note: ")).collect();
        ["pods behind `lxc*`", "forges mesh addresses", "forges this node's pods"]
            .iter()
            .all(|word| notes.iter().any(|note| note.contains(word)))
    });
    assert!(tells, "{said}");
}
