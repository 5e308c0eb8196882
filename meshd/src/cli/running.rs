//! What `meshd check` asks a daemon that runs: which wanted peers do not answer, and whether this host's own rules keep
//! their packets away.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_host::client::Client;
use mesh_host::table::age;
use mesh_proto::model::netmap::NetMap;
use mesh_proto::ops::status as doc;

use crate::base::text::SOCKET;
use crate::config::Config;
use crate::linux::{self, Obstacle};

/// How long a daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long after its last packet a peer that does not answer is a trouble of this node's, in seconds.
const WANTED: u64 = 60;
/// Most peers that are named.
const MAX_SILENT: usize = 5;

/// Asks the daemon; none runs, or it does not answer: then it is not asked.
pub(crate) async fn status(config: &Config) -> Option<doc::Status> {
    let client = Client::new(&SOCKET, config.socket.clone()).within(PATIENCE);
    client.get("/v1/status").await.ok()
}

/// Finds peers that do not answer although packets go to them; at most `MAX_SILENT`.
pub(crate) fn silent_peers(status: &doc::Status, map: &NetMap, own_port: u16) -> Vec<Obstacle> {
    let wanted = |peer: &&doc::PeerStatus| peer.wanted_s.is_some_and(|ago| ago <= WANTED);
    let silent = status.peers.iter().filter(wanted).filter_map(|peer| Some((peer, peer.not_answering_s?)));
    silent.take(MAX_SILENT).map(|(peer, seconds)| silent_peer(peer, seconds, map, own_port)).collect()
}

fn silent_peer(peer: &doc::PeerStatus, seconds: u64, map: &NetMap, own_port: u16) -> Obstacle {
    let known = || map.peers.get(&peer.name).and_then(|peer| peer.endpoints.first().copied());
    let at = peer.endpoint.or_else(known);
    let words = at.map_or_else(|| "at no known address".to_owned(), |at| format!("at UDP {at}"));
    let cause = format!("{} has not answered {words} for {}, although packets go to it", peer.name, age(seconds, 1));
    let blocking = match at {
        Some(SocketAddr::V4(at)) => linux::blocks_tunnel(own_port, at).ok().flatten(),
        Some(SocketAddr::V6(_)) | None => None,
    };
    match (blocking, at) {
        (Some(blocking), _) => Obstacle { sentence: format!("{cause}: {}", blocking.sentence), ..blocking },
        (None, Some(at)) => Obstacle::new(
            format!(
                "{cause}, and no rule of this host that can be read drops that: see there whether meshd runs (`systemctl status meshd`), and open UDP port {} to it and {own_port} to this node in the firewalls on the way",
                at.port()
            ),
            "",
        )
        .named("udp-blocked"),
        (None, None) => Obstacle::new(
            format!("{cause}: see there whether meshd runs (`systemctl status meshd`), and which addresses it has"),
            "",
        )
        .named("udp-blocked"),
    }
}
