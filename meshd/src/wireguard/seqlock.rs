//! One value that several lanes write and others read, without a lock: whoever reads gets a whole one or none.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use mesh_proto::trust::audit_log::LogPosition;

/// Its words.
const WORDS: usize = LogPosition::BYTES / 8;

/// What a peer said last of the log of operations.
#[derive(Debug, Default)]
pub(crate) struct Seqlock {
    /// Odd while somebody writes; 0 before the first.
    version: AtomicU64,
    words: [AtomicU64; WORDS],
}

impl Seqlock {
    /// Writes a value, unless another lane does so at this moment: the peer says it again soon.
    pub(crate) fn put(&self, told: LogPosition) {
        let version = self.version.load(Ordering::Relaxed);
        let claimed = version.is_multiple_of(2)
            && self.version.compare_exchange(version, version + 1, Ordering::Acquire, Ordering::Relaxed).is_ok();
        if !claimed {
            return;
        }
        fence(Ordering::Release);
        let mut bytes = [0; LogPosition::BYTES];
        told.write(&mut bytes);
        for (word, bytes) in self.words.iter().zip(bytes.as_chunks().0) {
            word.store(u64::from_be_bytes(*bytes), Ordering::Relaxed);
        }
        self.version.store(version + 2, Ordering::Release);
    }

    /// Reads the value; none before the first, or while it is written.
    pub(crate) fn get(&self) -> Option<LogPosition> {
        let before = self.version.load(Ordering::Acquire);
        let mut bytes = [0; LogPosition::BYTES];
        for (word, bytes) in self.words.iter().zip(bytes.as_chunks_mut().0) {
            *bytes = word.load(Ordering::Relaxed).to_be_bytes();
        }
        fence(Ordering::Acquire);
        let whole = before != 0 && before.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == before;
        LogPosition::read(&bytes).filter(|_| whole)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use mesh_proto::trust::audit_log::{LogHash, LogHead};

    use super::*;

    fn log_position(n: u64) -> LogPosition {
        let mut hash = LogHash::default();
        hash.0.as_chunks_mut().0.iter_mut().for_each(|word| *word = n.to_be_bytes());
        LogPosition { epoch: n, head: LogHead { seq: n, hash } }
    }

    #[test]
    fn who_reads_gets_a_whole_value_or_none() {
        let heard = Arc::new(Seqlock::default());
        assert_eq!(heard.get(), None);
        let enough = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (1..=2)
            .map(|writer| {
                let (heard, enough) = (Arc::clone(&heard), Arc::clone(&enough));
                std::thread::spawn(move || {
                    (0..)
                        .take_while(|_| !enough.load(Ordering::Relaxed))
                        .for_each(|n| heard.put(log_position(n * 2 + writer)));
                })
            })
            .collect();
        let mut seen = 0;
        while seen < 10_000 {
            if let Some(got) = heard.get() {
                assert_eq!(got, log_position(got.epoch), "torn");
                seen += 1;
            }
        }
        enough.store(true, Ordering::Relaxed);
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        assert!(heard.get().is_some());
    }
}
