//! What all verbs share: which daemon to ask, and how to print.

use std::path::{Path, PathBuf};

use mesh_host::client::Client;
use mesh_host::output::{self, OutputError};
use mesh_proto::ops::status as doc;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cli::args::ConfigArg;
use crate::cli::error::CommandError;
use crate::config::Config;
use crate::config::accepted::Loaded;

/// Asks the daemon and prints what it says.
pub(crate) struct Asker {
    pub(crate) client: Client,
    pub(crate) json: bool,
}

impl Asker {
    pub(crate) async fn show<T: Serialize + DeserializeOwned>(
        &self,
        path: &str,
        table: impl Fn(&T) -> String,
    ) -> Result<T, CommandError> {
        let document: T = self.client.get(path).await?;
        if self.json {
            print_json(&document)?;
        } else {
            print(&table(&document))?;
        }
        Ok(document)
    }
}

/// Reads the configuration; `--socket` has the last word.
pub(crate) fn load(arg: &ConfigArg, socket: Option<PathBuf>) -> Result<Config, CommandError> {
    let mut config = Config::load(&arg.config)?;
    if let Some(socket) = socket {
        config.socket = socket;
    }
    Ok(config)
}

/// Reads the configuration that runs, though the file is broken; `--socket` has the last word. With `lenient`, what of a
/// broken file can be read is taken where none was accepted.
pub(crate) fn load_running(arg: &ConfigArg, socket: Option<PathBuf>, lenient: bool) -> Result<Config, CommandError> {
    let mut config = match Loaded::read(&arg.config) {
        Ok(loaded) => loaded.config,
        Err(_) if lenient => Config::lenient(&arg.config),
        Err(error) => return Err(error.into()),
    };
    if let Some(socket) = socket {
        config.socket = socket;
    }
    Ok(config)
}

/// Returns where the daemon listens: `--socket`, else what the configuration says that runs, else the default.
pub(crate) fn socket(given: Option<&Path>, config: &Path) -> PathBuf {
    let configured = || Loaded::read(config).map_or_else(|_| Config::lenient(config), |loaded| loaded.config).socket;
    given.map_or_else(configured, Into::into)
}

/// Prints what was done.
pub(crate) fn finish(json: bool, done: Vec<String>) -> Result<(), OutputError> {
    if json { print_json(&doc::Done { schema: doc::DONE.into(), done }) } else { print(&done.join("\n")) }
}

/// Prints a document for programs.
pub(crate) fn print_json<T: Serialize>(value: &T) -> Result<(), OutputError> {
    print(&drawn(value))
}

fn drawn<T: Serialize>(value: &T) -> String {
    serde_json::to_string_pretty(value).expect("documents have string keys and no failing parts")
}

/// Prints a text and a line end; a reader that went away is no error.
pub(crate) fn print(text: &str) -> Result<(), OutputError> {
    output::print(&format!("{text}\n"))
}
