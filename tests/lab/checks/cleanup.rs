//! `cleanup`: a node is left byte for byte as it was, also after kill -9, and the lab leaves nothing.

use std::time::Duration;

use mesh_tests::daemon::wait_until;
use mesh_tests::netns::{bound, inhabitants};
use mesh_tests::snapshot;

use super::tools::{ensure, said};
use crate::lab::Lab;
use crate::report::CheckOutcome;

pub(crate) fn run(lab: Lab) -> CheckOutcome {
    let outcome = nodes(&lab);
    let inodes: Vec<u64> = lab.world.namespaces().iter().map(|n| n.inode()).collect();
    let own = std::process::id();
    drop(lab);
    let prefix = format!("{}{own}", crate::lab::WORD);
    let gone = wait_until(Duration::from_secs(3), || {
        let inside = inodes.iter().flat_map(|&i| inhabitants(i));
        bound(&prefix).is_empty() && inside.filter(|&p| p != own).count() == 0
    });
    let figure = outcome?;
    ensure(gone, || format!("{figure}; but namespaces or processes are left"))?;
    Ok(format!("{figure}; no namespace and no process is left"))
}

/// Ends every node, every other one the hard way, and compares what is left with what was before.
fn nodes(lab: &Lab) -> CheckOutcome {
    let nodes = lab.world.nodes.len();
    let ended: Vec<Result<(), String>> = std::thread::scope(|scope| {
        let hard = [true, false].into_iter().cycle();
        let names = lab.world.nodes.keys().zip(hard);
        let threads: Vec<_> = names.map(|(name, hard)| scope.spawn(move || node(lab, name, hard))).collect();
        let joined = threads.into_iter().map(|t| t.join());
        joined.map(|ended| ended.unwrap_or_else(|_| Err("a thread panicked".into()))).collect()
    });
    ended.into_iter().collect::<Result<(), _>>()?;
    let killed = nodes.div_ceil(2);
    Ok(format!("{nodes} nodes byte-identical after `cleanup`, {killed} of them killed with -9"))
}

fn node(lab: &Lab, name: &str, hard: bool) -> Result<(), String> {
    let node = lab.world.node(name);
    if hard {
        node.kill();
    } else {
        node.terminate();
    }
    node.expect_config(&["cleanup"]).map_err(said)?;
    let before = lab.before.get(name).ok_or("no snapshot was taken")?;
    let after = snapshot::take(&node.namespace)?;
    let difference = snapshot::difference(before, &after);
    ensure(difference.is_empty(), || format!("{name} is not as it was:\n{}", difference.join("\n")))
}
