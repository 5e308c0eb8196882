//! `meshd join`: from a token to an enrolment, and the mesh range closed before the first packet.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_proto::base::addr::MeshRange;
use mesh_proto::base::id::{IdentityKey, MeshName, NodeName};
use mesh_proto::services::ServeSpec;
use mesh_proto::trust::join_token::{JoinToken, OidcToken, TokenError, TokenSecret};
use mesh_proto::wire::{ErrorCode, JoinRequest, JoinResponse, VERSION};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::base::state_dir::{Enrolment, State, StateError};
use crate::config::Config;
use crate::control::{self, AddressBook, Attempts, ChannelError, Dial};
use crate::keys::node::NodeKeys;
use crate::linux::{self, Home, HostFacts, KernelError, Shape};
use crate::node::self_record::Author;
use crate::node::token_file::{self, TokenFileError};
use crate::node::{facts, psk_rollout, self_record, services_file};

/// How long coordinators are tried that do not answer; the rest of a join takes moments.
pub const PATIENCE: Duration = Duration::from_secs(25);
/// How long a coordinator has to say whether it knows this node.
const QUESTION: Duration = Duration::from_secs(8);
/// How long to wait before they are tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How often a join with an issuer's token is tried, and how long to wait in between.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_secs(5);

/// Why a node did not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The token cannot be read.
    #[error(transparent)]
    Read(#[from] TokenFileError),
    /// It is no token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The state cannot be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// No coordinator let the node in.
    #[error(transparent)]
    Link(#[from] ChannelError),
    /// None has answered so that the node is in.
    #[error("not joined, no coordinator let this node in within {} s:\n  {}", PATIENCE.as_secs(), .0.join("\n  "))]
    Unreached(Vec<String>),
    /// The node's own services.toml is wrong.
    #[error("{0}\nnot joined; mend the file first, or move it away")]
    Services(String),
    /// The node belongs to another mesh.
    #[error(
        "this node belongs to mesh `{mesh}` as `{node}` already; run `meshd leave`, and the same `meshd join` again"
    )]
    Elsewhere {
        /// That mesh.
        mesh: MeshName,
        /// Its name there.
        node: NodeName,
    },
    /// The mesh range is in use here.
    #[error("{0}; or remove that route, and run the same `meshd join` again")]
    Collision(String),
    /// The kernel does not answer.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// What came of a join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// The node's enrolment.
    pub enrolment: Enrolment,
    /// Whether it had joined before.
    pub before: bool,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// Reads a token from a file, or from standard input for `-`.
///
/// # Errors
/// `JoinError` if it cannot be read or is none.
pub fn read_token(word: Option<&str>, file: Option<&Path>) -> Result<JoinToken, JoinError> {
    let text = match (word, file) {
        (_, Some(path)) => token_file::read(&path.display().to_string(), || File::open(path))?,
        (Some("-") | None, None) => token_file::read("standard input", || Ok(io::stdin()))?,
        (Some(word), None) => word.to_owned(),
    };
    Ok(text.parse()?)
}

/// What a node joins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// A token of `mesh-coordinator token create`.
    Token(JoinToken),
    /// A file with a token of an issuer that the coordinator trusts. It is read anew at each attempt, because such
    /// tokens are replaced while they lie there.
    Oidc {
        /// The file.
        file: PathBuf,
        /// Addresses of coordinators, as `host:port`.
        coordinators: Vec<String>,
        /// Their keys.
        pins: Vec<IdentityKey>,
    },
}

impl Credential {
    /// Returns the addresses of coordinators that it names, as `host:port`.
    pub fn coordinators(&self) -> &[String] {
        match self {
            Self::Token(token) => &token.coordinators,
            Self::Oidc { coordinators, .. } => coordinators,
        }
    }

    /// Returns their keys.
    pub fn pins(&self) -> &[IdentityKey] {
        match self {
            Self::Token(token) => &token.pins,
            Self::Oidc { pins, .. } => pins,
        }
    }

    /// Returns what it says of the coordinators.
    fn book(&self) -> AddressBook {
        AddressBook::new(self.coordinators().to_vec(), self.pins().to_vec())
    }

