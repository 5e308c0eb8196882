//! Rule, routes, addresses and the interface, by rtnetlink.
//!
//! Every `ensure_` compares what is there with what should be, changes only the difference, and says in
//! sentences what it changed: nothing, if all was well. What is ours is known by rule priority, table and
//! [`PROTOCOL`], so that nothing of others is ever touched.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::{StreamExt, TryStreamExt};
use ipnet::Ipv4Net;
use mesh_proto::base::addr::{MeshRange, overlap};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion, LinkUnspec, RouteMessageBuilder};
use tokio::task::JoinHandle;

use super::error::{KernelError, errno};
use super::names;
use crate::linux::shape::{RULE_PRIORITY, Shape, TABLE};

/// The routing protocol number that marks our rule and routes; a free one in rt_protos.
pub(super) const PROTOCOL: RouteProtocol = RouteProtocol::Other(105);
/// The metric of the route that is left when the interface is gone.
const LAST: u32 = u32::MAX;
/// The metric of the route into the interface.
const FIRST: u32 = 1;
/// Packets that the interface queues per lane: about 4 ms at a million a second, one scheduler slice. A TUN
/// takes packets off their socket's account, so that 10,000 super-packets of 64 KB could hold 640 MB.
const QUEUE: u32 = 4_000;

/// An open rtnetlink socket.
#[derive(Debug)]
pub(super) struct Routes {
    pub(super) handle: Handle,
    connection: JoinHandle<()>,
}

impl Drop for Routes {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// An interface as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) kind: Option<InfoKind>,
    pub(super) mtu: u32,
    pub(super) up: bool,
    /// Whether there is anybody at the other end; of a TUN device: a process that serves it.
    pub(super) carrier: bool,
    queue: u32,
}

impl Routes {
    /// Opens a socket in the network namespace of the calling thread.
    pub(super) fn open() -> Result<Self, KernelError> {
        // Kernels before 4.20 know no strict check, and answer filtered questions in full.
        let (connection, handle, _messages) = rtnetlink::new_connection_with_strict_check()
            .or_else(|_| rtnetlink::new_connection())
            .map_err(|error| KernelError::Socket(error.to_string()))?;
        let connection = tokio::spawn(connection);
        Ok(Self { handle, connection })
    }

    /// Makes sure that exactly one rule leads the range into its table.
    pub(super) async fn ensure_rule(&self, range: MeshRange) -> Result<Vec<String>, KernelError> {
        let mut changes = Vec::new();
        let mut found = false;
        let table = names::table(range);
        for rule in self.rules().await?.into_iter().filter(|rule| is_rule_in(rule, table, range)) {
            if is_rule_for(&rule, range) && !found {
                found = true;
                continue;
            }
            changes.push(format!("removed a stale ip rule of priority {RULE_PRIORITY}"));
            self.delete_rule(rule).await?;
        }
        if !found {
            let net = range.net();
            let mut add = self.handle.rule().add().v4();
            add.message_mut().attributes.push(RuleAttribute::Protocol(PROTOCOL));
            let added = add
                .priority(RULE_PRIORITY)
                .destination_prefix(net.network(), net.prefix_len())
                .table_id(table)
                .action(RuleAction::ToTable)
                .execute()
                .await;
            unless(libc::EEXIST, "add the ip rule", added)?;
            changes.push(format!("ip rule {RULE_PRIORITY}: to {range} lookup {table}"));
        }
        Ok(changes)
    }

    /// Makes sure that the range is unreachable, rather than someone else's, when the interface is gone.
    pub(super) async fn ensure_unreachable(&self, range: MeshRange) -> Result<Vec<String>, KernelError> {
        let mut changes = Vec::new();
        let mut found = false;
        let table = names::table(range);
        for route in self.own_routes(table, range).await? {
            if destination(&route) != range.net() {
                changes.push(format!("removed a stale route to {}", destination(&route)));
                self.delete_route(route).await?;
            } else if route.header.kind == RouteType::Unreachable && priority(&route) == LAST {
                found = true;
            }
        }
        if !found {
            let route = own_route(range).kind(RouteType::Unreachable).priority(LAST).build();
            let added = self.handle.route().add(route).execute().await;
            unless(libc::EEXIST, "add the unreachable route", added)?;
            changes.push(format!("unreachable {range} in table {table}"));
        }
        Ok(changes)
    }

