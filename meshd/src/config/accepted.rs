//! The meshd.toml that a start took last: it runs where a start finds the file broken, and `status` names the mistake.
//!
//! ```text
//!   meshd.toml ── well ──▶ runs ── once it works ──▶ state directory: meshd.toml.accepted
//!       └─ broken ──▶ the one accepted last, of the same path ──▶ runs, degraded
//! ```
//! The copy holds the path and the text and nothing else, and only its owner reads it. Where the broken text does not tell
//! the state directory any more, it is looked for in the usual one.

use std::path::{Path, PathBuf};

use mesh_host::sums::{seal, unseal};

use super::{CONFIG, Config, ConfigError};
use crate::base::files::ACCEPTED_CONFIG;
use crate::base::state_dir::State;

/// Most mistakes that a sentence names.
const SHOWN: usize = 3;

/// A configuration, and where it comes from.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    /// What runs.
    pub config: Config,
    /// Its file and text.
    pub settings: Settings,
}

/// The file and the text of a configuration, and what is wrong with the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// The file.
    pub path: PathBuf,
    /// The text that runs; empty where there is no file.
    pub text: String,
    /// What is wrong with the file on disk, which does not run then.
    pub error: Option<String>,
}

impl Loaded {
    /// Reads the file, or takes the one that was accepted last where it is broken.
    ///
    /// # Errors
    /// What is wrong with the file, if none was accepted.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        match read(path) {
            Ok((config, text)) => Ok(Self { config, settings: Settings { path: path.into(), text, error: None } }),
            Err(error) => {
                let (config, text) = accepted(path).ok_or_else(|| error.clone())?;
                let error = Some(error.to_string());
                Ok(Self { config, settings: Settings { path: path.into(), text, error } })
            }
        }
    }
}

impl Settings {
    /// Stores the text as the one that was accepted last, as soon as the disk takes it.
    pub(crate) fn accept(&self, state: &State) {
        let sealed = seal(format!("{}\n{}", self.path.display(), self.text).as_bytes());
        if self.error.is_some() || state.secret(ACCEPTED_CONFIG).is_ok_and(|known| known.as_ref() == Some(&sealed)) {
            return;
        }
        if let Err(error) = state.keep(ACCEPTED_CONFIG, &sealed) {
            tracing::warn!(%error, "this meshd.toml is not kept for a start that finds it broken");
        }
    }

    /// Says what the operator has to do, where the file on disk does not run.
    pub(crate) fn sentence(&self) -> Option<String> {
        let error = self.error.as_ref()?;
        let path = self.path.display();
        Some(match read(&self.path) {
            Err(now) => format!(
                "{path} is broken, and the one that worked last runs in its place: {}; mend it, and run `systemctl restart meshd`",
                first_of(&now.to_string())
            ),
            Ok(_) => format!(
                "{path} was broken when meshd started ({}), and the one before runs in its place; it reads well now: run `systemctl restart meshd`",
                first_of(error)
            ),
        })
    }
}

/// Returns the first mistakes of many, one a line.
fn first_of(mistakes: &str) -> String {
    let mut lines = mistakes.lines();
    let mut first = lines.by_ref().take(SHOWN).collect::<Vec<_>>().join("; ");
    let more = lines.count();
    if more > 0 {
        first += &format!("; and {more} more (`meshd check`)");
    }
    first
}

/// Reads a file that is well, and returns its text.
fn read(path: &Path) -> Result<(Config, String), ConfigError> {
    let config = Config::load(path)?;
    match std::fs::read_to_string(path) {
        Ok(text) => Ok((config, text)),
        Err(_) if path == Path::new(CONFIG) => Ok((config, String::new())),
        Err(error) => Err(ConfigError::Read { path: path.into(), error: error.into() }),
    }
}

/// Finds what was accepted last of a file that is broken.
fn accepted(path: &Path) -> Option<(Config, String)> {
    let dirs = [Config::lenient(path).state_dir, Config::default().state_dir];
    dirs.into_iter().find_map(|dir| {
        // Nothing is made where nothing is.
        let state = dir.is_dir().then(|| State::open(&dir).ok())??;
        let bytes = state.secret(ACCEPTED_CONFIG).ok()??;
        let (of, text) = std::str::from_utf8(unseal(&bytes)?).ok()?.split_once('\n')?;
        let config = Config::parse(of, text).ok()?;
        (Path::new(of) == path && config.state_dir == dir).then(|| (config, text.to_owned()))
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A file whose text was accepted, and the state directory.
    fn accept(text: &str) -> (tempfile::TempDir, PathBuf, State) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("meshd.toml");
        let state_dir = dir.path().join("state");
        std::fs::write(&path, format!("state_dir = \"{}\"\n{text}", state_dir.display())).unwrap();
        let state = State::open(&state_dir).unwrap();
        let loaded = Loaded::read(&path).unwrap();
        assert_eq!(loaded.settings.sentence(), None);
        loaded.settings.accept(&state);
        (dir, path, state)
    }

    #[test]
    fn a_broken_file_is_run_as_it_was_accepted_last_and_its_mistake_is_named_with_its_place() {
        let (_dir, path, state) = accept("port = 5000\n");
        let text = std::fs::read_to_string(&path).unwrap();
        for broken in [format!("{text}prot = 1\n"), format!("{text}lanes = [\n")] {
            std::fs::write(&path, &broken).unwrap();
            let loaded = Loaded::read(&path).unwrap();
            assert_eq!((loaded.config.port, &loaded.settings.text), (5000, &text));
            let sentence = loaded.settings.sentence().unwrap();
            assert!(sentence.contains("meshd.toml:3:"), "{sentence}");
            assert!(!sentence.contains("reads well"), "{sentence}");
            loaded.settings.accept(&state);
        }
        let broken = Loaded::read(&path).unwrap();
        std::fs::write(&path, text.replace("5000", "5001")).unwrap();
        let mended = broken.settings.sentence().unwrap();
        assert!(mended.contains("reads well now: run `systemctl restart meshd`"), "{mended}");
        assert_eq!(Loaded::read(&path).unwrap().config.port, 5001);
    }

    #[test]
    fn what_is_kept_is_the_text_for_its_owner_alone_and_serves_no_other_file() {
        let (dir, path, state) = accept("");
        let kept = state.path(ACCEPTED_CONFIG);
        assert_eq!(std::fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);
        let text = std::fs::read_to_string(&path).unwrap();
        let bytes = std::fs::read(&kept).unwrap();
        assert_eq!(unseal(&bytes).unwrap(), format!("{}\n{text}", path.display()).as_bytes());

        let other = dir.path().join("other.toml");
        std::fs::write(&other, format!("{text}prot = 1\n")).unwrap();
        assert!(Loaded::read(&other).is_err(), "of another file");
        std::fs::write(&path, format!("{text}prot = 1\n")).unwrap();
        assert!(Loaded::read(&path).is_ok());
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            std::fs::write(&kept, bytes).unwrap();
            assert!(Loaded::read(&path).is_err(), "byte {at}");
        }
    }
}
