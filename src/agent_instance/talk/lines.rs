//! Lines to guests that carried one act and may carry the next, which follows it at once or not at all.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::GuestKey;
use crate::guest::line::{FRESH, Line};

/// Idle lines, by whose guest they lead to.
#[derive(Default)]
pub struct Lines(Mutex<HashMap<GuestKey, Line>>);

impl Lines {
    /// The line to a guest, if one is at hand.
    pub fn take(&self, key: &GuestKey) -> Option<Line> {
        self.lock().remove(key)
    }

    /// Keeps a line for what comes next; if nothing comes for it, it ends.
    pub fn keep(self: &Arc<Self>, key: GuestKey, line: Line) {
        self.lock().insert(key, line);
        let lines = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(FRESH).await;
            lines.lock().retain(|_, line| line.is_fresh());
        });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<GuestKey, Line>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
