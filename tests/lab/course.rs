//! The course of the lab: what is started when, and which check runs against it.
//!
//! ```text
//! world "distinct"  ─▶ demo1-distinct ─▶ one-port ─▶ down
//! world "identical" ─▶ joined, not running ─▶ running ─▶ demo1 ─▶ VM joins ─▶ … ─▶ cleanup ─▶ down
//!                      └────────── every frame on the underlay is captured ──────────┘
//! ```

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use mesh_tests::capture::Capture;
use mesh_tests::daemon::{Binaries, tail};
use mesh_tests::snapshot;
use mesh_tests::topology::{LabWorld, PodCidrs};

use crate::checks;
use crate::lab::{FIRST, LANES, Lab, WORD, join, start};
use crate::report::{CheckOutcome, LabReport, say};
use crate::table;

/// Runs the whole lab.
///
/// # Errors
/// If it cannot be laid out or started; checks that fail are in the report.
pub(crate) async fn run(binaries: &Binaries, report: &Arc<LabReport>, forever: bool) -> io::Result<()> {
    let pid = std::process::id();
    if report.wants("demo1-distinct") || report.wants("one-port") {
        let prefix = format!("{}{pid}d", WORD);
        let mut world = LabWorld::new(&prefix, binaries, PodCidrs::Distinct, LANES)?;
        let outcome = distinct(&mut world, report).await;
        if outcome.is_err() {
            logs(&world);
        }
        outcome?;
    }
    let prefix = format!("{}{pid}", WORD);
    let world = LabWorld::new(&prefix, binaries, PodCidrs::Identical, LANES)?;
    let capture = Capture::start(&world.network.router, world.known())?;
    let mut lab = Lab { world, capture, before: BTreeMap::new() };
    let outcome = identical(&mut lab, report).await;
    if outcome.is_err() {
        logs(&lab.world);
    }
    outcome?;
    if forever {
        say("lab: it stays up; Ctrl-C takes it down; `cargo lab shell c1-n1` enters");
        table::show(&lab.world).await;
    }
    if report.wants("cleanup") {
        let outcome = checks::cleanup::run(lab);
        report.note("cleanup", outcome);
    }
    Ok(())
}

async fn identical(lab: &mut Lab, report: &LabReport) -> io::Result<()> {
    if let Err(e) = &lab.world.masquerade {
        say(&format!("lab: THE MASQUERADING OF CNIs COULD NOT BE SET: {e}"));
    }
    lab.world.start_coordinator()?;
    for (name, node) in &lab.world.nodes {
        let taken = snapshot::take(&node.namespace).map_err(io::Error::other)?;
        lab.before.insert(name, taken);
    }
    lab.world.start_programs()?;
    join(&lab.world, &FIRST)?;
    checks::encrypted::before_start(&lab.world).await?;
    start(&lab.world, &FIRST)?;
    check(lab, report, "demo1-identical", async |lab| checks::demo1::run(&lab.world).await).await;
    check(lab, report, "demo3-vm", async |lab| checks::demo3::run(lab).await).await;
    check(lab, report, "overlap", async |lab| checks::overlap::run(lab).await).await;
    check(lab, report, "policy", async |lab| checks::policy::run(lab).await).await;
    check(lab, report, "edit", async |lab| checks::edit::run(lab).await).await;
    check(lab, report, "evil-node", async |lab| checks::evil::run(lab).await).await;
    lab.world.coordinator.kill();
    check(lab, report, "coordinator-dead", async |lab| checks::dead::run(lab).await).await;
    check(lab, report, "node-restart", async |lab| checks::restart::run(lab).await).await;
    lab.world.coordinator.start()?;
    check(lab, report, "foreign-rules", async |lab| checks::foreign::run(lab).await).await;
    check(lab, report, "encrypted", async |lab| checks::encrypted::run(lab).await).await;
    table::once(&lab.world).await;
    Ok(())
}

async fn check(lab: &Lab, report: &LabReport, name: &str, check: impl AsyncFnOnce(&Lab) -> CheckOutcome) {
    if !report.wants(name) {
        return;
    }
    let outcome = if report.live() { table::while_doing(&lab.world, check(lab)).await } else { check(lab).await };
    let failed = outcome.is_err();
    report.note(name, outcome);
    if failed {
        logs(&lab.world);
    }
}

async fn distinct(world: &mut LabWorld, report: &LabReport) -> io::Result<()> {
    world.start_coordinator()?;
    world.start_programs()?;
    let all = ["c1-n1", "c1-n2", "c2-n1", "c2-n2", "loadgen", "pc-vm-1"];
    join(world, &all)?;
    start(world, &all)?;
    let outcome = checks::demo1::run(world).await;
    let failed = outcome.is_err();
    if report.wants("demo1-distinct") {
        report.note("demo1-distinct", outcome);
    }
    if report.wants("one-port") {
        report.note("one-port", checks::one_port::run(world).await);
    }
    if failed {
        logs(world);
    }
    Ok(())
}

/// Shows the end of every log, for the person who has to find out why.
#[expect(clippy::print_stderr, reason = "diagnostics beside the report")]
fn logs(world: &LabWorld) {
    let daemons = world.nodes.values().chain([&world.coordinator]);
    for daemon in daemons {
        let text = tail(&daemon.log(), 15);
        if !text.is_empty() {
            eprintln!("--- {} ---\n{text}", daemon.name);
        }
    }
}
