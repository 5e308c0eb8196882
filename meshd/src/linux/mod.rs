//! What meshd sets in the kernel.

pub mod shape;
