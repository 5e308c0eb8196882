//! `policy`: what no rule allows is refused at once, at the caller, and `why` names the rule.

use mesh_tests::boutique::Role;

use super::tools::{ensure, ms, said};
use crate::lab::Lab;
use crate::report::CheckOutcome;

/// The longest that a refusal may take.
const LIMIT_US: u64 = 50_000;

pub(crate) async fn run(lab: &Lab) -> CheckOutcome {
    let ad = lab.world.program(Role::Ad);
    let (mut slowest, mut attempts) = (0, 0);
    for callee in [Role::Cart, Role::Redis, Role::Payment] {
        let series = ad.control.connect(callee, 5).await.map_err(said)?;
        ensure(series.ok == 0, || format!("adservice reached {}", callee.service()))?;
        let quick = series.errors.keys().all(|e| !e.contains("timed out") && !e.contains("lookup"));
        ensure(quick, || format!("not refused but {:?}", series.errors))?;
        slowest = slowest.max(series.max_us);
        attempts += series.failed;
    }
    let why = lab.world.node(ad.node).verb(&["why", "adservice", "cartservice:7070"]).map_err(said)?;
    let told = String::from_utf8_lossy(&why.stdout);
    ensure(why.status.code() == Some(5), || {
        let complaint = String::from_utf8_lossy(&why.stderr);
        format!("`why` ends with {} and not 5: {told}{complaint}", why.status)
    })?;
    let named = told.contains("[[allow]]") && told.contains("adservice") && told.contains("cartservice");
    ensure(named, || format!("`why` does not name the missing rule: {told}"))?;
    let figure = format!("{attempts} attempts refused, the slowest in {}; `why` names the rule", ms(slowest));
    ensure(slowest <= LIMIT_US, || figure.clone())?;
    Ok(figure)
}