    /// Says whether another attempt may end better: another token may lie there, the coordinator may have newer keys.
    fn may_heal(&self, error: &ChannelError) -> bool {
        let temporary = match error {
            ChannelError::Refused(body) => matches!(body.error, ErrorCode::Token | ErrorCode::Busy),
            ChannelError::Pin(_) | ChannelError::Fenced | ChannelError::WentBack(_) => false,
            ChannelError::Resolve { .. }
            | ChannelError::Connect { .. }
            | ChannelError::Timeout(_)
            | ChannelError::Tls { .. }
            | ChannelError::Broken(_)
            | ChannelError::Ended
            | ChannelError::Leaving
            | ChannelError::Renewed
            | ChannelError::Moved(_)
            | ChannelError::Retired(_)
            | ChannelError::Silent
            | ChannelError::Malformed(_) => true,
        };
        temporary && matches!(self, Self::Oidc { .. })
    }
}

/// Joins the credential's mesh, as a node that vanishes 10 minutes after its last contact if it is ephemeral.
/// Idempotent for the same mesh. Coordinators that do not answer are tried for 25 s; `attempts` tells meanwhile how that
/// goes.
///
/// # Errors
/// `JoinError` that says what is wrong and what to do.
pub async fn join(
    config: &Config,
    credential: &Credential,
    ephemeral: bool,
    attempts: &Attempts,
) -> Result<Joined, JoinError> {
    let state = State::open(&config.state_dir)?;
    if let Some(enrolment) = state.enrolment()? {
        if enrolment.pins.iter().any(|pin| credential.pins().contains(pin)) {
            return Ok(Joined { enrolment, before: true, warnings: Vec::new() });
        }
        return Err(JoinError::Elsewhere { mesh: enrolment.mesh, node: enrolment.node });
    }
    let (serve, mut warnings) = services_file::read_to_join(&config.services, &state).map_err(JoinError::Services)?;
    let host = linux::host_facts().await?;
    let asking = Asking { config, credential, ephemeral, state: &state, host: &host, serve: &serve, attempts };
    let admitted = timeout(PATIENCE, asking.until_answered()).await;
    let (response, address) = admitted.map_err(|_| JoinError::Unreached(attempts.sentences()))??;
    if let Some(collision) = host.collision(response.range) {
        return Err(JoinError::Collision(collision));
    }
    let mut enrolment = Enrolment::new(&response);
    // The coordinator may name only addresses that are wrong.
    enrolment.worked.push(address);
    if enrolment.coordinators.is_empty() {
        enrolment.coordinators = credential.coordinators().to_vec();
    }
    if enrolment.pins.is_empty() {
        enrolment.pins = credential.pins().to_vec();
    }
    let shape = shape(config, &enrolment, facts::mtu(config, &host.underlay));
    if let Some(sentence) = linux::rival(&shape).await? {
        return Err(KernelError::Taken(sentence).into());
    }
    match linux::close_range(&shape).await {
        Ok(guards) => warnings.extend(guards.missing),
        Err(error) => warnings.push(format!(
            "the mesh range {} is not closed yet, so packets to it may leave in clear until `meshd run`: {error}",
            enrolment.range
        )),
    }
    warnings.extend(response.refused.iter().cloned());
    warnings.extend(waits(&response, NodeKeys::load_or_make(&state)?.identity()));
    control::map_guard::begin(&state, &response.netmap)?;
    state.save_netmap(&response.netmap)?;
    if config.keys.preshared {
        psk_rollout::joined(&state);
    }
    // The enrolment goes last: a waiting daemon starts when it appears.
    state.save_enrolment(&enrolment)?;
    Ok(Joined { enrolment, before: false, warnings })
}

/// Asks the coordinators of the mesh that a node belongs to whether they disown it, and returns their sentence. Only one
/// whose key the node holds to is believed, and only of the identity that the node proves; who does not answer says
/// nothing.
///
/// # Errors
/// `StateError` if the node's identity is lost, or cannot be read.
pub async fn disowned(
    config: &Config,
    credential: &Credential,
    enrolment: &Enrolment,
) -> Result<Option<String>, StateError> {
    let keys = NodeKeys::load(&State::open(&config.state_dir)?)?;
    let mut book = AddressBook::of(enrolment);
    book.take_token(credential.coordinators());
    let dial = Dial::new(book, watch::Sender::new(Arc::new(keys)).subscribe());
    let asked = timeout(QUESTION, control::disowned(&dial, &enrolment.node)).await;
    Ok(asked.unwrap_or_default())
}

