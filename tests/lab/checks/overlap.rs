//! `overlap`: two pods with the same address call each other at the same time, and see who calls.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_tests::boutique::{Role, Series};

use super::tools::{ensure, said, until};
use crate::lab::Lab;
use crate::report::CheckOutcome;

const CALLS: u64 = 50;
/// The shop itself never calls the frontend from the checkout.
const RULE: &str = "\n[[allow]]\nfrom = [\"checkoutservice\"]\nto = [\"frontend\"]\n";

pub(crate) async fn run(lab: &Lab) -> CheckOutcome {
    let file = lab.world.services_file();
    let original = std::fs::read_to_string(&file).map_err(said)?;
    lab.edit(&format!("{original}{RULE}"))?;
    let outcome = both_ways(lab).await;
    lab.edit(&original)?;
    outcome
}

async fn both_ways(lab: &Lab) -> CheckOutcome {
    let (a, b) = (lab.world.program(Role::Frontend), lab.world.program(Role::Checkout));
    ensure(a.pod == b.pod && a.pod.is_some(), || "the pods' addresses differ".into())?;
    until(Duration::from_secs(5), async || {
        let series = b.control.connect(Role::Frontend, 1).await.map_err(said)?;
        ensure(series.ok == 1, || format!("{:?}", series.errors))
    })
    .await?;
    let how = format!("n={CALLS}&every=5&parallel=4");
    let (there, back) =
        tokio::join!(a.control.series("checkoutservice", 5050, &how), b.control.series("frontend", 80, &how),);
    let (there, back) = (there.map_err(said)?, back.map_err(said)?);
    let (flat_a, flat_b) = (lab.flat(Role::Frontend)?, lab.flat(Role::Checkout)?);
    ensure(flat_a != flat_b, || "both have the same flat address".into())?;
    let seen_as = |series: &Series, address| {
        let expected = BTreeMap::from([(std::net::IpAddr::V4(address), CALLS)]);
        ensure(series.seen == expected, || format!("seen as {:?}, not {address}; {:?}", series.seen, series.errors))
    };
    seen_as(&there, flat_a)?;
    seen_as(&back, flat_b)?;
    let masqueraded = if lab.world.masquerade.is_ok() { "MASQUERADE in place" } else { "no MASQUERADE" };
    let pod = a.pod.map(|p| p.to_string()).unwrap_or_default();
    Ok(format!(
        "{pod} of c2 is seen as {flat_a}, {pod} of c1 as {flat_b}, {CALLS} calls each way at once, {masqueraded}"
    ))
}
