//! The control channel's listener: connections, their limits, and HTTP/2 on each.
//!
//! ```text
//! accept ─▶ door (strangers: 1024 in all, 32 from one address, or one IPv6 /64) ─▶ TLS within 5 s ─▶ whose key?
//!             member   ─▶ leaves the strangers' count; at most 16 connections each
//!             stranger ─▶ has 30 s to join
//! ```
//! Nothing that a peer sends ends the accept loop.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use mesh_proto::base::id::IdentityKey;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::hub::{Hub, lock};
use crate::limits::household;
use crate::{session, tls};

/// Most connections of strangers, in all and from one address.
const MAX_STRANGERS: usize = 1024;
const MAX_STRANGERS_PER_ADDRESS: usize = 32;
/// Most connections of one member.
const MAX_PER_MEMBER: usize = 16;
/// How long a peer may take for its TLS handshake.
const HELLO: Duration = Duration::from_secs(5);
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

/// Becomes true when everything has to end.
pub(crate) type Stop = watch::Receiver<bool>;

/// Waits for the end.
pub(crate) async fn stopped(stop: &mut Stop) {
    // An error means that the sender is gone, which is an end as well.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Whose connection a request came over.
#[derive(Clone)]
pub(crate) struct Peer {
    /// The key that the handshake proved.
    pub(crate) identity: IdentityKey,
    /// The address it comes from.
    pub(crate) observed: IpAddr,
    /// Its place among the strangers, until it is a member.
    place: Arc<Mutex<Option<Place>>>,
    /// One request to join at a time, so that strangers fill no more memory than one body each.
    joining: Arc<Semaphore>,
    spoke: Arc<AtomicBool>,
}

impl Peer {
    /// Takes the peer off the strangers' count.
    pub(crate) fn welcome(&self) {
        lock(&self.place).take();
    }

    /// Begins a request to join; none while another one of this connection is under way.
    pub(crate) fn begin_join(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.joining).try_acquire_owned().ok()
    }
}

/// Counts places by who has them.
struct Door<K: Ord + Copy> {
    taken: Mutex<BTreeMap<K, usize>>,
    most: usize,
    most_each: usize,
}

impl<K: Ord + Copy> Door<K> {
    fn new(most: usize, most_each: usize) -> Self {
        Self { taken: Mutex::default(), most, most_each }
    }

    fn enter(&self, who: K) -> bool {
        let mut taken = lock(&self.taken);
        let all: usize = taken.values().sum();
        let own = taken.get(&who).copied().unwrap_or(0);
        if all >= self.most || own >= self.most_each {
            return false;
        }
        taken.insert(who, own + 1);
        true
    }

    fn leave(&self, who: K) {
        let mut taken = lock(&self.taken);
        match taken.get_mut(&who) {
            Some(own) if *own > 1 => *own -= 1,
            _ => {
                taken.remove(&who);
            }
        }
    }
}

/// A stranger's place; dropping it makes room.
struct Place(Arc<Doors>, IpAddr);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.strangers.leave(self.1);
    }
}

/// A member's connection; dropping it makes room.
struct Seat(Arc<Doors>, IdentityKey);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.members.leave(self.1);
    }
}

/// The limits of all listeners together.
pub(crate) struct Doors {
    strangers: Door<IpAddr>,
    members: Door<IdentityKey>,
}

impl Doors {
    /// Makes the doors, with everybody outside.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            strangers: Door::new(MAX_STRANGERS, MAX_STRANGERS_PER_ADDRESS),
            members: Door::new(usize::MAX, MAX_PER_MEMBER),
        })
    }
}

/// Serves connections until told to stop, then lets those that are open finish.
pub(crate) async fn serve(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    hub: Arc<Hub>,
    doors: Arc<Doors>,
    mut stop: Stop,
) {
    let routes = session::routes(Arc::clone(&hub), stop.clone());
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
        let address = household(from.ip());
        if !doors.strangers.enter(address) {
            hub.metrics.turned_away();
            continue;
        }
        let place = Place(Arc::clone(&doors), address);
        let (acceptor, routes, stop) = (acceptor.clone(), routes.clone(), stop.clone());
        let (hub, doors) = (Arc::clone(&hub), Arc::clone(&doors));
        connections.spawn(async move {
            let served = connection(stream, from, place, acceptor, routes, hub, doors, stop).await;
            if let Err(error) = served {
                tracing::debug!(peer = %from, %error, "connection ended");
            }
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

#[expect(clippy::too_many_arguments, reason = "one call, and a struct for it would say nothing more")]
async fn connection(
    stream: TcpStream,
    from: SocketAddr,
    place: Place,
    acceptor: TlsAcceptor,
    routes: Router,
    hub: Arc<Hub>,
    doors: Arc<Doors>,
    stop: Stop,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let local = stream.local_addr()?.ip().to_canonical();
    let stream = timeout(HELLO, acceptor.accept(stream)).await??;
    let identity = proven(&stream)?;
    let peer = Peer {
        identity,
        observed: from.ip().to_canonical(),
        place: Arc::new(Mutex::new(Some(place))),
        joining: Arc::new(Semaphore::new(1)),
        spoke: Arc::default(),
    };
    if !doors.members.enter(identity) {
        hub.metrics.turned_away();
        return Err(io::Error::other("too many connections of this key"));
    }
    let _seat = Seat(doors, identity);
    if hub.world().member(&identity).is_some() {
        peer.welcome();
    }
    hub.note_underlay(local).await;
    speak(stream, peer, routes, stop).await
}

/// Returns whose key the handshake proved.
fn proven(stream: &TlsStream<TcpStream>) -> io::Result<IdentityKey> {
    let (_, connection) = stream.get_ref();
    let keys = connection.peer_certificates().unwrap_or_default();
    let identity = keys.first().and_then(|key| tls::identity_of(key));
    identity.ok_or_else(|| io::Error::other("the peer presented no Ed25519 key"))
}

/// Speaks HTTP/2 until either side ends it.
async fn speak(stream: TlsStream<TcpStream>, peer: Peer, routes: Router, mut stop: Stop) -> io::Result<()> {
    let stranger = peer.clone();
    let routes = TowerToHyperService::new(routes);
    let identified = service_fn(move |mut request: Request<Incoming>| {
        peer.spoke.store(true, Ordering::Relaxed);
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
                if !stranger.spoke.load(Ordering::Relaxed) {
                    return Err(io::Error::other("no request came"));
                }
                deadline = deadlines.next();
                if deadline.is_none() && lock(&stranger.place).is_some() {
                    return Err(io::Error::other("the peer did not join"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_door_counts_in_all_and_for_each() {
        let door = Door::new(3, 2);
        assert!(door.enter(1) && door.enter(1));
        assert!(!door.enter(1), "one may have two");
        assert!(door.enter(2));
        assert!(!door.enter(3), "all may have three");
        door.leave(1);
        assert!(door.enter(3));
        door.leave(1);
        door.leave(2);
        door.leave(3);
        assert!(lock(&door.taken).is_empty(), "who left takes no memory");
    }
}
