//! `encrypted`: every frame on every underlay link is accounted for, whatever happens to meshd.

use std::net::UdpSocket;
use std::time::Duration;

use mesh_tests::boutique::Role;
use mesh_tests::capture::{Captured, hex_dump};
use mesh_tests::classify::Class;
use mesh_tests::topology::LabWorld;

use super::tools::{ensure, said, until};
use crate::edges::all_answer;
use crate::lab::{Lab, STARTING};
use crate::report::CheckOutcome;

const ON_PURPOSE: &[u8] = b"IN CLEAR ON PURPOSE";
/// Where pods' packets go while no meshd runs.
const NODE: &str = "c2-n1";

/// Calls into the mesh range while nodes have joined and no meshd has ever run.
pub(crate) async fn before_start(world: &LabWorld) -> std::io::Result<()> {
    knock(world).await;
    Ok(())
}

/// Calls VIPs by number, names and all; nobody answers, and nothing may be seen.
async fn knock(world: &LabWorld) {
    for role in [Role::Frontend, Role::Checkout, Role::Cart, Role::LoadGenerator] {
        let control = world.program(role).control.clone();
        let how = "n=3&parallel=3&patience=150";
        let _ = control.series("241.0.0.2", 7070, how).await;
        let _ = control.series("241.2.0.10", 8080, how).await;
    }
}

pub(crate) async fn run(lab: &Lab) -> CheckOutcome {
    let node = lab.world.node(NODE);
    node.kill();
    knock(&lab.world).await;
    node.start().map_err(said)?;
    all_answer(&lab.world, STARTING).await?;
    let well = node.terminate();
    knock(&lab.world).await;
    node.start().map_err(said)?;
    all_answer(&lab.world, STARTING).await?;
    ensure(well, || format!("{NODE} did not end well on SIGTERM"))?;

    let target = lab.world.network.ip(1, 11);
    node.namespace.run(move || UdpSocket::bind("0.0.0.0:0")?.send_to(ON_PURPOSE, (target, 9))).map_err(said)?;
    until(Duration::from_secs(3), async || {
        let caught = lab.capture.seen().leaks.iter().any(|(_, bytes)| on_purpose(bytes));
        ensure(caught, || "a packet sent in clear on purpose was not caught".into())
    })
    .await?;
    verdict(&lab.capture.seen())
}

fn on_purpose(bytes: &[u8]) -> bool {
    bytes.windows(ON_PURPOSE.len()).any(|w| w == ON_PURPOSE)
}

fn verdict(seen: &Captured) -> CheckOutcome {
    let leaks: Vec<_> = seen.leaks.iter().filter(|(_, b)| !on_purpose(b)).collect();
    let figure = format!(
        "{} frames: {} WireGuard, {} TLS and TCP with the coordinator, {} ARP and ND, {} ICMP errors about these, {} lost by the capture, {} in clear; the one injected was caught",
        seen.total(),
        seen.count(Class::Tunnel),
        seen.count(Class::Control),
        seen.count(Class::Neighbour),
        seen.count(Class::Quoted),
        seen.lost,
        leaks.len()
    );
    if let Some((link, bytes)) = leaks.first() {
        return Err(format!("{figure}; the first on link {link}:\n{}", hex_dump(bytes)));
    }
    ensure(seen.lost == 0, || figure.clone())?;
    ensure(seen.count(Class::Tunnel) > 0 && seen.count(Class::Control) > 0, || format!("{figure}: nothing was seen"))?;
    Ok(figure)
}
