//! The node's DNS server: it answers for the mesh's names from the map in force, on UDP and TCP.
//!
//! `zone` decides what the answer is; this file speaks the protocol (hickory-server) and forwards names that
//! are not the mesh's to upstreams, if there are any. Names of the mesh never leave this node. Whatever a
//! client sends, the server goes on.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hickory_server::Server;
use hickory_server::net::runtime::Time;
use hickory_server::net::xfer::Protocol;
use hickory_server::proto::op::{Edns, HeaderCounts, Message, MessageType, Metadata, OpCode, ResponseCode};
use hickory_server::proto::rr::rdata::{A, NS, PTR, SOA};
use hickory_server::proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use mesh_proto::dataplane::view::View;
use mesh_proto::dns::zone::{self, Answer, QueryType};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

/// Most questions that wait for upstreams at the same time; more are answered SERVFAIL.
const MAX_FORWARDS: usize = 256;
/// How long one upstream has to answer; resolvers of clients ask again after 5 s.
const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a TCP client may be silent.
const TCP_IDLE: Duration = Duration::from_secs(10);
/// How many answers may wait for one slow TCP client.
const TCP_ANSWERS: usize = 16;
/// How many TCP clients may wait to be accepted.
const BACKLOG: i32 = 128;
/// The largest UDP answer, which passes every link without fragments (DNS flag day 2020).
const MAX_UDP: u16 = 1232;
/// How long to wait before a socket is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Serves DNS at these addresses, present on this host or not yet, until `stop` is ready.
///
/// Upstreams are asked in turn for names that are not the mesh's; without any, such names are refused.
///
/// # Errors
/// The error of a socket that will not be cured by waiting, such as a missing permission.
pub async fn serve(
    listen: Vec<SocketAddr>,
    view: watch::Receiver<Arc<View>>,
    upstreams: Vec<SocketAddr>,
    stop: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    // A resolv.conf that names this very server would make a loop.
    let upstreams: Arc<[SocketAddr]> = upstreams.into_iter().filter(|a| !listen.contains(a)).collect();
    let forwards = Arc::new(Semaphore::new(MAX_FORWARDS));
    let handler = || Handler { view: view.clone(), upstreams: Arc::clone(&upstreams), forwards: Arc::clone(&forwards) };
    let work = async {
        loop {
            let mut server = open(&listen, handler()).await?;
            let ended = server.block_until_done().await;
            tracing::warn!(?ended, "a DNS socket failed; opening it again");
            sleep(RETRY).await;
        }
    };
    tokio::select! {
        failed = work => failed,
        () = stop => Ok(()),
    }
}

/// Opens all sockets, waiting for those whose port another server still holds.
async fn open(addresses: &[SocketAddr], handler: Handler) -> io::Result<Server<Handler>> {
    let mut server = Server::new(handler);
    for &address in addresses {
        let mut warned = false;
        let (udp, tcp) = loop {
            match udp(address).and_then(|udp| Ok((udp, tcp(address)?))) {
                Ok(sockets) => break sockets,
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
                Err(error) if warned => tracing::debug!(%address, %error, "DNS address still taken"),
                Err(error) => {
                    tracing::warn!(%address, %error, "cannot open the DNS address; another DNS server may hold port 53 of all addresses: `ss -lunp sport = 53`");
                    warned = true;
                }
            }
            sleep(RETRY).await;
        };
        server.register_socket(udp);
        server.register_listener(tcp, TCP_IDLE, TCP_ANSWERS);
    }
    Ok(server)
}

fn udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = bound(address, SocketType::DGRAM)?;
    UdpSocket::from_std(socket.into())
}

fn tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = bound(address, SocketType::STREAM)?;
    listen(&socket, BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Binds to an address whether or not an interface has it already.
fn bound(address: SocketAddr, kind: SocketType) -> io::Result<std::os::fd::OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, kind, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
    match address {
        SocketAddr::V4(_) => sockopt::set_ip_freebind(&socket, true)?,
        SocketAddr::V6(_) => sockopt::set_ipv6_freebind(&socket, true)?,
    }
    if kind == SocketType::STREAM {
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &address)?;
    Ok(socket)
}

