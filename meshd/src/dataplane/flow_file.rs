//! The file in which flows outlive the process.
//!
//! A start takes the flows of the file that is there, of whatever size and version, into the table, writes a file of its
//! own beside it, and puts that in its place: the file is never without the flows. Lanes write to it what changes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use mesh_host::clock::now;
use mesh_proto::dataplane::flow::FlowTable;
use mesh_proto::dataplane::flow::record::{self, HEAD_BYTES, Layout, RECORD_BYTES};

/// Records read at once.
const CHUNK: usize = 512;
/// Records written at once, less than a page: what is empty is to take no room.
const FEW: usize = 16;

/// What became of the flows of a file, in entries, of which a flow has two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct TakenOver {
    /// Those that go on.
    pub(crate) taken: usize,
    /// Those that the table has no room for, and those that are over.
    pub(crate) left: usize,
}

/// Takes over what the file of before holds, and returns the file to write to from now on.
///
/// # Errors
/// If the file of before cannot be read, or the new one not be written: then that of before stays as it was.
pub(crate) fn take_over(path: &Path, flows: &FlowTable) -> io::Result<(File, TakenOver)> {
    let taken = match File::open(path) {
        Ok(file) => read(file, flows)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => TakenOver::default(),
        Err(error) => return Err(error),
    };
    Ok((make(path, flows)?, taken))
}

/// Makes the file of what the table holds, in the place of that of before.
///
/// # Errors
/// If it cannot be written: then that of before stays as it was.
pub(crate) fn make(path: &Path, flows: &FlowTable) -> io::Result<File> {
    let beside = beside(path);
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&beside)?;
    if let Err(error) = write(&file, flows).and_then(|()| fs::rename(&beside, path)) {
        let _ = fs::remove_file(&beside);
        return Err(error);
    }
    Ok(file)
}

/// Writes the record of a slot, which a lane changed.
///
/// # Errors
/// As the disk says.
pub(crate) fn write_slot(file: &File, slot: usize, record: &[u8]) -> io::Result<()> {
    file.write_all_at(record, record::offset(slot))
}

/// Reads all records of a file, one by one: what is torn at its end, or in its middle, takes nothing else with it.
fn read(mut file: File, flows: &FlowTable) -> io::Result<TakenOver> {
    let now = now();
    let mut head = [0; HEAD_BYTES];
    let length = fill(&mut file, &mut head)?;
    let Some(layout) = Layout::of(&head) else {
        tracing::warn!("a version of meshd that we do not know wrote the connections of before: they are cut");
        return Ok(TakenOver::default());
    };
    let mut all = io::Cursor::new(&head[..length]).chain(file);
    io::copy(&mut (&mut all).take(layout.start() as u64), &mut io::sink())?;
    let mut chunk = vec![0; CHUNK * layout.record_bytes()];
    let empty = chunk.clone();
    let mut taken = TakenOver::default();
    loop {
        let length = fill(&mut all, &mut chunk)?;
        // Most of a file is empty: nothing is counted there.
        let is_empty = chunk[..length] == empty[..length];
        let records = if is_empty { &[][..] } else { &chunk[..length] };
        for record in records.chunks_exact(layout.record_bytes()).filter(|record| *record != &empty[..record.len()]) {
            let Some((key, flow)) = layout.read(record, now) else { continue };
            *if flows.restore(key, &flow) { &mut taken.taken } else { &mut taken.left } += 1;
        }
        if length < chunk.len() {
            return Ok(taken);
        }
    }
}

