//! The laws of this repository that no compiler knows: which file may import which, where `unsafe` may stand, how long
//! a file may be, that one word means one thing, that every reason for losing a packet is shown by a test.

mod arguments;
mod figures;
mod house;
mod imports;
mod laws;
mod layers;
mod modules;
mod names;
mod planted;
mod repository;
mod rings;
mod workspace;
