//! The status as OpenMetrics text, for Prometheus.

use std::sync::atomic::AtomicU64;

use mesh_proto::ops::status::Status;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::api::status;
use crate::node::snapshot::Snapshot;

/// What the text is, for the reader.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;
type Gauges = Family<Labels, Gauge<f64, AtomicU64>>;
type Counters = Family<Labels, Counter>;

/// Writes what is as OpenMetrics text.
pub fn text_of(snapshot: &Snapshot) -> String {
    text(&status::status(snapshot), snapshot.lane_deaths)
}

/// Writes a status as OpenMetrics text, with how many lanes died since the machine started.
fn text(status: &Status, lane_deaths: u64) -> String {
    let mut registry = Registry::with_prefix("meshd");
    let info = Gauges::default();
    registry.register("build_info", "The version that runs", info.clone());
    info.get_or_create(&vec![("version", status.version.clone())]).set(1.0);
    let connected = f64::from(u8::from(status.coordinator.connected));
    let in_force = f64::from(u8::from(status.file.in_force));
    let settings = f64::from(u8::from(status.settings.in_force));
    let stopped = f64::from(u8::from(status.upkeep.stopped));
    for (name, help, value) in [
        ("control_connected", "Whether the control channel is up", connected),
        ("config_revision", "The revision of the map in force", status.coordinator.revision.0 as f64),
        ("config_last_reload_success", "Whether the services.toml on disk is in force", in_force),
        ("settings_in_force", "Whether the meshd.toml on disk is what runs", settings),
        ("unstored_files", "Files of the state directory that wait for the disk", status.unstored.len() as f64),
        ("upkeep_failed", "Things in the kernel that meshd cannot put back", status.upkeep.failed.len() as f64),
        ("upkeep_stopped", "Whether one of them stops packets", stopped),
        ("flows", "Flows in the flow table", status.flows.used as f64),
        ("flow_slots", "Flows that the flow table can hold", status.flows.slots as f64),
        ("warnings", "Warnings that meshd status shows", status.warnings.len() as f64),
    ] {
        let gauge = Gauge::<f64, AtomicU64>::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    }
    let (refused, alarms) = (status.coordinator.records_refused, status.coordinator.log_alarms);
    for (name, help, value) in [
        ("records_refused", "Records of peers that failed this node's checks", refused),
        ("log_alarms", "Times that the coordinator's log was not what it should be", alarms),
        ("store_failures", "Times that the state directory refused something", status.store_failures),
        ("upkeep_mended", "Times that something in the kernel was put back", status.upkeep.mended),
        ("flows_displaced", "Flows that had to go for others because the flow table was full", status.flows.displaced),
        ("lane_deaths", "Lanes that died since the machine started; meshd ended with each", lane_deaths),
        ("log_lines_dropped", "Lines of the log that standard error did not take", status.log_lines_dropped),
    ] {
        let counter = Counter::<u64>::default();
        counter.inc_by(value);
        registry.register(name, help, counter);
    }
    services(&mut registry, status);
    peers(&mut registry, status);
    lanes(&mut registry, status);
    let dropped = Counters::default();
    registry.register("packets_dropped", "Packets refused or dropped, by reason", dropped.clone());
    for (reason, &count) in &status.drops {
        dropped.get_or_create(&vec![("reason", reason.clone())]).inc_by(count);
    }
    let mut text = String::new();
    encode(&mut text, &registry).expect("a string takes everything");
    text
}

fn services(registry: &mut Registry, status: &Status) {
    let (backends, connections) = (Gauges::default(), Gauges::default());
    registry.register("service_backends", "Live backends of a service", backends.clone());
    let help = "Connections of this node through a VIP that are alive";
    registry.register("service_connections", help, connections.clone());
    for s in &status.services {
        let labels = vec![("service", s.name.to_string()), ("namespace", s.namespace.to_string())];
        backends.get_or_create(&labels).set(s.backends.len() as f64);
        let sum: u64 = s.backends.iter().map(|b| b.connections).sum();
        connections.get_or_create(&labels).set(sum as f64);
    }
}

