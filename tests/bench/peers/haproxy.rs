//! Two HAProxies with mutual TLS: the caller speaks to one on its own host, that one to the other, that one to the
//! server on its own host. What a sidecar mesh does to a connection.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use mesh_tests::daemon::{Process, wait_until};

use super::tools::{STARTING, command, program};
use crate::ground::{B, Ground};
use crate::programs::Programs;
use crate::system::{BULK_PORT, PONG_PORT, RunningSystem, System};

/// The ports that lead to iperf3's and to ping-pong's.
const WAYS: [(u16, u16); 2] = [(9000, BULK_PORT), (9001, PONG_PORT)];
const HEAD: &str = "global
 nbthread 2
defaults
 mode tcp
 timeout connect 5s
 timeout client 60s
 timeout server 60s
";

pub(crate) fn start(ground: Ground, programs: &Programs) -> io::Result<RunningSystem> {
    let (exe, openssl) = (program(programs, "haproxy")?, program(programs, "openssl")?);
    let folder = ground.folder().to_owned();
    certify(&openssl, &folder)?;
    let own = folder.display();
    let (mut a, mut b) = (HEAD.to_owned(), HEAD.to_owned());
    for (port, to) in WAYS {
        a += &format!(
            "listen {port}\n bind 127.0.0.1:{port}\n server s {B}:{port} ssl verify required ca-file {own}/ca.crt crt {own}/a.pem\n"
        );
        b += &format!(
            "listen {port}\n bind {B}:{port} ssl crt {own}/b.pem ca-file {own}/ca.crt verify required\n server s 127.0.0.1:{to}\n"
        );
    }
    let end = |namespace, name: &str, text: &str| {
        let config = folder.join(format!("{name}.cfg"));
        fs::write(&config, text)?;
        // In the foreground, so that it is the process that was started.
        let start = command(&exe, &["-db", "-f", &config.display().to_string()]);
        let process = Process::start(namespace, start, &folder.join(format!("{name}.log")))?;
        if wait_until(STARTING, || crate::load::listens(process.id(), WAYS[1].0)) {
            return Ok(process);
        }
        Err(io::Error::other(format!("haproxy does not start: {}", process.tail(5))))
    };
    let processes = [end(&ground.a, "a", &a)?, end(&ground.b, "b", &b)?];
    let mut running = RunningSystem::pair(System::Haproxy, ground, processes, Ipv4Addr::LOCALHOST);
    for way in &mut running.ways {
        (way.bulk, way.pong) = (WAYS[0].0, WAYS[1].0);
    }
    Ok(running)
}

/// Makes a CA and a P-256 certificate for each end.
fn certify(openssl: &Path, folder: &Path) -> io::Result<()> {
    let run = |words: &str| {
        let output = Command::new(openssl).args(words.split(' ')).current_dir(folder).output()?;
        if output.status.success() {
            return Ok(());
        }
        Err(io::Error::other(format!("openssl {words}: {}", String::from_utf8_lossy(&output.stderr))))
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    run(&format!("req -x509 {key} -keyout ca.key -out ca.crt -subj /CN=ca -days 9"))?;
    for name in ["a", "b"] {
        run(&format!("req {key} -keyout {name}.key -out {name}.csr -subj /CN={name}"))?;
        run(&format!("x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out {name}.crt -days 9"))?;
        let both = fs::read_to_string(folder.join(format!("{name}.crt")))?
            + &fs::read_to_string(folder.join(format!("{name}.key")))?;
        fs::write(folder.join(format!("{name}.pem")), both)?;
    }
    Ok(())
}
