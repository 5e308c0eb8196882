//! Documents of `api` as tables for people.

use std::fmt::Write as _;

use comfy_table::Table;
use mesh_host::table::{age, count, drawn, table};
use mesh_proto::base::id::{NodeName, ServiceKey};
use mesh_proto::model::netmap::ServicePort;

use crate::core::documents::{
    FileState, IssuersDocument, Nodes, PlanDocument, ServicesDocument, StatusDocument, TokensDocument,
};

/// Most nodes that are named in one line.
const SHOWN: usize = 5;

/// Writes how the mesh is.
pub fn status(status: &StatusDocument) -> String {
    let live = status.live;
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(out, "{name:<14}{value}");
    };
    line("mesh", &format!("{} ({})", status.mesh, status.range));
    line(
        "revision",
        &format!(
            "revision {} live on {}/{} nodes, {} connected{}{}",
            status.revision,
            live.current,
            live.nodes,
            live.connected,
            if status.coordinators.len() > 1 { " to this coordinator" } else { "" },
            if live.gone > 0 { format!(", {} gone", live.gone) } else { String::new() }
        ),
    );
    if !status.behind.is_empty() {
        line("behind", &behind(status));
    }
    if let Some(key) = &status.lock {
        let waiting = match &*status.waiting {
            [] => "nobody waits for its signature".to_owned(),
            [first, ..] => {
                format!("{} for its signature: run `meshd lock sign {first}` where it lies", wait(&status.waiting))
            }
        };
        line("lock", &format!("{key}; {waiting}"));
    }
    let file = &status.services;
    let path = file.path.display();
    let since = age(file.age_s, 2);
    let state = match file.state {
        FileState::Accepted => format!("{path}: in force, taken {since} ago"),
        FileState::Rejected => {
            format!(
                "{path}: refused {since} ago, {}; the last accepted text stays in force",
                count(file.errors.len(), "error")
            )
        }
        FileState::Unreadable => {
            format!("{path}: unreadable, noticed {since} ago; the last accepted text stays in force")
        }
        FileState::Superseded => {
            format!(
                "{path}: not in force, for another coordinator took its own later; save this one to put it in force"
            )
        }
        FileState::Unread => format!("{path}: not read yet"),
    };
    line("services.toml", &state);
    let listen: Vec<_> = status.listen.iter().map(ToString::to_string).collect();
    line("listen", &listen.join(", "));
    line("public", &status.public.join(", "));
    line("key", &status.key.to_string());
    let store = status.store.display();
    let shared = if status.shared { ", shared with other coordinators" } else { "" };
    match &status.store_error {
        None => line("store", &format!("{store}: answers{shared}")),
        Some(_) => line("store", &format!("{store}: does not answer; nodes keep what they have{shared}")),
    }
    for other in status.coordinators.iter().filter(|other| !other.here) {
        let state = if other.answers == Some(true) { "can be reached" } else { "CANNOT BE REACHED from here" };
        line("coordinator", &format!("{} at {}, {}, {state}", other.key, other.addresses.join(", "), other.software));
    }
    line("uptime", &age(status.uptime_s, 2));
    line("software", &status.software);
    for error in &file.errors {
        let _ = writeln!(out, "error: {error}");
    }
    for warning in file.warnings.iter().chain(&status.idle).chain(&status.warnings) {
        let _ = writeln!(out, "warning: {warning}");
    }
    out
}

/// Names the nodes that wait.
fn wait(waiting: &[NodeName]) -> String {
    let told: Vec<_> = waiting.iter().take(SHOWN).map(NodeName::as_str).collect();
    match waiting.len().saturating_sub(told.len()) {
        0 => format!("{} waiting", told.join(", ")),
        more => format!("{} and {more} more waiting", told.join(", ")),
    }
}

/// Names the nodes that have not the present revision in force.
fn behind(status: &StatusDocument) -> String {
    let told = status.behind.iter().take(SHOWN).map(|behind| match (behind.connected, behind.applied) {
        (true, Some(applied)) => format!("{} (at {applied})", behind.node),
        (true, None) => format!("{} (has not reported)", behind.node),
        (false, _) => format!("{} (not connected)", behind.node),
    });
    let told: Vec<_> = told.collect();
    let all = status.live.nodes.saturating_sub(status.live.current);
    let more = match all.saturating_sub(told.len()) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{}{more}", told.join(", "))
}

