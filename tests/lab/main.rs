//! `cargo lab`: two clusters with the same pod addresses, a VM, one coordinator, real packets, and proof.
//!
//! ```text
//! cargo lab             lays everything out, shows a live table, proves every check
//! cargo lab --quick     the checks alone
//! cargo lab --forever   keeps it up afterwards, until Ctrl-C
//! cargo lab shell NODE  enters a namespace of a running lab
//! ```
//! Each check is a line with its measured figure, in lab-report.json too; exit status 0 only if all hold.

mod checks;
mod course;
mod edges;
mod lab;
mod privilege;
mod report;
mod shell;
mod table;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::{Parser, Subcommand};
use mesh_tests::daemon::Binaries;
use mesh_tests::{netns, undo};

use lab::WORD;
use report::LabReport;

#[derive(Parser)]
#[command(about = "Proves the mesh on real packets: two clusters with the same pod addresses, and a VM")]
struct Options {
    /// The checks alone, without the live table
    #[arg(long)]
    quick: bool,
    /// Keep everything up after the checks, until Ctrl-C
    #[arg(long)]
    forever: bool,
    /// Only the checks whose name contains this; may repeat
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Where to write the report
    #[arg(long, default_value = "lab-report.json")]
    report: PathBuf,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Subcommand)]
enum Verb {
    /// Enter a namespace of the running lab
    Shell {
        /// c1-n1, c2-n2, pc-vm-1, loadgen, evil, coordinator, router, or a pod such as c1-n1-10.8.0.10
        node: String,
    },
}

#[expect(clippy::print_stderr, reason = "the last words of a program")]
fn main() -> ExitCode {
    let options = Options::parse();
    if let Err(e) = privilege::enter() {
        eprintln!("lab: {e}");
        return ExitCode::FAILURE;
    }
    if let Some(Verb::Shell { node }) = &options.verb {
        let e = shell::enter(node);
        eprintln!("lab: {e}");
        return ExitCode::FAILURE;
    }
    undo::on_panic();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .expect("a runtime needs only threads");
    runtime.block_on(async {
        tokio::select! {
            code = prove(options) => code,
            _ = tokio::signal::ctrl_c() => {
                undo::everything();
                eprintln!("lab: interrupted; everything is taken down");
                std::process::exit(130);
            }
        }
    })
}

#[expect(clippy::print_stderr, reason = "progress for people; the checks go to stdout")]
async fn prove(options: Options) -> ExitCode {
    let swept = netns::sweep(WORD);
    if swept > 0 {
        eprintln!("lab: swept {swept} namespaces of a killed lab");
    }
    let binaries = match Binaries::build() {
        Ok(binaries) => binaries,
        Err(e) => {
            eprintln!("lab: {e}");
            return ExitCode::FAILURE;
        }
    };
    let began = Instant::now();
    let live = !options.quick && std::io::stdout().is_terminal();
    let report = Arc::new(LabReport::new(options.only, live));
    let forever = options.forever;
    let outcome = course::run(&binaries, &report, forever).await;
    if let Err(e) = outcome {
        report.abort(&e.to_string());
    }
    report.finish(&options.report, began.elapsed())
}
