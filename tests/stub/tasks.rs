//! What a stub does unasked or on request: pages of load, series of fresh connections, storms, downloads.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mesh_tests::boutique::{Download, Role, Series, WhoAmI, percentile};
use mesh_tests::http::{Connection, Request};
use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::client::{connect, fresh};
use crate::shop::Shop;

/// The mix of the shop's own load generator, rare pages first so that a short run sees every edge:
/// index 1, set currency 2, browse 10, add to cart 2, view cart 3, check out 1.
const MIX: [&str; 19] = [
    "/checkout",
    "/",
    "/cart",
    "/product",
    "/cart/add",
    "/product",
    "/currency",
    "/product",
    "/cart",
    "/product",
    "/product",
    "/cart/add",
    "/product",
    "/product",
    "/currency",
    "/product",
    "/cart",
    "/product",
    "/product",
];
/// Most pages under way at once; above it the shop is too slow and pages are skipped.
const MAX_PAGES: usize = 64;

/// Asks the frontend for pages at the shop's rate, for ever.
pub(crate) async fn generate_load(shop: &Arc<Shop>) {
    if shop.role != Role::LoadGenerator {
        return std::future::pending().await;
    }
    let mut pages = JoinSet::new();
    for page in MIX.iter().cycle() {
        let rate = shop.rate();
        if rate == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        }
        tokio::time::sleep(Duration::from_micros(1_000_000 / rate)).await;
        while pages.try_join_next().is_some() {}
        if pages.len() < MAX_PAGES {
            let shop = Arc::clone(shop);
            pages.spawn(async move {
                if let Some(frontend) = shop.channels.get(&Role::Frontend) {
                    let _ = frontend.call(&shop.figures, page).await;
                }
            });
        }
    }
}

