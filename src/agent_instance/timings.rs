//! When the newest server of an instance came how far, for people and for measurements; pure.
//!
//! The first moment at which this operator saw a step counts. A step that nobody saw, as when the operator was restarted just then, stays out,
//! and so does everything of a server that was taken up: an invented time is worse than none. Times ride on writes of the status that are due
//! anyway; until then they are remembered.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp};

use super::world::{InstallPhase, ServerView, World};
use crate::api::{Timing, TimingStep};

/// What is known of the newest incarnation once this look is over.
pub fn timings(
    world: &World,
    current: Option<&ServerView>,
    ready: bool,
    now: Timestamp,
) -> Vec<Timing> {
    let mut known = before(world);
    if known.is_empty() {
        return known;
    }
    let server = current.filter(|server| server.incarnation == world.incarnation());
    for step in server.into_iter().flat_map(|server| shown(server, ready)) {
        reach(&mut known, step, now);
    }
    known
}

/// Adds a step, unless it or one that comes after it was seen before.
pub fn reach(known: &mut Vec<Timing>, step: TimingStep, at: Timestamp) {
    if known.iter().all(|timing| timing.step < step) {
        known.push(Timing {
            step,
            at: MicroTime(at),
        });
    }
}

/// What status and memory know. The times of an incarnation begin with its record, and only before its first report: what comes without them
/// was taken up.
fn before(world: &World) -> Vec<Timing> {
    let incarnation = i64::from(world.incarnation());
    let reported = world.status.incarnation == Some(incarnation);
    let mut known = match world.record() {
        _ if reported => world.status.timings.clone(),
        Some(record) if record.incarnation == incarnation => vec![Timing {
            step: TimingStep::WrittenDown,
            at: record.at.clone(),
        }],
        _ => vec![],
    };
    if world.attempt.incarnation == world.incarnation() {
        let remembered = &world.attempt.timings;
        if !reported && !remembered.is_empty() {
            known.clear();
        }
        for timing in remembered {
            reach(&mut known, timing.step, timing.at.0);
        }
    }
    known
}

/// What the metrics do not know yet, and when all of it began: neither measured by this process, nor reported before by an earlier one.
pub fn unmeasured<'a>(
    world: &World,
    now: &'a [Timing],
    measured: Option<(u32, TimingStep)>,
) -> impl Iterator<Item = (&'a Timing, Timestamp)> {
    let incarnation = world.incarnation();
    let of_this = measured.filter(|(of, _)| *of == incarnation);
    let known = of_this.or_else(|| {
        let reported = world.status.incarnation == Some(i64::from(incarnation));
        last(incarnation, &world.status.timings).filter(|_| reported)
    });
    let begun = now
        .first()
        .filter(|first| first.step == TimingStep::WrittenDown);
    let news = move |timing: &&Timing| known.is_none_or(|(_, known)| timing.step > known);
    let rest = if begun.is_some() { now } else { &[] };
    let pairs = rest.iter().filter(news);
    pairs.filter_map(move |timing| Some((timing, begun?.at.0)))
}

/// The step that a server came to last.
pub fn last(incarnation: u32, timings: &[Timing]) -> Option<(u32, TimingStep)> {
    timings.last().map(|timing| (incarnation, timing.step))
}

