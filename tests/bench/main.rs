//! `make bench`: ours and the peers side by side, in one run on one machine.
//!
//! ```text
//! mesh-bench                        everything: a table, the ratios that are promised, JSON; under 10 minutes
//! mesh-bench --quick                a few rows, about a minute
//! mesh-bench --only wireguard-go    ours and these peers
//!
//!  programs ─▶ peers (start one) ─▶ way (an address to dial) ─▶ load (iperf3, ping-pong) ─▶ figures ─▶ report
//! ```
//! Every round starts each tunnel in turn between two fresh namespaces, so that what else the machine does hits all of
//! them alike. Figures are medians over the rounds; compare ratios, not machines.

mod figures;
mod ground;
mod load;
mod machine;
mod peers;
mod pingpong;
mod plan;
mod programs;
mod report;
mod system;
mod thousand;

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use mesh_tests::{netns, undo};
use tokio::signal::unix::{SignalKind, signal};

use figures::FiguresTable;
use ground::WORD;
use plan::{BenchPlan, Metric};
use programs::Programs;
use system::System;

#[derive(Debug, Clone, Parser)]
#[command(about = "Measures ours and the peers side by side between two namespaces")]
struct Options {
    /// A few rows only, about a minute
    #[arg(long)]
    quick: bool,
    /// Rounds; every figure is the median over them
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds of each load
    #[arg(long)]
    secs: Option<u64>,
    /// Ours and these alone: boringtun-cli, gotatun, wireguard-go, nebula, haproxy, ceiling, veth, thousand
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// These columns alone
    #[arg(long, value_name = "COLUMN", value_delimiter = ',')]
    columns: Vec<Metric>,
    /// Lanes of ours; as many as cores unless given
    #[arg(long)]
    lanes: Option<u16>,
    /// A folder with binaries of ours, instead of building them
    #[arg(long, value_name = "FOLDER")]
    ours: Option<PathBuf>,
    /// A folder with binaries of ours as they were before, measured beside the others
    #[arg(long, value_name = "FOLDER")]
    before: Option<PathBuf>,
    /// Where to write everything measured
    #[arg(long, default_value = "bench-report.json")]
    json: PathBuf,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Clone, Subcommand)]
enum Verb {
    /// Answers 64-byte questions until killed
    #[command(hide = true)]
    Pong { port: u16 },
    /// Asks on one connection, then connects again and again; prints figures as JSON
    #[command(hide = true)]
    Ping {
        to: SocketAddr,
        #[arg(long, default_value_t = 0.0)]
        trips: f64,
        #[arg(long, default_value_t = 0.0)]
        connects: f64,
    },
}

fn main() -> ExitCode {
    let options = Options::parse();
    match options.verb {
        Some(Verb::Pong { port }) => return finished(pingpong::serve(port)),
        Some(Verb::Ping { to, trips, connects }) => {
            let limit = |seconds: f64| Duration::from_secs_f64(seconds.clamp(0.0, 3600.0));
            return finished(pingpong::ask(to, limit(trips), limit(connects)));
        }
        None => {}
    }
    if !mesh_tests::privilege::privileged("mesh-bench") {
        return ExitCode::SUCCESS;
    }
    undo::on_panic();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime needs only threads").block_on(async {
        let mut terminated = signal(SignalKind::terminate()).expect("SIGTERM can be caught");
        let work = tokio::task::spawn_blocking(move || finished(bench(&options)));
        tokio::select! {
            code = work => code.unwrap_or(ExitCode::FAILURE),
            _ = tokio::signal::ctrl_c() => interrupted(),
            _ = terminated.recv() => interrupted(),
        }
    })
}

fn interrupted() -> ExitCode {
    undo::everything();
    tell("mesh-bench: interrupted; everything is taken down");
    std::process::exit(130);
}

fn finished(outcome: io::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tell(&format!("mesh-bench: {e}"));
            ExitCode::FAILURE
        }
    }
}

/// Reports progress to people; figures go to stdout.
fn tell(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

fn plan(options: &Options) -> BenchPlan {
    let quick = [Metric::Tcp1, Metric::TripP50, Metric::TripP99];
    let chosen = |m: &Metric| {
        let wanted = options.columns.contains(m) || (options.columns.is_empty() && !options.quick);
        wanted || (options.columns.is_empty() && quick.contains(m))
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let asked = options.only.iter().any(|name| name == thousand::NAME);
    BenchPlan {
        rounds: options.rounds.unwrap_or(if options.quick { 2 } else { 3 }).clamp(1, 99),
        secs: options.secs.unwrap_or(2).clamp(1, 60),
        lanes: options.lanes.unwrap_or_else(|| cores.min(16) as u16),
        columns: Metric::ALL.into_iter().filter(chosen).collect(),
        thousand: asked || (options.only.is_empty() && options.columns.is_empty() && !options.quick),
    }
}

fn bench(options: &Options) -> io::Result<()> {
    let began = Instant::now();
    netns::sweep(WORD);
    if !programs::tools() {
        return Ok(());
    }
    let programs = Programs::find(options.ours.clone(), options.before.clone())?;
    let plan = plan(options);
    let systems: Vec<System> = System::ALL.into_iter().filter(|s| wanted(*s, options)).collect();
    let (systems, missing): (Vec<_>, Vec<_>) = systems.into_iter().partition(|s| programs.has(*s));
    for system in missing.into_iter().filter(|system| *system != System::Before) {
        tell(&format!("left out: {system}; {}", programs::how_to_get(system)));
    }
    let mut table = FiguresTable::default();
    for round in 1..=plan.rounds {
        for &system in &systems {
            tell(&format!("{:4.0} s  round {round} of {}: {system}", began.elapsed().as_secs_f64(), plan.rounds));
            if let Err(e) = measure(system, &programs, &plan, &mut table) {
                tell(&format!("{system}: {e}"));
            }
        }
        if plan.thousand {
            tell(&format!("{:4.0} s  round {round} of {}: 1,000 peers", began.elapsed().as_secs_f64(), plan.rounds));
            if let Err(e) = thousand::measure(programs.ours(), &plan, &mut table) {
                tell(&format!("1,000 peers: {e}"));
            }
        }
    }
    report::print(&table, &plan, began.elapsed());
    report::write(&options.json, &table, &plan)
}

fn wanted(system: System, options: &Options) -> bool {
    if !options.only.is_empty() {
        return matches!(system, System::Ours | System::Before)
            || options.only.iter().any(|name| *name == system.to_string());
    }
    !options.quick || !matches!(system, System::BoringtunCli | System::Gotatun | System::Nebula | System::Haproxy)
}

/// Starts one system between fresh namespaces and measures each of its ways.
fn measure(system: System, programs: &Programs, plan: &BenchPlan, table: &mut FiguresTable) -> io::Result<()> {
    let running = peers::start(system, programs, plan.lanes)?;
    for way in &running.ways {
        for (metric, value) in load::measure(way, plan)? {
            table.add(&way.name, metric, value);
        }
    }
    Ok(())
}
