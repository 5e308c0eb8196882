//! The course of the lab: what is started when, and which check runs against it.
//!
//! ```text
//! world "distinct"  ─▶ demo1-distinct ─▶ one-port ─▶ down
//! world "identical" ─▶ joined, not running ─▶ running ─▶ demo1 ─▶ VM joins ─▶ … ─▶ cleanup ─▶ down
//!                      └────────── every frame on the underlay is captured ──────────┘
//! ```

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_proto::status::{Service, Status};
use mesh_tests::boutique::Role;
use mesh_tests::capture::Capture;
use mesh_tests::daemon::{Binaries, tail};
use mesh_tests::snapshot;
use mesh_tests::topology::{PodCidrs, World};

use crate::checks;
use crate::report::{Outcome, Report, say};
use crate::table;

/// Pages per second in the background.
pub(crate) const PAGES: u64 = 6;
/// Lanes of every node; more than one, so that lanes are exercised everywhere.
pub(crate) const LANES: u16 = 2;
/// How long a freshly started mesh may take to work.
pub(crate) const STARTING: Duration = Duration::from_secs(15);
/// Nodes that join before the VM does.
pub(crate) const FIRST: [&str; 6] = ["c1-n1", "c1-n2", "c2-n1", "c2-n2", "loadgen", "evil"];

/// The lab as checks see it.
pub(crate) struct Lab {
    pub(crate) world: World,
    pub(crate) capture: Capture,
    /// Every node's kernel before it joined.
    pub(crate) before: BTreeMap<&'static str, String>,
}

impl Lab {
    /// Runs the whole lab.
    ///
    /// # Errors
    /// If it cannot be laid out or started; checks that fail are in the report.
    pub(crate) async fn run(binaries: &Binaries, report: &Arc<Report>, forever: bool) -> io::Result<()> {
        let pid = std::process::id();
        if report.wants("demo1-distinct") || report.wants("one-port") {
            let prefix = format!("{}{pid}d", crate::WORD);
            let mut world = World::new(&prefix, binaries, PodCidrs::Distinct, LANES)?;
            let outcome = distinct(&mut world, report).await;
            if outcome.is_err() {
                logs(&world);
            }
            outcome?;
        }
        let prefix = format!("{}{pid}", crate::WORD);
        let world = World::new(&prefix, binaries, PodCidrs::Identical, LANES)?;
        let capture = Capture::start(&world.network.router, world.known())?;
        let mut lab = Self { world, capture, before: BTreeMap::new() };
        let outcome = lab.identical(report).await;
        if outcome.is_err() {
            logs(&lab.world);
        }
        outcome?;
        if forever {
            say("lab: it stays up; Ctrl-C takes it down; `cargo lab shell c1-n1` enters");
            table::show(&lab.world).await;
        }
        if report.wants("cleanup") {
            let outcome = checks::cleanup::run(lab);
            report.note("cleanup", outcome);
        }
        Ok(())
    }

    async fn identical(&mut self, report: &Report) -> io::Result<()> {
        if let Err(e) = &self.world.masquerade {
            say(&format!("lab: THE MASQUERADING OF CNIs COULD NOT BE SET: {e}"));
        }
        self.world.start_coordinator()?;
        for (name, node) in &self.world.nodes {
            let taken = snapshot::take(&node.namespace).map_err(io::Error::other)?;
            self.before.insert(name, taken);
        }
        self.world.start_programs()?;
        join(&self.world, &FIRST)?;
        checks::encrypted::before_start(&self.world).await?;
        start(&self.world, &FIRST)?;
        self.check(report, "demo1-identical", async |lab| checks::demo1::run(&lab.world).await).await;
        self.check(report, "demo3-vm", async |lab| checks::demo3::run(lab).await).await;
        self.check(report, "overlap", async |lab| checks::overlap::run(lab).await).await;
        self.check(report, "policy", async |lab| checks::policy::run(lab).await).await;
        self.check(report, "edit", async |lab| checks::edit::run(lab).await).await;
        self.check(report, "evil-node", async |lab| checks::evil::run(lab).await).await;
        self.world.coordinator.kill();
        self.check(report, "coordinator-dead", async |lab| checks::dead::run(lab).await).await;
        self.check(report, "node-restart", async |lab| checks::restart::run(lab).await).await;
        self.world.coordinator.start()?;
        self.check(report, "foreign-rules", async |lab| checks::foreign::run(lab).await).await;
        self.check(report, "encrypted", async |lab| checks::encrypted::run(lab).await).await;
        table::once(&self.world).await;
        Ok(())
    }

