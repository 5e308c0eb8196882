//! The board: where every part of the daemon posts how it stands, and where status, metrics and `why` read it.
//!
//! Posting never waits for a reader. What is read is a consistent value per part, not over all parts.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use mesh_proto::base::id::IdentityKey;
use mesh_proto::dataplane::view::View;
use mesh_proto::services::ServeSpec;
use tokio::sync::{Notify, watch};

use crate::base::notes::Notes;
use crate::base::state_dir::Enrolment;
use crate::control::{Dial, LinkState};
use crate::dataplane::DataPlane;
use crate::keys::psk_policy::PskMode;
use crate::linux::Upkeep;

/// The node's own services.toml, as it was read last.
#[derive(Debug, Clone, Default)]
pub struct Offers {
    /// Its path.
    pub path: PathBuf,
    /// What is in force.
    pub serve: Vec<ServeSpec>,
    /// What the operator should know of the file in force.
    pub warnings: Vec<String>,
    /// What is wrong with the file on disk, and since when; the offers in force are then older ones.
    pub error: Option<(String, Instant)>,
}

/// What came of a change of the identity key: the former and the present one, or why it is not done.
pub type Outcome = Result<(IdentityKey, IdentityKey), String>;

/// Where every part posts how it stands.
#[derive(Debug)]
pub struct Board {
    /// When the daemon started.
    pub started: Instant,
    /// Which mesh the node belongs to; `None` until it has joined.
    pub enrolment: watch::Sender<Option<Enrolment>>,
    /// The map in force, compiled; `None` until there is one.
    pub view: watch::Sender<Option<Arc<View>>>,
    /// The control channel.
    pub link: watch::Sender<LinkState>,
    /// Identities that the log expelled for good, as far as this node has read it.
    pub expelled: watch::Sender<Arc<BTreeSet<IdentityKey>>>,
    /// What is needed to ask a coordinator something.
    pub dial: watch::Sender<Option<Dial>>,
    /// The kernel set-up.
    pub upkeep: watch::Sender<Upkeep>,
    /// The node's own services.toml.
    pub offers: watch::Sender<Offers>,
    /// How this node stands to preshared keys, and what the operator may wonder about.
    pub preshared: watch::Sender<(PskMode, Option<String>)>,
    /// Asks for services.toml to be read again.
    pub reload: Notify,
    /// Asks for another tunnel key.
    pub rotate: Notify,
    /// Asks for another identity key.
    pub renew: Notify,
    /// What came of the last such request.
    pub renewed: watch::Sender<Option<Outcome>>,
    /// What the daemon is asked to do next.
    pub order: watch::Sender<Order>,
    /// What has no place of its own.
    pub notes: Notes,
    plane: Mutex<Option<DataPlane>>,
}

/// What the daemon is asked to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Order {
    /// Go on.
    #[default]
    Run,
    /// Leave the mesh: stop forwarding, forget the enrolment, undo the kernel set-up; then idle.
    Leave,
    /// End the process; what keeps the range closed stays.
    Stop,
}

impl Board {
    /// Makes an empty board.
    pub fn new(services: PathBuf) -> Self {
        Self {
            started: Instant::now(),
            enrolment: watch::Sender::new(None),
            view: watch::Sender::new(None),
            link: watch::Sender::new(LinkState::default()),
            expelled: watch::Sender::default(),
            dial: watch::Sender::new(None),
            upkeep: watch::Sender::new(Upkeep::default()),
            offers: watch::Sender::new(Offers { path: services, ..Offers::default() }),
            preshared: watch::Sender::new((PskMode::Off, None)),
            reload: Notify::new(),
            rotate: Notify::new(),
            renew: Notify::new(),
            renewed: watch::Sender::new(None),
            order: watch::Sender::new(Order::Run),
            notes: Notes::default(),
            plane: Mutex::new(None),
        }
    }

    /// Posts a sentence under a topic, or takes it down.
    pub fn note(&self, topic: &'static str, sentence: Option<String>) {
        self.notes.set(topic, sentence);
    }

    /// Returns the sentences posted.
    pub fn notes(&self) -> Vec<String> {
        self.notes.all()
    }

    /// Posts the running data path, or takes it down and returns it.
    pub fn set_plane(&self, plane: Option<DataPlane>) -> Option<DataPlane> {
        std::mem::replace(&mut lock(&self.plane), plane)
    }

    /// Asks the data path something, if it runs.
    pub fn with_plane<T>(&self, ask: impl FnOnce(&DataPlane) -> T) -> Option<T> {
        lock(&self.plane).as_ref().map(ask)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
