//! The node's own services.toml: read at the start, on every change, and on SIGHUP. A bad file changes nothing.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use mesh_host::files::read_text;
use mesh_host::watched_file::WatchedFile;
use mesh_proto::services::{ServeSpec, parse_node};
use mesh_proto::wire::{MAX_OFFERS, ServeOffer};
use tokio::sync::watch;

/// The node's own services.toml, as it was read last.
#[derive(Debug, Clone, Default)]
pub struct Offers {
    /// Its path.
    pub path: PathBuf,
    /// What is in force.
    pub serve: Vec<ServeSpec>,
    /// What the operator should know of the file in force.
    pub warnings: Vec<String>,
    /// What is wrong with the file on disk, and since when; the offers in force are then older ones.
    pub error: Option<(String, Instant)>,
}

/// Reads the file; one that does not exist offers nothing.
///
/// # Errors
/// What is wrong with it, one line per mistake.
pub fn read(path: &Path) -> Result<(Vec<ServeSpec>, Vec<String>), String> {
    let name = path.display().to_string();
    let text = match read_text(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), Vec::new())),
        Err(error) => return Err(format!("cannot read {name}: {error}")),
    };
    let (serve, warnings) = parse_node(&text, &name).map_err(|bad| bad.lines().join("\n"))?;
    if serve.len() > MAX_OFFERS {
        return Err(format!("{name}: more than {MAX_OFFERS} [[serve]]; remove some"));
    }
    let warnings = mesh_proto::services::Diagnostics::new(&name, &text, warnings);
    Ok((serve, warnings.lines()))
}

/// Returns what the coordinator is told of the file.
pub fn offers(serve: &[ServeSpec]) -> Vec<ServeOffer> {
    let offer = |spec: &ServeSpec| ServeOffer { service: spec.service.clone(), port: spec.port };
    serve.iter().map(offer).collect()
}

/// Keeps offers true to their file until the task is dropped; `reload` asks for it to be read again.
pub async fn watch_services_file(offers: watch::Sender<Offers>, mut reload: watch::Receiver<()>) {
    let path = offers.borrow().path.clone();
    let mut file = WatchedFile::new(&path);
    loop {
        load(&offers, &path);
        tokio::select! {
            () = file.changed() => {}
            Ok(()) = reload.changed() => {}
        }
    }
}

/// Reads the file and posts what came of it.
pub fn load(offers: &watch::Sender<Offers>, path: &Path) {
    let result = read(path);
    offers.send_if_modified(|offers| {
        let (error, serve, warnings) = match result {
            Ok((serve, warnings)) => (None, serve, warnings),
            Err(error) => (Some(error), offers.serve.clone(), offers.warnings.clone()),
        };
        let known = offers.error.as_ref().map(|(known, _)| known);
        if known == error.as_ref() && serve == offers.serve && warnings == offers.warnings {
            return false;
        }
        match &error {
            Some(error) => tracing::warn!(%error, "services.toml refused; the one before stays in force"),
            None => tracing::info!(serve = serve.len(), "services.toml in force"),
        }
        let since = offers.error.as_ref().map_or_else(Instant::now, |(_, since)| *since);
        *offers = Offers { path: path.into(), serve, warnings, error: error.map(|error| (error, since)) };
        true
    });
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_missing_file_offers_nothing_and_a_bad_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("services.toml");
        let posted = watch::Sender::<Offers>::default();
        load(&posted, &path);
        assert!(posted.borrow().serve.is_empty() && posted.borrow().error.is_none());

        std::fs::write(&path, "version = 1\n[[serve]]\nservice = \"cart\"\nport = 7070\n").unwrap();
        load(&posted, &path);
        assert_eq!(offers(&posted.borrow().serve).len(), 1);

        std::fs::write(&path, "[[serve]\n").unwrap();
        load(&posted, &path);
        let since = posted.borrow().error.as_ref().unwrap().1;
        std::fs::write(&path, "[[serve\n").unwrap();
        load(&posted, &path);
        let kept = posted.borrow();
        assert_eq!(kept.serve.len(), 1, "the offers before stay in force");
        assert_eq!(kept.error.as_ref().unwrap().1, since, "wrong since the first bad one");
    }
}
