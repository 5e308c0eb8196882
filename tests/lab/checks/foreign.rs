//! `foreign-rules`: what others set on a host either does no harm, or `status` names it and the cure.

use std::time::Duration;

use mesh_tests::boutique::Role;
use mesh_tests::nft;
use mesh_tests::topology::BRIDGE;

use super::tools::{ensure, said, until};
use crate::lab::{Lab, STARTING};
use crate::report::CheckOutcome;

const NODE: &str = "c1-n2";
/// The EKS VPC CNI's priority.
const PRIORITY: u32 = 1536;

/// meshd looks for obstacles every 10 s.
const SEARCHED: Duration = Duration::from_secs(13);
/// A table of others.
const TABLE: u8 = 2;

pub(crate) async fn run(lab: &Lab) -> CheckOutcome {
    let node = &lab.world.node(NODE).namespace;
    let outcome = one_by_one(lab).await;
    node.forget_routing(PRIORITY, TABLE).map_err(said)?;
    let figure = outcome?;
    reaches(lab, STARTING).await.map_err(|e| format!("{figure}; afterwards: {e}"))?;
    Ok(figure)
}

async fn one_by_one(lab: &Lab) -> CheckOutcome {
    let node = &lab.world.node(NODE).namespace;
    let gateway = lab.world.network.ip(1, 1);
    let everything = "0.0.0.0/0".parse().map_err(said)?;
    let mut told = Vec::new();

    let pod = lab.world.program(Role::Payment).pod.ok_or("payment is no pod")?;
    node.route(everything, gateway, TABLE.into()).map_err(said)?;
    node.rule_from(pod.into(), TABLE.into(), PRIORITY).map_err(said)?;
    told.push(works_or_tells(lab, "`from <pod> lookup 2` at 1536", &["rule"]).await?);

    for interface in ["all", "eth0", "mesh0", BRIDGE] {
        let key = format!("net/ipv4/conf/{interface}/rp_filter");
        node.sysctl(&key, "1").map_err(said)?;
    }
    told.push(works_or_tells(lab, "strict rp_filter", &["rp_filter"]).await?);

    nft::forward_drop(node, BRIDGE, "eth0").map_err(said)?;
    let strict = works_or_tells(lab, "FORWARD drop", &["orward", "FORWARD"]).await;
    nft::remove_table(node, "strict").map_err(said)?;
    told.push(strict?);
    Ok(told.join("; "))
}

/// Tries calls into and out of the node's pods; if they fail, a warning must name the thing and a command.
async fn works_or_tells(lab: &Lab, what: &str, words: &[&str]) -> CheckOutcome {
    let Err(broken) = reaches(lab, Duration::from_millis(1500)).await else {
        return Ok(format!("{what}: works"));
    };
    until(SEARCHED, async || {
        let warnings = lab.status(NODE)?.warnings;
        let commands = ["nft ", "iptables ", "sysctl ", "ip rule ", "ip route "];
        let naming = |w: &&String| words.iter().any(|word| w.contains(word)) && commands.iter().any(|c| w.contains(c));
        let found = warnings.iter().find(naming);
        let found = found
            .ok_or_else(|| format!("{what}: {broken}, and status names neither it nor a command: {warnings:?}"))?;
        Ok(format!("{what}: status says: {found}"))
    })
    .await
}

async fn reaches(lab: &Lab, patience: Duration) -> Result<(), String> {
    for (caller, callee) in [(Role::Checkout, Role::Payment), (Role::Frontend, Role::Ad)] {
        let control = &lab.world.program(caller).control;
        until(patience, async || {
            let (host, port) = (callee.service(), callee.dials());
            let series = control.series(host, port, "n=2&patience=400").await.map_err(said)?;
            ensure(series.failed == 0, || format!("{host} is not reached: {:?}", series.errors))
        })
        .await?;
    }
    Ok(())
}
