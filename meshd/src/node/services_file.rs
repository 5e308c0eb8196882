//! The node's own services.toml: read at the start, on every change, and on SIGHUP. A bad file changes nothing.
//!
//! A word that does nothing refuses a file. Earlier versions took such words, and a member goes on serving with a new
//! version what it served with the old: a text that was taken before is taken again until somebody alters it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use data_encoding::HEXLOWER;
use mesh_host::files::read_text;
use mesh_host::sums::sha256;
use mesh_host::watched_file::WatchedFile;
use mesh_proto::services::{ServeSpec, parse_node, parse_node_accepted};
use mesh_proto::wire::{MAX_OFFERS, ServeOffer};
use tokio::sync::watch;

use crate::base::files::SERVICES_TAKEN;
use crate::base::state_dir::State;
use crate::node::requests::{ReloadAnswer, Requests};

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

impl Offers {
    /// Returns what is told of the file to those who asked for it to be read.
    fn reading(&self, number: u64) -> ReloadAnswer {
        let error = self.error.as_ref().map(|(error, _)| error.clone());
        ReloadAnswer { number, serve: self.serve.len(), warnings: self.warnings.clone(), error }
    }
}

/// Reads the file as a new one; one that does not exist offers nothing.
///
/// # Errors
/// What is wrong with it, one line per mistake.
pub fn read(path: &Path) -> Result<(Vec<ServeSpec>, Vec<String>), String> {
    parse(path, &text(path)?, false)
}

/// Reads the file as a new one for a node that is about to join, and remembers its text as taken.
///
/// # Errors
/// As `read`.
pub fn read_to_join(path: &Path, state: &State) -> Result<(Vec<ServeSpec>, Vec<String>), String> {
    let text = text(path)?;
    let read = parse(path, &text, false)?;
    note_taken(state, &mark(&text));
    Ok(read)
}

/// Reads the file of a running daemon.
fn read_again(path: &Path, state: &State) -> Result<(Vec<ServeSpec>, Vec<String>), String> {
    let text = text(path)?;
    if !matches!(state.enrolment(), Ok(Some(_))) {
        return parse(path, &text, false);
    }
    let known = std::fs::read_to_string(state.path(SERVICES_TAKEN)).ok();
    let own = mark(&text);
    // A member without a mark joined with an earlier version, which took what lies here.
    let result = parse(path, &text, known.as_ref().is_none_or(|known| *known == own));
    match (&result, known) {
        (Ok(_), Some(known)) if known == own => {}
        (Ok(_), _) => note_taken(state, &own),
        (Err(_), None) => note_taken(state, ""),
        (Err(_), Some(_)) => {}
    }
    result
}

fn mark(text: &str) -> String {
    HEXLOWER.encode(&sha256(&[text.as_bytes()]))
}

fn note_taken(state: &State, mark: &str) {
    if let Err(error) = state.keep(SERVICES_TAKEN, mark.as_bytes()) {
        tracing::debug!(%error, "the next start does not know which services.toml was taken");
    }
}

/// Returns what the file holds; nothing of one that does not exist.
fn text(path: &Path) -> Result<String, String> {
    match read_text(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok("version = 1\n".into()),
        Err(error) => Err(format!("cannot read {}: {error}", path.display())),
    }
}

fn parse(path: &Path, text: &str, accepted: bool) -> Result<(Vec<ServeSpec>, Vec<String>), String> {
    let name = path.display().to_string();
    let parse = if accepted { parse_node_accepted } else { parse_node };
    let (serve, warnings) = parse(text, &name).map_err(|bad| bad.lines().join("\n"))?;
    if serve.len() > MAX_OFFERS {
        return Err(format!("{name}: more than {MAX_OFFERS} [[serve]]; remove some"));
    }
    let warnings = mesh_proto::services::Diagnostics::new(&name, text, warnings);
    Ok((serve, warnings.lines()))
}

/// Returns what the coordinator is told of the file.
pub fn offers(serve: &[ServeSpec]) -> Vec<ServeOffer> {
    let offer = |spec: &ServeSpec| ServeOffer { service: spec.service.clone(), port: spec.port };
    serve.iter().map(offer).collect()
}

/// Keeps offers true to their file until the task is dropped, and answers those who ask for it to be read again.
pub async fn watch_services_file(offers: watch::Sender<Offers>, state: State, requests: Requests) {
    let path = offers.borrow().path.clone();
    let mut file = WatchedFile::new(&path);
    let mut reloads = requests.reloads();
    loop {
        // Before the file is read: who asks meanwhile gets another reading.
        let number = *reloads.borrow_and_update();
        load(&offers, &path, &state);
        requests.answer(offers.borrow().reading(number));
        tokio::select! {
            () = file.changed() => {}
            Ok(()) = reloads.changed() => file.look(),
        }
    }
}

