//! What is measured.

pub(crate) mod prometheus;
