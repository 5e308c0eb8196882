//! The journal: every commit once more, in plain lines beside the database.
//!
//! ```text
//!   journal/00000000000000000042.log   the commits from revision 42 on, one line each:
//!   SUM {"from":42,"to":43,"writes":[["nodes","n1","…"],["tokens","ab",null]]}
//! ```
//! The database is what is read; the journal is for the day on which its file is damaged: the newest backup and
//! the lines since lead to the last acknowledged commit. SUM is the SHA-256 of the rest of the line. A line
//! is on the disk before its commit is acknowledged. A file of `SEGMENT` bytes is followed by another; files
//! that only tell of what the oldest backup holds are removed (`prune`), and where that leaves more than `MOST`
//! bytes, those of which a newer one holds all (`shed`): the newest backup and the journal lead to the last commit
//! at every moment.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use mesh_host::files;
use mesh_host::sums::sha256;
use mesh_proto::base::id::Revision;
use serde::{Deserialize, Serialize};

use super::disk::is_full;
use super::reserve::Reserve;
use super::{Records, Store, StoreError, StoreTable, Write};

/// When a new file is begun, in bytes.
const SEGMENT: u64 = 16 * 1024 * 1024;
/// How long the journal may get before a backup is made for it to begin at, in bytes. It can be longer by what is
/// committed until that is done, and while no backup can be made.
pub const MOST: u64 = 64 * 1024 * 1024;

/// A store that keeps a journal of its commits.
pub struct Journaled<S> {
    store: S,
    dir: PathBuf,
    file: File,
    length: u64,
    reserve: Option<Reserve>,
}

/// One commit.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    from: Revision,
    to: Revision,
    /// Table, key and new value of each write. Values are text, as all records are.
    writes: Vec<(String, String, Option<String>)>,
}

impl<S: Store> Journaled<S> {
    /// Continues the journal in a directory, or begins it at the store's revision if its last line leads to
    /// another one.
    ///
    /// # Errors
    /// If the store cannot be read, or the directory not be written.
    pub fn open(store: S, dir: &Path) -> Result<Self, StoreError> {
        let revision = store.load()?.revision;
        let failed = |source: io::Error| failed(dir, source);
        if !dir.exists() {
            DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
            files::sync(dir.parent().unwrap_or(dir)).map_err(failed)?;
        }
        let last = segments(dir).map_err(failed)?.into_iter().next_back();
        let good = last.and_then(|(from, path)| {
            let bytes = fs::read(&path).ok()?;
            let (lines, length) = read(&bytes);
            let is_torn = !bytes.get(usize::try_from(length).ok()?..)?.contains(&b'\n');
            (is_torn && end(from, &lines) == revision).then_some((path, length))
        });
        let (file, length) = match good {
            Some((path, length)) => {
                let file = OpenOptions::new().append(true).open(path).map_err(failed)?;
                // What a crash left of the last line was never acknowledged.
                file.set_len(length).map_err(failed)?;
                (file, length)
            }
            None => (begin(dir, revision).map_err(failed)?, 0),
        };
        Ok(Self { store, dir: dir.to_owned(), file, length, reserve: None })
    }

    /// Reserves space in a file, for revocations on a full disk.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn with_reserve(mut self, path: &Path, bytes: u64) -> Result<Self, StoreError> {
        self.reserve = Some(Reserve::open(path, bytes).map_err(|source| failed(path, source))?);
        Ok(self)
    }

    /// Gives the reserve up. Says whether there was one.
    fn release(&mut self) -> bool {
        let Some(reserve) = &mut self.reserve else { return false };
        if !reserve.is_held() {
            return false;
        }
        tracing::error!(path = %reserve.path().display(), "the disk is full; its reserve is given up for revocations");
        reserve.release().is_ok()
    }

    fn append(&mut self, from: Revision, to: Revision, writes: &[Write]) -> io::Result<()> {
        if self.length >= SEGMENT {
            self.file = begin(&self.dir, from)?;
            self.length = 0;
        }
        let line = line(from, to, writes)?;
        self.file.write_all(&line)?;
        // What cannot be synced is lost, even if it is for want of room.
        self.file.sync_data().map_err(io::Error::other)?;
        self.length += line.len() as u64;
        Ok(())
    }
}

impl<S: Store> Store for Journaled<S> {
    fn load(&self) -> Result<Records, StoreError> {
        self.store.load()
    }

    fn scan(&self, table: StoreTable, from: &str, limit: usize) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        self.store.scan(table, from, limit)
    }

    fn commit(&mut self, expected: Revision, next: Revision, writes: &[Write]) -> Result<(), StoreError> {
        self.store.commit(expected, next, writes).inspect_err(|error| {
            if matches!(error, StoreError::Full { .. }) {
                self.release();
            }
        })?;
        let length = self.length;
        let appended = match self.append(expected, next, writes) {
            // The store has it already: the line has to follow.
            Err(error) if is_full(&error) && self.release() => {
                self.file.set_len(length).and_then(|()| self.append(expected, next, writes))
            }
            appended => appended,
        };
        appended.map_err(|source| failed(&self.dir, source))
    }

    fn shortage(&mut self) -> Option<String> {
        let reserve = self.reserve.as_mut()?;
        let path = reserve.path().display().to_string();
        (!reserve.is_held()).then(|| {
            format!("the disk of {path} is full: only revocations are stored until there is room; free space there")
        })
    }
}

