//! `boutique ROLE`: one program that plays every role of Online Boutique.
//!
//! ```text
//!            service port                       bare names through the system's resolver
//! callers ──────────────▶ serve ──▶ fan-out ──▶ client ──▶ cartservice:7070, …
//!                           │                     │
//!                           └──── figures ◀─────┘ ◀── control (Unix socket): figures, tasks
//! ```

mod client;
mod control;
mod figures;
mod serve;
mod shop;
mod tasks;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use mesh_tests::boutique::Role;

use shop::Shop;

#[derive(Parser)]
#[command(about = "Plays a role of Online Boutique")]
struct Options {
    /// The role, by the name of its service.
    role: Role,
    /// The name that it answers `/whoami` with.
    #[arg(long)]
    name: Option<String>,
    /// The Unix socket where it tells its figures and takes tasks.
    #[arg(long)]
    control: Option<PathBuf>,
    /// Pages per second that the load generator asks for.
    #[arg(long, default_value_t = 0)]
    rate: u64,
}

#[tokio::main(flavor = "current_thread")]
#[expect(clippy::print_stderr, reason = "the last words of a program")]
async fn main() -> ExitCode {
    let options = Options::parse();
    let name = options.name.unwrap_or_else(|| options.role.service().to_owned());
    let shop = Arc::new(Shop::new(options.role, name, options.rate));
    match run(shop, options.control).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("boutique: {}: {e}", options.role.service());
            ExitCode::FAILURE
        }
    }
}

async fn run(shop: Arc<Shop>, socket: Option<PathBuf>) -> std::io::Result<()> {
    let control = async {
        match socket {
            Some(path) => control::serve(path, &shop).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        ended = serve::serve(&shop) => ended,
        ended = control => ended,
        () = tasks::generate_load(&shop) => Ok(()),
    }
}
