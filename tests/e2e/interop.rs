//! A plain WireGuard peer, boringtun-cli, as a static `[[node]]`: lane 0 interoperates with the standard.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use boringtun::x25519::{PublicKey, StaticSecret};
use mesh_proto::base::id::TunnelKey;
use mesh_tests::daemon::{Binaries, Process, wait_until};
use mesh_tests::facts::{Fact, in_namespaces};
use mesh_tests::pair::{Pair, SERVICES, STARTING};
use mesh_tests::skip::in_path;
use mesh_tests::topology::{PORT, Underlay};
use mesh_tests::traffic;
use meshd::base::state_dir::State;

/// Its secret; any 32 bytes are one.
const SECRET: [u8; 32] = [0x42; 32];

/// The pair, and a standard peer on the coordinator's subnet.
struct Scene {
    _peer: Process,
    pair: Pair,
    peer_home: mesh_tests::netns::Namespace,
    peer_address: Ipv4Addr,
    socket: PathBuf,
}

impl Drop for Scene {
    fn drop(&mut self) {
        // A killed boringtun-cli leaves its socket behind.
        let _ = std::fs::remove_file(&self.socket);
    }
}

const FACTS: &[Fact<Scene>] = &[("a_standard_peer_and_a_node_ping_each_other", ping_both_ways)];

fn main() -> ExitCode {
    in_namespaces(|run, binaries| {
        let program = find();
        run.needs(program.is_some(), "cargo install boringtun-cli --locked --root target/tools");
        let program = program.unwrap_or_default();
        for (name, lanes) in [("one_lane", 1), ("two_lanes", 2)] {
            run.scene(name, || set_up(binaries, &program, lanes), FACTS);
        }
    })
}

fn find() -> Option<PathBuf> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/bin");
    let elsewhere = std::env::var_os("CARGO_TARGET_DIR").map(|folder| Path::new(&folder).join("tools/bin"));
    let mut built = [Some(built), elsewhere].into_iter().flatten().map(|folder| folder.join("boringtun-cli"));
    in_path("boringtun-cli").or_else(|| built.find(|program| program.is_file()))
}

fn set_up(binaries: &Binaries, program: &Path, lanes: u16) -> io::Result<Scene> {
    let pair = Pair::start(&format!("io{lanes}x"), binaries, Underlay::V4, lanes)?;
    let home = pair.network.host("plain", 3, 12).map_err(io::Error::other)?;
    let key = TunnelKey(PublicKey::from(&StaticSecret::from(SECRET)).to_bytes());
    let endpoint = SocketAddr::new(pair.network.ip(3, 12), PORT);
    let rules = format!(
        "\n[[node]]\nname = \"plain\"\nkey = \"{key}\"\nendpoint = \"{endpoint}\"\n\n[[allow]]\nfrom = [\"host:a\"]\nto = [\"host:plain\"]\n\n[[allow]]\nfrom = [\"host:plain\"]\nto = [\"host:a\"]\n"
    );
    let file = pair.coordinator.folder.join("services.toml");
    std::fs::write(file, format!("{SERVICES}{rules}"))?;

    let interface = format!("io{lanes}{}", std::process::id() % 100_000);
    let mut command = Command::new(program);
    command.args(["--foreground", "--disable-drop-privileges", &interface]);
    let peer = Process::start(&home, command, &pair.network.folder.join("plain.log"))?;
    let socket = PathBuf::from(format!("/var/run/wireguard/{interface}.sock"));
    if !wait_until(STARTING, || socket.exists()) {
        return Err(io::Error::other(format!("boringtun-cli does not start: {}", peer.tail(10))));
    }
    let known = || peer_address(&pair).is_some();
    if !wait_until(STARTING, known) {
        return Err(io::Error::other("node `a` does not learn of the static peer"));
    }
    let peer_address = peer_address(&pair).unwrap_or(Ipv4Addr::UNSPECIFIED);
    let state = State::open(&pair.a.node.folder.join("state")).map_err(io::Error::other)?;
    let keys = meshd::keys::node::NodeKeys::load_or_make(&state).map_err(io::Error::other)?;
    let node = PublicKey::from(keys.tunnel()).to_bytes();
    let target = SocketAddr::new(pair.network.ip(1, 11), PORT);
    configure(&socket, &node, target)?;
    let own = ipnet::IpNet::new(peer_address.into(), 8).map_err(io::Error::other)?;
    home.address(&interface, own).map_err(io::Error::other)?;
    home.up(&interface).map_err(io::Error::other)?;
    Ok(Scene { _peer: peer, pair, peer_home: home, peer_address, socket })
}

fn peer_address(pair: &Pair) -> Option<Ipv4Addr> {
    let peers = pair.a.node.status().ok()?.peers;
    let plain = peers.into_iter().find(|p| p.name.as_str() == "plain");
    plain.map(|p| p.address.0)
}

/// Speaks the cross-platform userspace configuration protocol of WireGuard.
fn configure(socket: &Path, node: &[u8; 32], endpoint: SocketAddr) -> io::Result<()> {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let text = format!(
        "set=1\nprivate_key={}\nlisten_port={PORT}\npublic_key={}\nendpoint={endpoint}\nreplace_allowed_ips=true\nallowed_ip=241.0.0.0/8\n\n",
        hex(&SECRET),
        hex(node)
    );
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(text.as_bytes())?;
    let mut answer = [0; 64];
    let length = stream.read(&mut answer)?;
    let said = String::from_utf8_lossy(&answer[..length]).into_owned();
    if said.starts_with("errno=0") {
        Ok(())
    } else {
        Err(io::Error::other(format!("boringtun-cli refuses its configuration: {said}")))
    }
}

fn ping_both_ways(scene: &Scene) {
    let a = scene.pair.address(&scene.pair.a);
    let out = wait_until(STARTING, || traffic::ping(&scene.peer_home, a).is_ok());
    assert!(out, "the standard peer gets no answer from the node");
    let home = &scene.pair.a.node.namespace;
    let back = wait_until(STARTING, || traffic::ping(home, scene.peer_address).is_ok());
    assert!(back, "the node gets no answer from the standard peer");
    assert!(scene.socket.exists());
}
