//! The control plane of the mesh: who belongs, which names exist, and who may call whom.

pub mod registry;
pub mod store;
