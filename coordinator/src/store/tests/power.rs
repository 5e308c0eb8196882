//! Power cuts: every write and sync of the embedded store is recorded, and what a disk may hold afterwards is
//! made and opened.
//!
//! ```text
//!   write write ack │ sync │ write set_len write │ sync │ …      what the store did
//!   └──── durable ─────────┘ └─ any of these may be missing, and each write may be torn between sectors
//! ```
//! What was acknowledged before the cut must be there to the byte; what was begun may be there whole or not at
//! all. Opening writes as well: the power is cut again during the recovery, and during the commit after it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Bound;
use std::sync::{Arc, Mutex};

use redb::{BackendError, StorageBackend};

use super::*;

/// What a disk writes at once or not at all, in bytes.
const SECTOR: u64 = 512;
/// Commits of the workload.
const COMMITS: u64 = 85;
/// Up to how many writes between two syncs all subsets are made.
const EXHAUSTIVE: usize = 8;
/// States between two syncs that are sampled above that, and how many more with torn writes.
const SAMPLED: usize = 250;
const TORN: usize = 300;

/// One step of the store.
#[derive(Debug, Clone)]
enum PowerStep {
    Write(u64, Arc<[u8]>),
    Length(u64),
    Sync,
    /// A commit of this revision began.
    Begin(u64),
    /// It was acknowledged.
    Ack(u64),
}

/// A disk in memory that remembers every step.
#[derive(Debug, Clone, Default)]
struct Disk(Arc<Mutex<(Vec<u8>, Vec<PowerStep>)>>);

impl Disk {
    fn with(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new((bytes, Vec::new()))))
    }

    fn note(&self, step: PowerStep) {
        self.0.lock().unwrap().1.push(step);
    }

    fn steps(&self) -> Vec<PowerStep> {
        self.0.lock().unwrap().1.clone()
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().0.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.0.lock().unwrap();
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let bytes = disk.0.get(start..).and_then(|rest| rest.get(..out.len()));
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        apply(&mut disk.0, &PowerStep::Length(length));
        disk.1.push(PowerStep::Length(length));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.note(PowerStep::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        let step = PowerStep::Write(offset, data.into());
        apply(&mut disk.0, &step);
        disk.1.push(step);
        Ok(())
    }

    fn try_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn unlock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }
}

/// Does a step to an image; a write beyond its end is lost.
fn apply(image: &mut Vec<u8>, step: &PowerStep) {
    match step {
        PowerStep::Write(offset, data) => put_bytes(image, *offset, data),
        PowerStep::Length(length) => image.resize(usize::try_from(*length).unwrap(), 0),
        PowerStep::Sync | PowerStep::Begin(_) | PowerStep::Ack(_) => {}
    }
}

fn put_bytes(image: &mut [u8], offset: u64, data: &[u8]) {
    let start = usize::try_from(offset).unwrap().min(image.len());
    let end = (start + data.len()).min(image.len());
    image[start..end].copy_from_slice(&data[..end - start]);
}

/// xorshift64*: the same states for the same seed.
#[derive(Clone)]
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }
}

/// All that is stored, the log included.
type Stored = BTreeMap<(StoreTable, String), Vec<u8>>;
/// The same at each revision.
type Model = Vec<Stored>;

/// Makes the writes of the commit that leads to a revision: some new, some replaced, some gone, one log entry;
/// now and then large ones, so that the file grows.
pub(super) fn writes(revision: u64, dice: &mut Dice) -> Vec<Write> {
    let mut writes = vec![put(StoreTable::Log, &format!("{revision:016}"), &format!("entry {revision}"))];
    for _ in 0..1 + dice.below(3) {
        let table = StoreTable::ALL[usize::try_from(dice.below(6)).unwrap()];
        let key = format!("k{}", dice.below(12));
        let length = if dice.below(8) == 0 { 6000 } else { 40 + dice.below(400) };
        let value = format!("{revision}.").repeat(usize::try_from(length).unwrap() / 4);
        writes.push(if dice.below(5) == 0 { delete(table, &key) } else { put(table, &key, &value) });
    }
    writes
}

/// Commits one more revision and remembers what is stored then.
fn advance(store: &mut Embedded, disk: &Disk, model: &mut Model, dice: &mut Dice) {
    let from = model.len() as u64 - 1;
    let writes = writes(from + 1, dice);
    let mut next = model.last().unwrap().clone();
    for write in &writes {
        let place = (write.table, write.key.clone());
        match &write.value {
            Some(value) => drop(next.insert(place, value.clone())),
            None => drop(next.remove(&place)),
        }
    }
    model.push(next);
    disk.note(PowerStep::Begin(from + 1));
    commit(store, from, &writes).unwrap();
    disk.note(PowerStep::Ack(from + 1));
}

