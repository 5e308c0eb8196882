//! The journal leads from any earlier backup to the last acknowledged commit, and never anywhere else.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt as _;

use super::power::{Dice, writes};
use super::*;
use crate::store::journal::{Journaled, begins, length, prune, replay, shed};

type Stored = BTreeMap<(StoreTable, String), Vec<u8>>;

/// Commits more to a store with a journal, and remembers what is stored at each revision.
fn advance(store: &mut Journaled<Memory>, model: &mut Vec<Stored>, commits: u64, dice: &mut Dice) {
    for _ in 0..commits {
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
        commit(store, from, &writes).unwrap();
    }
}

/// A store in memory at a revision.
fn memory(model: &[Stored]) -> Memory {
    let mut store = Memory::new();
    let writes = model.last().unwrap().iter();
    let writes =
        writes.map(|((table, key), value)| Write { table: *table, key: key.clone(), value: Some(value.clone()) });
    let writes: Vec<_> = writes.collect();
    store.commit(Revision(0), Revision(model.len() as u64 - 1), &writes).unwrap();
    store
}

fn replayed(dir: &Path, model: &[Stored], from: usize) -> (u64, Stored) {
    let mut records = model[from].clone();
    let to = replay(dir, Revision(from as u64), &mut records).unwrap();
    (to.0, records)
}

#[test]
fn every_backup_and_the_journal_lead_to_the_last_commit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let mut dice = Dice(5);
    let mut model = vec![Stored::new()];
    for life in 0..4 {
        // The first life begins with nothing, the others continue.
        let store = if life == 0 { Memory::new() } else { memory(&model) };
        let mut store = Journaled::open(store, &path).unwrap();
        advance(&mut store, &mut model, 10, &mut dice);
    }
    assert_eq!(begins(&path), Some(Revision(0)));
    for from in 0..model.len() {
        assert_eq!(replayed(&path, &model, from), (40, model[40].clone()), "from {from}");
    }
}

#[test]
fn a_line_that_a_crash_left_in_part_is_dropped_and_the_journal_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let mut dice = Dice(6);
    let mut model = vec![Stored::new()];
    let mut store = Journaled::open(Memory::new(), &path).unwrap();
    advance(&mut store, &mut model, 5, &mut dice);
    drop(store);
    let file = path.join(format!("{:020}.log", 0));
    let mut bytes = fs::read(&file).unwrap();
    bytes.extend_from_slice(b"0123 {\"from\":5,\"to\":6,\"wri");
    fs::write(&file, bytes).unwrap();
    let mut store = Journaled::open(memory(&model), &path).unwrap();
    advance(&mut store, &mut model, 5, &mut dice);
    assert_eq!(replayed(&path, &model, 3), (10, model[10].clone()));
}

#[test]
fn a_store_that_is_ahead_of_its_journal_begins_a_new_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let mut dice = Dice(7);
    let mut model = vec![Stored::new()];
    let mut store = Journaled::open(Memory::new(), &path).unwrap();
    advance(&mut store, &mut model, 5, &mut dice);
    drop(store);
    // The disk had the sixth commit, and the journal had not: nobody was told of it.
    let mut next = model[5].clone();
    next.insert((StoreTable::Nodes, "late".into()), b"x".to_vec());
    model.push(next);
    let mut store = Journaled::open(memory(&model), &path).unwrap();
    advance(&mut store, &mut model, 5, &mut dice);
    assert_eq!(begins(&path), Some(Revision(6)));
    assert_eq!(replayed(&path, &model, 2), (5, model[5].clone()), "nothing is taken over the gap");
    assert_eq!(replayed(&path, &model, 6), (11, model[11].clone()));
    prune(&path, Revision(6)).unwrap();
    assert_eq!(fs::read_dir(&path).unwrap().count(), 1);
    assert_eq!(replayed(&path, &model, 6), (11, model[11].clone()));
}

#[test]
fn a_flipped_bit_in_the_journal_ends_it_early_and_alters_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let mut dice = Dice(8);
    let mut model = vec![Stored::new()];
    let mut store = Journaled::open(Memory::new(), &path).unwrap();
    advance(&mut store, &mut model, 20, &mut dice);
    drop(store);
    let path_of = path.join(format!("{:020}.log", 0));
    let good = fs::read(&path_of).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path_of).unwrap();
    for _ in 0..1000 {
        let place = usize::try_from(dice.below(good.len() as u64)).unwrap();
        file.write_all_at(&[good[place] ^ (1 << dice.below(8))], place as u64).unwrap();
        let (to, records) = replayed(&path, &model, 0);
        assert!(to < 20, "the flip at byte {place} went unnoticed");
        assert_eq!(records, model[usize::try_from(to).unwrap()]);
        file.write_all_at(&good[place..=place], place as u64).unwrap();
    }
}

