//! Answering callers: each role's methods with the shop's own fan-out, one call after the other.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_tests::boutique::{Role, WhoAmI};
use mesh_tests::http::{Connection, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::shop::Shop;
use crate::tasks::{Noise, hash};

/// Items in every order.
const ITEMS: usize = 3;
/// Products on the home page.
const PRODUCTS: usize = 9;
/// Products that the product page recommends.
const RECOMMENDED: usize = 5;

/// Listens on the role's port for ever; the load generator only waits.
pub(crate) async fn serve(shop: &Arc<Shop>) -> io::Result<()> {
    if shop.role.listens() == 0 {
        return std::future::pending().await;
    }
    let listener = TcpListener::bind(("0.0.0.0", shop.role.listens())).await?;
    loop {
        let (stream, caller) = listener.accept().await?;
        let shop = Arc::clone(shop);
        tokio::spawn(async move {
            stream.set_nodelay(true)?;
            if shop.role == Role::Redis {
                redis(&shop, stream, caller).await
            } else {
                http(&shop, stream, caller).await
            }
        });
    }
}

async fn redis(shop: &Shop, mut stream: TcpStream, caller: SocketAddr) -> io::Result<()> {
    let mut ping = [0; 14];
    loop {
        stream.read_exact(&mut ping).await?;
        shop.figures.note_request(caller.ip());
        stream.write_all(b"+PONG\r\n").await?;
    }
}

async fn http(shop: &Shop, stream: TcpStream, caller: SocketAddr) -> io::Result<()> {
    let mut connection = Connection::new(stream);
    while let Some(request) = connection.request().await? {
        shop.figures.note_request(caller.ip());
        match request.path.as_str() {
            "/whoami" => {
                let who = WhoAmI { server: shop.name.clone(), caller: caller.ip() };
                connection.answer(200, &serde_json::to_vec(&who)?).await?;
            }
            "/stats" => {
                let stats = serde_json::to_vec(&shop.stats())?;
                connection.answer(200, &stats).await?;
            }
            "/download" => download(&mut connection, &request).await?,
            page => match work(shop, page).await {
                Ok(()) => connection.answer(200, b"{}").await?,
                Err(_) => connection.answer(500, b"{}").await?,
            },
        }
    }
    Ok(())
}

/// Streams `mb` megabytes, at most `rate` of them a second, with their hash in the last eight bytes.
async fn download(connection: &mut Connection<TcpStream>, request: &Request) -> io::Result<()> {
    const MEGABYTE: u64 = 1 << 20;
    let (megabytes, rate) = (request.number("mb", 1), request.number("rate", 0));
    let length = megabytes * MEGABYTE + 8;
    let head = format!("HTTP/1.1 206 -\r\ncontent-length: {length}\r\n\r\n");
    let stream = connection.stream();
    stream.write_all(head.as_bytes()).await?;
    let (mut noise, mut sum) = (Noise::new(megabytes), 0);
    let mut chunk = vec![0; 64 * 1024];
    let chunks = megabytes * MEGABYTE / chunk.len() as u64;
    let pause = (rate > 0).then(|| Duration::from_micros(1_000_000 / (rate * 16)));
    let mut next = tokio::time::Instant::now();
    for _ in 0..chunks {
        noise.fill(&mut chunk);
        sum = hash(sum, &chunk);
        stream.write_all(&chunk).await?;
        if let Some(pause) = pause {
            next += pause;
            tokio::time::sleep_until(next).await;
        }
    }
    stream.write_all(&sum.to_be_bytes()).await?;
    stream.flush().await
}

/// Does what the role does for one request.
async fn work(shop: &Shop, page: &str) -> io::Result<()> {
    use Role::{
        Ad, Cart, Checkout, Currency, Email, Frontend, Payment, ProductCatalog, Recommendation, Redis, Shipping,
    };
    let call = async |callee: Role, method: &str| -> io::Result<()> {
        let channel = shop.channels.get(&callee);
        let channel = channel.ok_or_else(|| io::Error::other("no such edge"))?;
        channel.call(&shop.figures, method).await.map(|_| ())
    };
    match (shop.role, page) {
        (Frontend, "/") => {
            call(Currency, "/supported").await?;
            call(ProductCatalog, "/list").await?;
            call(Cart, "/get").await?;
            for _ in 0..PRODUCTS {
                call(Currency, "/convert").await?;
            }
            let _ = call(Ad, "/ads").await;
        }
        (Frontend, "/product") => {
            call(ProductCatalog, "/get").await?;
            call(Currency, "/supported").await?;
            call(Currency, "/convert").await?;
            call(Cart, "/get").await?;
            call(Recommendation, "/list").await?;
            for _ in 0..RECOMMENDED {
                call(ProductCatalog, "/get").await?;
            }
            let _ = call(Ad, "/ads").await;
        }
        (Frontend, "/cart/add") => {
            call(ProductCatalog, "/get").await?;
            call(Cart, "/add").await?;
        }
        (Frontend, "/cart") => {
            call(Currency, "/supported").await?;
            call(Cart, "/get").await?;
            call(Recommendation, "/list").await?;
            call(Shipping, "/quote").await?;
            for _ in 0..ITEMS {
                call(ProductCatalog, "/get").await?;
                call(Currency, "/convert").await?;
            }
        }
        (Frontend, "/checkout") => {
            call(Checkout, "/place").await?;
            call(Recommendation, "/list").await?;
            call(Currency, "/supported").await?;
        }
        (Checkout, "/place") => {
            call(Cart, "/get").await?;
            for _ in 0..ITEMS {
                call(ProductCatalog, "/get").await?;
                call(Currency, "/convert").await?;
            }
            call(Shipping, "/quote").await?;
            call(Currency, "/convert").await?;
            call(Payment, "/charge").await?;
            call(Shipping, "/ship").await?;
            call(Cart, "/empty").await?;
            let _ = call(Email, "/confirm").await;
        }
        (Recommendation, "/list") => call(ProductCatalog, "/list").await?,
        (Cart, _) => call(Redis, "PING").await?,
        _ => {}
    }
    Ok(())
}
