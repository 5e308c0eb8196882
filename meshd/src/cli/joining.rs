//! `meshd join` while it waits: says now and then for what.

use std::io::{self, Write as _};
use std::time::Duration;

use tokio::time::{Instant, interval_at};

use crate::config::Config;
use crate::control::Attempts;
use crate::node::join::{self, Credential, JoinError, Joined};

/// How often somebody who waits is told for what.
const EVERY: Duration = Duration::from_secs(5);

/// Joins, and says on standard error every 5 s which addresses are tried, and what each answered last.
///
/// # Errors
/// As `join::join`.
pub(crate) async fn join(config: &Config, credential: &Credential, ephemeral: bool) -> Result<Joined, JoinError> {
    let attempts = Attempts::default();
    let joining = join::join(config, credential, ephemeral, &attempts);
    tokio::pin!(joining);
    let began = Instant::now();
    let mut turn = interval_at(began + EVERY, EVERY);
    loop {
        tokio::select! {
            joined = &mut joining => return joined,
            now = turn.tick() => {
                let (waited, most) = (now.duration_since(began).as_secs(), join::PATIENCE.as_secs());
                let mut said = format!("meshd: waiting for a coordinator for {waited} s, {most} s at most:\n");
                attempts.sentences().iter().for_each(|sentence| said.push_str(&format!("  {sentence}\n")));
                // Nobody has to listen.
                let _ = io::stderr().write_all(said.as_bytes());
            }
        }
    }
}
