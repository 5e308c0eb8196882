//! The control channel's listener: connections, their limits, and HTTP/2 on each.
//!
//! ```text
//! accept ─▶ an address that a member came from? its own places, else the strangers' (`half_open`)
//!        ─▶ first byte within 2 s, TLS within 4 s ─▶ whose key?
//!             member   ─▶ leaves its place; at most 16 connections each
//!             stranger ─▶ has 30 s to join, as long as nobody else gets his place
//! ```
//! Strangers have 1024 places, 32 from one address, or one IPv6 /64; addresses of members have 4096, 1024 from one.
//! Nothing that a peer sends ends the accept loop.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use mesh_host::http::{Stop, stopped};
use mesh_host::tls;
use mesh_proto::base::id::IdentityKey;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::channel::context::Context;
use crate::channel::own_addresses::OwnAddresses;
use crate::channel::peer::{ConnectionLimits, LetIn, Requester};
use crate::channel::routes;

/// How long after it connected a peer may take for its first byte.
const HELLO: Duration = Duration::from_secs(2);
/// How long after that a peer may take for the rest of its TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(2);
/// How long after its handshake a peer may take for its first request.
const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// How long a stranger may stay without becoming a member.
const STRANGER: Duration = Duration::from_secs(30);
/// How often a silent peer is asked for a sign of life, and how long it may take to give it.
const PING: Duration = Duration::from_secs(10);
/// Most requests of one connection at the same time.
const MAX_STREAMS: u32 = 16;
/// Most bytes of a request's headers.
const MAX_HEADERS: u32 = 16 * 1024;
/// How long the listener rests when the system gives no more connections (EMFILE).
const REST: Duration = Duration::from_millis(100);

/// Serves connections until told to stop, then lets those that are open finish.
pub(crate) async fn serve(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    context: Context,
    doors: Arc<ConnectionLimits>,
    addresses: Arc<OwnAddresses>,
) {
    let mut stop = context.stop.clone();
    let routes = routes::routes(context.clone());
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            () = stopped(&mut stop) => break,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "no connection can be taken; trying again");
                sleep(REST).await;
                continue;
            }
        };
        if !is_one_descriptor_left() {
            context.counters.turned_away();
            continue;
        }
        let Some(entry) = doors.admit(from.ip()) else {
            context.counters.turned_away();
            continue;
        };
        if entry.is_anothers {
            context.counters.made_room();
        }
        let (acceptor, routes, context) = (acceptor.clone(), routes.clone(), context.clone());
        let (doors, addresses) = (Arc::clone(&doors), Arc::clone(&addresses));
        connections.spawn(async move {
            let served = connection(stream, from, entry, acceptor, routes, context, doors, addresses).await;
            if let Err(error) = served {
                tracing::debug!(peer = %from, %error, "connection ended");
            }
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Says whether another descriptor can be had. The last one is never a node's: the operator's socket waits for it.
fn is_one_descriptor_left() -> bool {
    File::open("/dev/null").is_ok()
}

#[expect(clippy::too_many_arguments, reason = "one call, and a struct for it would say nothing more")]
async fn connection(
    stream: TcpStream,
    from: SocketAddr,
    entry: LetIn,
    acceptor: TlsAcceptor,
    routes: Router,
    context: Context,
    doors: Arc<ConnectionLimits>,
    addresses: Arc<OwnAddresses>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let local = stream.local_addr()?.ip().to_canonical();
    let LetIn { place, mut evicted, is_anothers: _ } = entry;
    let stream = tokio::select! {
        stream = shake_hands(stream, acceptor) => stream?,
        Ok(()) = &mut evicted => return Err(made_room()),
    };
    let identity = proven(&stream)?;
    let peer = Requester::new(identity, from.ip().to_canonical(), place);
    let Some(_seat) = doors.seat(identity) else {
        context.counters.turned_away();
        return Err(io::Error::other("too many connections of this key"));
    };
    let world = context.core.world();
    if world.member(&identity).is_some() {
        peer.welcome(&world);
    }
    drop(world);
    addresses.note(local).await;
    tokio::select! {
        spoken = speak(stream, peer, routes, context.stop) => spoken,
        // Who became a member meanwhile has left the place, and is not told.
        Ok(()) = evicted => Err(made_room()),
    }
}

/// Waits for the handshake, which has to begin and to end in time.
async fn shake_hands(stream: TcpStream, acceptor: TlsAcceptor) -> io::Result<TlsStream<TcpStream>> {
    timeout(HELLO, stream.readable()).await??;
    timeout(HANDSHAKE, acceptor.accept(stream)).await?
}

fn made_room() -> io::Error {
    io::Error::other("another connection got its place")
}

/// Returns whose key the handshake proved.
fn proven(stream: &TlsStream<TcpStream>) -> io::Result<IdentityKey> {
    let (_, connection) = stream.get_ref();
    let keys = connection.peer_certificates().unwrap_or_default();
    let identity = keys.first().and_then(|key| tls::identity_of(key));
    identity.ok_or_else(|| io::Error::other("the peer presented no Ed25519 key"))
}

/// Speaks HTTP/2 until either side ends it.
async fn speak(stream: TlsStream<TcpStream>, peer: Requester, routes: Router, mut stop: Stop) -> io::Result<()> {
    let stranger = peer.clone();
    let routes = TowerToHyperService::new(routes);
    let identified = service_fn(move |mut request: Request<Incoming>| {
        peer.speaks();
        request.extensions_mut().insert(peer.clone());
        routes.call(request)
    });
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADERS)
        .max_pending_accept_reset_streams(MAX_STREAMS as usize);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), identified));
    let began = Instant::now();
    let mut deadlines = [began + FIRST_REQUEST, began + STRANGER].into_iter();
    let mut deadline = deadlines.next();
    let mut stopping = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => return ended.map_err(io::Error::other),
            () = stopped(&mut stop), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
            () = sleep_until(deadline.unwrap_or(began)), if deadline.is_some() => {
                if !stranger.has_spoken() {
                    return Err(io::Error::other("no request came"));
                }
                deadline = deadlines.next();
                if deadline.is_none() && stranger.is_stranger() {
                    return Err(io::Error::other("the peer did not join"));
                }
            }
        }
    }
}
