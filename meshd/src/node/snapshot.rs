//! How the node stands at one moment: what status and metrics show.

use std::sync::Arc;
use std::time::Duration;

use mesh_proto::base::id::NodeName;
use mesh_proto::dataplane::view::View;

use crate::base::state_dir::Enrolment;
use crate::base::unstored::Unstored;
use crate::base::warning_id::WarningId;
use crate::config::accepted::Settings;
use crate::control::ChannelState;
use crate::dataplane::DataPlaneStats;
use crate::keys::psk_policy::PskMode;
use crate::linux::Upkeep;
use crate::node::services_file::Offers;

/// Plain values, consistent each for itself and not with each other.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// How long the daemon runs.
    pub uptime: Duration,
    /// Which mesh the node belongs to; `None` until it has joined.
    pub enrolment: Option<Enrolment>,
    /// The map in force, compiled; `None` until there is one.
    pub view: Option<Arc<View>>,
    /// The control channel.
    pub link: ChannelState,
    /// The kernel set-up.
    pub upkeep: Upkeep,
    /// The node's own services.toml.
    pub offers: Offers,
    /// How this node stands to preshared keys, and what the operator may wonder about.
    pub preshared: (PskMode, Option<String>),
    /// What the data path did; `None` while none runs.
    pub stats: Option<DataPlaneStats>,
    /// How many lanes died since the machine started.
    pub lane_deaths: u64,
    /// What the operator is told of the last, if that was in the last hour.
    pub lane_death: Option<String>,
    /// How many lines the log lost.
    pub log_lines_dropped: u64,
    /// What the operator is told of them, if the last was lost in the last hour.
    pub log_loss: Option<String>,
    /// What the state directory did not take.
    pub unstored: Unstored,
    /// The meshd.toml that runs, and what is wrong with the one on disk.
    pub settings: Settings,
    /// The name that meshd.toml wishes for; none if it names none.
    pub wished_name: Option<NodeName>,
    /// Sentences for the operator of what has no place of its own, with their topics.
    pub notes: Vec<(WarningId, String)>,
}
