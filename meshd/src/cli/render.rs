//! The documents as tables for people. Columns are aligned, units are SI, and nothing is cut.

use mesh_host::table::{age, count, drawn, table};
use mesh_proto::ops::status as doc;

/// Shows who the node is, how it is connected, and what is wrong.
pub fn status(status: &doc::Status) -> String {
    let mut lines = Vec::new();
    match &status.node {
        Some(node) => {
            lines.push(format!(
                "{} (site {}) in mesh {}, {}, DNS {}",
                node.name, node.site, node.mesh, node.address, node.dns
            ));
            for block in &node.blocks {
                lines.push(format!("pods {} appear as {}", block.real, block.flat));
            }
        }
        None => lines.push("not joined".into()),
    }
    if status.node.is_some() {
        lines.push(coordinator(&status.coordinator));
        lines.extend(status.coordinator.lock.map(|lock| format!("locked by {lock}")));
    }
    let reached = status.peers.iter().filter(|p| p.last_handshake_s.is_some()).count();
    let secured = status.peers.iter().filter(|p| p.last_handshake_s.is_some() && p.post_quantum).count();
    let silent = status.peers.iter().filter(|p| p.not_answering_s.is_some()).count();
    let silent = if silent == 0 { String::new() } else { format!(", {silent} not answering") };
    let backends: usize = status.services.iter().map(|s| s.backends.len()).sum();
    lines.push(format!(
        "{} ({reached} with a tunnel, {secured} of them post-quantum{silent}), {} with {}, {}, up {}",
        count(status.peers.len(), "peer"),
        count(status.services.len(), "service"),
        count(backends, "backend"),
        count(status.flows.used, "flow"),
        age(status.uptime_s, 1)
    ));
    lines.extend(status.lanes.iter().map(lane));
    let drops: Vec<String> = status.drops.iter().filter(|&(_, &n)| n > 0).map(|(r, n)| format!("{r} {n}")).collect();
    if !drops.is_empty() {
        lines.push(format!("refused and dropped: {}", drops.join(", ")));
    }
    if status.upkeep.mended > 0 {
        let last = status.upkeep.last_mended.join(", ");
        let times = status.upkeep.mended;
        lines.push(format!("put back {times} times what others removed or changed in the kernel, last: {last}"));
    }
    lines.extend(status.warnings.iter().map(|w| format!("warning: {w}")));
    lines.join("\n")
}

/// What one worker thread did: how much, how many packets it and the kernel pass to each other at a time, and
/// whatever went wrong.
fn lane(l: &doc::LaneStatus) -> String {
    let mut line = format!(
        "lane {}: sent {} ({}; {} per read, {} per send), received {} ({}; {} per receipt, {} per write)",
        l.lane,
        packets(l.udp_tx_packets),
        bytes(l.udp_tx_bytes),
        at_a_time(l.tun_rx_packets, l.tun_rx_super_packets, l.tun_rx_super_segments),
        at_a_time(l.udp_tx_packets, l.udp_tx_super_packets, l.udp_tx_super_segments),
        packets(l.udp_rx_packets),
        bytes(l.udp_rx_bytes),
        at_a_time(l.udp_rx_packets, l.udp_rx_super_packets, l.udp_rx_super_segments),
        at_a_time(l.tun_tx_packets, l.tun_tx_super_packets, l.tun_tx_super_segments),
    );
    for (count, what) in [
        (l.decrypt_failures, "did not decrypt"),
        (l.udp_rx_overflows, "lost to a full receive buffer"),
        (l.handovers, "left to lane 0"),
        (l.tun_fallbacks + l.udp_fallbacks, "offloads refused by the kernel"),
    ] {
        if count > 0 {
            line += &format!(", {count} {what}");
        }
    }
    let off: Vec<_> = l.offloads.iter().filter(|&(_, &on)| !on).map(|(name, _)| name.as_str()).collect();
    if !off.is_empty() {
        line += &format!(", without {}", off.join(" "));
    }
    line
}

/// Returns how many packets one call carries on average.
fn at_a_time(packets: u64, supers: u64, segments: u64) -> String {
    let calls = packets.saturating_sub(segments) + supers;
    if calls == 0 { dash() } else { format!("{:.1}", packets as f64 / calls as f64) }
}

fn packets(n: u64) -> String {
    count(usize::try_from(n).unwrap_or(usize::MAX), "packet")
}

fn coordinator(c: &doc::CoordinatorStatus) -> String {
    let address = c.address.as_deref().unwrap_or("not tried yet");
    let heard = c.last_heard_s.map_or_else(String::new, |s| format!(", last heard {} ago", age(s, 1)));
    if c.connected {
        format!("coordinator {address}: connected, revision {}", c.revision)
    } else {
        format!("coordinator {address}: not connected{heard}, revision {} stays in force", c.revision)
    }
}