/// The steps that a server shows to have been reached.
fn shown(server: &ServerView, ready: bool) -> impl Iterator<Item = TimingStep> {
    let guest = &server.guest;
    let installed = matches!(&guest.hello, Some(hello) if hello.phase == InstallPhase::Done);
    let configured = matches!(&guest.configured, Some(configured) if configured.outcome.is_ok());
    [
        (TimingStep::Accepted, true),
        (TimingStep::Answered, guest.hello.is_some()),
        (TimingStep::Installed, installed),
        (TimingStep::Configured, configured),
        (TimingStep::Ready, ready),
    ]
    .into_iter()
    .filter_map(|(step, reached)| reached.then_some(step))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        agent_instance::{
            memory::Memory,
            world::{Attempt, Configured, GuestView, Hello, Power},
        },
        api::ProvisioningRecord,
    };
    use TimingStep::{Accepted, Answered, Configured as Given, Installed, Ready, WrittenDown};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn timing(step: TimingStep, second: i64) -> Timing {
        Timing {
            step,
            at: MicroTime(at(second)),
        }
    }

    fn record(incarnation: i64, second: i64) -> ProvisioningRecord {
        ProvisioningRecord {
            incarnation,
            server_name: format!("a-{incarnation}"),
            project: "one".into(),
            server_type: "cx23".into(),
            location: "nbg1".into(),
            attempt: None,
            basis: None,
            snapshot: None,
            at: MicroTime(at(second)),
        }
    }

    fn server(guest: GuestView) -> ServerView {
        ServerView {
            project: "one".into(),
            id: 1,
            name: "a-1".into(),
            uid: "uid".into(),
            incarnation: 1,
            boot_revision: None,
            revision: None,
            disk: crate::api::Disk::Preserve,
            ipv4: None,
            ipv6: None,
            server_type: "cx23".into(),
            location: "nbg1".into(),
            retype: crate::hetzner_project::retype::Retype::Unknown,
            created_at: None,
            power: Power::On,
            retained: false,
            blocked: false,
            listed: true,
            deleting: false,
            guest,
        }
    }

    fn guest(phase: Option<InstallPhase>, configured: bool) -> GuestView {
        let outcome = Configured {
            epoch: 1,
            sent: (String::new(), String::new()),
            outcome: Ok(true),
        };
        GuestView {
            hello: phase.map(|phase| Hello {
                phase,
                ..Hello::default()
            }),
            configured: configured.then_some(outcome),
            ..GuestView::default()
        }
    }

    /// A world with the record of incarnation 1, reported or not, with these times in its status.
    fn world(reported: bool, timings: Vec<Timing>) -> World {
        let mut world = World::default();
        world.status.provisioning = Some(record(1, 10));
        world.status.incarnation = Some(i64::from(reported));
        world.status.timings = timings;
        world
    }

    fn remembering(mut world: World, timings: Vec<Timing>) -> World {
        world.attempt = Attempt {
            incarnation: 1,
            timings,
            ..Attempt::default()
        };
        world
    }

    fn steps(timings: &[Timing]) -> Vec<(TimingStep, i64)> {
        let told = |timing: &Timing| (timing.step, timing.at.0.as_second());
        timings.iter().map(told).collect()
    }

    #[test]
    fn each_look_adds_what_it_shows_and_changes_no_earlier_time() {
        let begun = || world(false, vec![]);
        let running = || Some(InstallPhase::Running);
        let done = || Some(InstallPhase::Done);
        let table = [
            (begun(), None, false, vec![(WrittenDown, 10)]),
            (
                begun(),
                Some(guest(None, false)),
                false,
                vec![(WrittenDown, 10), (Accepted, 90)],
            ),
            (
                world(true, vec![timing(WrittenDown, 10), timing(Accepted, 20)]),
                Some(guest(running(), false)),
                false,
                vec![(WrittenDown, 10), (Accepted, 20), (Answered, 90)],
            ),
            (
                remembering(begun(), vec![timing(WrittenDown, 5), timing(Accepted, 20)]),
                Some(guest(done(), false)),
                false,
                vec![
                    (WrittenDown, 5),
                    (Accepted, 20),
                    (Answered, 90),
                    (Installed, 90),
                ],
            ),
            (
                remembering(
                    world(true, vec![timing(WrittenDown, 10), timing(Accepted, 20)]),
                    vec![timing(Accepted, 30), timing(Installed, 40)],
                ),
                Some(guest(done(), true)),
                true,
                vec![
                    (WrittenDown, 10),
                    (Accepted, 20),
                    (Installed, 40),
                    (Given, 90),
                    (Ready, 90),
                ],
            ),
        ];
        for (world, guest, ready, expected) in table {
            let current = guest.map(server);
            let found = timings(&world, current.as_ref(), ready, at(90));
            assert_eq!(steps(&found), expected);
        }
    }

    #[test]
    fn a_new_incarnation_begins_anew() {
        let mut world = world(true, vec![timing(WrittenDown, 10), timing(Ready, 20)]);
        world = remembering(world, vec![timing(Ready, 20)]);
        world.status.provisioning = Some(record(2, 80));
        let former = server(guest(Some(InstallPhase::Done), true));
        let found = timings(&world, Some(&former), true, at(90));
        assert_eq!(steps(&found), [(WrittenDown, 80)]);
    }

    #[test]
    fn a_server_that_was_taken_up_has_no_times() {
        let current = server(guest(Some(InstallPhase::Done), true));
        let without_record = World {
            servers: vec![current.clone()],
            ..World::default()
        };
        for world in [without_record, world(true, vec![])] {
            assert_eq!(timings(&world, Some(&current), true, at(90)), []);
        }
    }

    #[test]
    fn each_step_is_measured_once_and_what_an_earlier_process_reported_is_not() {
        let all = || {
            vec![
                timing(WrittenDown, 10),
                timing(Accepted, 20),
                timing(Ready, 30),
            ]
        };
        let began_here = || world(false, vec![]);
        let reported = || world(true, vec![timing(WrittenDown, 10), timing(Accepted, 20)]);
        let table = [
            (
                began_here(),
                all(),
                None,
                vec![WrittenDown, Accepted, Ready],
            ),
            (began_here(), all(), Some((1, Accepted)), vec![Ready]),
            (began_here(), all(), Some((1, Ready)), vec![]),
            (reported(), all(), None, vec![Ready]),
            (
                reported(),
                all(),
                Some((1, WrittenDown)),
                vec![Accepted, Ready],
            ),
            // What was measured of another server says nothing of this one.
            (reported(), all(), Some((7, Ready)), vec![Ready]),
            // A server that was taken up has no times.
            (began_here(), vec![], None, vec![]),
        ];
        for (world, now, measured, expected) in table {
            let found = unmeasured(&world, &now, measured);
            let steps: Vec<_> = found
                .map(|(timing, begun)| {
                    assert_eq!(begun, at(10));
                    timing.step
                })
                .collect();
            assert_eq!(steps, expected, "{measured:?}");
        }
    }

    #[test]
    fn the_first_request_counts() {
        let mut memory = Memory::default();
        let record = record(1, 10);
        memory.announced(&record);
        for second in [11, 50] {
            memory.sends(&record, at(second), std::time::Duration::ZERO);
        }
        assert_eq!(
            steps(&memory.attempt.timings),
            [(TimingStep::Requested, 11)]
        );
    }
}
