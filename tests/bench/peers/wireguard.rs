//! The userspace WireGuards: one program per end, keys and endpoints by `wg`.

use std::fs::{self, Permissions};
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use mesh_tests::daemon::{Process, wait_until};
use mesh_tests::netns::Namespace;
use mesh_tests::undo::{self, Leftover, Ticket};

use super::tools::{STARTING, command, dress, program, tool};
use crate::ground::{A, B, Ground};
use crate::programs::Programs;
use crate::system::{DialTarget, RunningSystem, System};

/// Where all of them leave the sockets that `wg` speaks to.
const SOCKETS: &str = "/var/run/wireguard";
const PORT: &str = "51820";

/// Starts one of them; `words` are what it needs before the name of its interface.
pub(crate) fn start(
    system: System,
    ground: Ground,
    programs: &Programs,
    name: &str,
    words: &[&str],
) -> io::Result<RunningSystem> {
    let (exe, wg) = (program(programs, name)?, program(programs, "wg")?);
    // The sockets' folder is shared by all namespaces, and so the names must be our own.
    let id = std::process::id();
    let ends = [(&ground.a, format!("wa{id}"), "10.99.0.1/24"), (&ground.b, format!("wb{id}"), "10.99.0.2/24")];
    let (mut processes, mut sockets) = (Vec::new(), Vec::new());
    for (namespace, interface, _) in &ends {
        let mut start = command(&exe, words);
        if system != System::WireguardGo {
            start.arg("--disable-drop-privileges");
        }
        start.arg(interface).env("WG_SUDO", "1");
        let socket = Socket::new(interface);
        let log = ground.folder().join(format!("{interface}.log"));
        let mut process = Process::start(namespace, start, &log)?;
        let configurable = || tool(namespace, &wg, &["show", interface]).is_ok();
        if !wait_until(STARTING, || configurable() || !process.running()) || !process.running() {
            return Err(io::Error::other(format!("{name} does not start: {}", process.tail(5))));
        }
        processes.push(process);
        sockets.push(socket);
    }
    let keys = [key(&ground.a, &wg, &ground, "a")?, key(&ground.b, &wg, &ground, "b")?];
    for (i, (namespace, interface, address)) in ends.iter().enumerate() {
        let private = ground.folder().join(["a", "b"][i]).display().to_string();
        let endpoint = format!("{}:{PORT}", [B, A][i]);
        let set = ["set", interface, "listen-port", PORT, "private-key", &private, "peer", &keys[1 - i]];
        let peer = ["allowed-ips", "10.99.0.0/24", "endpoint", &endpoint];
        tool(namespace, &wg, &[&set[..], &peer].concat())?;
        dress(namespace, interface, address, &processes[i])?;
    }
    let way =
        DialTarget::plain(system, &ground, Ipv4Addr::new(10, 99, 0, 2), Some((processes[0].id(), processes[1].id())));
    Ok(RunningSystem::new(vec![way], (processes, sockets), ground))
}

/// The socket by which `wg` reaches a program; a killed one leaves it behind.
struct Socket(PathBuf, Ticket);

impl Socket {
    fn new(interface: &str) -> Self {
        let path = Path::new(SOCKETS).join(format!("{interface}.sock"));
        let _ = fs::remove_file(&path);
        let ticket = undo::note(Leftover::File(path.clone()));
        Self(path, ticket)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
        undo::done(self.1);
    }
}

/// Makes a key in a file and returns its public half.
fn key(namespace: &Namespace, wg: &Path, ground: &Ground, name: &str) -> io::Result<String> {
    let file = ground.folder().join(name);
    fs::write(&file, tool(namespace, wg, &["genkey"])?)?;
    fs::set_permissions(&file, Permissions::from_mode(0o600))?;
    let mut public = command(wg, &["pubkey"]);
    public.stdin(fs::File::open(&file)?);
    let output = public.output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
