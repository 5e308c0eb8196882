//! Thousands of members that nobody runs: a store in which they have joined already, with records that they signed.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use coordinator::base::state_files::STORE;
use coordinator::store::{StoreTable, Write, open_embedded};
use mesh_host::identity::Identity;
use mesh_proto::base::addr::Flat;
use mesh_proto::base::clock::UnixTime;
use mesh_proto::base::id::{NodeId, Revision, TunnelKey};
use mesh_proto::model::netmap::LaneInfo;
use mesh_proto::trust::signed_record::SignedRecord;
use mesh_proto::wire::NodeFacts;
use mesh_proto::world::NodeRecord;
use serde_json::{Value, json};

/// Where a node serves `files` to the mesh.
pub(crate) const PORT: u16 = 8080;
/// The sites of those who are there, and of those who only have joined: half of them each.
const SITES: [&str; 3] = ["home", "near", "far"];

/// Which of the members a node may call, and hence has in its map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sight {
    /// None of them.
    Nobody,
    /// One half.
    Near,
    /// All.
    All,
}

impl Sight {
    /// Returns how many of so many members that are.
    pub(crate) fn of(self, members: usize) -> usize {
        match self {
            Self::Nobody => 0,
            Self::Near => members / 2,
            Self::All => members,
        }
    }

    /// Writes the services.toml by which node `a` sees so much. For `b`, which downloads, they are all the same.
    pub(crate) fn services(self) -> String {
        let seen = match self {
            Self::Nobody => "",
            Self::Near => "[[allow]]\nfrom = [\"host:a\"]\nto = [\"site:near\"]\n",
            Self::All => "[[allow]]\nfrom = [\"host:a\"]\nto = [\"site:near\", \"site:far\"]\n",
        };
        let sites: String = SITES.iter().map(|site| format!("[[site]]\nname = \"{site}\"\n")).collect();
        format!(
            "version = 1\n[mesh]\nname = \"boutique\"\n{sites}\
             [[service]]\nname = \"files\"\nport = {PORT}\nbackends = [{{ host = \"a\" }}]\n\
             [[allow]]\nfrom = [\"host:b\"]\nto = [\"files\"]\n{seen}"
        )
    }
}

/// Makes so many nodes members in the store of a coordinator that was initialised and does not run.
pub(crate) fn fill(state_dir: &Path, members: usize) -> io::Result<()> {
    let mut writes = Vec::new();
    let mut write = |table, key: String, value: Value| {
        writes.push(Write { table, key, value: Some(value.to_string().into_bytes()) });
    };
    for member in 0..members {
        write(StoreTable::Nodes, format!("m{member}"), serde_json::to_value(record(member, members)?)?);
    }
    let pool = json!({
        "last_node": members, "last_service": 0, "vip": null, "node": address(members), "blocks": {}, "freed": [],
    });
    write(StoreTable::Meta, "pool".into(), pool);
    write(StoreTable::Meta, "format".into(), json!(1));
    let file = json!({ "file": "services.toml", "text": Sight::Nobody.services() });
    write(StoreTable::Services, "accepted".into(), file);
    let mut store = open_embedded(&state_dir.join(STORE)).map_err(io::Error::other)?;
    let before = store.load().map_err(io::Error::other)?.revision;
    store.commit(before, Revision(before.0 + 1), &writes).map_err(io::Error::other)
}

fn record(member: usize, members: usize) -> io::Result<NodeRecord> {
    let identity = Identity::generate().map_err(io::Error::other)?;
    let [_, high, middle, low] = (member as u32).to_be_bytes();
    // Of the range for measurements between networks: nothing answers there.
    let endpoint = SocketAddr::from((Ipv4Addr::new(198, 18 + high, middle, low), 51820));
    let facts = NodeFacts {
        lanes: vec![LaneInfo { key: TunnelKey(identity.public().0), port: 51820 }],
        endpoints: vec![endpoint],
        mtu: 1420,
        guarded: true,
        software: "nobody".into(),
        sequence: 1,
        ..NodeFacts::default()
    };
    let text = facts.text();
    let signature = identity.sign(&SignedRecord::message(&text));
    let site = SITES[1 + usize::from(member >= Sight::Near.of(members))];
    Ok(NodeRecord {
        id: NodeId(member as u32 + 1),
        identity: Some(identity.public()),
        site: site.parse().map_err(io::Error::other)?,
        address: address(member),
        blocks: Vec::new(),
        facts: NodeFacts { signed: Some(SignedRecord { text: text.into(), signature }), ..facts },
        observed: None,
        grants: Vec::new(),
        token: None,
        joined_at: UnixTime(1),
        contact: None,
        countersigned: None,
        lineage: Vec::new(),
    })
}

/// Returns the address of a member: neither .0 nor .255.
fn address(member: usize) -> Flat {
    Flat(Ipv4Addr::from(0xf101_0000 + (member + 1 + 2 * (member / 254)) as u32))
}
