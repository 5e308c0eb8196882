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
    format!(
        "run `{}` on the coordinator, then `meshd leave && meshd join -` here, and paste the token (Ctrl-D ends it)",
        expelling(node, site)
    )
}

/// Returns what makes room for a name, and a token for it.
pub(crate) fn expelling(node: &NodeName, site: &SiteName) -> String {
    format!("mesh-coordinator revoke {node}; mesh-coordinator token create --site {site} --name {node}")
}
