//! Disks that fail, and disks that forget: a sync that fails acknowledges nothing, and a bit that flips is
//! noticed or harmless.

use std::io;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use redb::{BackendError, StorageBackend};

use super::power::Dice;
use super::*;

/// Flips of one bit each.
const FLIPS: u64 = 10_000;

/// A disk in memory whose n-th operation of a kind fails, and all after it.
#[derive(Debug, Clone)]
struct Failing {
    bytes: Arc<Mutex<Vec<u8>>>,
    /// Operations left before the failure.
    left: Arc<AtomicI64>,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Sync,
    Write,
    Grow,
}

impl Failing {
    fn count(&self, kind: Kind) -> io::Result<()> {
        if kind == self.kind && self.left.fetch_sub(1, Ordering::Relaxed) <= 0 {
            return Err(io::Error::other("the disk is gone"));
        }
        Ok(())
    }
}

impl StorageBackend for Failing {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = self.bytes.lock().unwrap();
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let found = bytes.get(start..).and_then(|rest| rest.get(..out.len()));
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.count(Kind::Grow)?;
        self.bytes.lock().unwrap().resize(usize::try_from(length).map_err(io::Error::other)?, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.count(Kind::Sync)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.count(Kind::Write)?;
        let mut bytes = self.bytes.lock().unwrap();
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        bytes[start..start + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn try_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn unlock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }
}

#[test]
fn a_failed_write_or_sync_acknowledges_nothing_then_or_later() {
    let value = "x".repeat(3000);
    let mut failures = 0;
    for (kind, most) in [(Kind::Sync, 60), (Kind::Write, 120), (Kind::Grow, 6)] {
        for after in 0..most {
            let bytes = Arc::new(Mutex::new(Vec::new()));
            let disk = Failing { bytes: Arc::clone(&bytes), left: Arc::new(AtomicI64::new(i64::MAX)), kind };
            let mut store = Embedded::over(disk.clone(), Path::new("image")).unwrap();
            disk.left.store(after, Ordering::Relaxed);
            let mut acked = 0;
            while acked < 25 {
                match commit(&mut store, acked, &[put(StoreTable::Nodes, &format!("n{acked}"), &value)]) {
                    Ok(()) => acked += 1,
                    Err(error) => {
                        assert!(error.is_final(), "{error}");
                        failures += 1;
                        break;
                    }
                }
            }
            // The disk works again, but what it holds is not known: nothing more is acknowledged.
            disk.left.store(i64::MAX, Ordering::Relaxed);
            if acked < 25 {
                for from in [acked, acked + 1] {
                    commit(&mut store, from, &[put(StoreTable::Nodes, "late", "x")]).unwrap_err();
                }
            }
            drop(store);
            let records = Embedded::over(disk, Path::new("image")).unwrap().load().unwrap();
            assert!((acked..=acked + 1).contains(&records.revision.0), "{kind:?} {after}: {acked}, {records:?}");
            assert_eq!(records.records.len() as u64, records.revision.0);
        }
    }
    assert!(failures > 100, "only {failures} commits failed");
}

#[test]
fn a_flipped_bit_is_noticed_or_harmless() {
    let empty = || Failing { bytes: Arc::default(), left: Arc::new(AtomicI64::new(i64::MAX)), kind: Kind::Sync };
    let disk = empty();
    let mut store = Embedded::over(disk.clone(), Path::new("image")).unwrap();
    for revision in 0..60 {
        let value = format!("{revision}.").repeat(100);
        let log = put(StoreTable::Log, &format!("{revision:016}"), &value);
        commit(&mut store, revision, &[put(StoreTable::Nodes, &format!("n{}", revision % 20), &value), log]).unwrap();
    }
    let all = |store: &Embedded| -> Result<_, StoreError> {
        Ok((store.load()?, store.scan(StoreTable::Log, "", usize::MAX)?))
    };
    let good = all(&store).unwrap();
    // As a crash leaves it, and as a clean end does.
    let crashed = disk.bytes.lock().unwrap().clone();
    drop(store);
    let closed = disk.bytes.lock().unwrap().clone();
    let mut dice = Dice(11);
    let (mut noticed, mut harmless) = (0, 0);
    for flip in 0..FLIPS {
        let mut bytes = if flip % 2 == 0 { crashed.clone() } else { closed.clone() };
        // Every second flip hits the header or a page in use: most of the file is zeros.
        let place = loop {
            let place = usize::try_from(dice.below(bytes.len() as u64)).unwrap();
            if flip % 4 < 2 || bytes[place] != 0 {
                break place;
            }
        };
        bytes[place] ^= 1 << dice.below(8);
        let disk = empty();
        *disk.bytes.lock().unwrap() = bytes;
        let opened = catch_unwind(AssertUnwindSafe(|| all(&Embedded::over(disk, Path::new("image"))?)));
        match opened.unwrap_or_else(|_| panic!("a panic after a flip at byte {place}")) {
            Ok(found) => {
                assert!(found == good, "wrong data after a flip at byte {place}");
                harmless += 1;
            }
            Err(error) => {
                assert!(error.to_string().contains("mesh-coordinator restore`"), "{error}");
                noticed += 1;
            }
        }
    }
    assert!(noticed > 1000 && harmless > 1000, "{noticed} noticed, {harmless} harmless");
}
