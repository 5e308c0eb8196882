//! Nebula: certificates of its own kind, no lighthouse, the same MTU and cipher as the others.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::process::Command;

use mesh_tests::daemon::Process;

use super::tools::{command, program};
use crate::ground::Ground;
use crate::programs::Programs;
use crate::system::{RunningSystem, System};

pub(crate) fn start(ground: Ground, programs: &Programs) -> io::Result<RunningSystem> {
    let (exe, cert) = (program(programs, "nebula")?, program(programs, "nebula-cert")?);
    let folder = ground.folder().display().to_string();
    let sign = |words: &[&str]| {
        let output = Command::new(&cert).args(words).current_dir(&folder).output()?;
        if output.status.success() {
            return Ok(());
        }
        Err(io::Error::other(format!("nebula-cert: {}", String::from_utf8_lossy(&output.stderr))))
    };
    sign(&["ca", "-name", "bench"])?;
    let end = |namespace, name: &str, own: u8, peer: u8| {
        sign(&["sign", "-name", name, "-ip", &format!("10.97.0.{own}/24")])?;
        let config = ground.folder().join(format!("{name}.yml"));
        fs::write(
            &config,
            format!(
                r#"pki: {{ca: {folder}/ca.crt, cert: {folder}/{name}.crt, key: {folder}/{name}.key}}
static_host_map: {{"10.97.0.{peer}": ["10.77.0.{peer}:4242"]}}
lighthouse: {{am_lighthouse: false, hosts: []}}
listen: {{host: 0.0.0.0, port: 4242, read_buffer: 8388608, write_buffer: 8388608, batch: 64}}
cipher: chachapoly
tun: {{dev: neb{name}, mtu: 1420}}
firewall:
  outbound: [{{port: any, proto: any, host: any}}]
  inbound: [{{port: any, proto: any, host: any}}]
"#
            ),
        )?;
        let start = command(&exe, &["-config", &config.display().to_string()]);
        Process::start(namespace, start, &ground.folder().join(format!("{name}.log")))
    };
    let processes = [end(&ground.a, "a", 1, 2)?, end(&ground.b, "b", 2, 1)?];
    Ok(RunningSystem::pair(System::Nebula, ground, processes, Ipv4Addr::new(10, 97, 0, 2)))
}
