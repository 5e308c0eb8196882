//! What holds for every number of lanes: order inside flows, where their state lives, whom a dead peer blocks,
//! and what underlays of other sizes carry. In one binary, so that tests that wait do so beside the others.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../namespaces/mod.rs"]
mod namespaces;
#[path = "../planes/mod.rs"]
mod planes;

mod order;
mod slow;
mod state;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Held by a test that loads the machine, or measures it.
fn quiet() -> MutexGuard<'static, ()> {
    static QUIET: Mutex<()> = Mutex::new(());
    QUIET.lock().unwrap_or_else(PoisonError::into_inner)
}
