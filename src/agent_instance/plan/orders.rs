//! Orders of people by annotations: each value is written down first and then acts, once.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use super::{Look, Timestamp, Want};
use crate::api::{HeardOrder, HeardOrders, RollbackRecord};

impl Look<'_> {
    /// What was heard, once the annotations are heard that have a fresh value; none: there is no such.
    pub(super) fn unheard(&self, want: &Want) -> Option<HeardOrders> {
        let heard = self.world.status.heard.clone().unwrap_or_default();
        let hear = |value: &Option<String>, known: &Option<HeardOrder>| {
            let known_value = known.as_ref().map(|known| &known.value);
            let fresh = value.as_ref().filter(|value| Some(*value) != known_value);
            let fresh = fresh.map(|value| HeardOrder {
                value: value.clone(),
                at: MicroTime(self.now),
                incarnation: i64::from(self.world.incarnation()),
            });
            fresh.or_else(|| known.clone())
        };
        let orders = HeardOrders {
            restart: hear(&want.restart, &heard.restart),
            retry: hear(&want.retry, &heard.retry),
            recreate: hear(&want.recreate, &heard.recreate),
        };
        (orders != heard).then_some(orders)
    }

    fn retry(&self) -> Option<&HeardOrder> {
        self.world.status.heard.as_ref()?.retry.as_ref()
    }

    /// When a person last said to go on with what stands still.
    pub(super) fn retried_at(&self) -> Option<Timestamp> {
        self.retry().map(|order| order.at.0)
    }

    /// Whether a person has seen that a creation failed, and wants to go on.
    pub(super) fn was_retried(&self, failed: &RollbackRecord) -> bool {
        self.retried_at() > Some(failed.at.0)
    }

    /// When the agent's unit was last ordered to be started again.
    pub(super) fn restarted_at(&self) -> Option<Timestamp> {
        let heard = self.world.status.heard.as_ref()?;
        heard.restart.as_ref().map(|order| order.at.0)
    }

    /// Whether that is still to be done, by the process that wrote it down.
    pub(super) fn is_to_restart(&self) -> bool {
        self.restarted_at()
            .is_some_and(|at| self.world.fresh_restart == Some(at))
    }
}