/// Reads until the buffer is full or nothing follows; returns how much came.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match from.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// Writes all that the table holds; where it holds nothing, the file has holes.
fn write(file: &File, flows: &FlowTable) -> io::Result<()> {
    file.write_all_at(&record::head(), 0)?;
    if flows.is_empty() {
        return Ok(());
    }
    let mut chunk = Vec::with_capacity(FEW * RECORD_BYTES);
    let empty = vec![0; FEW * RECORD_BYTES];
    for first in (0..flows.slots()).step_by(FEW) {
        chunk.clear();
        let slots = first..flows.slots().min(first + FEW);
        slots.for_each(|slot| chunk.extend_from_slice(&record::of_slot(flows, slot)));
        if chunk[..] != empty[..chunk.len()] {
            file.write_all_at(&chunk, record::offset(first))?;
        }
    }
    Ok(())
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    name.into()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::net::Ipv4Addr;

    use mesh_proto::base::clock::Timestamp;
    use mesh_proto::base::id::{NodeId, Revision};
    use mesh_proto::dataplane::flow::{Direction, Flow, Key, UNJUDGED};
    use mesh_proto::packet::{FiveTuple, UDP};

    use super::*;

    /// What c63285c, the first version, wrote of two calls, a TCP connection through a VIP and a question over UDP.
    const FIRST_VERSION: &[u8] = include_bytes!("flow_file/first_version.flows");

    fn call(n: u16, now: Timestamp) -> (Key, Flow) {
        let tuple = FiveTuple {
            protocol: UDP,
            source: Ipv4Addr::new(10, 8, 0, 10),
            source_port: n,
            destination: Ipv4Addr::new(241, 0, 0, 1),
            destination_port: 7,
        };
        let to = FiveTuple { source: Ipv4Addr::new(241, 2, 0, 10), ..tuple };
        (Key { side: Direction::Outbound, tuple }, Flow::new(to, Some(NodeId(2)), Revision(7), true, now))
    }

    fn entries(flows: &FlowTable) -> Vec<(Key, Flow)> {
        let mut all = Vec::new();
        flows.for_each(now(), |key, flow| all.push((key, flow)));
        all
    }

    #[test]
    fn flows_go_on_in_a_table_of_any_size_and_a_start_changes_nothing_for_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flows");
        let first = FlowTable::with_seed(1 << 12, 1);
        let (file, taken) = take_over(&path, &first).unwrap();
        assert_eq!(taken, TakenOver::default());
        for n in 0..500 {
            let (key, flow) = call(n, now());
            for place in first.open(key, &flow, now(), |_| {}).unwrap() {
                write_slot(&file, place.slot(), &record::of_slot(&first, place.slot())).unwrap();
            }
        }
        for (slots, seed, taken) in [(1 << 12, 1, 1000), (1 << 14, 1, 1000), (1 << 13, 9, 1000), (1 << 10, 9, 512)] {
            let next = FlowTable::with_seed(slots, seed);
            let (_, took) = take_over(&path, &next).unwrap();
            assert_eq!(took, TakenOver { taken, left: 1000 - taken }, "{slots} slots");
            assert_eq!(entries(&next).len(), taken);
            assert!(entries(&next).iter().all(|(_, flow)| flow.revision == UNJUDGED));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn a_file_of_the_first_version_is_taken_over_entry_by_entry() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flows");
        fs::write(&path, FIRST_VERSION).unwrap();
        for _ in 0..2 {
            let flows = FlowTable::for_flows(1 << 13, 3);
            let (_, taken) = take_over(&path, &flows).unwrap();
            assert_eq!(taken, TakenOver { taken: 4, left: 0 });
            let opened: Vec<_> = entries(&flows).into_iter().filter(|(_, flow)| flow.opened).collect();
            assert_eq!(opened.len(), 2);
            for (key, flow) in opened {
                assert!(flows.find(key.answer(&flow), now()).is_some_and(|(_, back)| back.to == key.tuple.reverse()));
            }
        }
    }

    #[test]
    fn what_is_torn_takes_nothing_else_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flows");
        for (cut, taken) in [(FIRST_VERSION.len() - 1, 3), (72, 1), (71, 0), (10, 0), (0, 0)] {
            fs::write(&path, &FIRST_VERSION[..cut]).unwrap();
            let (_, took) = take_over(&path, &FlowTable::new(1 << 10)).unwrap();
            assert_eq!(took.taken, taken, "{cut} bytes");
        }
        let mut torn = FIRST_VERSION.to_vec();
        torn[80] ^= 1;
        fs::write(&path, &torn).unwrap();
        assert_eq!(take_over(&path, &FlowTable::new(1 << 10)).unwrap().1.taken, 3);
    }

    #[test]
    fn a_file_that_cannot_be_written_anew_stays_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flows");
        fs::write(&path, FIRST_VERSION).unwrap();
        // Where the draft would be is a folder.
        fs::create_dir_all(dir.path().join("flows.tmp/x")).unwrap();
        assert!(take_over(&path, &FlowTable::new(1 << 10)).is_err());
        assert_eq!(fs::read(&path).unwrap(), FIRST_VERSION);
    }
}
