//! The one state of a stub: who it is, what it has seen, and its channels to others.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh_tests::boutique::{EdgeStats, Role, Stats, percentile};

use crate::client::Channel;

/// How many of the last calls of an edge the percentiles look at.
const WINDOW: usize = 512;

/// Who it is, what it has seen, and its channels to others.
pub(crate) struct Shop {
    pub(crate) role: Role,
    pub(crate) name: String,
    pub(crate) rate: AtomicU64,
    pub(crate) channels: BTreeMap<Role, Channel>,
    figures: Mutex<Figures>,
}

#[derive(Default)]
struct Figures {
    requests: u64,
    callers: BTreeMap<IpAddr, u64>,
    edges: BTreeMap<Role, Edge>,
}

#[derive(Default)]
struct Edge {
    stats: EdgeStats,
    window: VecDeque<u64>,
}

impl Shop {
    pub(crate) fn new(role: Role, name: String, rate: u64) -> Self {
        let channels = role.calls().iter().map(|&r| (r, Channel::new(r))).collect();
        Self { role, name, rate: AtomicU64::new(rate), channels, figures: Mutex::default() }
    }

    fn figures(&self) -> MutexGuard<'_, Figures> {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn note_request(&self, caller: IpAddr) {
        let mut figures = self.figures();
        figures.requests += 1;
        *figures.callers.entry(caller).or_default() += 1;
    }

    pub(crate) fn note_opened(&self, callee: Role) {
        self.figures().edges.entry(callee).or_default().stats.opened += 1;
    }

    pub(crate) fn note_call(&self, callee: Role, took: Duration, failure: Option<(bool, String)>) {
        let mut figures = self.figures();
        let edge = figures.edges.entry(callee).or_default();
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

    pub(crate) fn stats(&self) -> Stats {
        let figures = self.figures();
        let edge = |(role, edge): (&Role, &Edge)| {
            let mut window: Vec<u64> = edge.window.iter().copied().collect();
            let stats = EdgeStats {
                p50_us: percentile(&mut window, 50),
                p99_us: percentile(&mut window, 99),
                ..edge.stats.clone()
            };
            (role.service().to_owned(), stats)
        };
        Stats {
            name: self.name.clone(),
            requests: figures.requests,
            callers: figures.callers.clone(),
            edges: figures.edges.iter().map(edge).collect(),
        }
    }

    pub(crate) fn rate(&self) -> u64 {
        self.rate.load(Ordering::Relaxed)
    }
}