fn peers(registry: &mut Registry, status: &Status) {
    let handshake = Gauges::default();
    let rtt = Gauges::default();
    let (mtu, narrow) = (Gauges::default(), Gauges::default());
    let answers = Gauges::default();
    registry.register("peer_answers", "Whether the peer answers what is sent to it", answers.clone());
    let (rx, tx) = (Counters::default(), Counters::default());
    let name = "peer_last_handshake";
    registry.register_with_unit(name, "Time since the last handshake", Unit::Seconds, handshake.clone());
    registry.register_with_unit("peer_rtt", "Round trip through the tunnel", Unit::Seconds, rtt.clone());
    registry.register_with_unit("peer_mtu", "The largest packet that is sent to it", Unit::Bytes, mtu.clone());
    registry.register("peer_narrow", "Whether larger packets vanish on the way to it", narrow.clone());
    registry.register_with_unit("tunnel_rx", "Bytes received through the tunnel", Unit::Bytes, rx.clone());
    registry.register_with_unit("tunnel_tx", "Bytes sent through the tunnel", Unit::Bytes, tx.clone());
    for peer in &status.peers {
        let labels = vec![("peer", peer.name.to_string())];
        answers.get_or_create(&labels).set(f64::from(u8::from(peer.not_answering_s.is_none())));
        if let Some(seconds) = peer.last_handshake_s {
            handshake.get_or_create(&labels).set(seconds as f64);
        }
        if let Some(ms) = peer.rtt_ms {
            rtt.get_or_create(&labels).set(ms / 1000.0);
        }
        mtu.get_or_create(&labels).set(f64::from(peer.mtu));
        narrow.get_or_create(&labels).set(f64::from(u8::from(peer.narrow_s.is_some())));
        rx.get_or_create(&labels).inc_by(peer.rx_bytes);
        tx.get_or_create(&labels).inc_by(peer.tx_bytes);
    }
}