    async fn check(&self, report: &Report, name: &str, check: impl AsyncFnOnce(&Self) -> Outcome) {
        if !report.wants(name) {
            return;
        }
        let outcome =
            if report.live() { table::while_doing(&self.world, check(self)).await } else { check(self).await };
        let failed = outcome.is_err();
        report.note(name, outcome);
        if failed {
            logs(&self.world);
        }
    }

    /// Returns what a node says of itself.
    pub(crate) fn status(&self, node: &str) -> Result<Status, String> {
        self.world.node(node).status().map_err(|e| e.to_string())
    }

    /// Returns a service as a node sees it.
    pub(crate) fn service(&self, node: &str, role: Role) -> Result<Service, String> {
        service(&self.world, node, role)
    }

    /// Returns the flat address of a role's pod.
    pub(crate) fn flat(&self, role: Role) -> Result<Ipv4Addr, String> {
        let node = self.world.program(role).node;
        let service = self.service(node, role)?;
        let backend = service.backends.iter().find(|b| b.node.as_str() == node);
        let backend = backend.ok_or_else(|| format!("{} has no backend on {node}", role.service()))?;
        Ok(backend.address.0)
    }

    /// Replaces services.toml as editors do, by renaming.
    pub(crate) fn edit(&self, text: &str) -> Result<Instant, String> {
        let file = self.world.services_file();
        let beside = file.with_extension("new");
        let written = std::fs::write(&beside, text).and_then(|()| std::fs::rename(&beside, &file));
        written.map_err(|e| e.to_string())?;
        Ok(Instant::now())
    }
}

/// Returns a service as a node sees it.
pub(crate) fn service(world: &World, node: &str, role: Role) -> Result<Service, String> {
    let status = world.node(node).status().map_err(|e| e.to_string())?;
    let mut services = status.services.into_iter();
    let found = services.find(|s| s.name.as_str() == role.service());
    found.ok_or_else(|| format!("{node} does not know {}", role.service()))
}

/// Lets nodes join, all at the same time.
pub(crate) fn join(world: &World, nodes: &[&str]) -> io::Result<()> {
    std::thread::scope(|scope| {
        let joining: Vec<_> = nodes.iter().map(|n| scope.spawn(|| world.join(n))).collect();
        let joined = joining.into_iter().map(|t| t.join());
        { joined }.try_for_each(|ended| ended.map_err(|_| io::Error::other("a thread panicked"))?)
    })
}

/// Starts nodes; they work when they work.
pub(crate) fn start(world: &World, nodes: &[&str]) -> io::Result<()> {
    nodes.iter().try_for_each(|n| world.node(n).start())
}

async fn distinct(world: &mut World, report: &Report) -> io::Result<()> {
    world.start_coordinator()?;
    world.start_programs()?;
    let all = ["c1-n1", "c1-n2", "c2-n1", "c2-n2", "loadgen", "pc-vm-1"];
    join(world, &all)?;
    start(world, &all)?;
    let outcome = checks::demo1::run(world).await;
    let failed = outcome.is_err();
    if report.wants("demo1-distinct") {
        report.note("demo1-distinct", outcome);
    }
    if report.wants("one-port") {
        report.note("one-port", checks::one_port::run(world).await);
    }
    if failed {
        logs(world);
    }
    Ok(())
}

/// Shows the end of every log, for the person who has to find out why.
#[expect(clippy::print_stderr, reason = "diagnostics beside the report")]
fn logs(world: &World) {
    let daemons = world.nodes.values().chain([&world.coordinator]);
    for daemon in daemons {
        let text = tail(&daemon.log(), 15);
        if !text.is_empty() {
            eprintln!("--- {} ---\n{text}", daemon.name);
        }
    }
}