    /// Makes sure that the interface has its addresses, MTU, queue and route, and is up.
    pub(super) async fn ensure_interface(&self, shape: &Shape) -> Result<Vec<String>, KernelError> {
        let link = self.link(&shape.interface).await?;
        let link = link.ok_or_else(|| KernelError::NoInterface(shape.interface.clone()))?;
        let mut changes = self.ensure_link(&link, shape.mtu).await?;
        changes.extend(self.ensure_addresses(link.index, shape).await?);
        changes.extend(self.ensure_route(link.index, shape).await?);
        Ok(changes)
    }

    /// Makes sure of its MTU and queue, and that it is up.
    pub(super) async fn ensure_link(&self, link: &Link, mtu: u16) -> Result<Vec<String>, KernelError> {
        let mtu = u32::from(mtu);
        if link.up && link.mtu == mtu && link.queue == QUEUE {
            return Ok(Vec::new());
        }
        if !link.up {
            self.silence_ipv6(link.index).await;
        }
        let wanted = LinkUnspec::new_with_index(link.index).mtu(mtu).txqueuelen(QUEUE).up().build();
        let changed = self.handle.link().change(wanted).execute().await;
        changed.map_err(|e| KernelError::route(&format!("set up interface `{}`", link.name), &e))?;
        Ok(vec![format!("{}: up, mtu {mtu}, queue {QUEUE}", link.name)])
    }

