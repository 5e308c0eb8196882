//! The one state of a stub: who it is, what it has seen, and its channels to others.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use mesh_tests::boutique::{Role, ShopStats};

use crate::client::ShopChannel;
use crate::figures::Figures;

/// Who it is, what it has seen, and its channels to others.
pub(crate) struct Shop {
    pub(crate) role: Role,
    pub(crate) name: String,
    pub(crate) rate: AtomicU64,
    pub(crate) channels: BTreeMap<Role, ShopChannel>,
    pub(crate) figures: Figures,
}

impl Shop {
    pub(crate) fn new(role: Role, name: String, rate: u64) -> Self {
        let channels = role.calls().iter().map(|&r| (r, ShopChannel::new(r))).collect();
        Self { role, name, rate: AtomicU64::new(rate), channels, figures: Figures::default() }
    }

    pub(crate) fn stats(&self) -> ShopStats {
        self.figures.stats(&self.name)
    }

    pub(crate) fn rate(&self) -> u64 {
        self.rate.load(Ordering::Relaxed)
    }
}
