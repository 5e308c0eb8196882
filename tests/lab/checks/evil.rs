//! `evil-node`: a member with its own checks off gets nothing through to the victim's kernel or pods.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use mesh_tests::boutique::Role;
use mesh_tests::evil::{Attacker, Forgery, Observer, packet};
use mesh_tests::topology::PORT;
use meshd::base::state_dir::State;
use meshd::keys::node::NodeKeys;

use super::tools::{ensure, said, until};
use crate::lab::Lab;
use crate::report::CheckOutcome;

const VICTIM: &str = "c1-n2";
/// Lets one thing through, to prove that the attacker's tunnel and the observer work.
const RULE: &str = "\n[[allow]]\nfrom = [\"host:evil\"]\nto = [\"adservice\"]\n";

/// Lets attacker and victim know each other: who has nothing to do with the victim has no tunnel to it. The attacker
/// may call nothing by it, and what it attacks is not what may call it.
const KNOWN: &str = "\n[[allow]]\nfrom = [\"emailservice\"]\nto = [\"host:evil\"]\n";

pub(crate) async fn run(lab: &Lab) -> CheckOutcome {
    let original = std::fs::read_to_string(lab.world.services_file()).map_err(said)?;
    let outcome = attack(lab, &original).await;
    lab.edit(&original)?;
    outcome
}

async fn attack(lab: &Lab, original: &str) -> CheckOutcome {
    let evil = lab.world.node("evil");
    let victim = lab.world.node(VICTIM);
    lab.edit(&format!("{original}{KNOWN}{RULE}"))?;
    until(Duration::from_secs(5), async || {
        let knows = lab.status("evil")?.peers.iter().any(|peer| peer.name.as_str() == VICTIM);
        ensure(knows, || "the attacker does not know the victim".into())
    })
    .await?;
    let own = lab.status("evil")?.node.ok_or("the attacker is no member")?;
    evil.terminate();
    let (mut attacker, map) = connect(lab)?;
    let observers = lab
        .world
        .programs
        .iter()
        .filter(|p| p.node == VICTIM)
        .map(|p| Observer::start(&p.namespace))
        .chain([Observer::start(&victim.namespace)])
        .collect::<Result<Vec<_>, _>>()
        .map_err(said)?;
    let found = || observers.iter().map(Observer::found).sum::<u64>();

    let ad = lab.flat(Role::Ad)?;
    until(Duration::from_secs(3), async || {
        attacker.send(&packet(Forgery::Syn, own.address.0, ad, Role::Ad.listens())).map_err(said)?;
        ensure(found() > 0, || "not even a permitted packet is observed".into())
    })
    .await?;
    lab.edit(&format!("{original}{KNOWN}"))?;
    until(Duration::from_secs(5), async || {
        let why = victim.json(&["why", "host:evil", "adservice:9555"]).map_err(said)?;
        ensure(why["allowed"] == false, || "the rule does not go away".into())
    })
    .await?;
    // The permitted connection ends with its permission; what it left in queues is not what we count.
    tokio::time::sleep(Duration::from_millis(300)).await;

    let (control, before) = (found(), drops(lab)?);
    let block = own.blocks.first().map_or(own.address.0, |b| Ipv4Addr::from(u32::from(b.flat.network()) + 7));
    let other = map.peers.iter().find(|(name, _)| name.as_str() == "c1-n1");
    let sources = [
        own.address.0,
        block,
        lab.flat(Role::Checkout)?,
        lab.flat(Role::Frontend)?,
        other.map_or(own.address.0, |(_, peer)| peer.address.0),
        lab.service(VICTIM, Role::Checkout)?.vip.0,
        lab.flat(Role::Payment)?,
        Ipv4Addr::new(10, 8, 1, 10),
        Ipv4Addr::LOCALHOST,
        Ipv4Addr::new(224, 0, 0, 1),
        Ipv4Addr::new(172, 31, 1, 12),
    ];
    let victim_address = lab.status(VICTIM)?.node.ok_or("the victim is no member")?.address.0;
    let targets = [
        (lab.flat(Role::Payment)?, Role::Payment.listens()),
        (lab.flat(Role::Ad)?, Role::Ad.listens()),
        (victim_address, 22),
        (lab.service(VICTIM, Role::Payment)?.vip.0, Role::Payment.dials()),
        (Ipv4Addr::new(10, 8, 1, 10), Role::Payment.listens()),
        (Ipv4Addr::new(241, 0, 0, 53), 53),
        (Ipv4Addr::new(172, 31, 1, 12), 22),
        (Ipv4Addr::LOCALHOST, 9586),
        (Ipv4Addr::new(224, 0, 0, 1), 5353),
        (Ipv4Addr::new(169, 254, 169, 254), 80),
    ];
    let mut sent = 0u64;
    for from in sources {
        for (to, port) in targets {
            for kind in Forgery::ALL {
                attacker.send(&packet(kind, from, to, port)).map_err(said)?;
                sent += 1;
            }
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let counted = until(Duration::from_secs(3), async || {
        let counted = drops(lab)? - before;
        ensure(counted >= sent, || format!("{sent} packets were sent and the victim counts only {counted}"))?;
        Ok(counted)
    })
    .await;
    let through = found() - control;
    ensure(through == 0, || format!("{through} frames of {sent} packets came through"))?;
    let counted = counted?;
    Ok(format!(
        "{sent} packets of {} kinds from {} sources to {} targets: 0 came through, {counted} refused or dropped with a reason",
        Forgery::ALL.len(),
        sources.len(),
        targets.len()
    ))
}

fn connect(lab: &Lab) -> Result<(Attacker, mesh_proto::model::netmap::NetMap), String> {
    let evil = lab.world.node("evil");
    let state = State::open(&evil.folder.join("state")).map_err(said)?;
    let keys = NodeKeys::load_or_make(&state).map_err(said)?;
    let map = state.netmap().ok_or("the attacker has no map")?;
    let victim = map.peers.iter().find(|(name, _)| name.as_str() == VICTIM);
    let victim = victim.map(|(_, peer)| peer).ok_or("the attacker does not know the victim")?;
    let lane = victim.lanes.first().ok_or("the victim has no lane")?;
    let endpoint = *victim.endpoints.first().ok_or("the victim has no endpoint")?;
    let from = SocketAddr::new(lab.world.network.ip(3, 13), PORT);
    let attacker =
        Attacker::connect(&evil.namespace, from, keys.tunnel().clone(), lane.key.0, endpoint).map_err(said)?;
    Ok((attacker, map))
}

fn drops(lab: &Lab) -> Result<u64, String> {
    Ok(lab.status(VICTIM)?.drops.values().sum())
}
