//! `meshd join TOKEN` on a node of the token's mesh: its coordinators may have moved while it was away.

use std::time::{Duration, Instant};

use mesh_host::client::{AskError, Client};
use mesh_proto::ops::status as doc;
use mesh_proto::wire::ErrorCode;
use mesh_proto::wire::query::with_query;

use crate::base::state_dir::StateError;
use crate::base::text::SOCKET;
use crate::cli::error::CommandError;
use crate::config::Config;
use crate::node::join::{self, Credential, JoinError, Joined};

/// How long a daemon may take to reach a coordinator before somebody who waits is told that it has not.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is asked whether it has.
const LOOK: Duration = Duration::from_millis(100);

/// Tells the running daemon, or the next one, where the coordinators are. Returns what the operator is told.
///
/// # Errors
/// If the daemon does not take it, or its state cannot be written.
pub(crate) async fn rejoin(
    config: &Config,
    credential: &Credential,
    joined: &Joined,
) -> Result<Vec<String>, CommandError> {
    let already = join::sentence(joined);
    let client = Client::new(&SOCKET, config.socket.clone());
    let pins: Vec<String> = credential.pins().iter().map(ToString::to_string).collect();
    let (addresses, pins) = (credential.coordinators().join(","), pins.join(","));
    let path = with_query("/v1/join", &[("coordinators", &addresses), ("pins", &pins)]);
    let asked = Instant::now();
    loop {
        match client.post::<doc::Done>(&path).await {
            Ok(_) => break,
            Err(AskError::NotRunning(_) | AskError::Ended(_)) => {
                let told = match join::remember(config, credential) {
                    Ok(()) => vec![format!("{already}; no meshd runs: the next one tries the token's addresses first")],
                    // It is a member all the same, and starts from its cache.
                    Err(JoinError::State(error @ StateError::Io { .. })) => {
                        vec![already, format!("warning: the token's addresses are not kept: {error}")]
                    }
                    Err(error) => return Err(error.into()),
                };
                return Ok(told);
            }
            Err(AskError::Refused(no)) if no.error == ErrorCode::NotFound => {
                let old = "warning: the running meshd is of an older version and does not take the token's addresses; restart it, and run the same `meshd join` again";
                return Ok(vec![already, old.into()]);
            }
            // It joined a moment ago, and starts.
            Err(AskError::Refused(no)) if no.error == ErrorCode::NotJoined && asked.elapsed() < PATIENCE => {}
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(LOOK).await;
    }
    loop {
        let status: doc::Status = client.get("/v1/status").await?;
        let coordinator = status.coordinator;
        if let Some(address) = coordinator.address.filter(|_| coordinator.connected) {
            return Ok(vec![format!("{already}; a coordinator is reached at {address}")]);
        }
        if asked.elapsed() > PATIENCE {
            let why = coordinator.error.unwrap_or_else(|| "none has answered".into());
            let warning =
                format!("warning: no coordinator is reached yet: {why}; meshd goes on trying, see `meshd status`");
            return Ok(vec![format!("{already}; the token's addresses are tried first"), warning]);
        }
        tokio::time::sleep(LOOK).await;
    }
}