    /// Keeps the kernel from giving the interface a link-local address, whose router solicitations would
    /// only be dropped by the engine. A kernel without IPv6 refuses, and needs nothing.
    async fn silence_ipv6(&self, index: u32) {
        let spec = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let quiet =
            LinkUnspec::new_with_index(index).append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![spec])).build();
        if let Err(error) = self.handle.link().change(quiet).execute().await {
            tracing::debug!(%error, "interface keeps its IPv6 link-local address");
        }
    }

    /// Makes sure that it has our addresses, and no other of the range.
    pub(super) async fn ensure_addresses(&self, index: u32, shape: &Shape) -> Result<Vec<String>, KernelError> {
        let wanted = [(shape.address.0, AddressScope::Universe), (shape.dns(), AddressScope::Host)];
        let mut changes = Vec::new();
        let mut found = [false; 2];
        for message in self.addresses(Some(index)).await? {
            let Some(address) = local_v4(&message) else { continue };
            let is = |&(a, scope): &(Ipv4Addr, AddressScope)| {
                a == address && message.header.scope == scope && message.header.prefix_len == 32
            };
            if let Some(place) = wanted.iter().position(is) {
                found[place] = true;
            } else if shape.range.contains(address) {
                changes.push(format!("removed the stale address {address}"));
                self.delete_address(message).await?;
            }
        }
        for ((address, scope), found) in wanted.into_iter().zip(found) {
            if found {
                continue;
            }
            let mut add = self.handle.address().add(index, address.into(), 32);
            add.message_mut().header.scope = scope;
            let added = add.execute().await;
            unless(libc::EEXIST, &format!("add the address {address}"), added)?;
            changes.push(format!("address {address} on {}", shape.interface));
        }
        Ok(changes)
    }

    /// Makes sure that the range leads into it.
    pub(super) async fn ensure_route(&self, index: u32, shape: &Shape) -> Result<Vec<String>, KernelError> {
        let mut found = false;
        for route in self.own_routes(names::table(shape.range), shape.range).await? {
            if route.header.kind != RouteType::Unicast {
                continue;
            }
            if priority(&route) == FIRST
                && output(&route) == Some(index)
                && preferred_source(&route) == Some(shape.address.0.into())
            {
                found = true;
            } else {
                self.delete_route(route).await?;
            }
        }
        if found {
            return Ok(Vec::new());
        }
        let route = own_route(shape.range)
            .kind(RouteType::Unicast)
            .scope(RouteScope::Link)
            .output_interface(index)
            .pref_source(shape.address.0)
            .priority(FIRST)
            .build();
        let added = self.handle.route().add(route).replace().execute().await;
        added.map_err(|e| KernelError::route("add the route into the mesh interface", &e))?;
        let (range, interface) = (shape.range, &shape.interface);
        Ok(vec![format!("{range} dev {interface} in table {}", names::table(range))])
    }

    /// Removes an interface if it is a TUN device, else our addresses from it; says what it removed.
    pub(super) async fn remove_interface(
        &self,
        interface: &str,
        ranges: &[MeshRange],
    ) -> Result<Vec<String>, KernelError> {
        let Some(link) = self.link(interface).await? else { return Ok(Vec::new()) };
        if link.kind == Some(InfoKind::Tun) {
            let deleted = self.handle.link().del(link.index).execute().await;
            unless(libc::ENODEV, &format!("remove interface `{interface}`"), deleted)?;
            return Ok(vec![format!("interface {interface}")]);
        }
        let mut removed = Vec::new();
        for message in self.addresses(Some(link.index)).await? {
            let Some(address) = local_v4(&message) else { continue };
            if ranges.iter().any(|range| range.contains(address)) {
                self.delete_address(message).await?;
                removed.push(format!("address {address}"));
            }
        }
        Ok(removed)
    }

    /// Removes the rules and routes of a range, those in some tables only; says what it removed.
    pub(super) async fn remove(&self, range: MeshRange, tables: &[u32]) -> Result<Vec<String>, KernelError> {
        let mut removed = Vec::new();
        let rules = self.rules().await?;
        for &table in tables {
            for rule in rules.iter().filter(|rule| is_rule_in(rule, table, range)) {
                removed.push(format!("ip rule {RULE_PRIORITY} (lookup {table})"));
                self.delete_rule(rule.clone()).await?;
            }
        }
        for &table in tables {
            for route in self.own_routes(table, range).await? {
                removed.push(format!("route to {} in table {table}", destination(&route)));
                self.delete_route(route).await?;
            }
        }
        Ok(removed)
    }

    /// Lists the IPv4 rules in the order in which the kernel asks them.
    pub(super) async fn rules(&self) -> Result<Vec<RuleMessage>, KernelError> {
        let rules = self.handle.rule().get(IpVersion::V4).execute();
        let rules = rules.try_collect().await;
        rules.map_err(|e| KernelError::route("list ip rules", &e))
    }

    /// Lists our routes of a table that lead into a range.
    async fn own_routes(&self, table: u32, range: MeshRange) -> Result<Vec<RouteMessage>, KernelError> {
        let mut routes = self.table(table).await?;
        routes.retain(|route| route.header.protocol == PROTOCOL && overlap(destination(route), range.net()));
        Ok(routes)
    }

    /// Lists our routes of all meshes, each with its range.
    pub(super) async fn all_own_routes(&self) -> Result<Vec<(MeshRange, RouteMessage)>, KernelError> {
        let routes = self.filtered(PROTOCOL, None, usize::MAX).await?;
        let own = |route: RouteMessage| {
            let range = MeshRange::try_from(destination(&route)).ok()?;
            let table = table_of(&route);
            (table == TABLE || table == names::table(range)).then_some((range, route))
        };
        Ok(routes.into_iter().filter_map(own).collect())
    }

    /// Lists the IPv4 routes of a table; the kernel filters, so that a host with a million routes costs nothing.
    pub(super) async fn table(&self, table: u32) -> Result<Vec<RouteMessage>, KernelError> {
        self.routes(Some(table), usize::MAX).await
    }

    /// Lists IPv4 routes, at most so many, of one table or of all.
    pub(super) async fn routes(&self, table: Option<u32>, most: usize) -> Result<Vec<RouteMessage>, KernelError> {
        self.filtered(RouteProtocol::Unspec, table, most).await
    }

    async fn filtered(
        &self,
        protocol: RouteProtocol,
        table: Option<u32>,
        most: usize,
    ) -> Result<Vec<RouteMessage>, KernelError> {
        let mut filter = RouteMessageBuilder::<Ipv4Addr>::new()
            .protocol(protocol)
            .kind(RouteType::Unspec)
            .table_id(table.unwrap_or(0))
            .build();
        if table.is_none() {
            filter.header.table = 0;
        }
        let routes = self.handle.route().get(filter).execute();
        let routes = routes.take(most).try_collect::<Vec<_>>().await;
        match routes {
            // The kernel's answer for a table without routes.
            Err(error) if errno(&error) == Some(libc::ENOENT) => Ok(Vec::new()),
            Err(error) => Err(KernelError::route("list routes", &error)),
            Ok(mut routes) => {
                // Kernels before 4.20 do not filter.
                routes.retain(|route| {
                    table.is_none_or(|table| table_of(route) == table)
                        && (protocol == RouteProtocol::Unspec || route.header.protocol == protocol)
                });
                Ok(routes)
            }
        }
    }

    /// Asks the kernel which route a packet to an address takes; `None` if none.
    pub(super) async fn lookup(&self, to: IpAddr) -> Option<RouteMessage> {
        let mut query = match to {
            IpAddr::V4(to) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to, 32).build(),
            IpAddr::V6(to) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(to, 128).build(),
        };
        query.header.protocol = RouteProtocol::Unspec;
        query.header.kind = RouteType::Unspec;
        query.header.table = 0;
        let mut answers = Box::pin(self.handle.route().get(query).execute());
        answers.next().await?.ok()
    }

    /// Asks the kernel which route a packet with a mark takes to an address, as the route stands in its table; `None` if
    /// none.
    pub(super) async fn entry(&self, to: Ipv4Addr, mark: u32) -> Option<RouteMessage> {
        let mut query = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to, 32).build();
        query.header.protocol = RouteProtocol::Unspec;
        query.header.kind = RouteType::Unspec;
        query.header.table = 0;
        query.header.flags = RouteFlags::LookupTable | RouteFlags::FibMatch;
        query.attributes.push(RouteAttribute::Mark(mark));
        let mut answers = Box::pin(self.handle.route().get(query).execute());
        answers.next().await?.ok()
    }

    /// Lists addresses of both families, of one interface or of all.
    pub(super) async fn addresses(&self, index: Option<u32>) -> Result<Vec<AddressMessage>, KernelError> {
        let mut request = self.handle.address().get();
        if let Some(index) = index {
            request.message_mut().header.index = index;
            request = request.set_link_index_filter(index);
        }
        let addresses = request.execute().try_collect().await;
        addresses.map_err(|e| KernelError::route("list addresses", &e))
    }

    /// Finds an interface by its name.
    pub(super) async fn link(&self, name: &str) -> Result<Option<Link>, KernelError> {
        let request = self.handle.link().get().match_name(name);
        let mut answers = Box::pin(request.execute());
        match answers.next().await {
            None => Ok(None),
            Some(Ok(message)) => Ok(Some(Link::read(&message))),
            Some(Err(error)) if errno(&error) == Some(libc::ENODEV) => Ok(None),
            Some(Err(error)) => Err(KernelError::route(&format!("find interface `{name}`"), &error)),
        }
    }

    /// Finds an interface by its number.
    pub(super) async fn link_at(&self, index: u32) -> Result<Option<Link>, KernelError> {
        let mut answers = Box::pin(self.handle.link().get().match_index(index).execute());
        match answers.next().await {
            None => Ok(None),
            Some(Ok(message)) => Ok(Some(Link::read(&message))),
            Some(Err(error)) if errno(&error) == Some(libc::ENODEV) => Ok(None),
            Some(Err(error)) => Err(KernelError::route(&format!("find interface {index}"), &error)),
        }
    }

    /// Gives an interface another name. Kernels before 6.2 rename none that is up, so that it is taken down for it.
    pub(super) async fn rename(&self, index: u32, name: &str) -> Result<(), KernelError> {
        let wanted = || LinkUnspec::new_with_index(index).name(name.to_owned());
        let mut renamed = self.handle.link().change(wanted().build()).execute().await;
        if renamed.as_ref().is_err_and(|error| errno(error) == Some(libc::EBUSY)) {
            // It comes up again with all that it needs.
            let down = LinkUnspec::new_with_index(index).down().build();
            if self.handle.link().change(down).execute().await.is_ok() {
                renamed = self.handle.link().change(wanted().build()).execute().await;
            }
        }
        renamed.map_err(|e| KernelError::route(&format!("rename an interface back to `{name}`"), &e))
    }

    /// Lists all interfaces.
    pub(super) async fn links(&self) -> Result<Vec<Link>, KernelError> {
        let links = self.handle.link().get().execute();
        let links: Result<Vec<LinkMessage>, _> = links.try_collect().await;
        let links = links.map_err(|e| KernelError::route("list interfaces", &e))?;
        Ok(links.iter().map(Link::read).collect())
    }

    async fn delete_rule(&self, rule: RuleMessage) -> Result<(), KernelError> {
        let deleted = self.handle.rule().del(rule).execute().await;
        unless(libc::ENOENT, "remove an ip rule", deleted)
    }

    async fn delete_route(&self, route: RouteMessage) -> Result<(), KernelError> {
        let deleted = self.handle.route().del(route).execute().await;
        unless(libc::ESRCH, "remove a route", deleted)
    }

    async fn delete_address(&self, address: AddressMessage) -> Result<(), KernelError> {
        let deleted = self.handle.address().del(address).execute().await;
        unless(libc::EADDRNOTAVAIL, "remove an address", deleted)
    }
}