/// Reads the file and posts what came of it.
pub fn load(offers: &watch::Sender<Offers>, path: &Path, state: &State) {
    let result = read_again(path, state);
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
        let state = State::open(&dir.path().join("state")).unwrap();
        let posted = watch::Sender::<Offers>::default();
        load(&posted, &path, &state);
        assert!(posted.borrow().serve.is_empty() && posted.borrow().error.is_none());

        std::fs::write(&path, "version = 1\n[[serve]]\nservice = \"cart\"\nport = 7070\n").unwrap();
        load(&posted, &path, &state);
        assert_eq!(offers(&posted.borrow().serve).len(), 1);

        std::fs::write(&path, "[[serve]\n").unwrap();
        load(&posted, &path, &state);
        let since = posted.borrow().error.as_ref().unwrap().1;
        std::fs::write(&path, "[[serve\n").unwrap();
        load(&posted, &path, &state);
        let kept = posted.borrow();
        assert_eq!(kept.serve.len(), 1, "the offers before stay in force");
        assert_eq!(kept.error.as_ref().unwrap().1, since, "wrong since the first bad one");
    }

    const SERVE: &str = "version = 1\n[[serve]]\nservice = \"cart\"\nport = 7070\n";
    const IDLE: &str = "version = 1\n[[serve]]\nservice = \"cart\"\nport = 7070\nhealth = { tcp = true }\n";

    /// A directory with a services.toml, and the state of a node that joined with an earlier version or not at all.
    fn node(text: &str, joined: bool) -> (tempfile::TempDir, PathBuf, State) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("services.toml");
        std::fs::write(&path, text).unwrap();
        let state = State::open(&dir.path().join("state")).unwrap();
        if joined {
            let enrolment = serde_json::json!({
                "version": 1, "coordinators": [], "pins": [mesh_proto::base::id::IdentityKey([7; 32])], "node": "n1", "id": 1, "site": "dc", "mesh": "m",
                "range": "241.0.0.0/8", "address": "241.1.0.1", "blocks": [],
            });
            state.save_enrolment(&serde_json::from_value(enrolment).unwrap()).unwrap();
        }
        (dir, path, state)
    }

    /// Starts a daemon on the file, and returns what it offers.
    fn start(path: &Path, state: &State) -> Offers {
        let posted = watch::Sender::<Offers>::default();
        load(&posted, path, state);
        posted.borrow().clone()
    }

    #[test]
    fn a_member_goes_on_with_a_word_that_an_earlier_version_took_until_the_file_is_altered() {
        let (_dir, path, state) = node(IDLE, true);
        for _ in 0..2 {
            let offers = start(&path, &state);
            assert_eq!((offers.serve.len(), offers.error), (1, None));
            let [warning] = &*offers.warnings else { panic!("{:?}", offers.warnings) };
            assert!(warning.contains("services.toml:5:1: ") && warning.contains("`health`"), "{warning}");
        }
        std::fs::write(&path, format!("{IDLE}# altered\n")).unwrap();
        let error = start(&path, &state).error.unwrap().0;
        assert!(error.contains("services.toml:5:1: error[MESH0110]"), "{error}");
        std::fs::write(&path, SERVE).unwrap();
        assert_eq!(start(&path, &state).serve.len(), 1);
        std::fs::write(&path, IDLE).unwrap();
        assert!(start(&path, &state).error.is_some(), "what was altered in between is new again");
    }

    #[test]
    fn a_word_that_does_nothing_refuses_a_new_file() {
        let (_dir, path, state) = node(IDLE, false);
        assert!(read(&path).is_err() && read_to_join(&path, &state).is_err());
        assert!(start(&path, &state).error.is_some());

        let (_dir, path, state) = node(SERVE, true);
        assert_eq!(start(&path, &state).serve.len(), 1);
        std::fs::write(&path, IDLE).unwrap();
        assert!(start(&path, &state).error.is_some(), "altered while the daemon was stopped");

        let (_dir, path, state) = node("[[serve]\n", true);
        assert!(start(&path, &state).error.is_some());
        std::fs::write(&path, IDLE).unwrap();
        assert!(start(&path, &state).error.is_some(), "no version took this one");

        let (_dir, path, state) = node(SERVE, false);
        read_to_join(&path, &state).unwrap();
        std::fs::write(&path, IDLE).unwrap();
        assert!(start(&path, &state).error.is_some(), "altered between the join and the first start");
    }
}
