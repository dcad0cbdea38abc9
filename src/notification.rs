//! What happens to instances, told to one receiver outside: an event for each transition that people care about.
//!
//! [`event`] is pure: what there is to tell follows from the status and from what the receiver has taken, which stands in the status too
//! (`status.notified`). So no restart loses an event, one whose answer was lost is sent again under the same id, and of several that wait the
//! newest stands for all. [`delivery`] sends beside the reconcilers, in a pool of its own: a receiver that is dead delays nothing. [`signature`]
//! is how a receiver knows who sent it.

pub mod delivery;
pub mod event;
pub mod signature;
