//! INPUT rules of the host.

use std::net::Ipv4Addr;

use mesh_tests::daemon::wait_until;
use mesh_tests::traffic;

use crate::ground::{AGAIN, BrokenMesh, finds, is_well, mends, problems, rc, sh};

const ID: &str = "input-drops";
const DNS: Ipv4Addr = Ipv4Addr::new(241, 0, 0, 53);
/// A firewall as its documentation shows it, which knows the underlay and not the mesh.
const FIREWALL: &str = r#"nft -f - <<'END'
table inet fw {
  chain input {
    type filter hook input priority filter; policy drop;
    ct state vmap { established : accept, related : accept, invalid : drop }
    iif "lo" accept
    iifname { "eth0", "eth1" } accept
    meta l4proto { icmp, ipv6-icmp } accept
    tcp dport { 22, 443 } accept
    ip saddr 192.0.2.0/24 accept
  }
}
END"#;

fn end(ground: &BrokenMesh) {
    sh(&ground.b, "nft delete table inet fw");
    assert!(wait_until(AGAIN, || ground.calls() && rc(&ground.b) == 0));
}

pub(crate) fn in_order(ground: &BrokenMesh) {
    for node in [&ground.a, &ground.b] {
        is_well(node);
    }
}

pub(crate) fn closed_to_the_mesh(ground: &BrokenMesh) {
    sh(&ground.b, FIREWALL);
    sh(&ground.b, "nft add rule inet fw input iifname cni0 accept");
    assert!(!ground.calls(), "the firewall does not close it");
    let command = finds(&ground.b, ID, &["`input`", "inet fw", "mesh0", "8080/tcp"]);
    assert_eq!(command, "nft insert rule inet fw input iifname \"mesh0\" accept");
    mends(&ground.b, ID, &command);
    assert!(wait_until(AGAIN, || ground.calls()));
    end(ground);
}

pub(crate) fn rejects_a_port(ground: &BrokenMesh) {
    sh(
        &ground.b,
        "nft 'add table ip fw; add chain ip fw web; add rule ip fw web counter reject; \
         add chain ip fw INPUT { type filter hook input priority 10; }; \
         add rule ip fw INPUT tcp dport 8080 ct state new jump web'",
    );
    assert!(!ground.calls(), "the rule does not close it");
    let command = finds(&ground.b, ID, &["`INPUT`", "ip fw", "8080/tcp"]);
    mends(&ground.b, ID, &command);
    assert!(wait_until(AGAIN, || ground.calls()));
    sh(&ground.b, "nft delete table ip fw");
}

pub(crate) fn closed_to_names(ground: &BrokenMesh) {
    let asks = || traffic::resolve(&ground.pod, DNS, "web.default.mesh.internal", false).is_ok();
    assert!(asks());
    sh(&ground.b, FIREWALL);
    sh(&ground.b, "nft add rule inet fw input iifname mesh0 accept");
    sh(&ground.b, "nft add rule inet fw input ip saddr != 10.8.0.0/14 accept");
    assert!(!asks(), "the firewall does not close it");
    let command = finds(&ground.b, ID, &["`input`", "inet fw", "241.0.0.53", "names"]);
    mends(&ground.b, ID, &command);
    assert!(wait_until(AGAIN, asks));
    end(ground);
}

pub(crate) fn open(ground: &BrokenMesh) {
    sh(&ground.b, FIREWALL);
    sh(&ground.b, "nft add rule inet fw input udp dport 53 accept");
    assert_eq!(problems(&ground.b, ID).len(), 1, "the mesh is not let in");
    for rule in [
        "tcp dport { 8080, 9090 } accept",
        "iif mesh0 accept",
        "iifname \"mesh*\" accept",
        "ip saddr 241.0.0.0/8 accept",
        "tcp dport vmap { 22 : drop, 8080 : accept }",
        "ct state new tcp dport 8080 counter log accept",
        "meta nfproto ipv4 meta l4proto tcp accept",
    ] {
        sh(&ground.b, &format!("nft 'add rule inet fw input {rule}'"));
        assert!(wait_until(AGAIN, || ground.calls()), "{rule}");
        assert_eq!(problems(&ground.b, ID), <[serde_json::Value; 0]>::default(), "{rule}");
        sh(
            &ground.b,
            "nft delete rule inet fw input handle $(nft -a list chain inet fw input | tail -3 | sed -n 's/.*handle //p' | head -1)",
        );
        assert_eq!(problems(&ground.b, ID).len(), 1, "{rule} is still there");
    }
    end(ground);
}

