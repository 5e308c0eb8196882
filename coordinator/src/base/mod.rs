//! What everything else stands on.

pub(crate) mod clock;
pub mod noted_epoch;
pub(crate) mod read_file;
pub mod state_files;
pub(crate) mod stop;
pub(crate) mod sync;
pub(crate) mod text_time;
pub mod words;