/// Shows the other nodes.
pub fn peers(peers: &[doc::PeerStatus]) -> String {
    let mut table = table(
        &["PEER", "SITE", "ADDRESS", "ENDPOINT", "RTT", "HANDSHAKE", "KEY", "MTU", "RX", "TX", "STATE"],
        &[4, 5, 7, 8, 9],
    );
    for p in peers {
        table.add_row([
            p.name.to_string(),
            p.site.to_string(),
            p.address.to_string(),
            p.endpoint.map_or_else(dash, |e| e.to_string()),
            p.rtt_ms.map_or_else(dash, |ms| format!("{ms:.2} ms")),
            p.last_handshake_s.map_or_else(dash, |s| format!("{} ago", age(s, 1))),
            if p.post_quantum { "pq".into() } else { dash() },
            if p.narrow_s.is_some() { format!("{} (narrow)", p.mtu) } else { p.mtu.to_string() },
            bytes(p.rx_bytes),
            bytes(p.tx_bytes),
            silence(p.not_answering_s, p.last_handshake_s.is_some()),
        ]);
    }
    drawn(&table)
}

/// Says whether somebody answers, as far as it was asked.
fn silence(not_answering_s: Option<u64>, has_answered: bool) -> String {
    match not_answering_s {
        Some(seconds) => format!("not answering since {} ago", age(seconds, 1)),
        None if has_answered => "answers".into(),
        None => dash(),
    }
}

/// Shows services and their backends, one line per backend.
pub fn services(services: &[doc::ServiceStatus]) -> String {
    let columns = ["SERVICE", "VIP", "PORTS", "BACKEND", "NODE", "ADDRESS", "WEIGHT", "CONNECTIONS", "STATE"];
    let mut table = table(&columns, &[6, 7]);
    for s in services {
        let name =
            if s.namespace.as_str() == "default" { s.name.to_string() } else { format!("{}.{}", s.name, s.namespace) };
        let ports: Vec<String> = s.ports.iter().map(port).collect();
        let head = [name, s.vip.to_string(), ports.join(" ")];
        let none: [String; 6] = std::array::from_fn(|_| dash());
        let row = |b: &doc::BackendStatus| {
            let (weight, connections) = (b.weight.to_string(), b.connections.to_string());
            let state = silence(b.not_answering_s, false);
            [b.name.clone(), b.node.to_string(), b.address.to_string(), weight, connections, state]
        };
        let rows: Vec<_> = s.backends.iter().map(row).collect();
        let rows = if rows.is_empty() { vec![none] } else { rows };
        for (i, row) in rows.into_iter().enumerate() {
            let head = if i == 0 { head.clone() } else { Default::default() };
            table.add_row(head.into_iter().chain(row));
        }
    }
    drawn(&table)
}

/// Shows the live flows.
pub fn flows(flows: &[doc::FlowStatus]) -> String {
    let mut table = table(&["PROTO", "SOURCE", "DESTINATION", "BACKEND", "PEER", "IDLE"], &[5]);
    for f in flows {
        table.add_row([
            f.transport.clone(),
            f.source.clone(),
            f.destination.clone(),
            f.backend.clone(),
            f.peer.as_ref().map_or_else(|| "this node".into(), ToString::to_string),
            age(f.idle_s, 1),
        ]);
    }
    drawn(&table)
}

/// Shows what was measured, and of what.
pub fn bench(b: &doc::Bench) -> String {
    let phase = |name: &str| b.phases.iter().find(|p| p.name == name);
    let packets = |name: &str| phase(name).map_or_else(dash, |p| format!("packets of {} B", p.packet_bytes));
    let lost = |name: &str| phase(name).map_or_else(dash, |p| format!("{:.2} % lost", p.loss_percent));
    let micros = |value: Option<u32>| value.map_or_else(dash, |v| format!("{v} µs"));
    let trips = |t: &doc::RoundTrips| format!("p50 {}, p99 {} ({})", micros(t.p50), micros(t.p99), t.samples);
    let cpu = |value: Option<f64>| value.map_or_else(dash, |v| format!("{v:.2}"));
    let both = |c: &doc::Cpu| format!("{} here, {} there", cpu(c.sender), cpu(c.receiver));
    let rows = [
        ("throughput", format!("{:.2} Gbit/s in {}, {}", b.throughput_gbps, packets("bulk"), lost("bulk"))),
        ("packets", format!("{:.0} /s in {}, {}", b.packets_per_second, packets("small"), lost("small"))),
        ("round trip", format!("idle {}; beside the throughput {}", trips(&b.rtt_us), trips(&b.rtt_loaded_us))),
        (
            "CPU",
            format!("s per Gbit: {}; µs per small packet: {}", both(&b.cpu_s_per_gbit), both(&b.cpu_us_per_packet)),
        ),
    ];
    let head = format!("{} ({}) inside the tunnel, on {}", b.node, b.address, count(b.lanes, "lane"));
    let rows = rows.map(|(name, text)| format!("  {name:12}{text}"));
    let tail = "measured: engine, encryption, sockets, network; not measured: the TUN device and applications' TCP";
    format!("{head}\n{}\n{tail}", rows.join("\n"))
}

