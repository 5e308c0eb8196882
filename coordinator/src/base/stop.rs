//! The end: one word to all servers.

use tokio::sync::watch;

/// Becomes true when everything has to end.
pub(crate) type Stop = watch::Receiver<bool>;

/// Waits for the end.
pub(crate) async fn stopped(stop: &mut Stop) {
    // An error means that the sender is gone, which is an end as well.
    let _ = stop.wait_for(|stop| *stop).await;
}
