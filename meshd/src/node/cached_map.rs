//! The map that a node starts with: the cached one, unless it is damaged, another's, or brings the node down.
//!
//! ```text
//!   start ─ count ─▶ the cached map is in force ─▶ 10 s pass, or the coordinator is heard ─▶ the count is 0
//!     ▲                  └─ the process dies ─┐
//!     └───────────────────────────────────────┘  the third time in a row: set aside, deny everything, ask
//! ```
//! Without a map nothing is allowed and no name of the mesh is asked for elsewhere.

use std::sync::Arc;
use std::time::Duration;

use mesh_proto::model::netmap::{Mesh, NetMap, OwnNode};
use mesh_proto::services::Services;
use mesh_proto::verifier::VerifiedMap;

use crate::base::files::TRIAL;
use crate::base::state_dir::{Enrolment, State};
use crate::control::MapGuard;

/// How long a node has to live on its cached map for the map to be no danger. A map that the coordinator stands by is
/// none either: without the cache the node would have the same one.
pub(crate) const WELL: Duration = Duration::from_secs(10);
/// How many starts in a row may end before that.
const MOST: u32 = 3;

/// What a node starts with.
#[derive(Debug)]
pub(crate) struct Start {
    /// What is in force until the coordinator is heard.
    pub(crate) map: VerifiedMap,
    /// The cached map, if a delta may follow it.
    pub(crate) current: Option<Arc<NetMap>>,
    /// What the operator should know, until there is another map.
    pub(crate) note: Option<String>,
    /// Whether the map is on trial: `pass` is to be called once the node is well.
    pub(crate) on_trial: bool,
}

/// Chooses the map that a node starts with, and counts the start. The guard checks the map.
pub(crate) fn start(state: &State, enrolment: &Enrolment, guard: &mut MapGuard) -> Start {
    let nothing = |note| Start { map: VerifiedMap::by_hand(empty(enrolment)), current: None, note, on_trial: false };
    if !state.has_netmap() {
        return nothing(None);
    }
    let died = deaths(state);
    if died >= MOST {
        let sentence = set_aside(state);
        tracing::error!("{sentence}");
        return nothing(Some(sentence));
    }
    // Not being able to count is no reason to deny; a disk may be full for days.
    if let Err(error) = state.keep(TRIAL, (died + 1).to_string().as_bytes()) {
        tracing::warn!(%error, "this start is not counted");
    }
    let Some(cached) = state.netmap().filter(|map| belongs(map, enrolment)).map(Arc::new) else {
        let note =
            "the cached map is damaged or another node's; this node denies everything until a coordinator answers";
        tracing::error!("{note}");
        return Start { on_trial: true, ..nothing(Some(note.to_owned())) };
    };
    let (admitted, whole) = guard.resume(Arc::clone(&cached));
    admitted.refused.iter().for_each(|sentence| tracing::warn!("the cached map: {sentence}"));
    Start { map: admitted.map, current: Some(cached).filter(|_| whole), note: None, on_trial: true }
}

/// Ends the trial of the cached map: the node is well, or was stopped on purpose.
pub(crate) fn pass(state: &State) {
    if let Err(error) = state.keep_absent(TRIAL) {
        tracing::warn!(%error, "the count of starts is not reset");
    }
}

/// Says whether a map is this node's.
pub(crate) fn belongs(map: &NetMap, enrolment: &Enrolment) -> bool {
    map.node.id == enrolment.id && map.mesh.name == enrolment.mesh && map.mesh.range == enrolment.range
}

/// How many starts with this cache in a row ended in less time than it takes to be well.
fn deaths(state: &State) -> u32 {
    let bytes = state.secret(TRIAL).ok().flatten().unwrap_or_default();
    std::str::from_utf8(&bytes).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn set_aside(state: &State) -> String {
    let begun = format!("meshd died {MOST} times in a row within {} s of its start, so ", WELL.as_secs());
    let end = "this node denies everything until a coordinator answers; look into the log for why it died";
    match state.set_netmap_aside() {
        Ok(aside) => {
            pass(state);
            format!("{begun}its cached map is set aside as {}: {end}", aside.display())
        }
        // The count stays: the next start does not use it either.
        Err(error) => format!("{begun}its cached map is not used ({error}): {end}"),
    }
}

/// The map of a node that knows nobody yet: nothing is allowed, nothing is reachable.
fn empty(enrolment: &Enrolment) -> NetMap {
    let mut domains = enrolment.domains.clone();
    if domains.is_empty() {
        domains = Services::default().mesh.domains;
    }
    NetMap {
        epoch: Default::default(),
        sites: Default::default(),
        revision: Default::default(),
        mesh: Mesh::new(enrolment.mesh.clone(), enrolment.range, domains),
        node: OwnNode {
            sequence: 0,
            id: enrolment.id,
            name: enrolment.node.clone(),
            site: enrolment.site.clone(),
            address: enrolment.address,
            blocks: enrolment.blocks.clone(),
            guarded: false,
        },
        peers: Default::default(),
        services: Default::default(),
        names: Default::default(),
        rules: Vec::new(),
        warnings: Vec::new(),
    }
}

#[cfg(test)]
mod tests;
