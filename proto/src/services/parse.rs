//! From the text of a file to its model, or to everything that is wrong with it.

use super::diagnostic::{Diagnostic, Diagnostics};
use super::model::{ServeSpec, Services};

/// A coordinator's file that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// What it says.
    pub services: Services,
    /// What the operator should know all the same.
    pub warnings: Vec<Diagnostic>,
}

/// Reads the coordinator's services.toml.
///
/// # Errors
/// Everything that is wrong with the file, if anything is, its failing `[[test]]`s included.
pub fn parse(text: &str, file: &str) -> Result<Parsed, Diagnostics> {
    let (_, errors) = toml::de::DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(Parsed { services: Services::default(), warnings: Vec::new() });
    }
    Err(Diagnostics::new(file, text, Vec::new()))
}

/// Reads a node's services.toml: only `[[serve]]`.
///
/// # Errors
/// Everything that is wrong with the file, if anything is.
pub fn parse_node(text: &str, file: &str) -> Result<(Vec<ServeSpec>, Vec<Diagnostic>), Diagnostics> {
    let (_, errors) = toml::de::DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok((Vec::new(), Vec::new()));
    }
    Err(Diagnostics::new(file, text, Vec::new()))
}