/// Says that nobody is told of this node yet, if the mesh is locked.
fn waits(response: &JoinResponse, own: IdentityKey) -> Option<String> {
    response.netmap.mesh.lock.as_ref().and_then(|lock| lock.key)?;
    Some(format!(
        "the mesh is locked, and no other node is told of this one before it is signed for; run `meshd lock sign {} --identity {own}` on a node where the lock's key lies",
        response.node
    ))
}

/// What the coordinators are asked with.
struct Asking<'a> {
    config: &'a Config,
    credential: &'a Credential,
    ephemeral: bool,
    state: &'a State,
    host: &'a HostFacts,
    serve: &'a [ServeSpec],
    attempts: &'a Attempts,
}

impl Asking<'_> {
    /// Asks until a coordinator says yes or no; for ever, where none is reached.
    async fn until_answered(&self) -> Result<(JoinResponse, String), JoinError> {
        let mut attempt = 1;
        loop {
            match self.ask(NodeKeys::load_or_make(self.state)?).await {
                // The mesh expelled the identity, and whoever gave this token wants the machine back: as somebody new.
                Err(JoinError::Link(ChannelError::Refused(body))) if body.error == ErrorCode::Revoked => {
                    return self.ask(NodeKeys::renew(self.state)?).await;
                }
                Err(JoinError::Link(error)) if error.is_unreached() => sleep(AGAIN).await,
                Err(JoinError::Link(error)) if attempt < ATTEMPTS && self.credential.may_heal(&error) => {
                    tracing::debug!(%error, attempt, "not joined yet");
                    sleep(PAUSE).await;
                    attempt += 1;
                }
                answer => return answer,
            }
        }
    }

    /// Asks the credential's coordinators once to let this node in, as the owner of some keys.
    async fn ask(&self, keys: NodeKeys) -> Result<(JoinResponse, String), JoinError> {
        let Self { config, credential, ephemeral, state, host, serve, attempts } = *self;
        let lanes = keys.lanes(config.lanes);
        let facts = facts::gather(config, &lanes, &host.underlay, serve, config.pods.is_empty());
        let (token, secret, oidc) = match credential {
            Credential::Token(token) => (token.id_text(), token.secret.clone(), None),
            Credential::Oidc { file, .. } => {
                let text = token_file::read(&file.display().to_string(), || File::open(file))?;
                (String::new(), TokenSecret([0; 32]), Some(OidcToken(text.trim().to_owned())))
            }
        };
        let mut author = Author::new(state);
        let mut request = JoinRequest {
            version: VERSION,
            token,
            secret,
            oidc,
            name: config.name.clone(),
            facts: author.sealed(&keys, facts.clone(), 0),
            ephemeral,
        };
        let own = Arc::new(keys);
        let keys = watch::Sender::new(Arc::clone(&own)).subscribe();
        let dial = Dial { attempts: attempts.clone(), ..Dial::new(credential.book(), keys) };
        let answer = control::join(&dial, &request).await;
        let stored = match &answer {
            Err(ChannelError::Refused(body)) => body.record.as_deref(),
            Ok(_) | Err(_) => None,
        };
        // This machine was brought back from a snapshot, and forgot what it signed since.
        let Some(number) = stored.and_then(|record| self_record::number_by(record, &own.identity())) else {
            return Ok(answer?);
        };
        request.facts = author.sealed(&own, facts, number.saturating_add(1));
        Ok(control::join(&dial, &request).await?)
    }
}

/// Returns what the kernel is to carry for an enrolment.
pub fn shape(config: &Config, enrolment: &Enrolment, mtu: u16) -> Shape {
    Shape {
        interface: config.interface.clone(),
        range: enrolment.range,
        address: enrolment.address,
        mtu,
        pod_interfaces: config.pod_interfaces.clone(),
        // Nobody else decides what lies behind this node.
        pods: enrolment.blocks.iter().map(|block| block.real).filter(|real| config.pods.contains(real)).collect(),
        home: home(config),
    }
}

/// Returns what is to be closed for an enrolment, where there is no interface yet whose MTU would matter.
pub(crate) fn shape_to_close(config: &Config, enrolment: &Enrolment) -> Shape {
    shape(config, enrolment, 1420)
}

