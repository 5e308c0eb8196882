//! A node's kernel as text: interfaces, addresses, routes, rules and nftables, to be compared byte by byte.

use std::fmt::{Debug, Write as _};

use futures_util::{StreamExt, TryStreamExt};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::{IpVersion, RouteMessageBuilder};

use crate::netns::Namespace;
use crate::nft;

/// Reads everything that meshd may touch. What changes by itself is left out: counters, ages, carrier states.
///
/// # Errors
/// A sentence, if the kernel refuses.
pub fn take(node: &Namespace) -> Result<String, String> {
    let mut text = node.block_on(|| async { netlink().await.map_err(|e| e.to_string()) })?;
    text.push_str(&nft::listing(node).map_err(|e| e.to_string())?);
    Ok(text)
}

async fn netlink() -> Result<String, rtnetlink::Error> {
    let Ok((connection, handle, _)) = rtnetlink::new_connection() else {
        return Err(rtnetlink::Error::RequestFailed);
    };
    let driver = tokio::spawn(connection);
    let mut text = String::new();
    let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await?;
    list(&mut text, "link", links.iter().map(link));
    let addresses: Vec<_> = handle.address().get().execute().try_collect().await?;
    list(&mut text, "address", addresses.iter());
    for version in [IpVersion::V4, IpVersion::V6] {
        let rules: Vec<_> = handle.rule().get(version).execute().try_collect().await?;
        list(&mut text, "rule", rules.iter());
    }
    let v4 = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
    let v6 = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
    for mut question in [v4, v6] {
        // Table 0 asks for the routes of all tables.
        question.header.table = 0;
        question.attributes.clear();
        let routes: Vec<_> = handle.route().get(question).execute().collect().await;
        list(&mut text, "route", routes.into_iter().flatten().map(route));
    }
    driver.abort();
    Ok(text)
}

fn list<T: Debug>(text: &mut String, word: &str, items: impl Iterator<Item = T>) {
    let mut lines: Vec<String> = items.map(|item| format!("{word} {item:?}")).collect();
    lines.sort_unstable();
    for line in lines {
        let _ = writeln!(text, "{line}");
    }
}

fn link(message: &LinkMessage) -> Vec<String> {
    let stays = |a: &&LinkAttribute| {
        matches!(
            a,
            LinkAttribute::IfName(_)
                | LinkAttribute::Mtu(_)
                | LinkAttribute::Address(_)
                | LinkAttribute::TxQueueLen(_)
                | LinkAttribute::Controller(_)
                | LinkAttribute::Group(_)
                | LinkAttribute::Promiscuity(_)
        )
    };
    let kept = message.attributes.iter().filter(stays);
    let mut lines = vec![format!("{} up={}", message.header.index, is_up(message))];
    lines.extend(kept.map(|a| format!("{a:?}")));
    lines
}

fn is_up(message: &LinkMessage) -> bool {
    use netlink_packet_route::link::LinkFlags;
    message.header.flags.contains(LinkFlags::Up)
}

fn route(mut message: RouteMessage) -> RouteMessage {
    message.attributes.retain(|a| !matches!(a, RouteAttribute::CacheInfo(_) | RouteAttribute::Expires(_)));
    message
}

/// Says in which lines two snapshots differ; empty if they are the same bytes.
pub fn difference(before: &str, after: &str) -> Vec<String> {
    let missing = |from: &str, of: &str, sign: char| -> Vec<String> {
        let there: std::collections::BTreeSet<&str> = of.lines().collect();
        let lines = from.lines().filter(|l| !there.contains(l));
        lines.map(|l| format!("{sign} {l}")).collect()
    };
    let mut lines = missing(before, after, '-');
    lines.extend(missing(after, before, '+'));
    if lines.is_empty() && before != after {
        lines.push("~ the same lines in another order or number".into());
    }
    lines
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use crate::privilege::privileged;

    #[test]
    fn a_snapshot_tells_every_kind_of_change_and_nothing_else() {
        if !privileged("kernel snapshots") {
            return;
        }
        let prefix = format!("hs{}", std::process::id());
        let node = Namespace::new(&prefix, "n", None).unwrap();
        node.bridge("cni0").unwrap();
        let before = take(&node).unwrap();
        assert_eq!(difference(&before, &take(&node).unwrap()), [""; 0]);

        let pods = "10.8.0.0/24".parse().unwrap();
        nft::masquerade(&node, pods, "cni0").unwrap();
        assert!(!difference(&before, &take(&node).unwrap()).is_empty());
        nft::remove_table(&node, "cni").unwrap();
        assert_eq!(difference(&before, &take(&node).unwrap()), [""; 0]);

        node.rule_from(pods, 2, 1536).unwrap();
        assert!(!difference(&before, &take(&node).unwrap()).is_empty());
    }
}
