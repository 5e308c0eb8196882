//! `meshd join` while it waits: says now and then for what.

use std::io::{self, Write as _};
use std::time::Duration;

use mesh_host::client::Client;
use mesh_proto::ops::status as doc;
use tokio::time::{Instant, interval_at};

use crate::base::text::SOCKET;
use crate::cli::error::CommandError;
use crate::cli::leaving;
use crate::config::Config;
use crate::control::Attempts;
use crate::linux;
use crate::node::join::{self, Credential, JoinError, Joined};

/// How often somebody who waits is told for what.
const EVERY: Duration = Duration::from_secs(5);

/// Joins. A node that its own coordinator disowns leaves first, without opening the range.
///
/// # Errors
/// As `join::join` and `leaving::renounce`.
pub(crate) async fn join(config: &Config, credential: &Credential, ephemeral: bool) -> Result<Joined, CommandError> {
    let joined = told(config, credential, ephemeral).await?;
    if !joined.before || is_connected(config).await {
        return Ok(joined);
    }
    let before = joined.enrolment;
    let Some(word) = join::disowned(config, credential, &before).await? else {
        return Ok(Joined { enrolment: before, ..joined });
    };
    leaving::renounce(config).await?;
    let (mesh, node) = (&before.mesh, &before.node);
    // Nobody has to listen.
    let _ = writeln!(io::stderr(), "meshd: left mesh {mesh} as {node}, whose coordinator said: {word}");
    let joined = told(config, credential, ephemeral).await.inspect_err(|_| {
        let _ = writeln!(
            io::stderr(),
            "meshd: {} stays closed until this machine has joined again; `meshd cleanup --range {0}` opens it",
            before.range.net()
        );
    })?;
    if joined.enrolment.range != before.range {
        linux::forget(before.range, &config.interface).await?;
    }
    Ok(joined)
}

/// Says whether the running daemon has the word of a coordinator that it is a member.
async fn is_connected(config: &Config) -> bool {
    let client = Client::new(&SOCKET, config.socket.clone());
    client.get::<doc::Status>("/v1/status").await.is_ok_and(|status| status.coordinator.connected)
}

/// Joins, and says on standard error every 5 s which addresses are tried, and what each answered last.
///
/// # Errors
/// As `join::join`.
async fn told(config: &Config, credential: &Credential, ephemeral: bool) -> Result<Joined, JoinError> {
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
