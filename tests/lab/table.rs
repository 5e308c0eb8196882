//! The live table: services, VIPs, backends, paths, and what their callers see.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use mesh_tests::boutique::Role;
use mesh_tests::topology::LabWorld;

use crate::edges::Edges;
use crate::report::say;

/// How often the table is drawn again.
const EVERY: Duration = Duration::from_secs(1);

/// Shows the table once a second, for ever.
pub(crate) async fn show(world: &LabWorld) {
    loop {
        if std::io::stdout().is_terminal() {
            say("\x1b[H\x1b[2J");
        }
        once(world).await;
        if !std::io::stdout().is_terminal() {
            tokio::time::sleep(10 * EVERY).await;
        }
    }
}

/// Draws the table in place, once a second, below what was printed so far, until `work` is done; then it is wiped.
pub(crate) async fn while_doing<T>(world: &LabWorld, work: impl Future<Output = T>) -> T {
    let lines = Cell::new(0);
    let drawing = async {
        loop {
            let Ok(text) = draw(world).await else {
                tokio::time::sleep(EVERY).await;
                continue;
            };
            wipe(&lines);
            lines.set(text.lines().count() + 1);
            // A terminal narrower than the table would wrap its lines, and more would have to be taken back than was
            // drawn: wrapping is off while it is drawn.
            say(&format!("\x1b[?7l{text}\x1b[?7h"));
        }
    };
    let done = tokio::select! {
        done = work => done,
        never = drawing => never,
    };
    wipe(&lines);
    done
}

/// Takes back the lines drawn last.
fn wipe(lines: &Cell<usize>) {
    let up = lines.replace(0);
    if up > 0 {
        say(&format!("\x1b[{up}A\x1b[J\x1b[A"));
    }
}

/// Measures for a second and prints the table.
pub(crate) async fn once(world: &LabWorld) {
    match draw(world).await {
        Ok(text) => say(&text),
        Err(e) => say(&format!("lab: no table: {e}")),
    }
}

#[derive(Default)]
struct Row {
    vip: String,
    backends: Vec<String>,
    callers: Vec<&'static str>,
    calls: u64,
    failed: u64,
    refused: u64,
    p50_us: u64,
    p99_us: u64,
}

async fn draw(world: &LabWorld) -> std::io::Result<String> {
    let (before, began) = (Edges::read(world).await?, Instant::now());
    tokio::time::sleep(EVERY).await;
    let edges = Edges::read(world).await?.since(&before);
    let seconds = began.elapsed().as_secs_f64();
    let status = world.node("c2-n1").status()?;
    let mut rows: BTreeMap<&str, Row> = BTreeMap::new();
    for role in Role::ALL.iter().filter(|r| r.dials() > 0) {
        let row = rows.entry(role.service()).or_default();
        let known = status.services.iter();
        if let Some(service) = known.into_iter().find(|s| s.name.as_str() == role.service()) {
            row.vip = service.vip.to_string();
            let named = |b: &mesh_proto::ops::status::BackendStatus| {
                let real = backend_place(world, *role, b.node.as_str());
                format!("{real} w{}", b.weight)
            };
            row.backends = service.backends.iter().map(named).collect();
        }
    }
    for (&(caller, callee), edge) in edges.iter() {
        let row = rows.entry(callee.service()).or_default();
        row.callers.push(world.program(caller).node);
        row.calls += edge.ok;
        row.failed += edge.failed;
        row.refused += edge.refused;
        row.p50_us = row.p50_us.max(edge.p50_us);
        row.p99_us = row.p99_us.max(edge.p99_us);
    }
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{:<22} {:<13} {:<44} {:<20} {:>6} {:>8} {:>8} {:>7} {:>6}",
        "SERVICE", "VIP", "BACKENDS", "CALLED FROM", "RPS", "P50 ms", "P99 ms", "OK %", "DENIED"
    );
    for (service, mut row) in rows {
        row.callers.sort_unstable();
        row.callers.dedup();
        let total = row.calls + row.failed;
        let ok = match total {
            0 => "-".to_owned(),
            total => format!("{:.2}", 100.0 * row.calls as f64 / total as f64),
        };
        let _ = writeln!(
            text,
            "{service:<22} {:<13} {:<44} {:<20} {:>6.1} {:>8.2} {:>8.2} {ok:>7} {:>6}",
            row.vip,
            row.backends.join(", "),
            row.callers.join(" "),
            total as f64 / seconds,
            row.p50_us as f64 / 1000.0,
            row.p99_us as f64 / 1000.0,
            row.refused
        );
    }
    Ok(text)
}

fn backend_place(world: &LabWorld, role: Role, node: &str) -> String {
    let found = world.programs.iter().find(|p| p.role == role && p.node == node);
    match found.and_then(|p| p.pod) {
        Some(pod) => format!("{pod}@{node}"),
        None => node.to_owned(),
    }
}
