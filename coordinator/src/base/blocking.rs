//! Work that waits for a disk or a lock, on a thread that may wait.

use tokio::task::spawn_blocking;

/// Does what may wait on a thread of its own; its panic is the caller's.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
