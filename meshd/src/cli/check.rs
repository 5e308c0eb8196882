//! `meshd check`: what can be looked at without a daemon, each with a word for programs, the cause, and what mends it.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use mesh_host::output::OutputError;
use mesh_proto::base::addr::{Flat, MeshRange};
use mesh_proto::model::netmap::NetMap;
use mesh_proto::ops::status as doc;
use mesh_proto::services::Diagnostics;

use crate::base::state_dir::State;
use crate::base::text::JOIN_HINT;
use crate::base::warning_id::WarningId;
use crate::cli::args::ConfigArg;
use crate::cli::error::CommandError;
use crate::cli::fix::{self, Consent};
use crate::cli::output::{load, print, print_json};
use crate::cli::{resolver, running};
use crate::config::{CONFIG, Config};
use crate::io::tun;
use crate::keys::node::NodeKeys;
use crate::linux::{self, HostPart, Obstacle, Shape};
use crate::node::host_part::host_part;
use crate::node::{join, wished_name};

/// The exit code where something will not work.
const FAILED: u8 = 1;
/// The exit code of a machine that is fit, and no member.
const NOT_JOINED: u8 = 3;

/// What was found.
#[derive(Default)]
struct Found {
    problems: Vec<doc::Problem>,
    /// Mistakes of services.toml, with their places.
    drawn: Option<Diagnostics>,
    /// What needs no mending.
    notes: Vec<String>,
    /// The same, of what has a word of its own.
    named_notes: Vec<doc::Note>,
    /// What `--fix` ran.
    fixed: Vec<doc::Fixed>,
    is_stranger: bool,
}

impl Found {
    fn error(&mut self, id: &str, cause: impl Into<String>, command: impl Into<String>) {
        self.add(true, id, cause, command);
    }

    fn warning(&mut self, id: &str, cause: impl Into<String>, command: impl Into<String>) {
        self.add(false, id, cause, command);
    }

    fn add(&mut self, is_error: bool, id: &str, cause: impl Into<String>, command: impl Into<String>) {
        let (id, cause, command) = (id.into(), cause.into(), command.into());
        self.problems.push(doc::Problem { id, is_error, cause, command, safe: false });
    }

    /// Takes what stands in the way, whose command may be safe.
    fn obstacle(&mut self, found: Obstacle, own: &str) {
        let Obstacle { id, sentence, command, is_safe } = found;
        let command = if command == "meshd guard" { format!("{command}{own}") } else { command };
        self.problems.push(doc::Problem { id: id.into(), is_error: false, cause: sentence, command, safe: is_safe });
    }

    fn note(&mut self, note: doc::Note) {
        self.notes.push(note.sentence());
        self.named_notes.push(note);
    }

    fn sentences(&self, is_error: bool) -> impl Iterator<Item = String> {
        self.problems.iter().filter(move |problem| problem.is_error == is_error).map(doc::Problem::sentence)
    }

    fn code(&self) -> u8 {
        if self.drawn.is_some() || self.problems.iter().any(|problem| problem.is_error) {
            FAILED
        } else if self.is_stranger {
            NOT_JOINED
        } else {
            0
        }
    }
}

/// Checks what can be checked without a daemon, and asks one that runs. With a consent, mends what is safe to mend, and
/// checks again.
pub(crate) async fn check(
    arg: &ConfigArg,
    socket: Option<PathBuf>,
    consent: Option<Consent>,
    json: bool,
) -> Result<u8, CommandError> {
    if let Some(consent) = consent {
        consent.check()?;
    }
    let mut found = look(arg, socket.clone()).await;
    if let Some(consent) = consent {
        let fixed = fix::mend(&found.problems, consent).await;
        if !fixed.is_empty() {
            found = look(arg, socket).await;
        }
        found.fixed = fixed;
    }
    let code = found.code();
    show(found, json)?;
    Ok(code)
}

/// Looks at everything once.
async fn look(arg: &ConfigArg, socket: Option<PathBuf>) -> Found {
    let mut found = Found::default();
    match load(arg, socket) {
        Ok(config) => {
            services(&config, &mut found);
            if let Some(shape) = member(&config, &mut found) {
                let map = State::open(&config.state_dir).ok().filter(|_| !found.is_stranger).and_then(|s| s.netmap());
                let part = map.as_ref().map_or_else(HostPart::default, |map| host_part(&config, map));
                host(&shape, &part, &own_words(arg), &mut found).await;
                if let Some(map) = map {
                    running(&config, &map, &mut found).await;
                }
                name(&config, &mut found);
            }
        }
        Err(error) => error.to_string().lines().for_each(|line| found.error("settings", line, "")),
    }
    device(&mut found);
    found
}

/// What a command of ours has to be told, where the configuration is not at its usual place.
fn own_words(arg: &ConfigArg) -> String {
    let path = arg.config.display().to_string();
    if path == CONFIG { String::new() } else { format!(" --config '{}'", path.replace('\'', "'\\''")) }
}

/// Asks the daemon, if one runs, what only it can know.
async fn running(config: &Config, map: &NetMap, found: &mut Found) {
    let Some(status) = running::status(config).await else { return };
    for obstacle in running::silent_peers(&status, map, config.port) {
        found.obstacle(obstacle, "");
    }
    if config.dns.enabled
        && let Some(note) = resolver::note(map, &config.interface)
    {
        found.note(note);
    }
}

