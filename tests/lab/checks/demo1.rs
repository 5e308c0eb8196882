//! `demo1-*`: all 16 edges carry traffic across the clusters, without an error.

use std::time::Duration;

use mesh_tests::boutique::Role;
use mesh_tests::topology::LabWorld;

use super::tools::{ensure, ms, said, until};
use crate::edges::{Edges, all_answer};
use crate::lab::{PAGES, STARTING};
use crate::report::CheckOutcome;

/// Calls that every edge must carry.
const CALLS: u64 = 3;
/// Pages a second until they have; a checkout is one page of 19.
const RATE: u64 = 3 * PAGES;

pub(crate) async fn run(world: &LabWorld) -> CheckOutcome {
    all_answer(world, STARTING).await?;
    let before = Edges::read(world).await.map_err(said)?;
    let load = &world.program(Role::LoadGenerator).control;
    load.rate(RATE).await.map_err(said)?;
    let carried = until(Duration::from_secs(15), async || {
        let edges = Edges::read(world).await.map_err(said)?.since(&before);
        let carrying = edges.carrying(CALLS);
        ensure(carrying == 16, || format!("{carrying} of 16 edges carry traffic; {}", edges.complaints()))?;
        Ok(edges)
    })
    .await;
    load.rate(PAGES).await.map_err(said)?;
    let edges = carried?;
    let failures = edges.failures();
    let page = edges.get(Role::LoadGenerator, Role::Frontend);
    let figure = format!(
        "16 edges, {} calls, {failures} errors, pages p50 {} p99 {}",
        edges.calls(),
        ms(page.p50_us),
        ms(page.p99_us)
    );
    ensure(failures == 0, || format!("{figure}: {}", edges.complaints()))?;
    Ok(figure)
}
