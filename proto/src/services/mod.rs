//! services.toml: the one file an operator edits.
//!
//! `parse` reads the coordinator's file, `parse_node` a node's (only `[[serve]]`). A file is taken whole or
//! not at all, and every error of a file is found in one run. A word that does nothing is an error; `parse_accepted` and
//! `parse_node_accepted` read a text that was taken before, when it was none.

mod check;
mod codes;
mod diagnostic;
mod health;
mod keys;
mod mesh;
mod model;
mod names;
mod parse;
mod policy;
mod ports;
mod public_suffix;
mod serve;
mod service;
mod suggest;
mod syntax;
mod walk;
mod words;

pub use check::evaluate;
pub use diagnostic::{Diagnostic, Diagnostics, Severity, position};
pub use keys::FileTable;
pub use model::{
    Allow, BackendAt, BackendSpec, HealthCheck, HealthSettings, MeshSection, Prefer, Route, ServeSpec, ServiceSpec,
    Services, Site, SiteKind, Span, StaticNode, Test,
};
pub use parse::{MAX_TEXT, Parsed, parse, parse_accepted, parse_among, parse_node, parse_node_accepted};
pub use suggest::{nearest, nearest_name};
pub use words::duration;

#[cfg(test)]
mod tests;