/// Writes the nodes.
pub fn nodes(nodes: &Nodes) -> String {
    let mut table = table(&["NODE", "SITE", "ADDRESS", "STATE", "REVISION", "ENDPOINT", "BLOCKS", "SOFTWARE"], &[]);
    for node in &nodes.nodes {
        let state = match node.last_seen_s {
            _ if node.waits => "waits for a signature".into(),
            _ if node.r#static => "static".into(),
            _ if node.connected => "connected".into(),
            Some(seconds) => format!("gone {}", age(seconds, 2)),
            None => "not seen yet".into(),
        };
        let blocks = node.blocks.iter().map(|block| format!("{} = {}", block.real, block.flat));
        table.add_row([
            node.name.to_string(),
            node.site.to_string(),
            node.address.to_string(),
            state,
            node.applied.map_or_else(|| "-".into(), |revision| revision.to_string()),
            node.endpoints.first().map_or_else(|| "-".into(), ToString::to_string),
            blocks.collect::<Vec<_>>().join("\n"),
            node.software.clone(),
        ]);
    }
    let mut out = shown(
        &table,
        nodes.nodes.len(),
        "no nodes have joined; make a token with `mesh-coordinator token create --site SITE`",
    );
    for node in &nodes.nodes {
        for warning in &node.warnings {
            let _ = writeln!(out, "warning: {}: {warning}", node.name);
        }
    }
    out
}

/// Writes the services, a row for each backend.
pub fn services(services: &ServicesDocument) -> String {
    let mut table = table(&["SERVICE", "VIP", "PORTS", "BACKEND", "ADDRESS", "WEIGHT", "STATE"], &[]);
    for service in &services.services {
        let key = ServiceKey::new(service.name.clone(), service.namespace.clone());
        let ports: Vec<_> = service.ports.iter().map(port).collect();
        let head = [key.to_string(), service.vip.to_string(), ports.join(" ")];
        let mut heads = std::iter::once(head.to_vec()).chain(std::iter::repeat(vec![String::new(); 3]));
        for backend in &service.backends {
            let mut row = heads.next().unwrap_or_default();
            row.push(backend.node.to_string());
            row.push(backend.address.map_or_else(|| "-".into(), |address| address.to_string()));
            row.push(backend.weight.to_string());
            row.push(match (backend.live, backend.gone) {
                (true, _) => "live".into(),
                (false, true) => "gone".into(),
                (false, false) => "not joined".into(),
            });
            table.add_row(row);
        }
        if service.backends.is_empty() {
            let mut row = heads.next().unwrap_or_default();
            row.push("none".into());
            table.add_row(row);
        }
    }
    shown(&table, services.services.len(), "services.toml names no services")
}

/// Writes the issuers that are trusted.
pub fn trusts(trusts: &IssuersDocument) -> String {
    let mut table = table(&["TRUST", "SITE", "ISSUER", "AUDIENCE", "SUBJECTS", "KEYS", "FROM"], &[]);
    for trust in &trusts.trusts {
        let keys = match trust.keys_age_s {
            Some(seconds) => format!("{}, taken {} ago", trust.keys, age(seconds, 2)),
            None => "none yet".into(),
        };
        let site = trust.site.to_string();
        let subjects = trust.subjects.join("\n");
        table.add_row([&trust.name, &site, &trust.issuer, &trust.audience, &subjects, &keys, &trust.jwks]);
    }
    let mut out = shown(
        &table,
        trusts.trusts.len(),
        "coordinator.toml has no [[trust]]: nodes join with tokens of `token create` alone",
    );
    for trust in &trusts.trusts {
        if let Some(error) = &trust.error {
            let _ = writeln!(out, "warning: {}: {error}", trust.name);
        }
    }
    out
}

/// Writes the join tokens.
pub fn tokens(tokens: &TokensDocument) -> String {
    let mut table = table(&["TOKEN", "SITE", "NODE", "SERVE", "EXPIRES", "USES LEFT"], &[]);
    for token in &tokens.tokens {
        let serve: Vec<_> = token.serve.iter().map(ToString::to_string).collect();
        let expires = match token.expires_in_s {
            0 => "expired".into(),
            seconds => format!("in {}", age(seconds, 2)),
        };
        table.add_row([
            token.id.clone(),
            token.site.to_string(),
            token.name.as_ref().map_or_else(|| "any".into(), ToString::to_string),
            serve.join(" "),
            expires,
            token.uses_left.to_string(),
        ]);
    }
    shown(&table, tokens.tokens.len(), "no join tokens; make one with `mesh-coordinator token create --site SITE`")
}

/// Writes what a file would change.
pub fn plan(plan: &PlanDocument) -> String {
    let mut out = String::new();
    for change in &plan.changes {
        let _ = writeln!(out, "{change}");
    }
    if plan.changes.is_empty() {
        let _ = writeln!(out, "nothing would change");
    }
    for warning in &plan.warnings {
        let _ = writeln!(out, "warning: {warning}");
    }
    out
}

/// Ends a table, or says that it is empty.
pub(crate) fn shown(table: &Table, rows: usize, empty: &str) -> String {
    if rows == 0 {
        return format!("{empty}\n");
    }
    drawn(table) + "\n"
}

fn port(port: &ServicePort) -> String {
    let arrow = if port.port == port.target { String::new() } else { format!("->{}", port.target) };
    format!("{}{arrow}/{}", port.port, port.transport)
}
