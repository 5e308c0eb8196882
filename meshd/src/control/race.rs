//! Several ways to one thing, tried beside each other (as "happy eyeballs" does, RFC 8305): a way that is dead costs a
//! moment and not its patience.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::sleep;

/// How long each way is tried alone before the next is tried beside it.
const HEAD_START: Duration = Duration::from_millis(250);

/// Tries ways in turn, the next one a moment after the one before or as soon as that failed. Returns what the first that
/// succeeded brought, and ends the others.
///
/// # Errors
/// Why each failed, in the order of the ways, if none succeeded.
pub(super) async fn first<T, E, F>(ways: impl IntoIterator<Item = F>) -> Result<T, Vec<E>>
where
    F: Future<Output = Result<T, E>>,
{
    let numbered = |(number, way): (usize, F)| async move { (number, way.await) };
    let mut waiting = ways.into_iter().enumerate().map(numbered).peekable();
    let mut running = FuturesUnordered::new();
    let mut failed = Vec::new();
    loop {
        running.extend(waiting.next());
        if running.is_empty() {
            failed.sort_by_key(|(number, _)| *number);
            return Err(failed.into_iter().map(|(_, error)| error).collect());
        }
        let has_next = waiting.peek().is_some();
        tokio::select! {
            Some((number, done)) = running.next() => match done {
                Ok(won) => return Ok(won),
                Err(error) => failed.push((number, error)),
            },
            () = sleep(HEAD_START), if has_next => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Pending, pending};

    use tokio::time::{Instant, timeout};

    use super::*;

    async fn after(millis: u64, result: Result<u8, u8>) -> Result<u8, u8> {
        sleep(Duration::from_millis(millis)).await;
        result
    }

    #[tokio::test]
    async fn each_way_has_a_quarter_of_a_second_for_itself_and_the_first_that_works_wins() {
        let began = Instant::now();
        let ways = [(60_000, Ok(1)), (60_000, Err(2)), (10, Ok(3))].map(|(millis, result)| after(millis, result));
        assert_eq!(first(ways).await, Ok(3));
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(510) && took < Duration::from_secs(5), "{took:?}");
        assert_eq!(first([after(20, Ok(1)), after(0, Ok(2))]).await, Ok(1), "it had its head start");
    }

    #[tokio::test]
    async fn a_way_that_fails_makes_room_for_the_next_at_once() {
        let began = Instant::now();
        let refused = (0..40).map(|number| after(1, Err(number)));
        assert_eq!(first(refused.chain([after(1, Ok(99))])).await, Ok(99));
        assert!(began.elapsed() < 20 * HEAD_START, "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn all_reasons_are_told_in_the_order_of_the_ways() {
        assert_eq!(first([after(700, Err(1)), after(10, Err(2)), after(0, Err(3))]).await, Err(vec![1, 2, 3]));
        assert_eq!(first(Vec::<Pending<Result<u8, u8>>>::new()).await, Err(Vec::new()));
        assert!(timeout(3 * HEAD_START, first([pending::<Result<u8, u8>>()])).await.is_err());
    }
}
