//! Runs the threads of the lanes, and finds the one that is dead: packets on it are lost, and nothing else would tell.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::io::Errno;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use crate::dataplane::mailbox::Mailbox;

/// How the thread of a lane is called, before the lane's number.
pub(crate) const THREAD: &str = "lane-";
/// How often every lane is asked to look into its mailbox.
pub(crate) const TURN: Duration = Duration::from_secs(1);
/// How many turns in a row a lane may let pass.
const TURNS: u32 = 10;

/// Why a lane does nothing any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LaneDeath {
    /// The kernel refused what it cannot do without.
    #[error("lane {lane} ended: {error}")]
    Ended {
        /// Its number.
        lane: usize,
        /// What the kernel said.
        error: Errno,
    },
    /// It met a mistake of ours.
    #[error("lane {lane} panicked: {message}")]
    Panicked {
        /// Its number.
        lane: usize,
        /// What it said.
        message: String,
    },
    /// It hangs.
    #[error("lane {lane} took no mail for {TURNS} s")]
    Silent {
        /// Its number.
        lane: usize,
    },
}

/// Runs a lane on a thread of its own. It may end when it was told to; anything else is its death, of which the first
/// of all lanes is kept in `died`.
///
/// # Errors
/// If the kernel refuses the thread.
pub(crate) fn spawn(
    lane: usize,
    died: watch::Sender<Option<LaneDeath>>,
    run: impl FnOnce() -> Result<(), Errno> + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(format!("{THREAD}{lane}")).spawn(move || {
        // All that the lane owns goes with it, so nobody sees what it left half done.
        let death = match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(())) => return,
            Ok(Err(error)) => LaneDeath::Ended { lane, error },
            Err(panic) => LaneDeath::Panicked { lane, message: message(&*panic) },
        };
        died.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert(death);
            is_first
        });
    })
}

/// Waits until a lane is dead, or lets ten turns pass without taking its mail. Turns are counted and not time: after a
/// process was stopped as a whole its lanes are well.
pub(crate) async fn first_death(
    mut died: watch::Receiver<Option<LaneDeath>>,
    mailboxes: &[Mailbox],
    turn: Duration,
) -> LaneDeath {
    let mut missed = vec![0; mailboxes.len()];
    let mut turns = interval(turn);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            Ok(death) = died.wait_for(Option::is_some) => {
                if let Some(death) = death.clone() {
                    return death;
                }
            }
            _ = turns.tick() => {
                for (lane, mailbox) in mailboxes.iter().enumerate() {
                    missed[lane] = if mailbox.is_asked_in_vain() { missed[lane] + 1 } else { 0 };
                    if missed[lane] == TURNS {
                        return LaneDeath::Silent { lane };
                    }
                }
            }
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("it does not say why").to_owned()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::sync::Arc;

    use super::*;

    /// Far more than a thread needs to answer, on a busy machine too.
    const LONG: Duration = Duration::from_secs(60);

    fn lanes(count: usize) -> Arc<[Mailbox]> {
        (0..count).map(|_| Mailbox::new().unwrap()).collect()
    }

    /// What a lane does with its mail; whatever comes first ends it.
    fn takes_mail(mailboxes: &Arc<[Mailbox]>, lane: usize) -> impl FnOnce() -> Result<(), Errno> + Send + 'static {
        let mailboxes = Arc::clone(mailboxes);
        move || {
            loop {
                let mailbox = &mailboxes[lane];
                let mut waits = [rustix::event::PollFd::new(mailbox, rustix::event::PollFlags::IN)];
                rustix::event::poll(&mut waits, None)?;
                if mailbox.take().is_none() {
                    return Ok(());
                }
            }
        }
    }

    #[tokio::test]
    async fn a_lane_that_ends_is_named_with_what_the_kernel_said() {
        let (died, mailboxes) = (watch::Sender::default(), lanes(2));
        let well = spawn(0, died.clone(), takes_mail(&mailboxes, 0)).unwrap();
        spawn(1, died.clone(), || Err(Errno::BADF)).unwrap();
        let death = first_death(died.subscribe(), &mailboxes, LONG).await;
        assert_eq!(death, LaneDeath::Ended { lane: 1, error: Errno::BADF });
        assert!(death.to_string().starts_with("lane 1 ended: Bad file descriptor"), "{death}");
        mailboxes[0].stop();
        well.join().unwrap();
    }

    #[tokio::test]
    async fn a_lane_that_panics_is_named_with_what_it_said() {
        let (died, mailboxes) = (watch::Sender::default(), lanes(1));
        spawn(0, died.clone(), || panic!("{} is odd", 3)).unwrap();
        let death = first_death(died.subscribe(), &mailboxes, LONG).await;
        assert_eq!(death.to_string(), "lane 0 panicked: 3 is odd");
    }

    #[tokio::test]
    async fn a_lane_that_takes_no_mail_is_named_and_those_that_take_it_are_not() {
        let (died, mailboxes) = (watch::Sender::default(), lanes(3));
        let well = [0, 2].map(|lane| spawn(lane, died.clone(), takes_mail(&mailboxes, lane)).unwrap());
        let (wake, hangs) = std::sync::mpsc::channel::<()>();
        let stuck = spawn(1, died.clone(), move || {
            let _ = hangs.recv();
            Ok(())
        });
        let death = first_death(died.subscribe(), &mailboxes, Duration::from_millis(100)).await;
        assert_eq!(death, LaneDeath::Silent { lane: 1 });
        assert_eq!(death.to_string(), "lane 1 took no mail for 10 s");
        drop(wake);
        mailboxes.iter().for_each(Mailbox::stop);
        well.into_iter().chain(stuck).for_each(|thread| thread.join().unwrap());
        assert_eq!(*died.borrow(), None, "who ends because it is told to is not dead");
    }
}
