//! What is measured.

pub mod prometheus;
