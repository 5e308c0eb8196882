//! What every verb does: ask the daemon or do it here, print, and end with the right exit code.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use clap::{CommandFactory, Parser};
use hyper::Method;
use mesh_host::client::{AskError, Client};
use mesh_host::identity::hide_memory;
use mesh_host::log::{LostLines, ProcessLog};
use mesh_host::output::{OutputError, printed};
use mesh_proto::ops::status as doc;
use mesh_proto::wire::query::with_query;

use crate::base::runtime;
use crate::base::starts::Starts;
use crate::base::text::SOCKET;
use crate::cli::args::{Cli, ConfigArg, Output, Verb};
use crate::cli::error::CommandError;
use crate::cli::output::{Asker, finish, load, load_running, print, print_json, socket};
use crate::cli::rejoin::rejoin;
use crate::cli::{check, cleanup, fix, hidden_token, joining, leaving, network_lock, render};
use crate::config::accepted::Loaded;
use crate::config::{CONFIG, Config};
use crate::dataplane::bench;
use crate::linux::{self, KernelError};
use crate::node::error::DaemonError;
use crate::node::identity_rotation;
use crate::node::join::{self, Credential};

const FAILED: u8 = 1;
const USAGE: u8 = 2;
const DEGRADED: u8 = 3;
const NOT_RUNNING: u8 = 4;
/// What the node trusts, or is trusted by, is lost: nothing that a restart would cure (EX_CONFIG of sysexits.h).
const NO_TRUST: u8 = 78;
const DENIED: u8 = 5;

/// How long a daemon may take for what is done at once.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the process waits for threads that are still at work when all is done.
const STRAGGLERS: Duration = Duration::from_secs(1);

/// What is logged unless MESHD_LOG says so: what an operator cares about.
const LOGGED: &str = "info,hickory_server=warn,hickory_net=warn,hickory_proto=warn,boringtun=error";

/// Runs the command line of this process to its end; `daemon` runs the daemon.
pub fn main(daemon: impl AsyncFnOnce(Loaded, LostLines) -> Result<(), DaemonError>) -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(said) => return concluded(helped(&said), None),
    };
    if let Verb::Join { token: Some(token), .. } = &cli.verb {
        hidden_token::hide(token);
    }
    if let Err(error) = hide_memory() {
        return concluded(Err(CommandError::Runtime(error)), None);
    }
    if !matches!(cli.verb, Verb::Run(_)) {
        return concluded(execute(cli, LostLines::default(), daemon), None);
    }
    match ProcessLog::start("MESHD_LOG", LOGGED) {
        Ok(log) => concluded(execute(cli, log.lost(), daemon), Some(&log)),
        Err(error) => concluded(Err(CommandError::Runtime(error)), None),
    }
}

/// Prints what clap says: help, or what is wrong with the command line.
fn helped(said: &clap::Error) -> Result<u8, CommandError> {
    let written = said.print().and_then(|()| io::stdout().flush());
    if !said.use_stderr() {
        printed(written)?;
    }
    Ok(u8::try_from(said.exit_code()).unwrap_or(USAGE))
}

/// Says what went wrong, where a daemon logs, else on standard error, and returns the exit code.
fn concluded(done: Result<u8, CommandError>, log: Option<&ProcessLog>) -> ExitCode {
    let code = done.unwrap_or_else(|error| {
        let sentence = format!("meshd: {error}");
        match log {
            Some(log) => log.last_words(&sentence),
            // The exit code says it, too.
            None => drop(writeln!(io::stderr(), "{sentence}")),
        }
        exit_code(&error)
    });
    ExitCode::from(code)
}

fn exit_code(error: &CommandError) -> u8 {
    if matches!(error, CommandError::Client(AskError::NotRunning(_) | AskError::Ended(_))) {
        NOT_RUNNING
    } else if matches!(error, CommandError::Config(_)) {
        USAGE
    } else if matches!(error, CommandError::Daemon(DaemonError::Trust(_) | DaemonError::Copied(_))) {
        NO_TRUST
    } else {
        FAILED
    }
}

fn execute(
    cli: Cli,
    lost: LostLines,
    daemon: impl AsyncFnOnce(Loaded, LostLines) -> Result<(), DaemonError>,
) -> Result<u8, CommandError> {
    let runtime = if matches!(cli.verb, Verb::Run(_)) {
        runtime::control()
    } else {
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build()
    };
    let runtime = runtime.map_err(CommandError::Runtime)?;
    let done = runtime.block_on(verb(cli, lost, daemon));
    // A thread that asks the host's resolver cannot be called back, and would keep the process for as long as that takes.
    runtime.shutdown_timeout(STRAGGLERS);
    done
}

