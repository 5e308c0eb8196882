//! What checks are written with: asking until there is an answer, and saying what is wrong.

use std::time::{Duration, Instant};

/// Asks again and again until there is an answer; the last complaint if there is none in time.
pub(crate) async fn until<T>(patience: Duration, mut ask: impl AsyncFnMut() -> Result<T, String>) -> Result<T, String> {
    let end = Instant::now() + patience;
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(why) if Instant::now() > end => return Err(why),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Turns any error into a check's complaint.
pub(crate) fn said(e: impl std::fmt::Display) -> String {
    e.to_string()
}

/// Fails with a sentence unless something holds.
pub(crate) fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}

/// Writes microseconds as milliseconds.
pub(crate) fn ms(micros: u64) -> String {
    format!("{:.1} ms", micros as f64 / 1000.0)
}