fn show(found: Found, json: bool) -> Result<(), OutputError> {
    if json {
        let mut errors: Vec<String> = found.sentences(true).collect();
        errors.extend(found.drawn.iter().flat_map(Diagnostics::lines));
        let warnings = found.sentences(false).collect();
        let Found { problems, notes, named_notes, fixed, .. } = found;
        let schema = doc::CHECK.into();
        return print_json(&doc::Check { schema, errors, warnings, notes, problems, named_notes, fixed });
    }
    for fixed in &found.fixed {
        match &fixed.error {
            None => print(&format!("ran `{}`", fixed.command))?,
            Some(error) => print(&format!("`{}` failed: {error}", fixed.command))?,
        }
    }
    if let Some(drawn) = &found.drawn {
        print(&drawn.render(io::stdout().is_terminal()))?;
    }
    for problem in &found.problems {
        let word = if problem.is_error { "error" } else { "warning" };
        print(&format!("{word}[{}]: {}", problem.id, problem.sentence()))?;
    }
    for note in &found.notes {
        print(&format!("note: {note}"))?;
    }
    match (found.code(), found.problems.is_empty()) {
        (FAILED, _) => Ok(()),
        (_, true) => print("all is well"),
        (_, false) => print("no errors"),
    }
}

/// Checks the node's services.toml.
fn services(config: &Config, found: &mut Found) {
    let name = config.services.display().to_string();
    let Ok(text) = std::fs::read_to_string(&config.services) else {
        if let Err(error) = crate::node::services_file::read(&config.services) {
            found.error("services-file", error, "");
        }
        return;
    };
    match mesh_proto::services::parse_node(&text, &name) {
        Ok((_, list)) => {
            let lines = Diagnostics::new(&name, &text, list).lines();
            lines.into_iter().for_each(|line| found.warning("services-file", line, ""));
        }
        Err(bad) => found.drawn = Some(bad),
    }
}

/// Checks what makes this machine a member: enrolment and keys. Returns what the kernel has to carry, or would after a
/// join with the default range.
fn member(config: &Config, found: &mut Found) -> Option<Shape> {
    match join::stored_range(config) {
        Ok(Some((_, shape))) => {
            let keys = State::open(&config.state_dir).and_then(|state| NodeKeys::look(&state));
            if let Err(error) = keys {
                found.error("keys", error.to_string(), "");
            }
            Some(shape)
        }
        Ok(None) => {
            found.is_stranger = true;
            found.warning("not-joined", format!("this machine has not joined a mesh; {JOIN_HINT}"), "");
            Some(default_shape(config))
        }
        Err(error) => {
            found.error("state", error.to_string(), "");
            None
        }
    }
}

/// Checks whether the coordinator recorded the name that was wished for.
fn name(config: &Config, found: &mut Found) {
    let (cause, note) = wished_name::look(config);
    cause.into_iter().for_each(|cause| found.warning(WarningId::Name.word(), cause, ""));
    found.notes.extend(note);
}

/// Checks that there is a device for the tunnel.
fn device(found: &mut Found) {
    if let Err(error) = tun::look() {
        // With the module the file alone is missing, as in a container.
        let is_loaded = Path::new("/sys/class/misc/tun").exists();
        let command = match (error.kind() == io::ErrorKind::NotFound, is_loaded) {
            (true, true) => "mkdir -p /dev/net && mknod /dev/net/tun c 10 200",
            (true, false) => "modprobe tun",
            (false, _) => "",
        };
        let advice = if command.is_empty() { "; run as root, or give the container the device" } else { "" };
        let cause = format!("/dev/net/tun cannot be opened ({error}), so that there is no mesh interface{advice}");
        found.error("no-tun", cause, command);
        if let Some(problem) = found.problems.last_mut() {
            problem.safe = !command.is_empty();
        }
    }
}

/// Checks the kernel: what stands in the way, and whether the range is free.
async fn host(shape: &Shape, part: &HostPart, own: &str, found: &mut Found) {
    let is_stranger = found.is_stranger;
    // Before the join, what the join sets is not there, and that is no obstacle.
    let ours = |o: &Obstacle| o.sentence.contains("ip meshd") || o.sentence.contains(&shape.interface);
    for obstacle in linux::obstacles(shape, part).await.into_iter().filter(|o| !is_stranger || !ours(o)) {
        found.obstacle(obstacle, own);
    }
    match linux::host_facts().await {
        Ok(host) => host.collision(shape.range).into_iter().for_each(|cause| found.error("range-taken", cause, "")),
        Err(error) => found.error("host", error.to_string(), ""),
    }
    match linux::rival(shape).await {
        // Before the join nobody knows the range: the mesh may have another than the default.
        Ok(rival) => rival.into_iter().for_each(|cause| found.add(!is_stranger, "range-taken", cause, "")),
        Err(error) => found.error("host", error.to_string(), ""),
    }
    found.notes = linux::notes(shape).await;
    if let Some(cause) = linux::unread() {
        found.note(doc::Note { id: "legacy-iptables".into(), cause, command: String::new() });
    }
}

/// Returns what the kernel would carry after a join with the default range.
fn default_shape(config: &Config) -> Shape {
    let range = MeshRange::default();
    Shape {
        interface: config.interface.clone(),
        range,
        address: Flat(range.nodes().network()),
        mtu: 1420,
        pods: config.pods.clone(),
        pod_interfaces: config.pod_interfaces.clone(),
        home: join::home(config),
    }
}