impl Link {
    fn read(message: &LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            kind: None,
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            carrier: message.header.flags.contains(LinkFlags::LowerUp),
            queue: 0,
        };
        for attribute in &message.attributes {
            if let LinkAttribute::IfName(name) = attribute {
                link.name.clone_from(name);
            } else if let LinkAttribute::Mtu(mtu) = attribute {
                link.mtu = *mtu;
            } else if let LinkAttribute::TxQueueLen(queue) = attribute {
                link.queue = *queue;
            } else if let LinkAttribute::LinkInfo(infos) = attribute {
                link.kind = infos
                    .iter()
                    .find_map(|info| if let LinkInfo::Kind(kind) = info { Some(kind.clone()) } else { None });
            }
        }
        link
    }
}

/// Takes one error for success: that what was asked for is so already.
fn unless(harmless: i32, step: &str, result: Result<(), rtnetlink::Error>) -> Result<(), KernelError> {
    match result {
        Err(error) if errno(&error) == Some(harmless) => Ok(()),
        other => other.map_err(|error| KernelError::route(step, &error)),
    }
}

fn own_route(range: MeshRange) -> RouteMessageBuilder<Ipv4Addr> {
    RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(range.net().network(), range.net().prefix_len())
        .table_id(names::table(range))
        .protocol(PROTOCOL)
}