/// Opens `n` connections to `host`:`port`, at most `parallel` at once and one in `every` milliseconds,
/// asking `path` over each, and tells what came of them.
pub(crate) async fn series(request: &Request) -> Series {
    let host: Arc<str> = request.value("host").unwrap_or("localhost").into();
    let path: Arc<str> = request.value("path").unwrap_or("/whoami").into();
    let port = u16::try_from(request.number("port", 80)).unwrap_or(80);
    let patience = Duration::from_millis(request.number("patience", 5000));
    let parallel = request.number("parallel", 1).max(1);
    let every = request.number("every", 0);
    let mut ticks = interval(Duration::from_millis(every.max(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut series, mut running) = (Series::default(), JoinSet::new());
    for _ in 0..request.number("n", 1) {
        if every > 0 {
            ticks.tick().await;
        }
        while running.len() as u64 >= parallel {
            if let Some(Ok(attempt)) = running.join_next().await {
                note(&mut series, attempt);
            }
        }
        let (host, path) = (Arc::clone(&host), Arc::clone(&path));
        running.spawn(async move {
            let (when, began) = (unix_micros(), Instant::now());
            let answer = fresh((&*host, port), &path, patience).await;
            (when, began.elapsed(), answer)
        });
    }
    while let Some(ended) = running.join_next().await {
        if let Ok(attempt) = ended {
            note(&mut series, attempt);
        }
    }
    let mut times: Vec<u64> = series.attempts.iter().map(|a| a.1).collect();
    series.p50_us = percentile(&mut times, 50);
    series.max_us = times.last().copied().unwrap_or(0);
    series.attempts.sort_unstable();
    series
}

fn note(series: &mut Series, (when, took, answer): (u64, Duration, io::Result<Vec<u8>>)) {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    series.attempts.push((when, micros, answer.is_ok()));
    match answer {
        Ok(body) => {
            series.ok += 1;
            if let Ok(who) = serde_json::from_slice::<WhoAmI>(&body) {
                *series.answered.entry(who.server).or_default() += 1;
                *series.seen.entry(who.caller).or_default() += 1;
            }
        }
        Err(e) => {
            series.failed += 1;
            *series.errors.entry(e.to_string()).or_default() += 1;
        }
    }
}

/// Opens fresh connections on every edge of this role, `per_edge` a second each in tenths, for `seconds`.
pub(crate) async fn storm(shop: &Arc<Shop>, request: &Request) -> Series {
    let gap = Duration::from_micros(10_000_000 / request.number("tenths", 10).max(1));
    let end = Instant::now() + Duration::from_secs(request.number("seconds", 1));
    let mut edges = JoinSet::new();
    for &callee in shop.role.calls() {
        edges.spawn(async move {
            let (mut ticks, mut running) = (interval(gap), JoinSet::new());
            while Instant::now() < end {
                ticks.tick().await;
                running.spawn(async move {
                    let (when, began) = (unix_micros(), Instant::now());
                    let target = (callee.service(), callee.dials());
                    let answer = fresh(target, "/whoami", Duration::from_secs(5)).await;
                    (when, began.elapsed(), answer)
                });
            }
            running.join_all().await
        });
    }
    let mut series = Series::default();
    for attempt in edges.join_all().await.into_iter().flatten() {
        note(&mut series, attempt);
    }
    let mut times: Vec<u64> = series.attempts.drain(..).map(|a| a.1).collect();
    series.p50_us = percentile(&mut times, 50);
    series.max_us = times.last().copied().unwrap_or(0);
    series
}

/// Downloads `mb` megabytes at `rate` a second and checks the hash.
pub(crate) async fn download(request: &Request) -> Download {
    let began = Instant::now();
    let mut result = Download { bytes: 0, whole: false, seconds: 0.0, stall_ms: 0, error: None };
    if let Err(e) = receive(request, &mut result).await {
        result.error = Some(e.to_string());
    }
    result.seconds = began.elapsed().as_secs_f64();
    result
}

async fn receive(request: &Request, result: &mut Download) -> io::Result<()> {
    let host = request.value("host").unwrap_or("localhost");
    let port = u16::try_from(request.number("port", 80)).unwrap_or(80);
    let (megabytes, rate) = (request.number("mb", 1), request.number("rate", 0));
    let mut connection = Connection::new(connect((host, port)).await?);
    connection.send(&format!("/download?mb={megabytes}&rate={rate}")).await?;
    let (_, length) = connection.answer_head().await?;
    let (mut left, mut sum) = (length.saturating_sub(8), 0);
    let mut chunk = vec![0; 64 * 1024];
    while left > 0 {
        let (waited, wanted) = (Instant::now(), left.min(chunk.len()));
        let reading = connection.stream().read(&mut chunk[..wanted]);
        let read = timeout(Duration::from_secs(20), reading).await??;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let stall = u64::try_from(waited.elapsed().as_millis()).unwrap_or(u64::MAX);
        result.stall_ms = result.stall_ms.max(stall);
        result.bytes += read as u64;
        sum = hash(sum, &chunk[..read]);
        left -= read;
    }
    let mut end = [0; 8];
    connection.stream().read_exact(&mut end).await?;
    result.whole = u64::from_be_bytes(end) == sum;
    Ok(())
}

/// Returns microseconds of Unix time, which lab and stubs share.
fn unix_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_micros()).unwrap_or(u64::MAX)
}

/// Bytes that look random and can be made again (xorshift64).
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes()[..word.len()]);
        }
    }
}

/// Continues FNV-1a, which does not care how the bytes were cut.
pub(crate) fn hash(sum: u64, bytes: &[u8]) -> u64 {
    let begin = if sum == 0 { 0xCBF2_9CE4_8422_2325 } else { sum };
    bytes.iter().fold(begin, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_does_not_care_how_bytes_are_cut() {
        let mut bytes = [0; 100];
        Noise::new(3).fill(&mut bytes);
        assert_eq!(hash(0, &bytes), hash(hash(0, &bytes[..33]), &bytes[33..]));
        assert_ne!(hash(0, &bytes), hash(0, &bytes[1..]));
    }
}
