//! Trying again for a moment.

use std::time::Duration;

use tokio::time::sleep;

/// How long what a killed daemon held is waited for, in steps of `RETRY`.
const PATIENCE: Duration = Duration::from_secs(3);
const RETRY: Duration = Duration::from_millis(20);

/// Tries again for 3 s: after a kill the kernel still takes down what the one before held.
pub(crate) async fn patient<T, E: std::fmt::Display>(attempt: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    patient_for(PATIENCE, attempt).await
}

/// Tries again for so long, and says at the first failure what it waits for and how long at most.
pub(crate) async fn patient_for<T, E: std::fmt::Display>(
    patience: Duration,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let mut left = patience;
    loop {
        match attempt() {
            Err(error) if !left.is_zero() => {
                if left == patience {
                    let at_most = format!("{} s", patience.as_secs());
                    tracing::info!(%error, at_most, "waiting for what the meshd before still holds");
                }
                sleep(RETRY).await;
                left = left.saturating_sub(RETRY);
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_is_tried_again_until_it_works_or_the_time_is_over() {
        let mut attempts = 0;
        let third = patient_for(Duration::from_secs(3), || {
            attempts += 1;
            if attempts < 3 { Err("held") } else { Ok(attempts) }
        });
        assert_eq!(third.await, Ok(3));

        let began = std::time::Instant::now();
        let never = patient_for(RETRY * 4, || Err::<(), _>("held")).await;
        assert_eq!(never, Err("held"));
        assert!(began.elapsed() >= RETRY * 4 && began.elapsed() < PATIENCE);
    }
}
