//! `demo3-vm`: the VM serves after two commands and three lines; 80/20 holds.

use std::time::{Duration, Instant};

use mesh_tests::boutique::Role;

use super::tools::{ensure, said, until};
use crate::lab::Lab;
use crate::report::CheckOutcome;

/// The VM's own services.toml: the version, and three lines.
const SERVE: &str = "version = 1\n\n[[serve]]\nservice = \"productcatalogservice\"\nport = 3550\n";
const CONNECTIONS: u64 = 1000;
const VM: &str = "productcatalogservice@pc-vm-1";

pub(crate) async fn run(lab: &Lab) -> CheckOutcome {
    let vm = lab.world.node("pc-vm-1");
    std::fs::write(vm.folder.join("services.toml"), SERVE).map_err(said)?;
    let token = lab.world.token("pc-vm-1").map_err(said)?;
    let began = Instant::now();
    vm.expect_config(&["join", &token]).map_err(said)?;
    vm.start().map_err(said)?;
    let caller = &lab.world.program(Role::Frontend).control;
    until(Duration::from_secs(10), async || {
        let series = caller.connect(Role::ProductCatalog, 2).await.map_err(said)?;
        ensure(series.answered.contains_key(VM), || format!("only {:?} answer, {:?}", series.answered, series.errors))
    })
    .await?;
    let first = began.elapsed();
    let how = format!("n={CONNECTIONS}&parallel=8");
    let series = caller.series("productcatalogservice", 3550, &how).await.map_err(said)?;
    let by_vm = series.answered.get(VM).copied().unwrap_or(0);
    let share = 100.0 * by_vm as f64 / CONNECTIONS as f64;
    let figure = format!(
        "first call {:.2} s after `join`; {share:.1} % of {CONNECTIONS} connections to the VM, {} errors",
        first.as_secs_f64(),
        series.failed
    );
    ensure(series.failed == 0, || format!("{figure}: {:?}", series.errors))?;
    ensure((78.0..=82.0).contains(&share), || figure.clone())?;
    Ok(figure)
}
