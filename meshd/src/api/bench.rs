//! `meshd bench` as the control socket hears of it.

use std::time::Duration;

use mesh_proto::ops::status as doc;

use crate::api::names::{self, NameError};
use crate::base::text::JOIN_HINT;
use crate::dataplane::bench::{BenchError, SECONDS};
use crate::node::publisher::Subscriber;

/// Why a request to measure brought nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MeasureError {
    /// The word names no other node.
    #[error(transparent)]
    Name(#[from] NameError),
    /// There is no map yet.
    #[error("this node has no map of a mesh yet; {JOIN_HINT}")]
    NotJoined,
    /// Another measurement runs.
    #[error("this node measures already: wait for the other `meshd bench` (at most 30 s), or end it")]
    Busy,
    /// Nothing could be measured.
    #[error(transparent)]
    Bench(#[from] BenchError),
}

/// Measures the way to a node, with that many seconds for each phase with load.
///
/// # Errors
/// `MeasureError` that says why nothing could be measured, and what to do.
pub(crate) async fn measure(subscriber: &Subscriber, node: &str, seconds: u8) -> Result<doc::Bench, MeasureError> {
    let view = subscriber.view.borrow().clone().ok_or(MeasureError::NotJoined)?;
    let (name, peer) = names::peer(view.netmap(), node)?;
    let plane = subscriber.plane.borrow().clone().ok_or(MeasureError::NotJoined)?;
    let bench = plane.bench(peer).ok_or(MeasureError::Busy)?;
    let seconds = Duration::from_secs(seconds.clamp(*SECONDS.start(), *SECONDS.end()).into());
    Ok(bench.run(name, seconds).await?)
}