struct Handler {
    view: watch::Receiver<Arc<View>>,
    upstreams: Arc<[SocketAddr]>,
    forwards: Arc<Semaphore>,
}

/// A response before it is encoded.
#[derive(Default)]
struct Response {
    code: ResponseCode,
    authoritative: bool,
    truncated: bool,
    recursive: bool,
    answers: Vec<Record>,
    authorities: Vec<Record>,
    additionals: Vec<Record>,
}

impl Response {
    fn code(code: ResponseCode) -> Self {
        Self { code, ..Self::default() }
    }
}

#[async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, responder: R) -> ResponseInfo {
        let response = self.respond(request).await;
        send(request, response, responder).await
    }
}

impl Handler {
    async fn respond(&self, request: &Request) -> Response {
        if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            return Response::code(ResponseCode::BADVERS);
        }
        if request.metadata.op_code != OpCode::Query {
            return Response::code(ResponseCode::NotImp);
        }
        let Ok(info) = request.request_info() else { return Response::code(ResponseCode::FormErr) };
        let query = info.query;
        if query.query_class() != DNSClass::IN {
            return Response::code(ResponseCode::Refused);
        }
        let Some(kind) = query_type(query.query_type()) else { return Response::code(ResponseCode::Refused) };
        let name = query.name().to_string();
        let name = name.strip_suffix('.').unwrap_or(&name);
        let view = Arc::clone(&self.view.borrow());
        match zone::answer(view.netmap(), name, kind) {
            Answer::Records(records) => Response {
                authoritative: true,
                answers: records.iter().filter_map(|record| encode(query.original().name(), record)).collect(),
                ..Response::default()
            },
            Answer::NoData(soa) => negative(ResponseCode::NoError, &soa),
            Answer::NxDomain(soa) => negative(ResponseCode::NXDomain, &soa),
            Answer::NotOurs => self.forward(request).await,
        }
    }

    async fn forward(&self, request: &Request) -> Response {
        if self.upstreams.is_empty() || !request.metadata.recursion_desired {
            return Response::code(ResponseCode::Refused);
        }
        let Ok(_permit) = self.forwards.try_acquire() else { return Response::code(ResponseCode::ServFail) };
        for &upstream in self.upstreams.iter() {
            let asked = ask(upstream, request.as_slice(), request.protocol());
            match timeout(UPSTREAM_TIMEOUT, asked).await {
                Ok(Ok(message)) => {
                    return Response {
                        code: message.metadata.response_code,
                        truncated: message.metadata.truncation,
                        recursive: message.metadata.recursion_available,
                        answers: message.answers,
                        authorities: message.authorities,
                        additionals: message.additionals,
                        ..Response::default()
                    };
                }
                Ok(Err(error)) => tracing::debug!(%upstream, %error, "DNS upstream failed"),
                Err(_) => tracing::debug!(%upstream, "DNS upstream did not answer"),
            }
        }
        Response::code(ResponseCode::ServFail)
    }
}

/// Says what a question asks for; `None` for zone transfers, which nobody gets.
fn query_type(kind: RecordType) -> Option<QueryType> {
    if matches!(kind, RecordType::AXFR | RecordType::IXFR) {
        return None;
    }
    let known = [
        (RecordType::A, QueryType::A),
        (RecordType::AAAA, QueryType::Aaaa),
        (RecordType::PTR, QueryType::Ptr),
        (RecordType::SOA, QueryType::Soa),
        (RecordType::NS, QueryType::Ns),
        (RecordType::ANY, QueryType::Any),
    ];
    let found = known.into_iter().find(|&(k, _)| k == kind);
    Some(found.map_or(QueryType::Other, |(_, query)| query))
}

