//! How the parts of a node tell how they stand, and how others learn of it.
//!
//! Publishing never waits for a reader.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use mesh_host::log::LostLines;
use mesh_proto::base::id::NodeName;
use mesh_proto::dataplane::view::View;
use tokio::sync::watch;

use crate::base::notes::Notes;
use crate::base::state_dir::Enrolment;
use crate::base::unstored::Unstored;
use crate::base::warning_id::WarningId;
use crate::config::accepted::Settings;
use crate::control::{ChannelState, Dial};
use crate::dataplane::Handle;
use crate::keys::psk_policy::PskMode;
use crate::linux::Upkeep;
use crate::node::identity_rotation::IdentityOutcome;
use crate::node::lane_deaths::LaneDeaths;
use crate::node::services_file::Offers;
use crate::node::snapshot::Snapshot;

/// The topics of the notes that only a member of a mesh posts.
const MEMBERS_NOTES: [WarningId; 8] = [
    WarningId::Cache,
    WarningId::Clock,
    WarningId::HandshakeClock,
    WarningId::Dns,
    WarningId::Identity,
    WarningId::Keys,
    WarningId::MaxOffline,
    WarningId::HalfOffline,
];

/// Where a member of a mesh publishes; all is empty while the node belongs to none.
#[derive(Debug)]
pub struct Publisher {
    /// Which mesh the node belongs to.
    pub enrolment: watch::Sender<Option<Enrolment>>,
    /// The map in force, compiled.
    pub view: watch::Sender<Option<Arc<View>>>,
    /// The control channel.
    pub link: watch::Sender<ChannelState>,
    /// What is needed to ask a coordinator something.
    pub dial: watch::Sender<Option<Dial>>,
    /// The kernel set-up.
    pub upkeep: watch::Sender<Upkeep>,
    /// How this node stands to preshared keys, and what the operator may wonder about.
    pub preshared: watch::Sender<(PskMode, Option<String>)>,
    /// What came of the last request for another identity key.
    pub renewed: watch::Sender<Option<IdentityOutcome>>,
    /// The running data path.
    pub plane: watch::Sender<Option<Handle>>,
    /// What the state directory did not take.
    pub unstored: watch::Sender<Unstored>,
    /// The meshd.toml that runs, and what is wrong with the one on disk.
    pub settings: watch::Sender<Settings>,
    /// The name that it wishes for; none if it names none.
    pub wished_name: watch::Sender<Option<NodeName>>,
    /// What has no place of its own.
    pub notes: Notes,
}

/// What was published last. Clones read the same.
#[derive(Debug, Clone)]
pub struct Subscriber {
    /// When the daemon started.
    pub started: Instant,
    /// Which mesh the node belongs to; `None` until it has joined.
    pub enrolment: watch::Receiver<Option<Enrolment>>,
    /// The map in force, compiled; `None` until there is one.
    pub view: watch::Receiver<Option<Arc<View>>>,
    /// The control channel.
    pub link: watch::Receiver<ChannelState>,
    /// What is needed to ask a coordinator something.
    pub dial: watch::Receiver<Option<Dial>>,
    /// The kernel set-up.
    pub upkeep: watch::Receiver<Upkeep>,
    /// The node's own services.toml.
    pub offers: watch::Receiver<Offers>,
    /// How this node stands to preshared keys, and what the operator may wonder about.
    pub preshared: watch::Receiver<(PskMode, Option<String>)>,
    /// What came of the last request for another identity key.
    pub renewed: watch::Receiver<Option<IdentityOutcome>>,
    /// The running data path.
    pub plane: watch::Receiver<Option<Handle>>,
    /// The lanes that died before the daemon started.
    pub lane_deaths: LaneDeaths,
    /// Lines that the log lost.
    pub lost_lines: LostLines,
    /// What the state directory did not take.
    pub unstored: watch::Receiver<Unstored>,
    /// The meshd.toml that runs, and what is wrong with the one on disk.
    pub settings: watch::Receiver<Settings>,
    /// The name that it wishes for; none if it names none.
    pub wished_name: watch::Receiver<Option<NodeName>>,
    /// What has no place of its own.
    pub notes: Notes,
}

impl Default for Publisher {
    fn default() -> Self {
        Self {
            enrolment: watch::Sender::default(),
            view: watch::Sender::default(),
            link: watch::Sender::default(),
            dial: watch::Sender::default(),
            upkeep: watch::Sender::default(),
            preshared: watch::Sender::new((PskMode::Off, None)),
            renewed: watch::Sender::default(),
            plane: watch::Sender::default(),
            unstored: watch::Sender::default(),
            settings: watch::Sender::default(),
            wished_name: watch::Sender::default(),
            notes: Notes::default(),
        }
    }
}

impl Publisher {
    /// Returns a reader of all that is published, by a daemon that starts now, after these deaths, offers this, and whose
    /// log lost these lines.
    pub fn subscribe(
        &self,
        offers: watch::Receiver<Offers>,
        lane_deaths: LaneDeaths,
        lost_lines: LostLines,
    ) -> Subscriber {
        Subscriber {
            started: Instant::now(),
            enrolment: self.enrolment.subscribe(),
            view: self.view.subscribe(),
            link: self.link.subscribe(),
            dial: self.dial.subscribe(),
            upkeep: self.upkeep.subscribe(),
            offers,
            preshared: self.preshared.subscribe(),
            renewed: self.renewed.subscribe(),
            plane: self.plane.subscribe(),
            lane_deaths,
            lost_lines,
            unstored: self.unstored.subscribe(),
            settings: self.settings.subscribe(),
            wished_name: self.wished_name.subscribe(),
            notes: self.notes.clone(),
        }
    }

    /// Takes back what was published of a mesh that the node left.
    pub fn clear(&self) {
        self.view.send_replace(None);
        self.enrolment.send_replace(None);
        self.link.send_replace(ChannelState::default());
        self.upkeep.send_replace(Upkeep::default());
        MEMBERS_NOTES.iter().for_each(|topic| self.notes.set(*topic, None));
    }
}

impl Subscriber {
    /// Reads everything once. It reads the whole flow table: once per request, not for a loop.
    pub fn snapshot(&self) -> Snapshot {
        let plane = self.plane.borrow().clone();
        Snapshot {
            uptime: self.started.elapsed(),
            enrolment: self.enrolment.borrow().clone(),
            view: self.view.borrow().clone(),
            link: self.link.borrow().clone(),
            upkeep: self.upkeep.borrow().clone(),
            offers: self.offers.borrow().clone(),
            preshared: self.preshared.borrow().clone(),
            stats: plane.map(|plane| plane.stats()),
            lane_deaths: self.lane_deaths.count,
            lane_death: self.lane_deaths.sentence(SystemTime::now()),
            log_lines_dropped: self.lost_lines.count(),
            log_loss: self.lost_lines.sentence(),
            unstored: self.unstored.borrow().clone(),
            settings: self.settings.borrow().clone(),
            wished_name: self.wished_name.borrow().clone(),
            notes: self.notes.all(),
        }
    }
}
