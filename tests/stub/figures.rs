//! What a stub has seen: who called it, and how its own calls went.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh_tests::boutique::{EdgeStats, Role, ShopStats, percentile};

/// How many of the last calls of an edge the percentiles look at.
const WINDOW: usize = 512;

/// What a stub has seen.
#[derive(Default)]
pub(crate) struct Figures(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    requests: u64,
    callers: BTreeMap<IpAddr, u64>,
    edges: BTreeMap<Role, Edge>,
}

#[derive(Default)]
struct Edge {
    stats: EdgeStats,
    window: VecDeque<u64>,
}

impl Figures {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn note_request(&self, caller: IpAddr) {
        let mut seen = self.seen();
        seen.requests += 1;
        *seen.callers.entry(caller).or_default() += 1;
    }

    pub(crate) fn note_opened(&self, callee: Role) {
        self.seen().edges.entry(callee).or_default().stats.opened += 1;
    }

    pub(crate) fn note_call(&self, callee: Role, took: Duration, failure: Option<(bool, String)>) {
        let mut seen = self.seen();
        let edge = seen.edges.entry(callee).or_default();
        if let Some((refused, failure)) = failure {
            edge.stats.failed += 1;
            edge.stats.refused += u64::from(refused);
            edge.stats.last_error = Some(failure);
            return;
        }
        edge.stats.ok += 1;
        if edge.window.len() == WINDOW {
            edge.window.pop_front();
        }
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        edge.window.push_back(micros);
    }

    pub(crate) fn stats(&self, name: &str) -> ShopStats {
        let seen = self.seen();
        let edge = |(role, edge): (&Role, &Edge)| {
            let mut window: Vec<u64> = edge.window.iter().copied().collect();
            let stats = EdgeStats {
                p50_us: percentile(&mut window, 50),
                p99_us: percentile(&mut window, 99),
                ..edge.stats.clone()
            };
            (role.service().to_owned(), stats)
        };
        ShopStats {
            name: name.into(),
            requests: seen.requests,
            callers: seen.callers.clone(),
            edges: seen.edges.iter().map(edge).collect(),
        }
    }
}
