//! Waiting for a condition with a deadline: the only way in which a test waits.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::failure::{Failure, Outcome};

/// Bounds every wait; it is used up by a failure only, however busy the machine.
pub const PATIENCE: Duration = Duration::from_mins(3);
/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Looks until there is an answer, and fails when there is none within [`PATIENCE`].
///
/// # Errors
/// Fails when a look does, or at the deadline; `what` tells what was waited for.
pub async fn wait_for<T>(what: &str, look: impl AsyncFnMut() -> Outcome<Option<T>>) -> Outcome<T> {
    wait_within(PATIENCE, what, look).await
}

/// Like [`wait_for`], with a deadline of its own.
///
/// # Errors
/// As [`wait_for`].
pub async fn wait_within<T>(
    deadline: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> Outcome<Option<T>>,
) -> Outcome<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(answer) = look().await.map_err(|failure| failure.during(what))? {
            return Ok(answer);
        }
        if Instant::now() > end {
            return Err(Failure::new(format!("not within {deadline:?}: {what}")));
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// Looks until something is so.
///
/// # Errors
/// As [`wait_for`].
pub async fn wait_until(what: &str, mut look: impl AsyncFnMut() -> Outcome<bool>) -> Outcome {
    wait_for(what, async || Ok(look().await?.then_some(()))).await
}
