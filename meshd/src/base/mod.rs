//! What every part of meshd may use: chance, the names of the state's files, texts. It knows nobody above it.

pub(crate) mod entropy;
pub(crate) mod files;
pub mod notes;
pub(crate) mod retry;
pub mod runtime;
pub mod starts;
pub mod state_dir;
pub(crate) mod text;
pub mod unstored;
pub mod warning_id;
pub(crate) mod ways_back;
