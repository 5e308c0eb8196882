//! How a machine comes back into its mesh, in lines that can be pasted.

use mesh_proto::base::id::{NodeName, SiteName};

/// Says how a machine joins again under its name, where its coordinator does not hold on to that.
pub(crate) fn with_token(node: &NodeName, site: &SiteName) -> String {
    format!(
        "run `mesh-coordinator token create --site {site} --name {node}` on the coordinator, then `meshd join -` here, and paste the token (Ctrl-D ends it)"
    )
}

/// Says how a machine joins again under its name as somebody new, though it is a member still.
pub(crate) fn as_another(node: &NodeName, site: &SiteName) -> String {
    by(node, site, "meshd leave && meshd join -")
}

/// Says how a machine that left joins again under its name.
pub(crate) fn after_leaving(node: &NodeName, site: &SiteName) -> String {
    by(node, site, "meshd join -")
}

fn by(node: &NodeName, site: &SiteName, joins: &str) -> String {
    format!(
        "run `mesh-coordinator revoke {node}; mesh-coordinator token create --site {site} --name {node}` on the coordinator, then `{joins}` here, and paste the token (Ctrl-D ends it)"
    )
}
