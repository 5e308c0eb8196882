//! What one lane writes to the file in which flows outlive the process. What the file system refuses is told, and written
//! as it is then as soon as it takes it: a file that is behind would cut connections at the next start.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mesh_proto::base::clock::Timestamp;
use mesh_proto::dataplane::flow::{FlowTable, record};
use rustix::io::Errno;

use crate::dataplane::flow_file::{self, write_slot};
use crate::io::counters::Counters;

/// The first pause before what was refused is written again, and the longest.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(8)];
/// Most entries that are caught up with in one turn of the lane.
const PER_TURN: usize = 256;

/// The file, and which of its entries are behind.
pub(crate) struct FlowWriter {
    /// None where flows do not outlive the process, and while it is missing.
    file: Option<Arc<File>>,
    missing: Option<MissingFile>,
    flows: Arc<FlowTable>,
    /// A bit for each slot of which the file holds an older entry.
    behind: Box<[u64]>,
    /// When it is tried to catch up; none while nothing is behind.
    due: Option<Timestamp>,
    pause: Duration,
}

/// A file that could not be made at the start, for want of room.
pub(crate) struct MissingFile {
    /// Where it is to be.
    pub(crate) path: PathBuf,
    /// Whether this lane makes it; the others wait for that one.
    pub(crate) is_maker: bool,
    /// Whether it was made; all lanes share it.
    pub(crate) is_made: Arc<AtomicBool>,
}

impl MissingFile {
    /// Makes the file, which takes some tens of milliseconds, or opens the one that another lane made.
    fn get(&self, flows: &FlowTable) -> io::Result<File> {
        if self.is_maker {
            let file = flow_file::make(&self.path, flows)?;
            self.is_made.store(true, Ordering::Release);
            return Ok(file);
        }
        if self.is_made.load(Ordering::Acquire) {
            File::options().write(true).open(&self.path)
        } else {
            Err(Errno::NOSPC.into())
        }
    }
}

impl FlowWriter {
    /// Writes the entries of a table to a file, or to one that is missing as soon as it is there.
    pub(crate) fn new(file: Option<Arc<File>>, missing: Option<MissingFile>, flows: Arc<FlowTable>) -> Self {
        let behind = vec![0; flows.slots().div_ceil(64)].into();
        let due = missing.as_ref().map(|_| Timestamp::from_millis(0));
        Self { file, missing, flows, behind, due, pause: PAUSES[0] }
    }

    /// Returns when it wants to be asked to catch up.
    pub(crate) fn due(&self) -> Option<Timestamp> {
        self.due
    }

    /// Writes an entry that changed, or notes that it is behind.
    pub(crate) fn write(&mut self, slot: usize, entry: &[u8], counters: &Counters, now: Timestamp) {
        let written = match (self.due, &self.file) {
            (None, None) => return,
            (None, Some(file)) => write_slot(file, slot, entry),
            // Not one call for each entry while all are refused.
            (Some(_), _) => return self.mark(slot),
        };
        if let Err(error) = written {
            tracing::warn!(%error, "flows are not saved for now: a restart would cut connections");
            self.mark(slot);
            self.refused(&error, counters, now);
        }
    }

    /// Writes what is behind, if it is time to try.
    pub(crate) fn catch_up(&mut self, counters: &Counters, now: Timestamp) {
        if self.due.is_none_or(|due| now < due) {
            return;
        }
        match self.write_behind() {
            Ok(true) => {
                self.due = None;
                self.pause = PAUSES[0];
                counters.set_flow_file(None);
                tracing::info!("flows are saved again");
            }
            Ok(false) => self.due = Some(now),
            Err(error) => self.refused(&error, counters, now),
        }
    }

    /// Writes some of what is behind; says whether that was all.
    fn write_behind(&mut self) -> io::Result<bool> {
        let Self { file, missing, flows, behind, .. } = self;
        if let (None, Some(missing)) = (&file, &missing) {
            *file = Some(Arc::new(missing.get(flows)?));
        }
        let Some(file) = file else { return Ok(true) };
        let mut left = PER_TURN;
        for (i, word) in behind.iter_mut().enumerate() {
            while *word != 0 {
                if left == 0 {
                    return Ok(false);
                }
                left -= 1;
                let slot = i * 64 + word.trailing_zeros() as usize;
                write_slot(file, slot, &record::of_slot(flows, slot))?;
                *word &= *word - 1;
            }
        }
        Ok(true)
    }

