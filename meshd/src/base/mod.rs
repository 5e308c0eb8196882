//! What every part of meshd may use: the clock, chance, the names of the state's files, texts. It knows nobody above it.

pub(crate) mod clock;
pub(crate) mod entropy;
pub(crate) mod files;
pub mod notes;
pub(crate) mod retry;
pub mod runtime;
pub(crate) mod sealed_file;
pub mod state_dir;
pub(crate) mod text;