/// Adds to the records of a backup what the journal tells of later commits. Returns the revision that it leads
/// to; whatever comes after a line that is damaged or missing is left out.
///
/// # Errors
/// If the directory or a file in it cannot be read.
pub fn replay(
    dir: &Path,
    mut revision: Revision,
    records: &mut BTreeMap<(StoreTable, String), Vec<u8>>,
) -> Result<Revision, StoreError> {
    let failed = |source: io::Error| failed(dir, source);
    let segments = match segments(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(revision),
        segments => segments.map_err(failed)?,
    };
    for (_, path) in segments {
        let bytes = fs::read(path).map_err(failed)?;
        for line in read(&bytes).0 {
            if line.from != revision || line.to <= revision {
                continue;
            }
            for (table, key, value) in line.writes {
                // A table of a newer version is none that this version could write.
                let Some(table) = StoreTable::named(&table) else { continue };
                match value {
                    Some(value) => drop(records.insert((table, key), value.into_bytes())),
                    None => drop(records.remove(&(table, key))),
                }
            }
            revision = line.to;
        }
    }
    Ok(revision)
}

/// Returns the revision that the newest unbroken part of the journal begins with; none if there is no journal.
pub fn begins(dir: &Path) -> Option<Revision> {
    segments(dir).ok()?.into_keys().next_back()
}

/// Returns the revision that the last good line of the newest file leads to, or that this file begins with; none if
/// there is no journal, or if nothing was committed.
///
/// # Errors
/// If the directory or the file cannot be read.
pub fn leads_to(dir: &Path) -> Result<Option<Revision>, StoreError> {
    let failed =
        |source: io::Error| StoreError::Io { doing: "read", path: dir.display().to_string(), source: source.into() };
    let segments = match segments(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        segments => segments.map_err(failed)?,
    };
    let Some((from, path)) = segments.into_iter().next_back() else { return Ok(None) };
    let bytes = fs::read(path).map_err(failed)?;
    Ok(Some(end(from, &read(&bytes).0)).filter(|end| *end > Revision(0)))
}

/// Returns how many bytes the journal has; 0 if there is none.
pub fn length(dir: &Path) -> u64 {
    let files = segments(dir).unwrap_or_default();
    files.values().filter_map(|path| fs::metadata(path).ok()).map(|file| file.len()).sum()
}

/// Removes what the oldest backup holds, and of a journal of `most` bytes also what newer ones hold, until half as
/// many bytes are left. `backups` are their revisions, oldest first.
///
/// # Errors
/// If the directory cannot be read, or a file in it not be removed.
pub fn shed(dir: &Path, backups: &[Revision], most: u64) -> io::Result<()> {
    let aim = if length(dir) < most { most } else { most / 2 };
    for held in backups {
        prune(dir, *held)?;
        if length(dir) <= aim {
            break;
        }
    }
    Ok(())
}

/// Removes the files that only tell of commits up to a revision, and those kept aside from before it.
///
/// # Errors
/// If the directory cannot be read.
pub fn prune(dir: &Path, held: Revision) -> io::Result<()> {
    let segments = segments(dir)?;
    let next = segments.keys().skip(1).copied();
    for (path, next) in segments.values().zip(next) {
        if next <= held {
            fs::remove_file(path)?;
        }
    }
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.split_once(".log.aside-"));
        let from = name.and_then(|(from, _)| from.parse().ok()).map(Revision);
        if from.is_some_and(|from| from < held) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Returns where the good lines of a file lead to that begins with a revision.
fn end(from: Revision, lines: &[Line]) -> Revision {
    lines.last().map_or(from, |line| line.to)
}

/// Lists the files by the revision that each begins with.
fn segments(dir: &Path) -> io::Result<BTreeMap<Revision, PathBuf>> {
    let mut segments = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".log"));
        if let Some(from) = name.and_then(|name| name.parse().ok()) {
            segments.insert(Revision(from), path);
        }
    }
    Ok(segments)
}

fn begin(dir: &Path, from: Revision) -> io::Result<File> {
    let path = dir.join(format!("{:020}.log", from.0));
    // A file of that name has no good line, or it would be continued; what it has may be all that tells of something.
    if fs::metadata(&path).is_ok_and(|found| found.len() > 0) {
        let aside = files::set_aside(&path)?;
        tracing::warn!(path = %aside.display(), "a part of the journal cannot be read; it is kept aside");
    }
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
    file.sync_all()?;
    files::sync(dir)?;
    Ok(file)
}

fn line(from: Revision, to: Revision, writes: &[Write]) -> io::Result<Vec<u8>> {
    let text = |value: &Vec<u8>| String::from_utf8(value.clone()).map_err(io::Error::other);
    let told = writes.iter().map(|write| {
        let value = write.value.as_ref().map(text).transpose()?;
        Ok((write.table.name().to_owned(), write.key.clone(), value))
    });
    let line = Line { from, to, writes: told.collect::<io::Result<_>>()? };
    let body = serde_json::to_string(&line)?;
    Ok(format!("{} {body}\n", sum(body.as_bytes())).into_bytes())
}

/// Reads the good lines up to the first that is not, and how many bytes they have.
fn read(bytes: &[u8]) -> (Vec<Line>, u64) {
    let mut lines = Vec::new();
    let mut length = 0;
    for text in bytes.split_inclusive(|byte| *byte == b'\n') {
        let body = text.strip_suffix(b"\n").and_then(|text| text.split_at_checked(64));
        let body = body.and_then(|(sum, body)| Some((sum, body.strip_prefix(b" ")?)));
        let line = body.filter(|(told, body)| sum(body).as_bytes() == *told);
        let Some(line) = line.and_then(|(_, body)| serde_json::from_slice(body).ok()) else { break };
        lines.push(line);
        length += text.len() as u64;
    }
    (lines, length)
}

fn sum(body: &[u8]) -> String {
    HEXLOWER.encode(&sha256(&[body]))
}

fn failed(dir: &Path, source: io::Error) -> StoreError {
    StoreError::io("write", dir, source)
}