pub(crate) fn unclear(ground: &BrokenMesh) {
    sh(&ground.b, FIREWALL);
    sh(&ground.b, "nft add rule inet fw input udp dport 53 accept");
    for rule in ["tcp dport 8000-9000 accept", "limit rate 1000/second accept", "tcp dport { 1-7, 8000-9000 } accept"] {
        sh(&ground.b, &format!("nft 'add rule inet fw input {rule}'"));
        assert_eq!(problems(&ground.b, ID), <[serde_json::Value; 0]>::default(), "{rule}");
        sh(
            &ground.b,
            "nft delete rule inet fw input handle $(nft -a list chain inet fw input | tail -3 | sed -n 's/.*handle //p' | head -1)",
        );
    }
    end(ground);
}

pub(crate) fn iptables_nft(ground: &BrokenMesh) {
    sh(
        &ground.b,
        "iptables-nft -P INPUT DROP && iptables-nft -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT && \
         iptables-nft -A INPUT -i lo -j ACCEPT && iptables-nft -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT && \
         iptables-nft -A INPUT -p udp -m udp --dport 53 -m comment --comment names -j ACCEPT && \
         iptables-nft -A INPUT -i eth+ -j ACCEPT",
    );
    assert!(!ground.calls(), "the rules do not close it");
    let command = finds(&ground.b, ID, &["`INPUT`", "ip filter", "8080/tcp"]);
    mends(&ground.b, ID, &command);
    assert!(wait_until(AGAIN, || ground.calls()));
    sh(&ground.b, "nft flush table ip filter && iptables-nft -P INPUT ACCEPT");
    is_well(&ground.b);
}

pub(crate) fn ufw(ground: &BrokenMesh) {
    // What `ufw enable` makes, without its log.
    let rules = "*filter
:INPUT DROP [0:0]
:ufw-before-input - [0:0]
:ufw-not-local - [0:0]
:ufw-logging-deny - [0:0]
:ufw-user-input - [0:0]
-A INPUT -j ufw-before-input
-A INPUT -j ufw-user-input
-A ufw-before-input -i lo -j ACCEPT
-A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-input -m conntrack --ctstate INVALID -j DROP
-A ufw-before-input -p icmp --icmp-type echo-request -j ACCEPT
-A ufw-before-input -p udp --sport 67 --dport 68 -j ACCEPT
-A ufw-before-input -j ufw-not-local
-A ufw-before-input -d 224.0.0.251 -p udp --dport 5353 -j ACCEPT
-A ufw-not-local -m addrtype --dst-type LOCAL -j RETURN
-A ufw-not-local -m addrtype --dst-type MULTICAST -j RETURN
-A ufw-not-local -m limit --limit 3/min --limit-burst 10 -j ufw-logging-deny
-A ufw-not-local -j DROP
-A ufw-user-input -p tcp --dport 22 -j ACCEPT
-A ufw-user-input -p udp --dport 51820 -j ACCEPT
-A ufw-user-input -p udp --dport 53 -j ACCEPT
COMMIT
";
    sh(&ground.b, &format!("iptables-nft-restore <<'END'\n{rules}END"));
    assert!(!ground.calls(), "the rules do not close it");
    let command = finds(&ground.b, ID, &["`INPUT`", "ip filter", "8080/tcp"]);
    mends(&ground.b, ID, &command);
    assert!(wait_until(AGAIN, || ground.calls()));
    sh(&ground.b, "iptables-nft -F && iptables-nft -P INPUT ACCEPT");
    is_well(&ground.b);
}

pub(crate) fn firewalld(ground: &BrokenMesh) {
    // As firewalld writes it, shortened.
    let rules = r#"table inet firewalld {
  chain filter_INPUT {
    type filter hook input priority filter + 10; policy accept;
    ct state { established, related } accept
    ct status dnat accept
    iifname "lo" accept
    ct state invalid drop
    jump filter_INPUT_ZONES
    reject with icmpx admin-prohibited
  }
  chain filter_INPUT_ZONES {
    iifname "eth0" goto filter_IN_trusted
    iifname "cni0" goto filter_IN_trusted
    goto filter_IN_public
  }
  chain filter_IN_trusted { accept; }
  chain filter_IN_public {
    jump filter_IN_public_allow
    meta l4proto { icmp, ipv6-icmp } accept
    reject with icmpx admin-prohibited
  }
  chain filter_IN_public_allow {
    tcp dport 22 accept
    ip6 daddr fe80::/64 udp dport 546 accept
  }
}"#;
    sh(&ground.b, &format!("nft -f - <<'END'\n{rules}\nEND"));
    assert!(!ground.calls(), "the rules do not close it");
    let command = finds(&ground.b, ID, &["`filter_INPUT`", "inet firewalld", "8080/tcp"]);
    mends(&ground.b, ID, &command);
    assert!(wait_until(AGAIN, || ground.calls()));
    sh(&ground.b, "nft delete table inet firewalld");
    is_well(&ground.b);
}
