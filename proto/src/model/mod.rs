//! What a node is told of the mesh, and the rules in it.

pub mod netmap;
pub mod rules;
