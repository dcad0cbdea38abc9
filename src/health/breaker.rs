//! Whether so many agents fall at once that the way to them is likelier to blame than they, as a pure function.
//!
//! While a hold lasts no server is rebooted, deleted or replaced for its agent. It stands as a condition on the class or project, so that no
//! restart of the operator forgets it, and it ends by what answers meanwhile or by a person's word. What fell before its end is not counted
//! again.

use std::time::Duration;

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp};

use super::canary::Canary;
use crate::api::{self, ConditionType, condition, is_true, set_condition};

/// So many must have fallen.
const LEAST: usize = 3;
/// More than this part of all must have fallen, in percent.
const SHARE: usize = 20;

/// How many of some agents fell lately.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// All of them.
    pub of: usize,
    /// Those that fell.
    pub fallen: usize,
}

impl Count {
    /// Whether they fell for one reason, in all likelihood.
    pub fn is_many(self) -> bool {
        self.fallen >= LEAST && self.fallen * 100 > self.of * SHARE
    }
}

/// The hold as the status tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// There is none since then.
    Free(Timestamp),
    /// It lasts since then.
    Held(Timestamp),
}

impl Told {
    /// What a status says; before the first one nothing has fallen that counts.
    pub fn of(conditions: &[Condition], now: Timestamp) -> Self {
        let told = conditions
            .iter()
            .find(|condition| condition.type_ == ConditionType::RecoveryHeld.as_str());
        match told {
            Some(told) if told.status == "True" => Self::Held(told.last_transition_time.0),
            Some(told) => Self::Free(told.last_transition_time.0),
            None => Self::Free(now),
        }
    }

    /// From when on falls count.
    pub fn counts_from(self, window: Duration, now: Timestamp) -> Timestamp {
        let begin = now.checked_sub(window).unwrap_or(Timestamp::MIN);
        match self {
            Self::Free(since) => begin.max(since),
            Self::Held(_) => begin,
        }
    }
}

/// What a hold depends on.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// What the status says.
    pub told: Told,
    /// Whether a person has just said that it shall end.
    pub released: bool,
    /// How long what happens counts, and how long all must be well.
    pub window: Duration,
    /// Now.
    pub now: Timestamp,
}

/// What becomes of a hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// The same as the status says.
    #[default]
    AsTold,
    /// It begins: reason and message.
    Begins(&'static str, String),
    /// It ends: reason.
    Ends(&'static str),
}

/// What becomes of a hold, and a person's last word on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hold {
    /// Whether it begins or ends.
    pub verdict: Verdict,
    /// The value of the annotation.
    pub word: Option<String>,
}

impl Hold {
    /// Whether it lasts, where these are the conditions of the status.
    pub fn lasts(&self, told: Option<&Vec<Condition>>) -> bool {
        match &self.verdict {
            Verdict::Begins(..) => true,
            Verdict::Ends(_) => false,
            Verdict::AsTold => told.is_some_and(|told| is_true(told, ConditionType::RecoveryHeld)),
        }
    }

    /// Puts the condition into a status.
    pub fn tell(&self, conditions: &mut Vec<Condition>, generation: Option<i64>, now: Timestamp) {
        let kind = ConditionType::RecoveryHeld;
        let is_told = conditions.iter().any(|told| told.type_ == kind.as_str());
        let found = match &self.verdict {
            Verdict::Begins(reason, message) => condition(kind, Some(true), reason, message),
            Verdict::Ends(reason) => condition(kind, Some(false), reason, ""),
            Verdict::AsTold if is_told => return,
            Verdict::AsTold => condition(kind, Some(false), "NotHeld", ""),
        };
        set_condition(conditions, found, generation, now);
    }
}

/// What a class's hold depends on.
#[derive(Clone, Copy, Debug)]
pub struct ClassView<'a> {
    /// Name of the class.
    pub class: &'a str,
    /// Its own agents.
    pub own: Count,
    /// All agents.
    pub fleet: Count,
    /// What answers beside them.
    pub canary: Canary,
}

