//! `node-restart`: meshd killed with -9 at either end of a download forwards again in under 1 s, without
//! the coordinator, and the download is whole.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_tests::boutique::{Role, Series};

use super::tools::{ensure, said};
use crate::lab::Lab;
use crate::report::CheckOutcome;

const LIMIT: Duration = Duration::from_secs(1);
const MEGABYTES: u64 = 40;
/// Megabytes a second, so that the download outlasts both restarts.
const RATE: u64 = 10;

pub(crate) async fn run(lab: &Lab) -> CheckOutcome {
    ensure(!lab.world.coordinator.running(), || "the coordinator is not dead".into())?;
    let (caller, callee) = (lab.world.program(Role::Frontend), Role::Currency);
    let vip = lab.service(caller.node, callee)?.vip;
    let control = caller.control.clone();
    let download = tokio::spawn(async move { control.download(callee, MEGABYTES, RATE).await });
    // Every 20 ms a connection of its own, by address: names are not what is measured here.
    let how = "n=200&every=20&parallel=100&patience=900";
    let (control, host) = (caller.control.clone(), vip.to_string());
    let probes = tokio::spawn(async move { control.series(&host, callee.dials(), how).await });
    let mut killed = Vec::new();
    for node in [caller.node, lab.world.program(callee).node] {
        tokio::time::sleep(Duration::from_millis(800)).await;
        let daemon = lab.world.node(node);
        daemon.kill();
        killed.push((node, now()));
        daemon.start().map_err(said)?;
        tokio::time::sleep(Duration::from_millis(800)).await;
    }
    let probes = probes.await.map_err(said)?.map_err(said)?;
    let download = download.await.map_err(said)?.map_err(said)?;
    let mut gaps = Vec::new();
    for (node, when) in killed {
        let gap = gap(&probes, when).ok_or_else(|| format!("{node} did not forward again"))?;
        gaps.push((node, gap));
    }
    let told: Vec<String> =
        gaps.iter().map(|(node, gap)| format!("{node} forwards again after {} ms", gap.as_millis())).collect();
    let figure = format!(
        "{}; {MEGABYTES} MB downloaded across both in {:.1} s, longest stall {} ms, hash {}",
        told.join(", "),
        download.seconds,
        download.stall_ms,
        if download.whole { "right" } else { "WRONG" }
    );
    ensure(download.whole, || format!("{figure}: {download:?}"))?;
    ensure(gaps.iter().all(|(_, gap)| *gap < LIMIT), || figure.clone())?;
    Ok(figure)
}

/// The time from a moment to the end of the first attempt that began after it and was answered.
fn gap(series: &Series, when: u64) -> Option<Duration> {
    let later = series.attempts.iter().filter(|a| a.0 >= when && a.2);
    let first = later.map(|a| a.0 + a.1).min()?;
    Some(Duration::from_micros(first - when))
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_micros()).unwrap_or(u64::MAX)
}
