//! The Unix socket where a stub tells its figures and takes tasks; the lab asks through the file system,
//! without entering the stub's namespace.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mesh_tests::http::Connection;
use tokio::net::{UnixListener, UnixStream};

use crate::shop::Shop;
use crate::tasks;

/// Answers for ever.
pub(crate) async fn serve(path: PathBuf, shop: &Arc<Shop>) -> io::Result<()> {
    let listener = UnixListener::bind(path)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let shop = Arc::clone(shop);
        tokio::spawn(async move { answer(&shop, stream).await });
    }
}

async fn answer(shop: &Arc<Shop>, stream: UnixStream) -> io::Result<()> {
    let mut connection = Connection::new(stream);
    while let Some(request) = connection.request().await? {
        let body = match request.path.as_str() {
            "/stats" => serde_json::to_vec(&shop.stats())?,
            "/series" => serde_json::to_vec(&tasks::series(&request).await)?,
            "/storm" => serde_json::to_vec(&tasks::storm(shop, &request).await)?,
            "/download" => serde_json::to_vec(&tasks::download(&request).await)?,
            "/rate" => {
                shop.rate.store(request.number("pages", 0), Ordering::Relaxed);
                b"{}".to_vec()
            }
            _ => {
                connection.answer(404, b"{}").await?;
                continue;
            }
        };
        connection.answer(200, &body).await?;
    }
    Ok(())
}