/// Opens an image and reads all of it.
fn open(disk: &Disk) -> Result<(Embedded, u64, Stored), StoreError> {
    let store = Embedded::over(disk.clone(), Path::new("image"))?;
    let Records { revision, mut records } = store.load()?;
    let log = store.scan(StoreTable::Log, "", usize::MAX)?;
    records.extend(log.into_iter().map(|(key, value)| ((StoreTable::Log, key), value)));
    Ok((store, revision.0, records))
}

/// What lies between two syncs, on top of what is durable.
struct Group {
    durable: Vec<u8>,
    pending: Vec<PowerStep>,
    /// What must be there, and what may be.
    acked: u64,
    begun: u64,
}

/// Cuts steps at their syncs; with `syncs` off nothing is ever durable.
fn groups(mut image: Vec<u8>, steps: &[PowerStep], acked: u64, syncs: bool) -> Vec<Group> {
    let mut groups = Vec::new();
    let (mut acked, mut begun) = (acked, acked);
    let mut pending = Vec::new();
    for step in steps.iter().chain([&PowerStep::Sync]) {
        match step {
            PowerStep::Begin(revision) => begun = *revision,
            PowerStep::Ack(revision) => acked = *revision,
            PowerStep::Write(..) | PowerStep::Length(_) => pending.push(step.clone()),
            PowerStep::Sync => {
                groups.push(Group { durable: image.clone(), pending: pending.clone(), acked, begun });
                if syncs {
                    pending.drain(..).for_each(|step| apply(&mut image, &step));
                }
            }
        }
    }
    groups
}

/// Which of the pending steps reached the disk: for each, the sectors that did.
type Choice = Vec<u64>;

impl Group {
    /// Returns how many sectors a step touches, at most 64 of which are chosen apart.
    fn sectors(step: &PowerStep) -> u64 {
        match step {
            PowerStep::Write(offset, data) => (offset + data.len() as u64).div_ceil(SECTOR) - offset / SECTOR,
            PowerStep::Length(_) | PowerStep::Sync | PowerStep::Begin(_) | PowerStep::Ack(_) => 1,
        }
    }

    /// Returns different choices: all subsets if they are few, else prefixes and samples; and torn ones.
    fn choices(&self, sampled: usize, torn: usize, dice: &mut Dice) -> BTreeSet<Choice> {
        let count = self.pending.len();
        let whole = |chosen: &dyn Fn(usize) -> bool| -> Choice {
            (0..count).map(|place| if chosen(place) { u64::MAX } else { 0 }).collect()
        };
        let mut choices: BTreeSet<Choice> = (0..=count).map(|end| whole(&|place| place < end)).collect();
        if count <= EXHAUSTIVE && 1 << count <= sampled.max(2) {
            choices.extend((0..1usize << count).map(|bits| whole(&|place| bits >> place & 1 == 1)));
        } else {
            for _ in 0..sampled {
                let odds = dice.below(8);
                let chosen: Vec<bool> = (0..count).map(|_| dice.below(8) <= odds).collect();
                choices.insert(whole(&|place| chosen[place]));
            }
        }
        for _ in 0..torn {
            // Each step is there, is missing, or is torn.
            let odds = dice.below(4);
            let choice = self.pending.iter().map(|step| {
                let width = Self::sectors(step).min(64);
                match dice.below(4) {
                    _ if width == 1 && dice.below(2) == 0 => 0,
                    place if place <= odds || width == 1 => u64::MAX,
                    3 => 0,
                    _ => dice.roll() & (u64::MAX >> (64 - width)),
                }
            });
            choices.insert(choice.collect());
        }
        choices
    }

    /// Makes what the disk holds after a cut.
    fn image(&self, choice: &Choice) -> Vec<u8> {
        let mut image = self.durable.clone();
        for (step, &chosen) in self.pending.iter().zip(choice) {
            match step {
                _ if chosen == u64::MAX => apply(&mut image, step),
                PowerStep::Write(offset, data) => {
                    let mut at = *offset;
                    let end = offset + data.len() as u64;
                    while at < end {
                        let next = (at / SECTOR * SECTOR + SECTOR).min(end);
                        let sector = (at / SECTOR - offset / SECTOR) % 64;
                        if chosen >> sector & 1 == 1 {
                            let part = usize::try_from(at - offset).unwrap()..usize::try_from(next - offset).unwrap();
                            put_bytes(&mut image, at, &data[part]);
                        }
                        at = next;
                    }
                }
                PowerStep::Length(_) | PowerStep::Sync | PowerStep::Begin(_) | PowerStep::Ack(_) => {}
            }
        }
        image
    }
}