fn encode(owner: &Name, record: &zone::Record) -> Option<Record> {
    let data = match record {
        zone::Record::A(address) => RData::A(A(*address)),
        zone::Record::Ptr(name) => RData::PTR(PTR(fqdn(name)?)),
        zone::Record::Ns(name) => RData::NS(NS(fqdn(name)?)),
        zone::Record::Soa(soa) => RData::SOA(encode_soa(soa)?),
    };
    Some(Record::from_rdata(owner.clone(), zone::TTL, data))
}

/// A secondary server would refresh after an hour; the last number is how long a negative answer is kept.
fn encode_soa(soa: &zone::Soa) -> Option<SOA> {
    let mailbox = fqdn(&format!("hostmaster.{}", soa.zone))?;
    let (refresh, retry, expire) = (3600, 600, 86_400);
    Some(SOA::new(fqdn(&soa.server)?, mailbox, soa.serial, refresh, retry, expire, zone::TTL))
}

fn fqdn(name: &str) -> Option<Name> {
    Name::from_ascii(format!("{name}.")).ok()
}

fn negative(code: ResponseCode, soa: &zone::Soa) -> Response {
    let record = zone::Record::Soa(soa.clone());
    Response {
        code,
        authoritative: true,
        authorities: fqdn(&soa.zone).and_then(|zone| encode(&zone, &record)).into_iter().collect(),
        ..Response::default()
    }
}

async fn send(request: &Request, response: Response, mut responder: impl ResponseHandler) -> ResponseInfo {
    let mut metadata = Metadata::response_from_request(&request.metadata);
    metadata.response_code = response.code;
    metadata.authoritative = response.authoritative;
    metadata.truncation = response.truncated;
    metadata.recursion_available = response.recursive;

    let edns = request.edns.as_ref().map(|asked| {
        let mut edns = Edns::new();
        // The encoder takes this as the limit of a UDP answer.
        edns.set_max_payload(asked.max_payload().clamp(512, MAX_UDP));
        edns.set_rcode_high(response.code.high());
        edns
    });
    let mut builder = MessageResponseBuilder::from_message_request(request);
    if let Some(edns) = &edns {
        builder.edns(edns);
    }
    let none: [Record; 0] = [];
    let message = builder.build(metadata, &response.answers, &response.authorities, &none, &response.additionals);
    match responder.send_response(message).await {
        Ok(info) => info,
        Err(error) => {
            tracing::debug!(%error, "cannot send a DNS answer");
            let mut metadata = Metadata::response_from_request(&request.metadata);
            metadata.response_code = ResponseCode::ServFail;
            ResponseInfo::from(hickory_server::proto::op::Header { metadata, counts: HeaderCounts::default() })
        }
    }
}

/// Asks an upstream the same question in the same bytes, from a port of its own.
async fn ask(upstream: SocketAddr, question: &[u8], protocol: Protocol) -> io::Result<Message> {
    if protocol == Protocol::Tcp {
        return ask_by_tcp(upstream, question).await;
    }
    let any: SocketAddr = if upstream.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(upstream).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Anything else is forged or late; the timeout ends the wait.
        if let Some(message) = answer_to(question, &buffer[..length]) {
            return Ok(message);
        }
    }
}

async fn ask_by_tcp(upstream: SocketAddr, question: &[u8]) -> io::Result<Message> {
    let mut stream = TcpStream::connect(upstream).await?;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), question].concat()).await?;
    let mut length = [0; 2];
    stream.read_exact(&mut length).await?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer).await?;
    let message = answer_to(question, &answer);
    message.ok_or_else(|| io::Error::other("the answer does not match the question"))
}

/// Reads an answer, if it is one to this question.
fn answer_to(question: &[u8], answer: &[u8]) -> Option<Message> {
    let asked = Message::from_vec(question).ok()?;
    let message = Message::from_vec(answer).ok()?;
    let matches = message.metadata.message_type == MessageType::Response
        && message.metadata.id == asked.metadata.id
        && message.queries == asked.queries;
    matches.then_some(message)
}

#[cfg(test)]
mod tests;
