//! The measuring stick, if it is there: `ceiling INTERFACE OWN:PORT PEER:PORT`.

use std::io;
use std::net::Ipv4Addr;

use mesh_tests::daemon::Process;

use super::tools::{command, dress, program};
use crate::ground::{A, B, Ground};
use crate::programs::Programs;
use crate::system::{RunningSystem, System};

pub(crate) fn start(ground: Ground, programs: &Programs) -> io::Result<RunningSystem> {
    let exe = program(programs, "ceiling")?;
    let end = |namespace, interface: &str, own, peer, address| {
        let words = command(&exe, &[interface, &format!("{own}:5555"), &format!("{peer}:5555")]);
        let process = Process::start(namespace, words, &ground.folder().join(interface))?;
        dress(namespace, interface, address, &process)?;
        Ok::<_, io::Error>(process)
    };
    let processes = [end(&ground.a, "ca", A, B, "10.98.0.1/24")?, end(&ground.b, "cb", B, A, "10.98.0.2/24")?];
    Ok(RunningSystem::pair(System::Ceiling, ground, processes, Ipv4Addr::new(10, 98, 0, 2)))
}
