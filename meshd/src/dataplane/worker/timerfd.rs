//! When a lane has to wake without a packet: a timer that is set when it has to ring earlier, not at every wait. A
//! timeout of the wait itself would set and cancel a timer of the kernel for every packet of an idle link.

use std::os::fd::OwnedFd;
use std::time::Duration;

use mesh_proto::base::clock::Timestamp;
use rustix::io::Errno;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create};

/// A timer to wait on.
pub(super) struct Alarm {
    pub(super) timer: OwnedFd,
    /// When it rings; none if it is not set.
    rings: Option<Timestamp>,
}

impl Alarm {
    pub(super) fn new() -> Result<Self, Errno> {
        let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        Ok(Self { timer, rings: None })
    }

    /// Makes sure that it rings at `due` at the latest. Returns how long to wait: not at all for what is due, and
    /// else without a limit of its own.
    pub(super) fn set(&mut self, due: Option<Timestamp>, now: Timestamp) -> Result<Option<Timespec>, Errno> {
        const NOT: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
        let Some(due) = due else { return Ok(None) };
        if due <= now {
            return Ok(Some(NOT));
        }
        if self.rings.is_none_or(|rings| due < rings) {
            let since_boot = Duration::from_micros(due.as_micros());
            let it_value = Timespec::try_from(since_boot).map_err(|_| Errno::INVAL)?;
            let at = Itimerspec { it_interval: NOT, it_value };
            rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &at)?;
            self.rings = Some(due);
        }
        Ok(None)
    }

    /// Takes note that it rang.
    pub(super) fn acknowledge(&mut self) {
        let mut count = [0; 8];
        // It fails only if somebody set it again meanwhile, and then it will ring.
        let _ = rustix::io::read(&self.timer, &mut count);
        self.rings = None;
    }
}
