//! Six hours without a coordinator, in virtual time: every request is answered, whatever WireGuard's clock does.

use std::time::Duration;

use meshd::outage::run;
use mock_instant::MockClock;

#[test]
fn six_hours_without_a_coordinator_lose_no_request() {
    let outcome = run(Duration::from_secs(6 * 3600), &mut |time| MockClock::advance(time));
    println!("{outcome:#?}");

    assert!(outcome.asked > 100_000, "{outcome:?}");
    assert_eq!(outcome.lost, 0, "{outcome:?}");
    // Sessions are renewed every two minutes: 180 times on each of two lanes between the two that talk all the time.
    assert!(outcome.handshakes > 2 * 170, "the clock stands still: {outcome:?}");
    assert!(outcome.first <= Duration::from_secs(2), "the first tunnel: {outcome:?}");
}
