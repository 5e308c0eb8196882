//! What everything else stands on.

pub(crate) mod blocking;
pub(crate) mod founded;
pub mod noted_epoch;
pub mod state_files;
pub(crate) mod sync;
pub mod words;
