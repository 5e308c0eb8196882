//! Trying again for a moment.

use std::fmt::Display;
use std::time::Duration;

use mesh_host::socket::SocketError;
use tokio::time::sleep;

use crate::base::state_dir::StateError;

/// How long what a killed daemon held is waited for, in steps of `RETRY`.
const PATIENCE: Duration = Duration::from_secs(3);
const RETRY: Duration = Duration::from_millis(20);

/// Who may have what cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeldBy {
    /// Another meshd, as that says itself.
    Meshd,
    /// Some process.
    Somebody,
    /// Nobody that we know of: it fails for another reason.
    Nobody,
}

impl HeldBy {
    /// Says what is waited for.
    fn sentence(self) -> &'static str {
        match self {
            Self::Meshd => "waiting for what the meshd before still holds",
            Self::Somebody => "waiting for what another process holds",
            Self::Nobody => "trying again",
        }
    }
}

/// Why something cannot be had now.
pub(crate) trait Held: Display {
    /// Returns who has it.
    fn held_by(&self) -> HeldBy;
}

impl Held for StateError {
    fn held_by(&self) -> HeldBy {
        match self {
            Self::Locked { .. } => HeldBy::Meshd,
            Self::Io { .. } | Self::Open { .. } | Self::Lost { .. } | Self::Damaged { .. } => HeldBy::Nobody,
        }
    }
}

impl Held for SocketError {
    fn held_by(&self) -> HeldBy {
        if self.is_taken() { HeldBy::Meshd } else { HeldBy::Nobody }
    }
}

/// Tries again for 3 s: after a kill the kernel still takes down what the one before held.
pub(crate) async fn patient<T, E: Held>(attempt: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    patient_for(PATIENCE, attempt).await
}

/// Tries again for so long, and says at the first failure what it waits for and how long at most.
pub(crate) async fn patient_for<T, E: Held>(
    patience: Duration,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let mut left = patience;
    loop {
        match attempt() {
            Err(error) if !left.is_zero() => {
                if left == patience {
                    let at_most = format!("{} s", patience.as_secs());
                    tracing::info!(%error, at_most, "{}", error.held_by().sentence());
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

    impl Held for &str {
        fn held_by(&self) -> HeldBy {
            HeldBy::Somebody
        }
    }

    #[test]
    fn only_what_another_meshd_has_is_said_to_be_held_by_it() {
        let held = |error: &dyn Held| error.held_by().sentence().contains("the meshd before");
        assert!(held(&StateError::Locked { dir: "/s".into(), process: None }));
        assert!(!held(&StateError::Lost { path: "/s/identity.key".into(), way: String::new() }));
    }

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
