//! Many things done several at a time: one after the other, the way to the API server and back is what takes the time.

use futures::{TryStreamExt as _, stream};

use crate::failure::Outcome;

/// How many are under way at once.
const AT_ONCE: usize = 16;

/// Does something with each of many, several at a time and in no order.
///
/// # Errors
/// Fails with the first that does.
pub async fn each<T>(all: impl IntoIterator<Item = T>, act: impl AsyncFn(T) -> Outcome) -> Outcome {
    stream::iter(all.into_iter().map(Ok))
        .try_for_each_concurrent(AT_ONCE, |one| act(one))
        .await
}
