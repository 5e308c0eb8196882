//! From a new world to the nodes that it concerns, and to what each of them is sent.
//!
//! ```text
//!   change ─▶ world ─▶ draw: Chart, Transition ─▶ wakes the watches concerned ─▶ each asks `way` for its line
//!                        (one at a time, the newest world only)                   (one encoding for equal lines)
//! ```
//! A watch holds two numbers and no map: the revision that its node holds, and that of the newest chart that this
//! map is right for. What changed since is found between two charts, and is encoded once for all nodes to which
//! it is the same. A watch that is more than `KEPT` charts behind gets a snapshot.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use axum::body::Bytes;
use mesh_proto::base::id::{NodeName, Revision};
use mesh_proto::model::netmap::Delta;
use mesh_proto::plan::{DeltaKey, PlanIndex, Transition};
use mesh_proto::world::World;
use tokio::sync::watch;

use crate::base::sync::lock;

/// Most charts kept, the newest included; a chart of 10,000 nodes takes about 2 MB.
const KEPT: usize = 16;
/// Most encodings kept of one transition; what is more is encoded for each node.
const MAX_LINES: usize = 4096;
/// The last charts, and what leads from each to the newest.
pub(crate) struct MapCache {
    newest: watch::Sender<Arc<PlanIndex>>,
    kept: Mutex<VecDeque<Kept>>,
    drawing: AtomicBool,
}

struct Kept {
    chart: Arc<PlanIndex>,
    way: Arc<OnceLock<DeltaCache>>,
}

/// What leads from a chart to the newest one.
pub(crate) struct DeltaCache {
    transition: Transition,
    lines: Mutex<HashMap<DeltaKey, Bytes>>,
}

impl DeltaCache {
    fn new(transition: Transition) -> Self {
        Self { transition, lines: Mutex::default() }
    }

    /// Returns the revision that it leads to.
    pub(crate) fn to(&self) -> Revision {
        self.transition.to().revision()
    }

    /// Returns the end of the line that tells a node of it: all of the JSON behind the revision that the node
    /// holds. Empty if nothing is different for it; none if it is not in both charts.
    pub(crate) fn rest(&self, node: &NodeName) -> Option<Bytes> {
        let outline = self.transition.outline(node);
        if let Some(known) = outline.as_ref().and_then(|outline| lock(&self.lines).get(outline).cloned()) {
            return Some(known);
        }
        let rest = encode(&self.transition.delta(node)?);
        if let Some(outline) = outline {
            let mut lines = lock(&self.lines);
            if lines.len() < MAX_LINES {
                lines.insert(outline, rest.clone());
            }
        }
        Some(rest)
    }
}

/// Writes a delta without its first member, `from`, and ends the line.
fn encode(delta: &Delta) -> Bytes {
    if delta.is_empty() {
        return Bytes::new();
    }
    let text = serde_json::to_vec(delta).unwrap_or_default();
    let behind = text.iter().position(|&byte| byte == b',').unwrap_or(text.len());
    let mut rest = text[behind..].to_vec();
    rest.extend_from_slice(b"}\n");
    rest.into()
}

/// Writes the beginning of the line whose end is `Way::rest`.
pub(crate) fn head(held: Revision) -> Bytes {
    format!("{{\"type\":\"delta\",\"delta\":{{\"from\":{held}").into()
}

impl MapCache {
    /// Begins with a world.
    pub(crate) fn new(world: Arc<World>) -> Self {
        let chart = Arc::new(PlanIndex::new(world));
        let kept = Kept { chart: Arc::clone(&chart), way: Arc::default() };
        Self { newest: watch::Sender::new(chart), kept: Mutex::new([kept].into()), drawing: AtomicBool::new(false) }
    }

    /// Returns the newest chart.
    pub(crate) fn newest(&self) -> Arc<PlanIndex> {
        Arc::clone(&self.newest.borrow())
    }

    /// Waits for a chart of a revision or a later one.
    pub(crate) async fn since(&self, revision: Revision) -> Arc<PlanIndex> {
        let mut newest = self.newest.subscribe();
        match newest.wait_for(|chart| chart.revision() >= revision).await {
            Ok(chart) => Arc::clone(&chart),
            // The sender lives as long as we do.
            Err(_) => self.newest(),
        }
    }

    /// Returns the revision of a kept chart from which every node's map is as it is in a world.
    pub(crate) fn like(&self, world: &World) -> Option<Revision> {
        let kept = lock(&self.kept);
        let alike = kept.iter().rev().find(|kept| kept.chart.world().plans_like(world));
        alike.map(|kept| kept.chart.revision())
    }

    /// Returns what leads from the chart of a revision to the newest; none if that chart is not kept any more.
    pub(crate) fn way(&self, from: Revision) -> Option<Arc<OnceLock<DeltaCache>>> {
        let (chart, newest, way) = {
            let kept = lock(&self.kept);
            let newest = &kept.back()?.chart;
            let start = kept.iter().find(|kept| kept.chart.revision() == from)?;
            (Arc::clone(&start.chart), Arc::clone(newest), Arc::clone(&start.way))
        };
        way.get_or_init(|| DeltaCache::new(Transition::between(chart, newest)));
        Some(way)
    }

    /// Asks to be the one that draws; false if another one does.
    pub(crate) fn begin_drawing(&self) -> bool {
        !self.drawing.swap(true, Ordering::AcqRel)
    }

    /// Says that nobody draws any more.
    pub(crate) fn end_drawing(&self) {
        self.drawing.store(false, Ordering::Release);
    }

    /// Puts a newer chart in force. Returns whom it concerns; none for all.
    pub(crate) fn put(&self, chart: Arc<PlanIndex>) -> Option<BTreeSet<NodeName>> {
        let transition = Transition::between(self.newest(), Arc::clone(&chart));
        let concerned = transition.concerned();
        let mut kept = lock(&self.kept);
        for old in kept.iter_mut() {
            old.way = Arc::default();
        }
        if let Some(last) = kept.back() {
            let _ = last.way.set(DeltaCache::new(transition));
        }
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(Kept { chart: Arc::clone(&chart), way: Arc::default() });
        drop(kept);
        self.newest.send_replace(chart);
        concerned
    }
}

#[cfg(test)]
#[path = "map_cache/tests.rs"]
mod tests;
