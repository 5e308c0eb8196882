//! `coordinator-dead`: 200 new connections a second and a long-lived channel on each edge, 0 failures.

use tokio::task::JoinSet;

use mesh_tests::boutique::{Role, edges};

use super::tools::{ensure, ms, said};
use crate::edges::Edges;
use crate::lab::Lab;
use crate::report::CheckOutcome;

const SECONDS: u64 = 10;
/// Tenths of a connection a second on each of the 16 edges: together 200 a second.
const TENTHS: u64 = 125;

pub(crate) async fn run(lab: &Lab) -> CheckOutcome {
    ensure(!lab.world.coordinator.running(), || "the coordinator is not dead".into())?;
    let before = Edges::read(&lab.world).await.map_err(said)?;
    let mut storms = JoinSet::new();
    for role in Role::ALL.iter().filter(|r| !r.calls().is_empty()) {
        let control = lab.world.program(*role).control.clone();
        storms.spawn(async move { control.storm(TENTHS, SECONDS).await });
    }
    let (mut ok, mut slowest, mut errors) = (0, 0, Vec::new());
    for series in storms.join_all().await {
        let series = series.map_err(said)?;
        ok += series.ok;
        slowest = slowest.max(series.max_us);
        errors.extend(series.errors);
    }
    let after = Edges::read(&lab.world).await.map_err(said)?.since(&before);
    let failures = errors.iter().map(|(_, n)| n).sum::<u64>();
    let figure = format!(
        "{ok} new connections in {SECONDS} s, {failures} failures, the slowest {}; {} calls on {} long-lived channels, {} failures",
        ms(slowest),
        after.calls(),
        edges().count(),
        after.failures()
    );
    ensure(failures == 0, || format!("{figure}: {errors:?}"))?;
    ensure(after.failures() == 0, || format!("{figure}: {}", after.complaints()))?;
    let expected = SECONDS * TENTHS * 16 / 10;
    ensure(ok >= expected * 95 / 100, || format!("{figure}: too few"))?;
    ensure(after.carrying(1) == 16, || format!("{figure}: only {} edges carried calls", after.carrying(1)))?;
    Ok(figure)
}