/// Returns the range and the table of a rule that is ours; `None` for those of others.
pub(super) fn own_rule(rule: &RuleMessage) -> Option<(MeshRange, u32)> {
    let has = |wanted: &RuleAttribute| rule.attributes.contains(wanted);
    if !has(&RuleAttribute::Priority(RULE_PRIORITY)) || !has(&RuleAttribute::Protocol(PROTOCOL)) {
        return None;
    }
    let range = MeshRange::try_from(to(rule)?).ok()?;
    [names::table(range), TABLE]
        .into_iter()
        .find(|&table| has(&RuleAttribute::Table(table)))
        .map(|table| (range, table))
}

/// Says whether a rule is ours and leads what belongs to a range, or everything, into a table.
fn is_rule_in(rule: &RuleMessage, table: u32, range: MeshRange) -> bool {
    let has = |wanted: &RuleAttribute| rule.attributes.contains(wanted);
    has(&RuleAttribute::Priority(RULE_PRIORITY))
        && has(&RuleAttribute::Protocol(PROTOCOL))
        && has(&RuleAttribute::Table(table))
        && to(rule).is_none_or(|net| overlap(net, range.net()))
}

/// Returns the prefix that a rule is for; `None` for one that is for everything.
fn to(rule: &RuleMessage) -> Option<Ipv4Net> {
    rule.attributes.iter().find_map(|attribute| {
        if let RuleAttribute::Destination(IpAddr::V4(net)) = attribute {
            Ipv4Net::new(*net, rule.header.dst_len).ok()
        } else {
            None
        }
    })
}

