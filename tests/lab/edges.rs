//! The sixteen edges as their callers see them, before and after something.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use mesh_tests::boutique::{EdgeStats, Role, edges};
use mesh_tests::topology::LabWorld;

/// The figures of every edge at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Edges(BTreeMap<(Role, Role), EdgeStats>);

impl Edges {
    /// Asks every caller.
    pub(crate) async fn read(world: &LabWorld) -> io::Result<Self> {
        let mut all = BTreeMap::new();
        for &caller in Role::ALL.iter().filter(|r| !r.calls().is_empty()) {
            let stats = world.program(caller).control.stats().await?;
            for &callee in caller.calls() {
                let edge = stats.edges.get(callee.service()).cloned();
                all.insert((caller, callee), edge.unwrap_or_default());
            }
        }
        Ok(Self(all))
    }

    /// Returns what happened since an earlier moment; percentiles are of the last calls.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let mut all = self.0.clone();
        for (key, edge) in &mut all {
            if let Some(old) = before.0.get(key) {
                edge.ok -= old.ok;
                edge.failed -= old.failed;
                edge.refused -= old.refused;
                edge.opened -= old.opened;
            }
        }
        Self(all)
    }

    pub(crate) fn calls(&self) -> u64 {
        self.0.values().map(|e| e.ok).sum()
    }

    pub(crate) fn failures(&self) -> u64 {
        self.0.values().map(|e| e.failed).sum()
    }

    /// Returns the edges that carried at least some calls.
    pub(crate) fn carrying(&self, calls: u64) -> usize {
        self.0.values().filter(|e| e.ok >= calls).count()
    }

    pub(crate) fn get(&self, caller: Role, callee: Role) -> EdgeStats {
        self.0.get(&(caller, callee)).cloned().unwrap_or_default()
    }

    /// Names the edges that failed, and the last thing each said.
    pub(crate) fn complaints(&self) -> String {
        let of = |((caller, callee), edge): (&(Role, Role), &EdgeStats)| {
            let said = edge.last_error.as_deref().unwrap_or("");
            let (caller, callee) = (caller.service(), callee.service());
            (edge.failed > 0).then(|| format!("{caller}→{callee} {}: {said}", edge.failed))
        };
        self.0.iter().filter_map(of).collect::<Vec<_>>().join("; ")
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&(Role, Role), &EdgeStats)> {
        self.0.iter()
    }
}

/// Waits until every edge answers over a fresh connection.
pub(crate) async fn all_answer(world: &LabWorld, patience: Duration) -> Result<(), String> {
    let end = Instant::now() + patience;
    for (caller, callee) in edges() {
        let control = &world.program(caller).control;
        loop {
            let how = "n=1&patience=500";
            let answer = control.series(callee.service(), callee.dials(), how).await;
            let why = match answer {
                Ok(series) if series.ok == 1 => break,
                Ok(series) => format!("{:?}", series.errors),
                Err(e) => e.to_string(),
            };
            if Instant::now() > end {
                let (from, to) = (caller.service(), callee.service());
                return Err(format!("{from} does not reach {to}: {why}"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(())
}
