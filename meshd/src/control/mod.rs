//! The way to the coordinators.

pub(crate) mod roll_file;
