//! A large mesh: its services.toml, and a store in which its nodes have joined already.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;

use coordinator::store::{StoreTable, Write, open_embedded};
use mesh_host::identity::Identity;
use mesh_proto::base::id::Revision;
use serde_json::json;

/// Nodes of one site.
const SITE: usize = 100;
/// Nodes that back one service.
const BACKENDS: usize = 10;
/// How many services each service may call: those that follow it.
const CALLS: usize = 5;

/// Writes the file: each service has ten backends and may call five others, each site may call a service of its
/// own, everybody may call `s0`, and the node `n0` may call everything.
pub(crate) fn services(nodes: usize, weight_of_s55: u32, weight_of_s0: u32) -> String {
    let mut text = "version = 1\n[mesh]\nname = \"large\"\n[[site]]\nname = \"new\"\n".to_owned();
    let services = nodes / BACKENDS;
    for site in 0..nodes / SITE {
        let _ = write!(text, "[[site]]\nname = \"x{site}\"\nlocality = \"r{}/z{site}\"\n", site % 5);
    }
    for service in 0..services {
        let _ = write!(text, "[[service]]\nname = \"s{service}\"\nport = 80\nbackends = [");
        for node in service * BACKENDS..(service + 1) * BACKENDS {
            let weight = match (service, node % BACKENDS) {
                (55, 0) => weight_of_s55,
                (0, 0) => weight_of_s0,
                _ => 100,
            };
            let _ = write!(text, "{{ host = \"n{node}\", weight = {weight} }}, ");
        }
        text.push_str("]\n");
    }
    let mut allow = |from: &str, to: &str| {
        let _ = write!(text, "[[allow]]\nfrom = [\"{from}\"]\nto = [{to}]\n");
    };
    for service in 0..services {
        let called: Vec<_> = (1..=CALLS).map(|step| format!("\"s{}\"", (service + step) % services)).collect();
        allow(&format!("s{service}"), &called.join(", "));
    }
    for site in 0..nodes / SITE {
        allow(&format!("site:x{site}"), &format!("\"s{}\"", site * SITE / BACKENDS));
    }
    allow("any", "\"s0\"");
    allow("host:n0", "\"any\"");
    text
}

/// How many nodes a weight of `s55` concerns: those of the five services before and after it, `n0`, and the backend
/// itself. The others that back it know of it only what they carry.
pub(crate) const SEE_S55: usize = 2 * CALLS * BACKENDS + 2;

/// Where a node says that it listens.
pub(crate) fn endpoint(node: usize, port: u16) -> String {
    let [_, _, a, b] = (node as u32).to_be_bytes();
    format!("{}:{port}", Ipv4Addr::new(192, 168, a, b))
}

/// Makes a store in which these nodes are members, as if each had joined.
pub(crate) fn fill(path: &Path, nodes: &[Identity]) {
    let mut writes = Vec::new();
    let mut write = |table, key: &str, value: serde_json::Value| {
        writes.push(Write { table, key: key.into(), value: Some(value.to_string().into_bytes()) });
    };
    let address = |node: usize| {
        // Neither .0 nor .255.
        let place = node + 1 + 2 * (node / 254);
        Ipv4Addr::from(0xf101_0000 + place as u32)
    };
    for (node, identity) in nodes.iter().enumerate() {
        let record = json!({
            "id": node + 1,
            "identity": identity.public(),
            "site": format!("x{}", node / SITE),
            "address": address(node),
            "blocks": [],
            "facts": {
                "lanes": [{"key": identity.public(), "port": 51820}, {"key": node_key(node), "port": 51821}],
                "endpoints": [endpoint(node, 51820)],
                "pods": [], "serve": [], "mtu": 1420, "guarded": true, "software": "scale",
            },
            "observed": "127.0.0.1",
            "grants": [],
            "token": null,
            "joined_at": 1,
        });
        write(StoreTable::Nodes, &format!("n{node}"), record);
    }
    let last = nodes.len();
    let pool = json!({
        "last_node": last, "last_service": 0, "vip": null, "node": address(last - 1), "blocks": {}, "freed": [],
    });
    write(StoreTable::Meta, "pool", pool);
    write(StoreTable::Meta, "format", json!(1));
    // A file without services first, so that no node belongs to a site that does not exist.
    let mut text = "version = 1\n[mesh]\nname = \"large\"\n".to_owned();
    for site in 0..nodes.len() / SITE {
        let _ = write!(text, "[[site]]\nname = \"x{site}\"\n");
    }
    write(StoreTable::Services, "accepted", json!({"file": "services.toml", "text": text}));
    let mut store = open_embedded(path).unwrap();
    store.commit(Revision(0), Revision(1), &writes).unwrap();
}

fn node_key(node: usize) -> mesh_proto::base::id::TunnelKey {
    let mut key = [7; 32];
    key[..8].copy_from_slice(&(node as u64).to_be_bytes());
    mesh_proto::base::id::TunnelKey(key)
}
