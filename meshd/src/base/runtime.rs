//! Which thread does what: bytes of users and names have threads of their own, and no task waits for what takes long.
//!
//! ```text
//!   lanes     one OS thread each: packets                    (dataplane)
//!   bytes     a runtime of its own: DNS, spliced streams     (Bytes)
//!   control   the daemon's runtime: everything else
//!   aside     blocking threads of it: verifying and compiling maps, fsync, scans of the flow table
//! ```

use tokio::runtime::{Builder, Handle, Runtime, RuntimeFlavor};

/// Threads for what waits for a disk or takes long; more of such work stands in line.
const BLOCKING: usize = 16;

/// Makes the runtime of the daemon's control tasks.
///
/// # Errors
/// If the kernel refuses a thread or a descriptor.
pub fn control() -> std::io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(BLOCKING)
        .thread_name("control")
        .enable_all()
        .build()
}

/// Does what takes long in the thread that asks, whose other tasks go on in another thread meanwhile.
pub(crate) fn aside<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        // A command, which has nothing else to do, or a lane.
        Ok(_) | Err(_) => work(),
    }
}

/// The runtime that carries bytes of users and answers names. Dropping it ends its tasks.
#[derive(Debug)]
pub struct Bytes {
    handle: Handle,
    /// There until it is dropped.
    runtime: Option<Runtime>,
}

impl Bytes {
    /// Starts its thread.
    ///
    /// # Errors
    /// If the kernel refuses a thread or a descriptor.
    pub fn start() -> std::io::Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("bytes").enable_all().build()?;
        Ok(Self { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }

    /// Returns where its tasks are spawned.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        // Not to wait for it: it is dropped in a task of another runtime.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
