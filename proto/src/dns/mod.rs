//! Names: which question has which answer.

pub mod zone;