impl View {
    /// Whether reboots and new servers for the agents of a class are held.
    pub fn of_class(&self, class: &ClassView<'_>) -> Verdict {
        match self.told {
            Told::Held(_) if self.released => Verdict::Ends("Released"),
            Told::Held(since) => match class.canary {
                Canary::Answers(long) if long >= self.window && self.lasted(since) => {
                    Verdict::Ends("CanaryAnswers")
                }
                Canary::Nobody
                    if self.lasted(since) && !class.own.is_many() && !class.fleet.is_many() =>
                {
                    Verdict::Ends("FewFall")
                }
                _ => Verdict::AsTold,
            },
            Told::Free(_) if class.own.is_many() => self.begins(
                "ClassFalls",
                &format!("{} agents of this class", told(class.own)),
                &class.ending(self.window),
            ),
            Told::Free(_) if class.fleet.is_many() => self.begins(
                "FleetFalls",
                &format!("{} agents of the fleet", told(class.fleet)),
                &class.ending(self.window),
            ),
            Told::Free(_) if class.own.fallen > 0 && class.canary == Canary::Silent => self.begins(
                "CanarySilent",
                &format!(
                    "nothing answers that should whatever becomes of this class, and {} agents of it",
                    told(class.own)
                ),
                &class.ending(self.window),
            ),
            Told::Free(_) => Verdict::AsTold,
        }
    }

    /// Whether new servers for what vanished from a project are held: until a person says that it is as it should be (I9).
    pub fn of_project(&self, project: &str, vanished: Count) -> Verdict {
        match self.told {
            Told::Held(_) if self.released => Verdict::Ends("Released"),
            Told::Free(_) if vanished.is_many() => self.begins(
                "ServersVanished",
                &format!("{} servers of this project", told(vanished)),
                &format!("It ends when {}", release("hetznerproject", project)),
            ),
            _ => Verdict::AsTold,
        }
    }

    fn lasted(&self, since: Timestamp) -> bool {
        Duration::try_from(self.now.duration_since(since)).is_ok_and(|long| long >= self.window)
    }

    fn begins(&self, reason: &'static str, who: &str, ending: &str) -> Verdict {
        let window = written(self.window);
        Verdict::Begins(
            reason,
            format!(
                "{who} fell within {window}: that is likelier the network or what all of them need. No server is rebooted, deleted or replaced for \
                 it. {ending}"
            ),
        )
    }
}

impl ClassView<'_> {
    fn ending(&self, window: Duration) -> String {
        let window = written(window);
        let by_itself = match self.canary {
            Canary::Nobody => format!("when in {window} only a few have fallen"),
            Canary::Silent | Canary::Answers(_) => {
                format!(
                    "when the canary and the agents of other classes have answered for {window}"
                )
            }
        };
        format!(
            "It ends {by_itself}, or {}",
            release("agentclass", self.class)
        )
    }
}

fn told(count: Count) -> String {
    format!("{} of {}", count.fallen, count.of)
}

fn release(kind: &str, name: &str) -> String {
    format!(
        "an admin says so: kubectl annotate {kind} {name} --overwrite {}=\"$(date)\"",
        api::RELEASE_HOLD_ANNOTATION
    )
}

