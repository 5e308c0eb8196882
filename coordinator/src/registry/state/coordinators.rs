//! Coordinators as they are stored.

use mesh_proto::base::clock::UnixTime;
use mesh_proto::trust::signed_record::NextKey;
use serde::{Deserialize, Serialize};

/// A coordinator, as it is stored by its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoordinatorRecord {
    /// Where nodes reach it, as `host:port`.
    pub addresses: Vec<String>,
    /// Its version.
    pub software: String,
    /// When it first served the mesh.
    pub since: UnixTime,
    /// The key that it will go on with, which it announced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<NextKey>,
}
