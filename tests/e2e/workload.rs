//! A node that joins by a projected token instead of a secret: the real binaries, one coordinator, one node.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../coordinator/tests/control/issuer.rs"]
mod issuer;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use issuer::{AUDIENCE, ISSUER, Issuer, SUBJECT, claims};
use mesh_tests::daemon::{Binaries, Daemon, wait_until};
use mesh_tests::facts::{Fact, in_namespaces};
use mesh_tests::pair::{SERVICES, STARTING};
use mesh_tests::topology::{COORDINATOR_PORT, Network, Underlay, start_coordinator, write_coordinator, write_node};
use tempfile::TempDir;

/// A coordinator that trusts an issuer, and a machine that is nobody yet.
struct Cluster {
    node: Daemon,
    coordinator: Daemon,
    issuer: Issuer,
    network: Network,
    folder: TempDir,
}

const FACTS: &[Fact<Cluster>] = &[
    ("a_pin_is_needed_and_has_to_be_right", a_pin_is_needed_and_has_to_be_right),
    ("a_token_that_rotates_is_read_again_and_admits_its_node", a_token_that_rotates_is_read_again_and_admits_its_node),
];

fn main() -> ExitCode {
    in_namespaces(|run, binaries| run.scene("cluster", || set_up(binaries), FACTS))
}

fn set_up(binaries: &Binaries) -> io::Result<Cluster> {
    let folder = tempfile::Builder::new().prefix("mesh-workload-").tempdir()?;
    let network = Network::new(&format!("wl{}", std::process::id()), folder.path(), 2, Underlay::V4);
    let network = network.map_err(io::Error::other)?;
    let place = |name: &str, subnet: u8| {
        let files = folder.path().join(name);
        std::fs::create_dir(&files)?;
        Ok::<_, io::Error>((network.host(name, subnet, 11).map_err(io::Error::other)?, files))
    };
    let (home, files) = place("coordinator", 2)?;
    let coordinator = Daemon::coordinator(&home, &files, binaries);
    let issuer = Issuer::new("cluster");
    std::fs::write(files.join("jwks.json"), issuer.jwks())?;
    write_coordinator(&coordinator, network.ip(2, 11), SERVICES)?;
    let mut config = std::fs::File::options().append(true).open(coordinator.config())?;
    write!(
        config,
        "[[trust]]\nname = \"east\"\nissuer = \"{ISSUER}\"\naudience = \"{AUDIENCE}\"\njwks = \"jwks.json\"\nsite = \"east\"\nsubjects = [\"{SUBJECT}\"]\n"
    )?;
    start_coordinator(&coordinator, network.ip(2, 11))?;
    let (home, files) = place("node", 1)?;
    let node = Daemon::meshd("what-it-calls-itself", &home, &files, binaries);
    write_node(&node, None, 1, "")?;
    Ok(Cluster { node, coordinator, issuer, network, folder })
}

impl Cluster {
    fn now() -> u64 {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
    }

    /// Puts a token where a cluster projects one; it begins at `at`.
    fn project(&self, at: u64) {
        let token = self.issuer.token("RS256", &claims("east-1", &at.to_string(), at));
        std::fs::write(self.token(), token).unwrap();
    }

    fn token(&self) -> PathBuf {
        self.folder.path().join("token")
    }

    fn join(&self, pin: &str) -> io::Result<String> {
        let address = format!("{}:{COORDINATOR_PORT}", self.network.ip(2, 11));
        let file = self.token();
        let file = file.to_str().unwrap();
        self.node.expect_config(&["join", "--oidc-token-file", file, "--coordinator", &address, "--pin", pin])
    }
}

fn a_pin_is_needed_and_has_to_be_right(cluster: &Cluster) {
    cluster.project(Cluster::now());
    let error = cluster.join(&"A".repeat(43)).unwrap_err().to_string();
    assert!(error.contains("another key"), "{error}");
}

fn a_token_that_rotates_is_read_again_and_admits_its_node(cluster: &Cluster) {
    let status = cluster.coordinator.json(&["status"]).unwrap();
    let pin = status["key"].as_str().unwrap();
    // What lies there first is over; the next one comes while meshd tries.
    cluster.project(Cluster::now() - 10_000);
    let said = std::thread::scope(|scope| {
        let joining = scope.spawn(|| cluster.join(pin));
        let refused = || {
            let log = cluster.coordinator.json(&["log"]).unwrap_or_default().to_string();
            log.contains("it is expired")
        };
        assert!(wait_until(STARTING, refused), "the first token was refused");
        cluster.project(Cluster::now());
        joining.join().unwrap()
    });
    assert!(said.unwrap().contains("as east-1 (site east)"));

    cluster.node.start().unwrap();
    let connected = || {
        let nodes = cluster.coordinator.json(&["nodes"]).unwrap_or_default();
        nodes["nodes"][0]["name"] == "east-1" && nodes["nodes"][0]["connected"] == true
    };
    assert!(wait_until(Duration::from_secs(15), connected), "{:?}", cluster.coordinator.json(&["nodes"]));
}
