//! How each system is started between two namespaces.

mod ceiling;
mod haproxy;
mod nebula;
mod ours;
mod tools;
mod wireguard;

use std::io;

use crate::ground::{B, Ground};
use crate::load;
use crate::programs::Programs;
use crate::system::{DialTarget, RunningSystem, System};

/// Starts a system between fresh namespaces, and waits until it carries packets.
pub(crate) fn start(system: System, programs: &Programs, lanes: u16) -> io::Result<RunningSystem> {
    let ground = Ground::new()?;
    let running = match system {
        System::Ours => ours::start(system, ground, programs.ours(), lanes)?,
        System::Before => ours::start(system, ground, programs.before()?, lanes)?,
        System::BoringtunCli => wireguard::start(system, ground, programs, "boringtun-cli", &["-f"])?,
        System::Gotatun => wireguard::start(system, ground, programs, "gotatun", &["--foreground"])?,
        System::WireguardGo => wireguard::start(system, ground, programs, "wireguard-go", &["-f"])?,
        System::Ceiling => ceiling::start(ground, programs)?,
        System::Nebula => nebula::start(ground, programs)?,
        System::Haproxy => haproxy::start(ground, programs)?,
        System::Veth => RunningSystem::new(vec![DialTarget::plain(system, &ground, B, None)], (), ground),
    };
    for way in &running.ways {
        load::await_answer(way)?;
    }
    Ok(running)
}
