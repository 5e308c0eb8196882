//! Asking for services.toml to be read again, and waiting for what comes of it.

use tokio::sync::watch;

use crate::core::documents::FileStatus;
use crate::core::status_snapshot::StatusSnapshot;

/// Where a reading of services.toml is asked for. Clones ask the same task, which alone reads the file; requests that
/// wait are answered by one reading.
#[derive(Debug, Clone)]
pub(crate) struct FileRequests {
    /// How many there were.
    asked: watch::Sender<u64>,
    shown: watch::Receiver<StatusSnapshot>,
}

impl FileRequests {
    /// Begins without a request; `shown` tells what became of the file.
    pub(crate) fn new(shown: watch::Receiver<StatusSnapshot>) -> Self {
        Self { asked: watch::Sender::new(0), shown }
    }

    /// Returns what changes with each request: the number of the latest.
    pub(crate) fn numbers(&self) -> watch::Receiver<u64> {
        self.asked.subscribe()
    }

    /// Has the file read, and waits for what came of it, or of a later reading. `None` if nobody reads it any more.
    pub(crate) async fn read_again(&self) -> Option<FileStatus> {
        let mut number = 0;
        self.asked.send_modify(|asked| {
            *asked += 1;
            number = *asked;
        });
        let mut shown = self.shown.clone();
        let answer = shown.wait_for(|shown| shown.file.answered() >= number).await;
        answer.ok().map(|shown| shown.file.status())
    }
}
