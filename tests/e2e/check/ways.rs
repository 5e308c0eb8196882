//! The way of the tunnel's own packets.

use mesh_tests::daemon::wait_until;
use mesh_tests::topology::PORT;

use crate::ground::{AGAIN, BrokenMesh, finds, is_well, mends, problems, sh};

/// A VPN's device.
const DEVICE: &str = "ip tuntap add dev tun0 mode tun && ip addr add 192.0.2.77/32 dev tun0 && ip link set tun0 up";
/// The channel to the coordinator has no mark: a VPN would carry it, and this one carries nothing.
const KEPT_OUT: &str = "ip rule add pref 90 to 172.31.3.0/24 lookup main";
const NO_VPN: &str = "ip rule del pref 90; ip link del tun0";

pub(crate) fn by_a_rule(ground: &BrokenMesh) {
    assert!(ground.calls());
    sh(&ground.a, DEVICE);
    // As wg-quick does: the kernel puts each before those that are there, and so before meshd's.
    sh(
        &ground.a,
        "ip route add default dev tun0 table 51820 && ip rule add not fwmark 0xca6c lookup 51820 && \
         ip rule add lookup main suppress_prefixlength 0",
    );
    sh(&ground.a, KEPT_OUT);
    let first = finds(&ground.a, "host", &["priority 104", "comes before meshd's"]);
    let command = finds(&ground.a, "marked-route", &["`tun0`", "51820", "172.31.2.11"]);
    assert!(wait_until(AGAIN, || !ground.calls()), "the VPN does not take the tunnel");
    sh(&ground.a, &first);
    mends(&ground.a, "marked-route", &command);
    assert!(wait_until(AGAIN, || ground.calls()));
    is_well(&ground.a);
    sh(&ground.a, "ip rule del fwmark 0x3041; ip rule del pref 103; ip rule del pref 103; ip rule del lookup 51820");
    sh(&ground.a, NO_VPN);
    is_well(&ground.a);
}

pub(crate) fn by_halves(ground: &BrokenMesh) {
    sh(&ground.a, DEVICE);
    sh(&ground.a, KEPT_OUT);
    // As OpenVPN does with `redirect-gateway def1`.
    sh(&ground.a, "ip route add 0.0.0.0/1 dev tun0 && ip route add 128.0.0.0/1 dev tun0");
    sh(&ground.a, "ip route add 172.31.3.0/24 via 172.31.1.1");
    let command = finds(&ground.a, "marked-route", &["`tun0`", "254", "172.31.2.11"]);
    mends(&ground.a, "marked-route", &command);
    assert!(wait_until(AGAIN, || ground.calls()));
    is_well(&ground.a);
    sh(&ground.a, "ip rule del fwmark 0x3041; ip rule del fwmark 0x3041; ip route flush table 12353");
    sh(&ground.a, "ip route del 172.31.3.0/24");
    sh(&ground.a, NO_VPN);
    is_well(&ground.a);
}

pub(crate) fn the_only_way(ground: &BrokenMesh) {
    sh(&ground.a, DEVICE);
    sh(&ground.a, KEPT_OUT);
    sh(&ground.a, "ip route add 172.31.3.0/24 via 172.31.1.1 && ip route replace default dev tun0");
    assert_eq!(problems(&ground.a, "marked-route"), <[serde_json::Value; 0]>::default());
    sh(&ground.a, "ip route replace default via 172.31.1.1 && ip route del 172.31.3.0/24");
    sh(&ground.a, NO_VPN);
    assert!(wait_until(AGAIN, || ground.calls()));
    // A VPN for a network of its own.
    sh(&ground.a, DEVICE);
    sh(&ground.a, KEPT_OUT);
    sh(&ground.a, "ip route add 198.51.100.0/24 dev tun0");
    assert_eq!(problems(&ground.a, "marked-route"), <[serde_json::Value; 0]>::default());
    sh(&ground.a, NO_VPN);
    is_well(&ground.a);
}

pub(crate) fn blocked_here(ground: &BrokenMesh) {
    assert!(ground.calls());
    sh(
        &ground.a,
        "nft 'add table inet fw; add chain inet fw in { type filter hook input priority 0; }; \
         add rule inet fw in udp dport 51820 drop'",
    );
    assert!(wait_until(AGAIN, || !ground.calls() && !problems(&ground.a, "udp-blocked").is_empty()));
    let command = finds(&ground.a, "udp-blocked", &["b has not answered at UDP 172.31.2.11:51820", "`in`", "inet fw"]);
    assert_eq!(command, "nft insert rule inet fw in udp dport 51820 accept");
    sh(&ground.a, &command);
    assert!(wait_until(AGAIN, || ground.calls()));
    mends(&ground.a, "udp-blocked", "true");
    sh(&ground.a, "nft delete table inet fw");
    is_well(&ground.a);
}

pub(crate) fn blocked_elsewhere(ground: &BrokenMesh) {
    ground.network.router.block_udp(PORT, PORT).unwrap();
    assert!(wait_until(AGAIN, || !ground.calls() && !problems(&ground.a, "udp-blocked").is_empty()));
    let words = ["b has not answered at UDP 172.31.2.11:51820", "no rule of this host", "open UDP port 51820"];
    assert_eq!(finds(&ground.a, "udp-blocked", &words), "");
    let warnings = ground.a.status().unwrap().warnings;
    assert!(warnings.iter().any(|w| w.starts_with("b has not answered at UDP 172.31.2.11:51820")), "{warnings:?}");
    ground.network.router.forget_routing(50, 99).unwrap();
    assert!(wait_until(AGAIN, || ground.calls()));
    is_well(&ground.a);
}
