//! What is judged over the whole file: its own `[[test]]`s, and the nodes it names.

use crate::id::NodeName;

use super::diagnostic::Diagnostic;
use super::model::Services;

/// Runs the file's own `[[test]]`s against its `[[allow]]` rules.
pub fn evaluate(_services: &Services) -> Vec<Diagnostic> {
    Vec::new()
}

/// Warns of backends whose node has not joined.
pub fn absent_nodes(_services: &Services, _joined: impl Fn(&NodeName) -> bool) -> Vec<Diagnostic> {
    Vec::new()
}
