//! What must be undone, whatever happens: processes, bind mounts and folders, in one list.
//!
//! Guards add an entry when they make something and strike it out when they undo it. On Ctrl-C, and on a
//! panic in a binary that aborts, `everything` undoes what is left. What even that misses (the lab itself
//! killed with -9) is swept by the next lab: see `netns::sweep`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Something made that must not outlive us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leftover {
    /// A child process, by its id.
    Process(u32),
    /// A bind mount on a file of its own.
    Mount(PathBuf),
    /// A file, or a socket.
    File(PathBuf),
    /// A folder with everything in it.
    Folder(PathBuf),
}

/// Names an entry of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

struct List {
    next: u64,
    entries: BTreeMap<Ticket, Leftover>,
}

static LIST: Mutex<List> = Mutex::new(List { next: 0, entries: BTreeMap::new() });

/// Notes something that must be undone.
pub fn note(what: Leftover) -> Ticket {
    let mut list = LIST.lock().unwrap_or_else(PoisonError::into_inner);
    list.next += 1;
    let ticket = Ticket(list.next);
    list.entries.insert(ticket, what);
    ticket
}

/// Strikes out what somebody has undone.
pub fn done(ticket: Ticket) {
    let mut list = LIST.lock().unwrap_or_else(PoisonError::into_inner);
    list.entries.remove(&ticket);
}

/// Undoes everything that is left, newest first.
pub fn everything() {
    let entries = {
        let mut list = LIST.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut list.entries)
    };
    for what in entries.values().rev() {
        undo(what);
    }
}

fn undo(what: &Leftover) {
    match what {
        Leftover::Process(id) => {
            let _ = kill(Pid::from_raw(i32::try_from(*id).unwrap_or(0)), Signal::SIGKILL);
        }
        Leftover::Mount(path) => unmount(path),
        Leftover::File(path) => {
            let _ = std::fs::remove_file(path);
        }
        Leftover::Folder(path) => {
            let _ = std::fs::remove_dir_all(path);
        }
    }
}

/// Takes a bind mount and the file below it away.
pub fn unmount(path: &Path) {
    let _ = umount2(path, MntFlags::MNT_DETACH);
    let _ = std::fs::remove_file(path);
}

/// Undoes everything on a panic too: for binaries that abort then, where no guard runs.
pub fn on_panic() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        before(panic);
        everything();
    }));
}
