//! What the operator asks of the running daemon.

use tokio::sync::watch;

/// What the daemon is to do next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Order {
    /// Go on.
    #[default]
    Run,
    /// Leave the mesh: stop forwarding, forget the enrolment, undo the kernel set-up; then idle.
    Leave,
    /// Leave a mesh that disowned the node, which is about to join it anew: what keeps the range closed stays.
    Renounce,
    /// End the process; what keeps the range closed stays.
    Stop,
}

/// What came of a reading of services.toml that was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReloadAnswer {
    /// The number of the latest request that it came after.
    pub number: u64,
    /// How many `[[serve]]` are in force.
    pub serve: usize,
    /// What the operator should know of the file in force.
    pub warnings: Vec<String>,
    /// What is wrong with the file, one line per mistake; then the one before is in force.
    pub error: Option<String>,
}

/// Where the daemon is asked. Clones ask the same one. Of requests that wait, one of each kind counts.
#[derive(Debug, Clone, Default)]
pub struct Requests {
    order: watch::Sender<Order>,
    /// How many readings of services.toml were asked for.
    reload: watch::Sender<u64>,
    reading: watch::Sender<ReloadAnswer>,
    rotate: watch::Sender<()>,
    renew: watch::Sender<()>,
}

impl Requests {
    /// Asks for services.toml to be read again, and returns the number of this request.
    pub fn reload(&self) -> u64 {
        let mut number = 0;
        self.reload.send_modify(|asked| {
            *asked += 1;
            number = *asked;
        });
        number
    }

    /// Waits for what came of a request's reading, or of a later one.
    pub async fn reading(&self, number: u64) -> ReloadAnswer {
        let mut readings = self.reading.subscribe();
        loop {
            let reading = readings.borrow_and_update().clone();
            // We hold a sender, so that it changes or nothing happens.
            if reading.number >= number || readings.changed().await.is_err() {
                return reading;
            }
        }
    }

    /// Answers those who asked for a reading.
    pub fn answer(&self, reading: ReloadAnswer) {
        self.reading.send_replace(reading);
    }

    /// Asks for another tunnel key.
    pub fn rotate(&self) {
        self.rotate.send_replace(());
    }

    /// Asks for another identity key.
    pub fn renew(&self) {
        self.renew.send_replace(());
    }

    /// Orders the daemon to leave the mesh. Says whether it will: not if it was ordered to stop before.
    pub fn leave(&self) -> bool {
        self.unless_stopping(Order::Leave)
    }

    /// Orders the daemon to leave the mesh and to keep its range closed. Says whether it will, as `leave`.
    pub fn renounce(&self) -> bool {
        self.unless_stopping(Order::Renounce)
    }

    fn unless_stopping(&self, wanted: Order) -> bool {
        self.order.send_if_modified(|order| {
            let obeys = *order != Order::Stop;
            if obeys {
                *order = wanted;
            }
            obeys
        })
    }

    /// Orders the daemon to end, whatever it was ordered before.
    pub fn stop(&self) {
        self.order.send_replace(Order::Stop);
    }

    /// Takes back the order to leave, which was obeyed, and no other: one to stop may have come meanwhile.
    pub fn left(&self) {
        self.order.send_if_modified(|order| {
            let leave = matches!(*order, Order::Leave | Order::Renounce);
            if leave {
                *order = Order::Run;
            }
            leave
        });
    }

    /// Returns the order in force.
    pub fn order(&self) -> watch::Receiver<Order> {
        self.order.subscribe()
    }

    /// Returns what changes when services.toml is to be read again: the number of the latest request.
    pub fn reloads(&self) -> watch::Receiver<u64> {
        self.reload.subscribe()
    }

    /// Returns what changes when another tunnel key is asked for.
    pub fn rotations(&self) -> watch::Receiver<()> {
        self.rotate.subscribe()
    }

    /// Returns what changes when another identity key is asked for.
    pub fn renewals(&self) -> watch::Receiver<()> {
        self.renew.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_to_stop_is_not_overwritten_by_one_to_leave() {
        let requests = Requests::default();
        let order = requests.order();
        assert!(requests.leave());
        assert_eq!(*order.borrow(), Order::Leave);
        requests.stop();
        assert!(!requests.leave());
        requests.left();
        assert_eq!(*order.borrow(), Order::Stop);
    }

    #[test]
    fn a_node_that_left_may_leave_the_next_mesh() {
        let requests = Requests::default();
        assert!(requests.leave());
        requests.left();
        assert_eq!(*requests.order().borrow(), Order::Run);
        assert!(requests.renounce());
        assert_eq!(*requests.order().borrow(), Order::Renounce);
        requests.left();
        assert_eq!(*requests.order().borrow(), Order::Run);
    }
}
