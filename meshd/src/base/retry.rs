//! Trying again for a moment.

use std::time::Duration;

use tokio::time::sleep;

/// How long what a killed daemon held is waited for, in steps of `RETRY`.
const PATIENCE: Duration = Duration::from_secs(3);
const RETRY: Duration = Duration::from_millis(20);

/// Tries again for a while: after a kill the kernel still takes down what the one before held.
pub(crate) async fn patient<T, E: std::fmt::Display>(mut attempt: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let mut left = PATIENCE;
    loop {
        match attempt() {
            Err(error) if !left.is_zero() => {
                if left == PATIENCE {
                    tracing::info!(%error, "waiting for what the meshd before still holds");
                }
                sleep(RETRY).await;
                left = left.saturating_sub(RETRY);
            }
            result => return result,
        }
    }
}
