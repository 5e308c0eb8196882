//! `one-port`: with only lane 0's port open between two clusters, no connection is lost.

use mesh_tests::boutique::Role;
use mesh_tests::topology::{LabWorld, PORT};

use super::tools::{ensure, ms, said, until};
use crate::lab::{LANES, STARTING};
use crate::report::CheckOutcome;

const CONNECTIONS: u64 = 300;

pub(crate) async fn run(world: &LabWorld) -> CheckOutcome {
    world.network.router.block_udp(PORT + 1, PORT + 64).map_err(said)?;
    let (caller, callee) = (world.program(Role::Frontend), Role::Currency);
    let vip = crate::lab::service(world, caller.node, callee)?.vip.to_string();
    for node in [caller.node, world.program(callee).node] {
        world.node(node).kill();
        world.node(node).start().map_err(said)?;
    }
    // A stopped meshd refuses everything, which is not what is measured here.
    until(STARTING, async || {
        let series = caller.control.series(&vip, callee.dials(), "n=1&patience=300").await;
        let series = series.map_err(said)?;
        ensure(series.ok == 1, || format!("not forwarding again: {:?}", series.errors))
    })
    .await?;
    // At once, while the other lanes are still finding out that their ports are closed.
    let how = format!("n={CONNECTIONS}&every=10&parallel=200&patience=5000");
    let series = caller.control.series(&vip, callee.dials(), &how).await.map_err(said)?;
    let figure = format!(
        "{CONNECTIONS} connections over {LANES} lanes with UDP {PORT} alone open, {} lost, p50 {}, the slowest {}",
        series.failed,
        ms(series.p50_us),
        ms(series.max_us)
    );
    ensure(series.failed == 0, || format!("{figure}: {:?}", series.errors))?;
    Ok(figure)
}