#[test]
fn a_file_without_a_good_line_is_kept_aside_and_not_truncated() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let mut model = vec![Stored::new()];
    let mut store = Journaled::open(Memory::new(), &path).unwrap();
    advance(&mut store, &mut model, 5, &mut Dice(9));
    drop(store);
    let file = path.join(format!("{:020}.log", 0));
    let mut spoilt = fs::read(&file).unwrap();
    spoilt[3] ^= 1;
    let mut kept = Vec::new();
    for life in 0..12 {
        spoilt.push(life);
        fs::write(&file, &spoilt).unwrap();
        kept.push(spoilt.clone());
        let mut store = Journaled::open(Memory::new(), &path).unwrap();
        advance(&mut store, &mut vec![Stored::new()], 1, &mut Dice(9));
    }
    let aside = |number: usize| path.join(format!("{:020}.log.aside-{number}", 0));
    for (number, bytes) in kept.iter().enumerate() {
        // The newest eight.
        let found = fs::read(aside(number + 1)).ok();
        assert_eq!(found.as_ref(), (number >= 4).then_some(bytes), "{number}");
    }
    prune(&path, Revision(0)).unwrap();
    assert!(aside(12).exists());
    prune(&path, Revision(1)).unwrap();
    assert!(!aside(12).exists(), "every backup is of later commits");
}

#[test]
fn nothing_but_a_torn_last_line_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let mut dice = Dice(10);
    let mut model = vec![Stored::new()];
    let mut store = Journaled::open(Memory::new(), &path).unwrap();
    advance(&mut store, &mut model, 5, &mut dice);
    let file = path.join(format!("{:020}.log", 0));
    let good = fs::read(&file).unwrap().len();
    let at_five = model.clone();
    advance(&mut store, &mut model, 3, &mut dice);
    drop(store);
    let mut bytes = fs::read(&file).unwrap();
    bytes[good + 2] ^= 1;
    fs::write(&file, &bytes).unwrap();

    let mut model = at_five;
    let mut store = Journaled::open(memory(&model), &path).unwrap();
    advance(&mut store, &mut model, 2, &mut dice);
    assert_eq!(fs::read(&file).unwrap(), bytes, "whole lines that cannot be read may be mended by somebody");
    assert_eq!(begins(&path), Some(Revision(5)));
    assert_eq!(replayed(&path, &model, 0), (7, model[7].clone()));
}

#[test]
fn a_long_journal_begins_at_a_newer_backup_and_wherever_that_is_cut_off_nothing_is_lost() {
    const MOST: u64 = 32 * 1024;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let mut dice = Dice(11);
    let mut model = vec![Stored::new()];
    // Each life begins another file, as a full one does.
    let mut files = |model: &mut Vec<Stored>| {
        for _ in 0..8 {
            let mut store = Journaled::open(memory(model), &path).unwrap();
            advance(&mut store, model, 15, &mut dice);
            drop(store);
            let next = path.join(format!("{:020}.log", model.len() - 1));
            fs::write(next, "").unwrap();
        }
    };
    files(&mut model);
    let older = model.len() - 1;
    files(&mut model);
    let newest = model.len() - 1;
    files(&mut model);
    let last = model.len() - 1;
    let before = length(&path);
    assert!(before > 3 * MOST, "{before}");

    // Every state in which a removal file by file can be cut off.
    let names = |dir: &Path| {
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        names
    };
    let all = names(&path);
    let backups = [older, newest].map(|held| Revision(held as u64));
    let copy = dir.path().join("copy");
    fs::create_dir(&copy).unwrap();
    for file in &all {
        fs::copy(file, copy.join(file.file_name().unwrap())).unwrap();
    }
    shed(&copy, &backups, MOST).unwrap();
    let left = names(&copy).len();
    assert!(left < all.len() && left > 8, "{left} of {}", all.len());
    for gone in 0..=all.len() - left {
        if gone > 0 {
            fs::remove_file(&all[gone - 1]).unwrap();
        }
        let (to, records) = replayed(&path, &model, newest);
        assert_eq!((to as usize, &records), (last, &model[last]), "{gone} files are gone");
    }
    assert_eq!(
        names(&path).iter().map(|path| path.file_name()).collect::<Vec<_>>(),
        names(&copy).iter().map(|path| path.file_name()).collect::<Vec<_>>()
    );

    // A journal that is short enough reaches back to the oldest backup.
    shed(&path, &[Revision(newest as u64 + 1), Revision(last as u64)], u64::MAX).unwrap();
    assert_eq!(replayed(&path, &model, newest + 15).0, last as u64);
}
