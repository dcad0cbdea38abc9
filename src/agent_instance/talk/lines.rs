//! Lines to guests that carried one act and may carry the next, which follows it at once or not at all.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::GuestKey;
use crate::guest::line::Line;

/// Idle lines, by whose guest they lead to.
#[derive(Default)]
pub struct Lines(Mutex<HashMap<GuestKey, Line>>);

impl Lines {
    /// The line to a guest, if one is at hand.
    pub fn take(&self, key: &GuestKey) -> Option<Line> {
        self.lock().remove(key)
    }

    /// Keeps a line for what comes next, and ends those that nothing came for.
    pub fn keep(&self, key: GuestKey, line: Line) {
        let mut lines = self.lock();
        lines.retain(|_, line| line.is_fresh());
        lines.insert(key, line);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<GuestKey, Line>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