async fn verb(
    cli: Cli,
    lost: LostLines,
    daemon: impl AsyncFnOnce(Loaded, LostLines) -> Result<(), DaemonError>,
) -> Result<u8, CommandError> {
    let json = cli.output == Output::Json;
    let ask = Asker { client: Client::new(&SOCKET, socket(cli.socket.as_deref(), Path::new(CONFIG))), json };
    match cli.verb {
        Verb::Run(config) => {
            run(&config, cli.socket, lost, daemon).await?;
            Ok(0)
        }
        Verb::Join { token, token_file, oidc_token_file, coordinator, pin, ephemeral, config } => {
            let credential = match oidc_token_file {
                Some(file) => Credential::Oidc { file, coordinators: coordinator, pins: pin },
                None => Credential::Token(join::read_token(token.as_deref(), token_file.as_deref())?),
            };
            let config = load(&config, cli.socket)?;
            let joined = joining::join(&config, &credential, ephemeral).await?;
            let mut done = match joined.before {
                true => rejoin(&config, &credential, &joined).await?,
                false => vec![format!("{}; next: meshd run (or systemctl start meshd)", join::sentence(&joined))],
            };
            done.extend(joined.warnings.iter().map(|w| format!("warning: {w}")));
            finish(json, done)?;
            Ok(0)
        }
        Verb::Leave(config) => leaving::leave(&load(&config, cli.socket)?, json).await,
        Verb::Status => {
            let status = ask.show("/v1/status", render::status).await;
            let status: doc::Status = status.map_err(|error| why_not_running(error, cli.socket.as_deref()))?;
            let fine = status.state == doc::Health::Ok;
            Ok(if fine { 0 } else { DEGRADED })
        }
        Verb::Peers => {
            let shown = |d: &doc::PeersStatus| render::peers(&d.peers);
            ask.show("/v1/peers", shown).await.map(|_| 0)
        }
        Verb::Services { name } => {
            let words: Vec<_> = name.iter().map(|name| ("name", &**name)).collect();
            let shown = |d: &doc::ServicesStatus| render::services(&d.services);
            ask.show(&with_query("/v1/services", &words), shown).await.map(|_| 0)
        }
        Verb::Resolve { name } => {
            let shown = |d: &doc::Resolve| {
                let addresses: Vec<_> = d.addresses.iter().map(ToString::to_string).collect();
                format!("{} is the {} {}", addresses.join(" "), d.kind, d.full_name)
            };
            ask.show(&with_query("/v1/resolve", &[("name", &name)]), shown).await.map(|_| 0)
        }
        Verb::Ping { node } => ping(&ask, &node).await,
        Verb::Bench { node, seconds } => measure(&ask, &node, seconds).await,
        Verb::Why { src, dst, udp } => {
            let words = [("src", &*src), ("dst", &*dst), ("udp", "1")];
            let path = with_query("/v1/why", if udp { &words } else { &words[..2] });
            let why: doc::Why = ask.show(&path, render::why).await?;
            Ok(match (why.allowed, why.verdict.as_str()) {
                (true, _) => 0,
                (false, "denied") => DENIED,
                (false, _) => FAILED,
            })
        }
        Verb::Check { fix, yes, config } => {
            check::check(&config, cli.socket, fix.then(|| fix::Consent::of(yes)), json).await
        }
        Verb::Flows => {
            let shown = |d: &doc::Flows| render::flows(&d.flows);
            ask.show("/v1/flows", shown).await.map(|_| 0)
        }
        Verb::Metrics => {
            let bytes = ask.client.bytes(Method::GET, "/v1/metrics", Vec::new()).await?;
            print(String::from_utf8_lossy(&bytes).trim_end())?;
            Ok(0)
        }
        Verb::Reload => {
            let done: doc::Done = ask.client.post("/v1/reload").await?;
            finish(json, done.done)?;
            Ok(0)
        }
        Verb::Rotate { identity } => {
            let (path, patience) = match identity {
                true => (with_query("/v1/rotate", &[("identity", "1")]), identity_rotation::PATIENCE + PATIENCE),
                false => ("/v1/rotate".to_owned(), PATIENCE),
            };
            let done: doc::Done = ask.client.within(patience).post(&path).await?;
            finish(json, done.done)?;
            Ok(0)
        }
        Verb::Lock(words) => network_lock::perform(&ask, words, cli.socket).await,
        Verb::Cleanup(args) => {
            let by_kernel = args.all || args.range.is_some();
            cleanup::perform(&load_running(&args.config, cli.socket, by_kernel)?, &args, json).await
        }
        // The range is to be closed at boot also if meshd.toml is broken.
        Verb::Guard(config) => guard(Loaded::read(&config.config)?, json).await,
        Verb::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "meshd", &mut script);
            print(String::from_utf8_lossy(&script).trim_end())?;
            Ok(0)
        }
    }
}

