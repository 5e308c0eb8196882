//! Commands that make room for a machine that comes back, as they are pasted.

use mesh_proto::base::id::{NodeName, SiteName};

/// Returns what expels the member of a name.
pub(super) fn revoke(name: &NodeName) -> String {
    format!("mesh-coordinator revoke {name}")
}

/// Returns what makes a token for a name.
pub(super) fn token(name: &NodeName, site: &SiteName) -> String {
    format!("mesh-coordinator token create --site {site} --name {name}")
}