/// Returns where a configuration keeps its files, as every process calls them.
pub(crate) fn home(config: &Config) -> Home {
    let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    Home {
        state_dir: absolute(&config.state_dir),
        runtime_dir: absolute(&config.runtime_dir),
        socket: absolute(&config.socket),
    }
}

/// Notes where the coordinators are, as another token of the node's mesh says, for a daemon that does not run.
///
/// # Errors
/// `JoinError` if a daemon has the state directory, or it cannot be written.
pub fn remember(config: &Config, credential: &Credential) -> Result<(), JoinError> {
    let state = State::open(&config.state_dir)?;
    let with_token = |state: &State| -> Result<Option<Enrolment>, JoinError> {
        let Some(before) = state.enrolment()? else { return Ok(None) };
        let mut book = AddressBook::of(&before);
        book.take_token(credential.coordinators());
        let mut after = before.clone();
        book.keep_in(&mut after);
        Ok((after != before).then_some(after))
    };
    // Where nothing is new, nothing has to be writable: a pod joins at each of its starts.
    if with_token(&state)?.is_none() {
        return Ok(());
    }
    let _lock = state.lock()?;
    match with_token(&state)? {
        Some(enrolment) => Ok(state.save_enrolment(&enrolment)?),
        None => Ok(()),
    }
}

/// Says in one line that a node belongs to a mesh, as which one.
pub fn sentence(joined: &Joined) -> String {
    let Enrolment { mesh, node, site, address, .. } = &joined.enrolment;
    let begun = if joined.before { "already joined" } else { "joined" };
    format!("{begun} mesh {mesh} as {node} (site {site}), {address}")
}

/// Returns the range that must be closed at boot, from the stored enrolment.
///
/// # Errors
/// `StateError` if the enrolment cannot be read.
pub fn stored_range(config: &Config) -> Result<Option<(MeshRange, Shape)>, StateError> {
    if !config.state_dir.exists() {
        return Ok(None);
    }
    let enrolment = State::open(&config.state_dir)?.enrolment()?;
    Ok(enrolment.map(|e| (e.range, shape_to_close(config, &e))))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            coordinators: vec!["192.0.2.1:7700".into()],
            pins: vec![IdentityKey([3; 32])],
            id: [9; 8],
            secret: TokenSecret([5; 32]),
        }
    }

    #[test]
    fn a_daemon_that_does_not_run_finds_the_addresses_of_another_token() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { state_dir: dir.path().join("s"), ..Config::default() };
        let state = State::open(&config.state_dir).unwrap();
        let before = Enrolment {
            coordinators: vec!["198.51.100.1:7700".into()],
            worked: vec!["203.0.113.1:7700".into()],
            ..crate::base::state_dir::tests::enrolment()
        };
        state.save_enrolment(&before).unwrap();

        remember(&config, &Credential::Token(token())).unwrap();
        let after = state.enrolment().unwrap().unwrap();
        assert_eq!(AddressBook::of(&after).candidates(0), ["192.0.2.1:7700", "198.51.100.1:7700", "203.0.113.1:7700"]);
        assert_eq!(after.pins, before.pins, "a token adds no keys");

        let _running = state.lock().unwrap();
        // Nothing is new, so that nothing is written: as at each start of a pod, also on a disk that takes nothing.
        remember(&config, &Credential::Token(token())).unwrap();
        let moved = JoinToken { coordinators: vec!["192.0.2.9:7700".into()], ..token() };
        let refused = remember(&config, &Credential::Token(moved)).unwrap_err();
        assert!(matches!(refused, JoinError::State(StateError::Locked { .. })), "{refused}");
    }

    #[test]
    fn a_token_is_read_from_a_file_or_the_line_itself() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, format!("{}\n", token().to_line())).unwrap();
        assert_eq!(read_token(None, Some(&path)).unwrap(), token());
        assert_eq!(read_token(Some(&token().to_line()), None).unwrap(), token());

        let error = read_token(Some("nonsense"), None).unwrap_err().to_string();
        assert!(error.contains("not a join token") && !error.contains("nonsense"), "{error}");
        let error = read_token(None, Some(&dir.path().join("none"))).unwrap_err();
        assert!(error.to_string().contains("cannot read the token from"), "{error}");
    }
}
