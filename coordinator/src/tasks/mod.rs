//! What goes on without being asked: the file that is watched, backups, other replicas, nodes that went away.

pub(crate) mod backups;
pub(crate) mod ephemeral_nodes;
pub(crate) mod public_addresses;
pub(crate) mod replicas;
pub(crate) mod services_file;
