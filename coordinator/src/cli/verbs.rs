//! The verbs: what each asks, prints and exits with.

use std::fmt::Display;
use std::path::Path;

use clap::CommandFactory as _;
use hyper::Method;
use mesh_host::client::AskError;
use mesh_host::files::read_text;
use mesh_host::table::count;
use mesh_proto::services;

use crate::base::blocking::blocking;
use crate::cli::args::{Cli, Output, TokenVerb, TrustVerb, Verb};
use crate::cli::outcome::{DEGRADED, FAILED, Outcome, client, done, json, printed, show};
use crate::cli::services_file::{self, unreadable};
use crate::cli::{backup, init, log, network_lock, render, restore};
use crate::core::documents;

/// Does what a command line says, apart from `run`.
pub async fn perform(cli: &Cli) -> Outcome {
    let done = match &cli.verb {
        Verb::Run { .. } => Ok(Outcome::default()),
        Verb::Init(words) => Ok(said(init::init(words))),
        Verb::Check { file } => Ok(check(file, cli.output)),
        Verb::Completion { shell } => Ok(completion(*shell)),
        Verb::Status => status(cli).await,
        Verb::Nodes => show(cli, "/v1/nodes", render::nodes).await,
        Verb::Services => show(cli, "/v1/services", render::services).await,
        Verb::Token(token) => self::token(cli, token).await,
        Verb::Trust(TrustVerb::List) => show(cli, "/v1/trust", render::trusts).await,
        Verb::Trust(TrustVerb::Push { name, file }) => match read_text(file) {
            Ok(jwks) => done(cli, Method::POST, &format!("/v1/trust/{name}"), Some(&documents::NewKeys { jwks })).await,
            Err(error) => {
                let message = format!("cannot read {}: {error}; name the issuer's JWKS document", file.display());
                Ok(Outcome::failed(&message))
            }
        },
        Verb::Plan { file } => services_file::plan(cli, file).await,
        Verb::Apply { file } => services_file::apply(cli, file).await,
        Verb::Reload { config } => services_file::reload(cli, config.as_deref()).await,
        Verb::Revoke { node } => done(cli, Method::DELETE, &format!("/v1/nodes/{node}"), None::<&()>).await,
        Verb::Restore { file, config } => {
            let (config, file) = (config.clone(), file.clone());
            // On a thread of its own, because etcd is waited for.
            Ok(said(blocking(move || restore::restore(&config, file.as_deref())).await))
        }
        Verb::Export => client(cli).get::<serde_json::Value>("/v1/export").await.map(|all| Outcome::ok(json(&all))),
        Verb::Forget { key } => done(cli, Method::DELETE, &format!("/v1/coordinators/{key}"), None::<&()>).await,
        Verb::Log { since, node } => {
            let log = log::read(&client(cli), *since, node.as_ref()).await;
            log.map(|log| Outcome::ok(printed(cli.output, &log, log::render)))
        }
        &Verb::RotateKey { commit, force } => {
            done(cli, Method::POST, "/v1/rotate-key", Some(&documents::RotateKey { commit, force })).await
        }
        Verb::Lock(words) => network_lock::perform(cli, words).await,
        Verb::Backup { file, force } => backup::backup(cli, file, *force).await,
    };
    done.unwrap_or_else(Outcome::from)
}

fn said<E: Display>(done: Result<Vec<String>, E>) -> Outcome {
    match done {
        Ok(lines) => Outcome::ok(lines.join("\n") + "\n"),
        Err(error) => Outcome::failed(&error.to_string()),
    }
}

async fn status(cli: &Cli) -> Result<Outcome, AskError> {
    let status: documents::StatusDocument = client(cli).get("/v1/status").await?;
    let in_order = [documents::FileState::Accepted, documents::FileState::Superseded];
    let degraded = !in_order.contains(&status.services.state) || status.store_error.is_some();
    Ok(Outcome {
        out: printed(cli.output, &status, render::status),
        code: if degraded { DEGRADED } else { 0 },
        ..Outcome::default()
    })
}

async fn token(cli: &Cli, token: &TokenVerb) -> Result<Outcome, AskError> {
    match token {
        TokenVerb::List => show(cli, "/v1/tokens", render::tokens).await,
        TokenVerb::Revoke { id } => {
            // An id is hexadecimal digits; anything else could be another path.
            if id.is_empty() || !id.bytes().all(|b| b.is_ascii_hexdigit()) {
                let message = format!("`{id}` is no token; see mesh-coordinator token list");
                return Ok(Outcome::failed(&message));
            }
            done(cli, Method::DELETE, &format!("/v1/tokens/{id}"), None::<&()>).await
        }
        TokenVerb::Create { site, name, ttl, serve, uses, ephemeral } => {
            let wanted = documents::NewToken {
                site: site.clone(),
                name: name.clone(),
                ttl_s: ttl.as_secs(),
                serve: serve.clone(),
                uses: *uses,
                ephemeral: *ephemeral,
            };
            let line: documents::TokenLine = client(cli).ask(Method::POST, "/v1/tokens", Some(&wanted)).await?;
            let table = |line: &documents::TokenLine| format!("{}\n", line.token);
            let err = line.warnings.iter().map(|warning| format!("warning: {warning}\n")).collect();
            Ok(Outcome { out: printed(cli.output, &line, table), err, ..Outcome::default() })
        }
    }
}

fn check(file: &Path, output: Output) -> Outcome {
    let text = match read_text(file) {
        Ok(text) => text,
        Err(error) => return unreadable(file, &error),
    };
    let name = file.display().to_string();
    let (good, found) = match services::parse(&text, &name) {
        Ok(parsed) => {
            let words = summary(&parsed.services);
            (Some(words), services::Diagnostics::new(&name, &text, parsed.warnings))
        }
        Err(found) => (None, found),
    };
    let code = if good.is_some() { 0 } else { FAILED };
    match output {
        Output::Json => Outcome { out: json(&found.to_json()), code, ..Outcome::default() },
        Output::Table => Outcome {
            out: good.map(|words| format!("{name}: good, {words}\n")).unwrap_or_default(),
            err: if found.list.is_empty() { String::new() } else { found.render(false) + "\n" },
            code,
        },
    }
}

fn summary(services: &services::Services) -> String {
    let counts = [
        (services.sites.len(), "site"),
        (services.services.len(), "service"),
        (services.allows.len(), "rule"),
        (services.tests.len(), "test"),
    ];
    counts.map(|(number, what)| count(number, what)).join(", ")
}

fn completion(shell: clap_complete::Shell) -> Outcome {
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "mesh-coordinator", &mut out);
    Outcome::ok(String::from_utf8_lossy(&out))
}