fn is_rule_for(rule: &RuleMessage, range: MeshRange) -> bool {
    let net = range.net();
    let to = RuleAttribute::Destination(IpAddr::V4(net.network()));
    rule.header.dst_len == net.prefix_len()
        && rule.header.src_len == 0
        && rule.header.action == RuleAction::ToTable
        && rule.attributes.contains(&to)
        && !rule
            .attributes
            .iter()
            .any(|a| matches!(a, RuleAttribute::Iifname(_) | RuleAttribute::Oifname(_) | RuleAttribute::FwMark(_)))
}

fn find<T>(route: &RouteMessage, read: impl Fn(&RouteAttribute) -> Option<T>) -> Option<T> {
    route.attributes.iter().find_map(read)
}

/// Returns the prefix that a route leads to; the whole address space for a default route.
pub(super) fn destination(route: &RouteMessage) -> Ipv4Net {
    let address = route.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Destination(RouteAddress::Inet(address)) = attribute { Some(*address) } else { None }
    });
    let length = route.header.destination_prefix_length.min(32);
    Ipv4Net::new_assert(address.unwrap_or(Ipv4Addr::UNSPECIFIED), length)
}

/// Returns the table that a route is in.
pub(super) fn table_of(route: &RouteMessage) -> u32 {
    let table = find(route, |attribute| if let RouteAttribute::Table(table) = attribute { Some(*table) } else { None });
    table.unwrap_or_else(|| u32::from(route.header.table))
}

/// Returns the interface that a route uses.
pub(super) fn output(route: &RouteMessage) -> Option<u32> {
    find(route, |attribute| if let RouteAttribute::Oif(index) = attribute { Some(*index) } else { None })
}

/// Returns the source address that a route prefers.
pub(super) fn preferred_source(route: &RouteMessage) -> Option<IpAddr> {
    route.attributes.iter().find_map(|attribute| {
        let RouteAttribute::PrefSource(source) = attribute else { return None };
        if let RouteAddress::Inet(address) = source {
            Some((*address).into())
        } else if let RouteAddress::Inet6(address) = source {
            Some((*address).into())
        } else {
            None
        }
    })
}

/// Returns the IPv4 router that a route leads to; none for a route onto a link, or over several.
pub(super) fn gateway(route: &RouteMessage) -> Option<Ipv4Addr> {
    find(route, |attribute| {
        if let RouteAttribute::Gateway(RouteAddress::Inet(gateway)) = attribute { Some(*gateway) } else { None }
    })
}

fn priority(route: &RouteMessage) -> u32 {
    find(route, |attribute| if let RouteAttribute::Priority(priority) = attribute { Some(*priority) } else { None })
        .unwrap_or(0)
}

/// Returns the IPv4 address of this host that an address message is about.
pub(super) fn local_v4(message: &AddressMessage) -> Option<Ipv4Addr> {
    message.attributes.iter().find_map(|attribute| {
        if let AddressAttribute::Local(IpAddr::V4(address)) = attribute { Some(*address) } else { None }
    })
}
