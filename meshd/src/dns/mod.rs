//! Names of the mesh, answered.

pub mod server;