#[derive(Debug, Default)]
struct Found {
    states: usize,
    twice: usize,
    lost: usize,
    unopenable: usize,
    example: Option<String>,
}

impl Found {
    /// Judges an opened image.
    fn judge(&mut self, opened: Result<(u64, Stored), String>, group: &Group, model: &Model) {
        self.states += 1;
        let problem = match opened {
            Err(error) => {
                self.unopenable += 1;
                error
            }
            Ok((revision, records)) => {
                let known = model.get(usize::try_from(revision).unwrap());
                let allowed = (group.acked..=group.begun).contains(&revision);
                if allowed && known.is_some_and(|known| *known == records) {
                    return;
                }
                self.lost += 1;
                format!("revision {revision}, acknowledged {}, begun {}", group.acked, group.begun)
            }
        };
        self.example.get_or_insert(problem);
    }

    fn add(&mut self, other: Self) {
        self.states += other.states;
        self.twice += other.twice;
        self.lost += other.lost;
        self.unopenable += other.unopenable;
        self.example = self.example.take().or(other.example);
    }
}

/// Cuts the power in a group in many ways; of one state in `every` also during its recovery and a commit after.
fn cut(group: &Group, model: &Model, every: usize, dice: &mut Dice) -> Found {
    let mut found = Found::default();
    for (number, choice) in group.choices(SAMPLED, TORN, dice).iter().enumerate() {
        let image = group.image(choice);
        let disk = Disk::with(image.clone());
        let opened = open(&disk);
        let read = opened.as_ref().map(|(_, revision, records)| (*revision, records.clone()));
        let revision = read.as_ref().map(|(revision, _)| *revision).ok();
        let good = found.lost + found.unopenable;
        found.judge(read.map_err(ToString::to_string), group, model);
        let (Ok((mut store, ..)), Some(revision)) = (opened, revision) else { continue };
        if number % every > 0 || found.lost + found.unopenable > good {
            continue;
        }
        let mut model = model[..=usize::try_from(revision).unwrap()].to_vec();
        advance(&mut store, &disk, &mut model, dice);
        drop(store);
        for group in groups(image, &disk.steps(), revision, true) {
            for choice in group.choices(8, 8, dice) {
                let opened = open(&Disk::with(group.image(&choice)));
                let opened = opened.map(|(_, revision, records)| (revision, records));
                found.judge(opened.map_err(|error| error.to_string()), &group, &model);
                found.twice += 1;
            }
        }
    }
    found
}

/// Records a workload and cuts its power.
fn cut_everywhere(seed: u64, commits: u64, syncs: bool, every: usize) -> Found {
    let mut dice = Dice(seed);
    // A new store is renamed into its place when it is complete and synced.
    let empty = {
        let disk = Disk::default();
        drop(Embedded::over(disk.clone(), Path::new("image")).unwrap());
        disk.0.lock().unwrap().0.clone()
    };
    let disk = Disk::with(empty.clone());
    let mut model: Model = vec![BTreeMap::new()];
    let mut store = Embedded::over(disk.clone(), Path::new("image")).unwrap();
    for _ in 0..commits {
        advance(&mut store, &disk, &mut model, &mut dice);
    }
    drop(store);
    let groups = groups(empty, &disk.steps(), 0, syncs);
    let halves = groups.chunks(groups.len().div_ceil(2));
    let model = &model;
    let mut all = Found::default();
    std::thread::scope(|scope| {
        let halves = halves.map(|half| {
            let mut dice = Dice(dice.roll());
            scope.spawn(move || {
                let mut found = Found::default();
                half.iter().for_each(|group| found.add(cut(group, model, every, &mut dice)));
                found
            })
        });
        for half in halves.collect::<Vec<_>>() {
            all.add(half.join().unwrap());
        }
    });
    all
}

#[test]
#[expect(clippy::print_stdout, reason = "the figures of the run")]
fn an_acknowledged_commit_survives_every_power_cut() {
    let found = cut_everywhere(7, COMMITS, true, 20);
    println!("{found:?}");
    assert_eq!((found.lost, found.unopenable), (0, 0), "{found:?}");
    assert!(found.states >= 100_000 && found.twice >= 10_000, "{found:?}");
}

#[test]
fn without_syncs_the_same_power_cuts_lose_commits() {
    let found = cut_everywhere(7, 6, false, usize::MAX);
    assert!(found.lost + found.unopenable > 100, "{found:?}");
}