    fn refused(&mut self, error: &io::Error, counters: &Counters, now: Timestamp) {
        self.due = Some(now + self.pause);
        self.pause = (self.pause * 2).min(PAUSES[1]);
        counters.set_flow_file(Some(error));
    }

    fn mark(&mut self, slot: usize) {
        if let Some(word) = self.behind.get_mut(slot / 64) {
            *word |= 1 << (slot % 64);
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::os::unix::fs::FileExt as _;

    use mesh_proto::dataplane::flow::record::RECORD_BYTES;

    use super::*;

    #[test]
    fn what_a_full_disk_refuses_is_written_as_soon_as_there_is_room() {
        let flows = Arc::new(FlowTable::new(1 << 10));
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut file = FlowWriter::new(Some(Arc::new(full)), None, Arc::clone(&flows));
        let counters = Counters::default();
        let at = Timestamp::from_millis;
        let entry = [7; RECORD_BYTES];
        for slot in 0..300 {
            file.write(slot, &entry, &counters, at(0));
        }
        assert_eq!(counters.read().flow_file.unwrap().raw_os_error(), Errno::NOSPC.raw_os_error());
        assert_eq!(file.due(), Some(at(1000)));
        let mut now = at(0);
        for _ in 0..10 {
            now = file.due().unwrap();
            file.catch_up(&counters, now);
        }
        assert_eq!(file.due(), Some(now + PAUSES[1]), "it is asked no more often than that");

        let room = tempfile::tempfile().unwrap();
        file.file = Some(Arc::new(room.try_clone().unwrap()));
        file.catch_up(&counters, now);
        assert_eq!(room.metadata().unwrap().len(), 0, "it is not time yet");
        let now = file.due().unwrap();
        file.catch_up(&counters, now);
        assert!(file.due() == Some(now) && counters.read().flow_file.is_some(), "one turn is not enough");
        file.catch_up(&counters, now);
        assert!(file.due().is_none() && counters.read().flow_file.is_none());
        let mut bytes = [0; RECORD_BYTES];
        for slot in 0..300 {
            room.read_exact_at(&mut bytes, record::offset(slot)).unwrap();
            assert_eq!(bytes, record::of_slot(&flows, slot), "as it is now");
        }
        file.write(3, &entry, &counters, now);
        room.read_exact_at(&mut bytes, record::offset(3)).unwrap();
        assert_eq!(bytes, entry);
    }

    #[test]
    fn a_file_that_had_no_room_at_the_start_is_made_by_one_lane_and_the_others_wait_for_it() {
        let dir = tempfile::tempdir().unwrap();
        // Where the draft would be is a folder, as good as a full disk.
        let (path, draft) = (dir.path().join("flows"), dir.path().join("flows.tmp"));
        std::fs::create_dir_all(draft.join("x")).unwrap();
        let (flows, counters) = (Arc::new(FlowTable::new(1 << 10)), Counters::default());
        let is_made = Arc::new(AtomicBool::new(false));
        let lane = |is_maker| {
            let missing = MissingFile { path: path.clone(), is_maker, is_made: Arc::clone(&is_made) };
            FlowWriter::new(None, Some(missing), Arc::clone(&flows))
        };
        let (mut first, mut second) = (lane(true), lane(false));
        let at = Timestamp::from_millis;
        for lane in [&mut second, &mut first] {
            lane.catch_up(&counters, at(1));
            assert!(counters.read().flow_file.is_some() && lane.due() == Some(at(1001)), "it is told, and tried again");
            lane.write(7, &[7; RECORD_BYTES], &counters, at(1));
        }
        std::fs::remove_dir_all(draft).unwrap();
        for lane in [&mut first, &mut second] {
            lane.catch_up(&counters, at(1001));
            assert!(lane.due().is_none() && counters.read().flow_file.is_none());
        }
        assert!(path.exists());
    }
}