/// Shows the engine's steps and what decided.
pub fn why(why: &doc::Why) -> String {
    let mut lines = vec![format!(
        "{} ({}) -> {} ({}{}, {})",
        why.source,
        why.source_address,
        why.destination,
        why.destination_address,
        if why.port == 0 { String::new() } else { format!(":{}", why.port) },
        why.transport
    )];
    let width = why.steps.iter().map(|s| s.name.len()).max().unwrap_or(0);
    for s in &why.steps {
        let mark = if s.ok { "ok" } else { "NO" };
        lines.push(format!("  {mark}  {:width$}  {}", s.name, s.outcome));
    }
    let word = if why.allowed { "allowed" } else { "refused" };
    let mut end = format!("{word}: {}", why.verdict);
    if let Some(rule) = &why.rule {
        end += &format!(", by the rule at {}:{}", rule.file, rule.line);
    }
    if let Some(b) = &why.backend {
        end += &format!(", backend {}:{} on {}", b.address, b.port, b.node);
    }
    if let Some(peer) = &why.peer {
        end += &format!(", through the tunnel to {peer}");
    }
    lines.push(end);
    if let Some(missing) = &why.missing {
        lines.push("to allow it, add to the coordinator's services.toml:".into());
        lines.extend(missing.lines().map(|line| format!("  {line}")));
        lines.extend(why.wider.iter().map(|wider| format!("note: {wider}")));
    }
    lines.join("\n")
}

fn port(p: &doc::Port) -> String {
    let to = if p.target == p.port { String::new() } else { format!("->{}", p.target) };
    let transport = match p.transport {
        mesh_proto::model::netmap::Transport::Tcp => "",
        mesh_proto::model::netmap::Transport::Udp => "/udp",
    };
    format!("{}{to}{transport}", p.port)
}

fn bytes(n: u64) -> String {
    match n {
        0..1_000 => format!("{n} B"),
        1_000..1_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        1_000_000_000.. => format!("{:.1} GB", n as f64 / 1e9),
    }
}

fn dash() -> String {
    "-".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_units() {
        assert_eq!((bytes(999), bytes(1500), bytes(2_500_000)), ("999 B".into(), "1.5 kB".into(), "2.5 MB".into()));
    }

    #[test]
    fn a_lane_is_one_line_that_tells_what_went_wrong_and_nothing_that_did_not() {
        let offloads = |gro| [("tun_tcp".to_owned(), true), ("udp_gro".to_owned(), gro)].into();
        let well = doc::LaneStatus {
            lane: 1,
            tun_rx_packets: 90,
            tun_rx_super_packets: 2,
            tun_rx_super_segments: 88,
            udp_tx_packets: 90,
            udp_tx_bytes: 130_000,
            udp_tx_super_packets: 2,
            udp_tx_super_segments: 90,
            udp_rx_packets: 1,
            udp_rx_bytes: 96,
            offloads: offloads(true),
            ..doc::LaneStatus::default()
        };
        let ill =
            doc::LaneStatus { udp_rx_overflows: 7, decrypt_failures: 2, offloads: offloads(false), ..well.clone() };

        let line = "lane 1: sent 90 packets (130.0 kB; 22.5 per read, 45.0 per send), \
                    received 1 packet (96 B; 1.0 per receipt, - per write)";
        assert_eq!(lane(&well), line);
        let expected = format!("{line}, 2 did not decrypt, 7 lost to a full receive buffer, without udp_gro");
        assert_eq!(lane(&ill), expected);
    }

    #[test]
    fn a_measurement_says_what_it_measured_and_blanks_what_it_could_not() {
        let phase = |name: &str, packet_bytes| doc::BenchPhase {
            name: name.into(),
            packet_bytes,
            seconds: 3.0,
            sent: 1000,
            received: 999,
            loss_percent: 0.1,
        };
        let measured = doc::Bench {
            schema: doc::BENCH.into(),
            node: "b".parse().expect("a name"),
            address: mesh_proto::base::addr::Flat([241, 1, 0, 2].into()),
            lanes: 2,
            throughput_gbps: 2.345,
            loss_percent: 0.1,
            packets_per_second: 412_345.6,
            rtt_us: doc::RoundTrips { samples: 200, p50: Some(210), p99: Some(800) },
            rtt_loaded_us: doc::RoundTrips::default(),
            cpu_s_per_gbit: doc::Cpu { sender: Some(0.512), receiver: Some(0.25) },
            cpu_us_per_packet: doc::Cpu { sender: Some(1.5), receiver: None },
            phases: vec![phase("small", 92), phase("bulk", 1420)],
        };
        assert_eq!(
            bench(&measured),
            "b (241.1.0.2) inside the tunnel, on 2 lanes\n\
            \u{20} throughput  2.35 Gbit/s in packets of 1420 B, 0.10 % lost\n\
            \u{20} packets     412346 /s in packets of 92 B, 0.10 % lost\n\
            \u{20} round trip  idle p50 210 µs, p99 800 µs (200); beside the throughput p50 -, p99 - (0)\n\
            \u{20} CPU         s per Gbit: 0.51 here, 0.25 there; µs per small packet: 1.50 here, - there\n\
            measured: engine, encryption, sockets, network; not measured: the TUN device and applications' TCP"
        );
    }
}
