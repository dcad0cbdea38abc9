//! The effects that a plan may ask for. Each does one thing and is harmless when done twice.

use super::declaration::{Declaration, Target};

/// One effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Put our finalizer on the subscription.
    AddFinalizer,
    /// Take it off: what is left of it stands on its instance.
    RemoveFinalizer,
    /// Make the instance.
    Create(Declaration),
    /// Declare something else of it.
    Declare(Declaration, Target),
    /// Delete it, and its server and data with it.
    Terminate(Target),
}