fn written(window: Duration) -> api::Duration {
    api::Duration::from_secs(window.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_mins(10);
    const FEW: Count = Count { of: 40, fallen: 2 };
    const MANY: Count = Count { of: 40, fallen: 12 };

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_second(60 * minute).unwrap()
    }

    fn view(told: Told, minute: i64) -> View {
        View {
            told,
            released: false,
            window: WINDOW,
            now: at(minute),
        }
    }

    fn class(own: Count, fleet: Count, canary: Canary) -> ClassView<'static> {
        ClassView {
            class: "small",
            own,
            fleet,
            canary,
        }
    }

    fn reason(verdict: &Verdict) -> &'static str {
        match verdict {
            Verdict::AsTold => "",
            Verdict::Begins(reason, _) | Verdict::Ends(reason) => reason,
        }
    }

    #[test]
    fn more_than_a_fifth_and_at_least_three_are_many() {
        for (fallen, of, many) in [
            (2, 2, false),
            (3, 3, true),
            (3, 15, false),
            (3, 14, true),
            (200, 1000, false),
            (201, 1000, true),
        ] {
            assert_eq!(Count { of, fallen }.is_many(), many, "{fallen} of {of}");
        }
    }

    #[test]
    fn a_class_is_held_when_many_fall_or_the_canary_does() {
        let answers = Canary::Answers(Duration::from_hours(1));
        let one = Count { of: 40, fallen: 1 };
        let none = Count { of: 40, fallen: 0 };
        for (own, fleet, canary, expected) in [
            (none, none, answers, ""),
            (FEW, FEW, answers, ""),
            (FEW, FEW, Canary::Nobody, ""),
            (MANY, FEW, answers, "ClassFalls"),
            (MANY, MANY, Canary::Nobody, "ClassFalls"),
            (FEW, MANY, answers, "FleetFalls"),
            (one, FEW, Canary::Silent, "CanarySilent"),
            (none, FEW, Canary::Silent, ""),
        ] {
            let verdict = view(Told::Free(at(0)), 30).of_class(&class(own, fleet, canary));
            assert_eq!(reason(&verdict), expected, "{own:?} {fleet:?} {canary:?}");
        }
        let Verdict::Begins(_, told) =
            view(Told::Free(at(0)), 30).of_class(&class(MANY, MANY, answers))
        else {
            panic!("not held");
        };
        assert_eq!(
            told,
            "12 of 40 agents of this class fell within 10m: that is likelier the network or what all of them need. No server is rebooted, deleted or \
             replaced for it. It ends when the canary and the agents of other classes have answered for 10m, or an admin says so: kubectl annotate \
             agentclass small --overwrite agentfleet.dev/release-hold=\"$(date)\""
        );
    }

    #[test]
    fn a_hold_ends_when_the_canary_has_answered_for_a_window_or_where_there_is_none_few_fall() {
        let long = |minutes| Canary::Answers(Duration::from_mins(minutes));
        for (minute, own, fleet, canary, expected) in [
            (9, FEW, FEW, long(60), ""),
            (10, MANY, MANY, long(60), "CanaryAnswers"),
            (60, FEW, FEW, long(9), ""),
            (60, FEW, FEW, Canary::Silent, ""),
            (9, FEW, FEW, Canary::Nobody, ""),
            (10, FEW, FEW, Canary::Nobody, "FewFall"),
            (60, MANY, FEW, Canary::Nobody, ""),
            (60, FEW, MANY, Canary::Nobody, ""),
        ] {
            let verdict = view(Told::Held(at(0)), minute).of_class(&class(own, fleet, canary));
            assert_eq!(reason(&verdict), expected, "{minute} {own:?} {canary:?}");
        }
    }

    #[test]
    fn what_vanished_from_a_project_waits_for_a_person() {
        assert_eq!(
            reason(&view(Told::Free(at(0)), 5).of_project("main", FEW)),
            ""
        );
        let begins = view(Told::Free(at(0)), 5).of_project("main", MANY);
        assert_eq!(reason(&begins), "ServersVanished");
        let held = view(Told::Held(at(0)), 9999);
        assert_eq!(held.of_project("main", FEW), Verdict::AsTold);
        let released = View {
            released: true,
            ..held
        };
        assert_eq!(released.of_project("main", MANY), Verdict::Ends("Released"));
        let silent = class(MANY, MANY, Canary::Silent);
        assert_eq!(released.of_class(&silent), Verdict::Ends("Released"));
    }

    #[test]
    fn what_fell_before_a_hold_ended_does_not_begin_another() {
        let from = |told, minute| view(told, minute).told.counts_from(WINDOW, at(minute));
        assert_eq!(from(Told::Free(at(0)), 30), at(20));
        assert_eq!(from(Told::Free(at(25)), 30), at(25));
        assert_eq!(from(Told::Held(at(25)), 30), at(20));
    }
}
