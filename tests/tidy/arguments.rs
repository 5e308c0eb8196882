//! The law of arguments that are keys: one key of 64 begins with a `-`, and is printed for the operator to copy.

use std::any::TypeId;

use clap::{Command, CommandFactory as _};
use mesh_proto::base::id::IdentityKey;

/// The arguments that take keys, and whether they take one that begins as a flag does.
fn keys(command: &Command) -> Vec<(String, bool)> {
    let own = command.get_arguments().filter(|arg| arg.get_value_parser().type_id() == TypeId::of::<IdentityKey>());
    let here = own.map(|arg| (format!("{} {}", command.get_name(), arg.get_id()), arg.is_allow_hyphen_values_set()));
    here.chain(command.get_subcommands().flat_map(keys)).collect()
}

#[test]
fn each_argument_that_is_a_key_takes_one_that_begins_as_a_flag_does() {
    let programs = [meshd::cli::args::Cli::command(), coordinator::cli::args::Cli::command()];
    let found: Vec<_> = programs.iter().flat_map(keys).collect();
    assert!(found.len() >= 3, "{found:?}");
    let refusing: Vec<_> = found.iter().filter(|(_, takes)| !takes).collect();
    assert!(refusing.is_empty(), "{refusing:?}");
}
