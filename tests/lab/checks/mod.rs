//! The checks, one file each, by the names of the report.

pub(crate) mod cleanup;
pub(crate) mod dead;
pub(crate) mod demo1;
pub(crate) mod demo3;
pub(crate) mod edit;
pub(crate) mod encrypted;
pub(crate) mod evil;
pub(crate) mod foreign;
pub(crate) mod one_port;
pub(crate) mod overlap;
pub(crate) mod policy;
pub(crate) mod restart;
mod tools;