/// The worker threads: which of them is busy, which loses what, and whether the kernel takes packets by the dozen.
fn lanes(registry: &mut Registry, status: &Status) {
    let mut family = |name: &str, help: &str| {
        let counters = Counters::default();
        registry.register(name, help, counters.clone());
        counters
    };
    let packets = family("lane_packets", "Packets of a lane, in super-packets counted one by one");
    let supers = family("lane_super_packets", "Super-packets, and messages of several datagrams");
    let segments = family("lane_super_packet_segments", "Packets that super-packets were made of");
    let fallbacks = family("lane_offload_fallbacks", "Super-packets that the kernel refused");
    let dropped = family("lane_packets_dropped", "Packets of a lane refused or dropped, by reason");
    let failures = family("lane_decrypt_failures", "Data messages that did not authenticate or came twice");
    let overflows = family("lane_socket_overflows", "Datagrams lost to a full receive buffer");
    let handshakes = family("lane_handshakes", "Handshakes completed");
    let handovers = family("lane_handovers", "Packets sent by lane 0 because the lane had no session");
    let (bytes, offloads) = (Counters::default(), Gauges::default());
    registry.register_with_unit("lane", "Bytes of a lane's packets", Unit::Bytes, bytes.clone());
    registry.register("lane_offload", "Whether the kernel does it for the lane", offloads.clone());
    for l in &status.lanes {
        let lane = ("lane", l.lane.to_string());
        let labels = |more: &[(&'static str, &str)]| -> Labels {
            let more = more.iter().map(|&(name, value)| (name, value.to_owned()));
            [lane.clone()].into_iter().chain(more).collect()
        };
        for (side, direction, [n, b, s, g]) in [
            ("tun", "rx", [l.tun_rx_packets, l.tun_rx_bytes, l.tun_rx_super_packets, l.tun_rx_super_segments]),
            ("tun", "tx", [l.tun_tx_packets, l.tun_tx_bytes, l.tun_tx_super_packets, l.tun_tx_super_segments]),
            ("udp", "rx", [l.udp_rx_packets, l.udp_rx_bytes, l.udp_rx_super_packets, l.udp_rx_super_segments]),
            ("udp", "tx", [l.udp_tx_packets, l.udp_tx_bytes, l.udp_tx_super_packets, l.udp_tx_super_segments]),
        ] {
            let labels = labels(&[("side", side), ("direction", direction)]);
            for (family, count) in [(&packets, n), (&bytes, b), (&supers, s), (&segments, g)] {
                family.get_or_create(&labels).inc_by(count);
            }
        }
        for (side, count) in [("tun", l.tun_fallbacks), ("udp", l.udp_fallbacks)] {
            fallbacks.get_or_create(&labels(&[("side", side)])).inc_by(count);
        }
        for (reason, &count) in &l.drops {
            dropped.get_or_create(&labels(&[("reason", reason)])).inc_by(count);
        }
        for (name, &on) in &l.offloads {
            offloads.get_or_create(&labels(&[("offload", name)])).set(f64::from(u8::from(on)));
        }
        let alone = labels(&[]);
        failures.get_or_create(&alone).inc_by(l.decrypt_failures);
        overflows.get_or_create(&alone).inc_by(l.udp_rx_overflows);
        handshakes.get_or_create(&alone).inc_by(l.handshakes);
        handovers.get_or_create(&alone).inc_by(l.handovers);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use mesh_proto::base::addr::Flat;
    use mesh_proto::ops::status::{FlowCount, LaneStatus, PeerStatus, ServiceStatus};

    use super::*;

    #[test]
    fn the_text_has_the_names_that_dashboards_use() {
        let mut status = status::status(&Snapshot::default());
        status.drops.insert("denied".into(), 3);
        status.log_lines_dropped = 6;
        status.flows = FlowCount { used: 40, slots: 50, displaced: 3 };
        status.peers.push(PeerStatus {
            name: "n2".parse().unwrap(),
            site: "c1".parse().unwrap(),
            address: Flat([241, 1, 0, 2].into()),
            endpoint: None,
            rtt_ms: Some(1.5),
            rtt_count: 1,
            last_handshake_s: Some(7),
            post_quantum: true,
            not_answering_s: Some(14),
            wanted_s: Some(2),
            rx_bytes: 10,
            tx_bytes: 20,
            mtu: 1280,
            narrow_s: Some(5),
        });
        status.services.push(ServiceStatus {
            name: "cart".parse().unwrap(),
            namespace: Default::default(),
            vip: Flat([241, 0, 0, 100].into()),
            ports: Vec::new(),
            backends: Vec::new(),
        });

        status.lanes.push(LaneStatus {
            lane: 1,
            tun_rx_packets: 50,
            udp_tx_bytes: 70_000,
            udp_tx_super_packets: 2,
            udp_tx_super_segments: 43,
            tun_fallbacks: 1,
            udp_rx_overflows: 4,
            decrypt_failures: 5,
            offloads: [("udp_gro".to_owned(), true)].into(),
            drops: [("denied".to_owned(), 3)].into(),
            ..LaneStatus::default()
        });

        let text = text(&status, 2);

        let version = env!("CARGO_PKG_VERSION");
        for line in [
            "meshd_control_connected 0.0",
            "meshd_lane_deaths_total 2",
            "meshd_flows 40.0",
            "meshd_flow_slots 50.0",
            "meshd_flows_displaced_total 3",
            "meshd_log_lines_dropped_total 6",
            "meshd_config_revision 0.0",
            "meshd_packets_dropped_total{reason=\"denied\"} 3",
            "meshd_peer_answers{peer=\"n2\"} 0.0",
            "meshd_peer_rtt_seconds{peer=\"n2\"} 0.0015",
            "meshd_peer_last_handshake_seconds{peer=\"n2\"} 7.0",
            "meshd_tunnel_rx_bytes_total{peer=\"n2\"} 10",
            "meshd_peer_mtu_bytes{peer=\"n2\"} 1280.0",
            "meshd_peer_narrow{peer=\"n2\"} 1.0",
            "meshd_tunnel_tx_bytes_total{peer=\"n2\"} 20",
            "meshd_service_backends{service=\"cart\",namespace=\"default\"} 0.0",
            "meshd_lane_packets_total{lane=\"1\",side=\"tun\",direction=\"rx\"} 50",
            "meshd_lane_bytes_total{lane=\"1\",side=\"udp\",direction=\"tx\"} 70000",
            "meshd_lane_super_packets_total{lane=\"1\",side=\"udp\",direction=\"tx\"} 2",
            "meshd_lane_super_packet_segments_total{lane=\"1\",side=\"udp\",direction=\"tx\"} 43",
            "meshd_lane_offload_fallbacks_total{lane=\"1\",side=\"tun\"} 1",
            "meshd_lane_offload{lane=\"1\",offload=\"udp_gro\"} 1.0",
            "meshd_lane_packets_dropped_total{lane=\"1\",reason=\"denied\"} 3",
            "meshd_lane_socket_overflows_total{lane=\"1\"} 4",
            "meshd_lane_decrypt_failures_total{lane=\"1\"} 5",
            &format!("meshd_build_info{{version=\"{version}\"}} 1.0"),
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
    }
}