/// Runs the daemon. How it ends is kept for `meshd status`, which cannot ask a daemon that does not stay up.
async fn run(
    arg: &ConfigArg,
    socket: Option<PathBuf>,
    lost: LostLines,
    daemon: impl AsyncFnOnce(Loaded, LostLines) -> Result<(), DaemonError>,
) -> Result<(), CommandError> {
    let mut starts = Starts::file(&Config::lenient(&arg.config).runtime_dir);
    let ended = match Loaded::read(&arg.config) {
        Ok(mut loaded) => {
            loaded.config.socket = socket.unwrap_or(loaded.config.socket);
            starts = Starts::file(&loaded.config.runtime_dir);
            Starts::begin(&starts, SystemTime::now());
            daemon(loaded, lost).await.map_err(CommandError::from)
        }
        Err(error) => {
            Starts::begin(&starts, SystemTime::now());
            Err(error.into())
        }
    };
    match &ended {
        Ok(()) => Starts::forget(&starts),
        Err(error) => Starts::ended(&starts, &error.to_string(), SystemTime::now()),
    }
    ended
}

/// Adds why the daemon does not stay up to the word that it does not run.
fn why_not_running(error: CommandError, given: Option<&Path>) -> CommandError {
    let CommandError::Client(AskError::NotRunning(sentence) | AskError::Ended(sentence)) = &error else { return error };
    let socket = socket(given, Path::new(CONFIG));
    let beside = socket.parent().unwrap_or_else(|| Path::new("/"));
    let config = Config::lenient(Path::new(CONFIG));
    let dirs = if given.is_some() { vec![beside] } else { vec![config.runtime_dir.as_path(), beside] };
    let cause = dirs.into_iter().find_map(|dir| Starts::sentence(&Starts::file(dir), SystemTime::now()));
    match cause {
        Some(cause) => CommandError::Client(AskError::NotRunning(format!("{sentence}\n{cause}"))),
        None => error,
    }
}

/// Measures the round trip to a node, by whichever of its names it is called.
async fn ping(ask: &Asker, node: &str) -> Result<u8, CommandError> {
    let word = node.strip_prefix("host:").unwrap_or(node);
    let called = |p: &doc::PeerStatus| p.name.as_str() == word || p.address.to_string() == word;
    let asked = Instant::now();
    let mut before = None;
    loop {
        let peers: doc::PeersStatus = ask.client.get("/v1/peers").await?;
        let found = peers.peers.into_iter().find(called);
        let peer = found.ok_or_else(|| CommandError::NoPeer(word.into()))?;
        match before {
            None => {
                before = Some(peer.rtt_count);
                let path = with_query("/v1/probe", &[("node", peer.name.as_str())]);
                let _: doc::Done = ask.client.post(&path).await?;
            }
            Some(count) if peer.rtt_count > count => {
                show_ping(&peer, ask.json)?;
                return Ok(0);
            }
            Some(_) if asked.elapsed() > PATIENCE => return Err(CommandError::NoAnswer(word.into())),
            Some(_) => {}
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Measures the way to a node.
async fn measure(ask: &Asker, node: &str, seconds: u8) -> Result<u8, CommandError> {
    if io::stderr().is_terminal() {
        let most = bench::usual(seconds).as_secs();
        let _ = writeln!(io::stderr(), "measuring for some {most} s; Ctrl-C ends it");
    }
    let path = with_query("/v1/bench", &[("node", node), ("seconds", &seconds.to_string())]);
    let patience = bench::longest(seconds) + PATIENCE;
    let measured: doc::Bench = ask.client.within(patience).post(&path).await?;
    if ask.json {
        print_json(&measured)?;
    } else {
        print(&render::bench(&measured))?;
    }
    Ok(0)
}

fn show_ping(peer: &doc::PeerStatus, json: bool) -> Result<(), OutputError> {
    if json {
        return print_json(peer);
    }
    let endpoint = peer.endpoint.map_or_else(String::new, |e| format!(" by {e}"));
    let rtt = peer.rtt_ms.unwrap_or_default();
    print(&format!("{} ({}){endpoint}: {rtt:.2} ms through the tunnel", peer.name, peer.address))
}

async fn guard(loaded: Loaded, json: bool) -> Result<u8, CommandError> {
    let Some((range, shape)) = join::stored_range(&loaded.config)? else {
        finish(json, vec!["not joined: nothing to close".into()])?;
        return Ok(0);
    };
    if let Some(sentence) = linux::rival(&shape).await? {
        return Err(KernelError::Taken(sentence).into());
    }
    let guards = linux::close_range(&shape).await?;
    let mut done = vec![format!("closed {range}")];
    done.extend(guards.missing.iter().chain(&loaded.settings.error).map(|w| format!("warning: {w}")));
    finish(json, done)?;
    Ok(0)
}
