//! A small world that plans act upon: whatever goes wrong in it, the plan converges, and then is empty.
//!
//! Hetzner here is a set of names, a guest three facts. Requests may be lost before or after they took effect, take effect late, or be
//! refused; the process may forget everything between any two steps. The oracles look at that world, never at what the plan believes.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{
    tests::{FLEET, UID, identity, project, server, snapshot, want},
    *,
};
use crate::{
    agent_instance::{
        memory::Memory,
        rollback,
        status::status,
        world::{Configured, GuestView, RecoveryFlags, SnapshotLook},
    },
    api::{
        AgentInstanceStatus, OnProvisionFailure,
        RecoveryAction::{Reboot, Recreate, Restart},
        Timing, TimingStep,
    },
    health::{HealthView, ladder},
    hetzner::Snapshot,
    rollout::Share,
};

const SETTLE: Duration = Duration::from_mins(2);
/// The longest that a lost request takes to have its effect; shorter than the window that is waited for.
const LATEST: i64 = 100;

/// What becomes of one request for a server.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Answered,
    AnswerLost,
    RequestLost,
    Late(i64),
    OutOfStock,
}

/// What becomes of a server that was made.
#[derive(Clone, Copy, Debug, Default)]
enum Creation {
    #[default]
    Good,
    /// It never answers.
    Mute,
    /// Its installation fails.
    Broken,
    /// Its installation has no end.
    Endless,
}

#[derive(Clone, Debug, Default)]
struct Guest {
    creation: Creation,
    created: Timestamp,
    spoke: bool,
    off: bool,
    armed: bool,
    epoch: i64,
    applied: Option<(String, String)>,
}

#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
struct Model {
    now: Timestamp,
    finalizer: bool,
    status: AgentInstanceStatus,
    memory: Memory,
    /// Servers that exist, by incarnation.
    alive: BTreeMap<u32, Guest>,
    /// Servers that a late request will bring, and when.
    late: Vec<(Timestamp, u32)>,
    fates: Vec<Fate>,
    creations: Vec<Creation>,
    level: OnProvisionFailure,
    /// How many servers there ever were.
    bought: usize,
    /// Whether no server may be deleted whose agent has spoken.
    missed: bool,
    gone: bool,
    /// What every probe says, if not that all is well.
    says: Option<HealthState>,
    disk: Disk,
    /// Whether recovery is held.
    held: bool,
    /// The boot revision that the class asks for.
    boot: String,
    /// The boot revision that a server was born with, by incarnation.
    born: BTreeMap<u32, String>,
    /// Whether the next releases are answered, the last first; then all are.
    answers: Vec<bool>,
    /// How many releases of a server in a row were not.
    unanswered: BTreeMap<u32, usize>,
    /// Whether no server may be deleted that may speak and was not asked twice to be silent.
    patient: bool,
    /// The tries to recover that were carried out, by when they were written down.
    done: Vec<Timestamp>,
    /// The snapshot of the first server.
    snapshot: Option<Snapshot>,
    /// The incarnations that were asked for with its disk.
    restored: Vec<u32>,
}

impl Model {
    fn new(fates: Vec<Fate>) -> Self {
        Self {
            now: Timestamp::from_second(1_000_000).unwrap(),
            finalizer: false,
            status: AgentInstanceStatus::default(),
            memory: Memory::default(),
            alive: BTreeMap::new(),
            late: vec![],
            fates,
            creations: vec![],
            level: OnProvisionFailure::Retry,
            bought: 0,
            missed: false,
            gone: false,
            says: None,
            disk: Disk::Preserve,
            held: false,
            boot: super::tests::agent().boot_revision,
            born: BTreeMap::new(),
            answers: vec![],
            unanswered: BTreeMap::new(),
            patient: false,
            done: vec![],
            snapshot: None,
            restored: vec![],
        }
    }

    fn world(&mut self) -> World {
        if let Some(record) = &self.status.provisioning {
            self.memory.find_record(record, SETTLE);
        }
        let numbers: Vec<u32> = self.alive.keys().copied().collect();
        let servers: Vec<ServerView> = numbers
            .into_iter()
            .map(|number| {
                let mut guest: GuestView = self.memory.guest(40 + i64::from(number)).view.clone();
                if let (Some(view), Some(state)) = (&mut guest.health, self.says) {
                    view.state = Some(state);
                }
                let machine = self.alive.get(&number).cloned().unwrap_or_default();
                ServerView {
                    guest,
                    boot_revision: self.born.get(&number).cloned(),
                    power: if machine.off { Power::Off } else { Power::On },
                    created_at: Some(machine.created),
                    ..server(number)
                }
            })
            .collect();
        let listed = self
            .status
            .server
            .as_ref()
            .is_none_or(|known| servers.iter().any(|server| server.id == known.id));
        let at = self.now;
        let view = |name: &str| ProjectView {
            listed_at: Some(at),
            ..project(name)
        };
        World {
            notices: super::super::notices::NoticesView::default(),
            finalizer: self.finalizer,
            status: self.status.clone(),
            class: ClassView::Usable(Box::new(self.agent())),
            rollout: Share::default(),
            meanwhile: None,
            may_move: true,
            secrets: SecretsView::Met { tag: "tag".into() },
            projects: vec![view("one"), view("two")],
            known: if listed { Known::Present } else { Known::Gone },
            servers,
            attempt: self.memory.attempt.clone(),
            fresh_epoch: self.memory.fresh_epoch,
            snapshot: self.memory.snapshot.clone(),
            recovery: RecoveryFlags::default(),
            shutdown_grace: Duration::from_mins(1),
            hold: self.held.then(|| "AgentClass small".into()),
            fresh_recovery: self.memory.fresh_recovery,
            fresh_restart: self.memory.fresh_restart,
            trouble: None,
            deletion: None,
        }
    }

    fn agent(&self) -> Agent {
        let mut agent = super::tests::agent();
        agent.lifecycle.disk = self.disk;
        agent.lifecycle.on_provision_failure = self.level;
        agent.boot_revision.clone_from(&self.boot);
        agent
    }

    /// The try that was written down last is carried out: once, and by the process that wrote it.
    fn carry_out(&mut self, server: i64) {
        let written = self.memory.fresh_recovery.take();
        let last = self.status.recovery.last().map(|last| last.at.0);
        assert_eq!(written, last, "a try that another process wrote");
        assert!(!self.done.contains(&last.unwrap()), "a try was doubled");
        self.done.extend(last);
        self.memory.guest(server).starts_again();
        self.memory.guest(server).view.health = None;
    }

    /// One look: plan, steps, status; then time passes.
    fn look(&mut self, desired: &Desired) -> Plan {
        let world = self.world();
        let plan = plan(desired, &world, FLEET, self.now);
        let current = world.front(UID);
        let next = status(&world, current, &plan.stage, Some(1), self.now);
        self.memory.attempt.timings.clone_from(&next.timings);
        for step in &plan.steps {
            self.perform(step);
        }
        let written = std::mem::take(&mut self.status);
        self.status = AgentInstanceStatus {
            provisioning: written.provisioning,
            voice: written.voice,
            recovery: written.recovery,
            rollbacks: written.rollbacks,
            heard: written.heard,
            ..next
        };
        self.pass(1);
        plan
    }

    fn pass(&mut self, seconds: i64) {
        self.now = self
            .now
            .checked_add(jiff::SignedDuration::from_secs(seconds))
            .unwrap();
        let now = self.now;
        let due: Vec<u32> = self
            .late
            .extract_if(.., |(at, _)| *at <= now)
            .map(|(_, number)| number)
            .collect();
        for number in due {
            self.appear(number);
        }
    }

    fn appear(&mut self, number: u32) {
        if self.alive.contains_key(&number) {
            return;
        }
        self.bought += 1;
        let guest = Guest {
            creation: self.creations.pop().unwrap_or_default(),
            created: self.now,
            ..Guest::default()
        };
        self.alive.insert(number, guest);
    }

    fn perform(&mut self, step: &Step) {
        match step {
            Step::AddFinalizer => self.finalizer = true,
            Step::RemoveFinalizer => self.gone = true,
            Step::HoldDeletion => unreachable!("it is deleted alone"),
            Step::Announce(record) => {
                self.status.provisioning = Some(record.clone());
                self.memory.announced(record);
            }
            Step::WriteVoice(voice) => {
                self.status.voice = Some(voice.clone());
                self.memory.fresh_epoch = Some(voice.epoch);
            }
            Step::CreateServer(record) => self.create(record),
            Step::WriteRecovery(record) => {
                assert!(!self.held || record.action == Restart, "decided while held");
                self.status.recovery = ladder::with(&self.status.recovery, record);
                self.memory.fresh_recovery = Some(record.at.0);
            }
            Step::Restart { server, .. } => self.carry_out(*server),
            Step::Reboot { id, .. } => {
                assert!(!self.held, "rebooted while held");
                self.carry_out(*id);
            }
            Step::WriteRollback(failed) => {
                self.status.rollbacks = rollback::with(&self.status.rollbacks, failed);
            }
            Step::Hear(orders) => {
                self.status.heard = Some(orders.clone());
                self.memory.goes_on(self.now);
            }
            Step::LookUp { .. } => self.memory.looked_up(self.now, None),
            Step::FindSnapshot { server, .. } => {
                self.memory.snapshot = Some(SnapshotLook {
                    server: *server,
                    at: self.now,
                    newest: self.snapshot.clone(),
                    fits: true,
                });
            }
            Step::DeleteServer { id, .. } => self.delete(*id),
            Step::Hello {
                server,
                incarnation,
            } => self.hello(*server, *incarnation),
            Step::Configure {
                server,
                incarnation,
                epoch,
            } => self.configure(*server, *incarnation, *epoch),
            Step::Probe {
                server,
                epoch,
                presumed,
            } => {
                self.memory.guest(*server).view.health = Some(HealthView {
                    health: super::tests::agent().health,
                    epoch: *epoch,
                    address: super::tests::ADDRESS,
                    state: presumed.or(Some(HealthState::Healthy)),
                    words: String::new(),
                    stranger: false,
                });
            }
            Step::EndProbes { server } => self.memory.guest(*server).view.health = None,
            Step::Release {
                server,
                incarnation,
                epoch,
            } => {
                self.release(*server, *incarnation, *epoch);
            }
            Step::ChangeType { .. } => unreachable!("its type is listed"),
            Step::Shutdown { id, .. } | Step::PowerOff { id, .. } => {
                self.memory.guest(*id).view.shut_down = Some(self.now);
                self.switch(*id, true);
            }
            Step::PowerOn { id, .. } => {
                let view = &mut self.memory.guest(*id).view;
                (view.hello, view.shut_down) = (None, None);
                self.switch(*id, false);
            }
            Step::ConfirmGone { .. }
            | Step::FollowUp { .. }
            | Step::Retain { .. }
            | Step::TakeUp { .. }
            | Step::Upgrade { .. } => {
                unreachable!("not in this model: {step:?}")
            }
        }
    }

    fn delete(&mut self, id: i64) {
        assert!(!self.held, "deleted while held");
        let number = u32::try_from(id - 40).unwrap();
        let guest = self.alive.remove(&number);
        let armed = guest.as_ref().is_some_and(|guest| guest.armed);
        let asked = self.unanswered.get(&number).copied().unwrap_or_default();
        assert!(
            !(self.patient && armed && asked < 2),
            "it was asked {asked} times"
        );
        let spoke = guest.is_some_and(|guest| guest.spoke);
        assert!(!(self.missed && spoke), "its disk was lost");
    }

    fn create(&mut self, record: &ProvisioningRecord) {
        let number = u32::try_from(record.incarnation).unwrap();
        let before = self.memory.attempt.unsettled_until;
        self.memory.sends(record, self.now, SETTLE);
        if record.snapshot.is_some() {
            self.restored.push(number);
        }
        self.born.entry(number).or_insert_with(|| self.boot.clone());
        let fate = self.fates.pop().unwrap_or(Fate::Answered);
        let taken = self.alive.contains_key(&number);
        match fate {
            Fate::OutOfStock => return self.memory.answered(SendOutcome::OutOfStock, before),
            Fate::Late(after) => self.late.push((
                self.now
                    .checked_add(jiff::SignedDuration::from_secs(after))
                    .unwrap(),
                number,
            )),
            Fate::Answered | Fate::AnswerLost => self.appear(number),
            Fate::RequestLost => {}
        }
        if matches!(fate, Fate::Answered) && !taken {
            self.memory.answered(SendOutcome::Created, before);
        }
    }

    fn hello(&mut self, server: i64, incarnation: u32) {
        let Some(guest) = self.alive.get(&incarnation).cloned() else {
            return;
        };
        let now = self.now;
        let view = &mut self.memory.guest(server).view;
        view.tried_since.get_or_insert(now);
        let phase = match guest.creation {
            Creation::Mute => {
                view.contact = Some((ContactProblem::Silent("no route".into()), now));
                view.was_asked_in_vain(now);
                return;
            }
            Creation::Good => InstallPhase::Done,
            Creation::Broken => InstallPhase::Failed("step install 1 failed".into()),
            Creation::Endless => InstallPhase::Running,
        };
        view.proven = Some("key".into());
        view.hello = Some(Hello {
            phase,
            armed: guest.armed.then_some(incarnation),
            epoch: guest.epoch,
            applied: guest.applied,
            ever_armed: guest.spoke,
            armed_for: None,
        });
    }

    fn release(&mut self, server: i64, incarnation: u32, epoch: i64) {
        let guest = self.alive.get_mut(&incarnation).unwrap();
        let answers = self.answers.pop().unwrap_or(true);
        if answers {
            *guest = Guest {
                epoch,
                created: guest.created,
                spoke: true,
                ..Guest::default()
            };
        }
        let now = self.now;
        let view = &mut self.memory.guest(server).view;
        view.released = Some((epoch, answers));
        if answers {
            (view.configured, view.hello, view.health) = (None, None, None);
            view.in_vain = None;
            self.unanswered.remove(&incarnation);
        } else {
            view.was_asked_in_vain(now);
            *self.unanswered.entry(incarnation).or_default() += 1;
        }
    }

    fn configure(&mut self, server: i64, incarnation: u32, epoch: i64) {
        self.memory.fresh_epoch = None;
        self.memory.guest(server).is_given_voice();
        let guest = self.alive.get_mut(&incarnation).unwrap();
        assert!(epoch >= guest.epoch, "an epoch never goes back");
        let sent = (super::tests::agent().config_revision, "tag".to_owned());
        *guest = Guest {
            armed: true,
            spoke: true,
            epoch,
            applied: Some(sent.clone()),
            off: false,
            ..guest.clone()
        };
        let view = &mut self.memory.guest(server).view;
        view.health = None;
        view.configured = Some(Configured {
            epoch,
            sent,
            outcome: Ok(true),
        });
        let armed = self.alive.values().filter(|guest| guest.armed).count();
        assert!(armed <= 1, "two servers of one instance run the agent");
    }

    fn switch(&mut self, server: i64, off: bool) {
        let number = u32::try_from(server - 40).unwrap();
        self.alive.get_mut(&number).unwrap().off = off;
    }

    fn forget(&mut self) {
        self.memory = Memory::default();
    }

    /// Looks until nothing is planned any more.
    fn settle(&mut self, desired: &Desired, forget_at: &[usize]) -> Plan {
        for round in 0..400 {
            if forget_at.contains(&round) {
                self.forget();
            }
            let plan = self.look(desired);
            if self.gone
                || (plan.steps.is_empty()
                    && plan.look_again.is_none()
                    && matches!(plan.stage, Stage::Serving(_)))
            {
                return plan;
            }
        }
        panic!("no end after 400 looks: {:?} {:?}", self.status, self.alive);
    }
}

fn fates() -> impl Strategy<Value = Vec<Fate>> {
    let fate = prop_oneof![
        Just(Fate::Answered),
        Just(Fate::AnswerLost),
        Just(Fate::RequestLost),
        (0..LATEST).prop_map(Fate::Late),
        Just(Fate::OutOfStock),
    ];
    prop::collection::vec(fate, 0..6)
}

fn creations() -> impl Strategy<Value = Vec<Creation>> {
    let creation = prop_oneof![
        Just(Creation::Good),
        Just(Creation::Mute),
        Just(Creation::Broken),
        Just(Creation::Endless),
    ];
    prop::collection::vec(creation, 0..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_is_lost_the_agent_serves_on_one_server_and_then_nothing_is_planned(
        fates in fates(), forget in prop::collection::vec(0_usize..60, 0..5),
    ) {
        let desired = Desired::Present(identity(), Box::new(want()));
        let mut model = Model::new(fates);
        model.settle(&desired, &forget);
        model.pass(2 * LATEST);
        model.settle(&desired, &[]);
        prop_assert_eq!(model.alive.len(), 1, "a late answer's server is not left behind");
        prop_assert!(model.alive.values().all(|guest| guest.armed));
        let timings = model.status.timings.clone();
        let in_order = |pair: &[Timing]| pair[0].step < pair[1].step && pair[0].at.0 <= pair[1].at.0;
        prop_assert!(timings.windows(2).all(in_order), "{:?}", timings);
        let ends = [timings.first(), timings.last()].map(|timing| timing.map(|timing| timing.step));
        prop_assert_eq!(ends, [Some(TimingStep::WrittenDown), Some(TimingStep::Ready)]);
        model.forget();
        let plan = model.look(&desired);
        prop_assert!(
            matches!(plan.steps[..], [Step::Probe { presumed: Some(HealthState::Healthy), .. }]),
            "a restart changes nothing: {:?}",
            plan
        );
        prop_assert_eq!(plan.stage, Stage::Serving(None));
        prop_assert_eq!(&model.status.timings, &timings, "nor any time");
    }

    #[test]
    fn whatever_is_lost_a_deleted_instance_leaves_nothing(
        fates in fates(), forget in prop::collection::vec(0_usize..60, 0..5), looks in 0_usize..30,
    ) {
        let mut model = Model::new(fates);
        let desired = Desired::Present(identity(), Box::new(want()));
        for round in 0..looks {
            if forget.contains(&round) {
                model.forget();
            }
            model.look(&desired);
        }
        if !model.finalizer {
            return Ok(());
        }
        model.settle(&Desired::Absent(identity()), &forget);
        model.pass(2 * LATEST);
        prop_assert!(model.alive.is_empty(), "left behind: {:?}", model.alive);
    }

    #[test]
    fn whatever_is_forgotten_a_suspended_agent_is_silent_and_off_and_comes_back_on_its_server(
        forget in prop::collection::vec(0_usize..12, 0..5), again in prop::collection::vec(0_usize..12, 0..5),
    ) {
        let runs = Desired::Present(identity(), Box::new(want()));
        let rests = Desired::Present(identity(), Box::new(Want { suspend: true, ..want() }));
        let mut model = Model::new(vec![]);
        model.settle(&runs, &[]);
        for round in 0..30 {
            if forget.contains(&round) {
                model.forget();
            }
            model.look(&rests);
        }
        let plan = model.look(&rests);
        prop_assert!(matches!(plan.stage, Stage::Suspended(_)) && plan.steps.is_empty(), "{:?}", plan);
        prop_assert!(model.alive.values().all(|guest| guest.off && !guest.armed), "{:?}", model.alive);
        prop_assert_eq!(&model.status.config_revision, &None, "nothing is applied that was taken away");
        let plan = model.settle(&runs, &again);
        prop_assert_eq!(plan.stage, Stage::Serving(None));
        prop_assert!(model.alive.len() == 1 && model.alive.values().all(|guest| guest.armed));
    }

    #[test]
    fn whatever_is_lost_or_forgotten_a_server_is_replaced_and_one_speaks(
        fates in fates(), forget in prop::collection::vec(0_usize..60, 0..5), answers in prop::collection::vec(any::<bool>(), 0..5),
        ordered: bool, back in prop::option::of(0_usize..40),
    ) {
        let mut desired = Desired::Present(identity(), Box::new(want()));
        let mut model = Model::new(vec![]);
        model.disk = if ordered { Disk::Preserve } else { Disk::Disposable };
        model.settle(&desired, &[]);
        let former = model.boot.clone();
        (model.fates, model.answers, model.patient) = (fates, answers, true);
        if ordered {
            desired = Desired::Present(identity(), Box::new(Want { recreate: Some("now".into()), ..want() }));
        } else {
            model.boot = "another".into();
        }
        if let Some(looks) = back.filter(|_| !ordered) {
            for _ in 0..looks {
                model.look(&desired);
            }
            model.boot = former;
        }
        model.settle(&desired, &forget);
        model.pass(2 * LATEST);
        let plan = model.settle(&desired, &[]);
        prop_assert_eq!(plan.stage, Stage::Serving(None));
        prop_assert_eq!(model.alive.len(), 1, "{:?}", model.alive);
        let (number, guest) = model.alive.first_key_value().unwrap();
        prop_assert!(guest.armed);
        prop_assert_eq!(model.born.get(number), Some(&model.boot));
        prop_assert!(!ordered || *number > 1, "the server that was given up is kept");
    }

    #[test]
    fn whatever_is_lost_or_forgotten_the_agent_serves_with_its_restored_disk_and_with_no_other(
        fates in fates(), forget in prop::collection::vec(0_usize..60, 0..5), suspended: bool,
    ) {
        let runs = Desired::Present(identity(), Box::new(want()));
        let mut model = Model::new(vec![]);
        model.settle(&runs, &[]);
        if suspended {
            let rests = Desired::Present(identity(), Box::new(Want { suspend: true, ..want() }));
            for _ in 0..20 {
                model.look(&rests);
            }
        }
        model.alive.clear();
        model.fates = fates;
        model.snapshot = Some(snapshot());
        model.settle(&runs, &forget);
        model.pass(2 * LATEST);
        let plan = model.settle(&runs, &[]);
        prop_assert_eq!(plan.stage, Stage::Serving(None));
        prop_assert_eq!(model.alive.len(), 1);
        prop_assert!(model.alive.keys().all(|number| model.restored.contains(number)), "it is empty");
        let tries = model.status.recovery.iter().map(|done| done.action);
        prop_assert_eq!(tries.collect::<Vec<_>>(), [Recreate]);
    }

    #[test]
    fn a_class_that_is_taken_back_in_the_middle_of_a_replacement_is_followed(looks in 0_usize..40) {
        let desired = Desired::Present(identity(), Box::new(want()));
        let mut model = Model { disk: Disk::Disposable, ..Model::new(vec![]) };
        model.settle(&desired, &[]);
        let former = std::mem::replace(&mut model.boot, "another".into());
        for _ in 0..looks {
            model.look(&desired);
        }
        model.boot = former;
        model.settle(&desired, &[]);
        prop_assert_eq!(model.alive.len(), 1);
    }

    #[test]
    fn whatever_the_probes_say_no_try_is_doubled_and_one_server_speaks(
        spells in prop::collection::vec((0_u8..3, any::<bool>(), any::<bool>(), 1_i64..900), 1..80), disposable: bool,
    ) {
        let desired = Desired::Present(identity(), Box::new(want()));
        let mut model = Model::new(vec![]);
        model.disk = if disposable { Disk::Disposable } else { Disk::Preserve };
        model.settle(&desired, &[]);
        let first: Vec<u32> = model.alive.keys().copied().collect();
        for (says, forget, held, pause) in spells {
            model.held = held;
            model.says = Some([HealthState::Healthy, HealthState::Failed, HealthState::Unknown][usize::from(says)]);
            if forget {
                model.forget();
            }
            model.look(&desired);
            model.look(&desired);
            model.pass(pause);
        }
        let tries = &model.status.recovery;
        let times = |action| tries.iter().filter(|done| done.action == action).count();
        prop_assert!(times(Restart) <= 5 && times(Reboot) <= 2, "{:?}", tries);
        prop_assert!(times(Recreate) <= usize::from(disposable), "{:?}", tries);
        (model.says, model.held) = (Some(HealthState::Healthy), false);
        let plan = model.settle(&desired, &[]);
        prop_assert_eq!(plan.stage, Stage::Serving(None));
        prop_assert_eq!(model.alive.len(), 1);
        prop_assert!(disposable || model.alive.keys().eq(&first), "its disk was lost");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn whatever_fails_and_is_forgotten_no_more_servers_are_bought_than_allowed_and_none_that_spoke_is_deleted(
        fates in fates(), creations in creations(), level in 0_usize..3, forget in prop::collection::vec(0_usize..300, 0..12),
    ) {
        let level = [OnProvisionFailure::Retry, OnProvisionFailure::Keep, OnProvisionFailure::Remove][level];
        let mut model = Model { creations, level, missed: true, ..Model::new(fates) };
        let desired = |retry| Desired::Present(identity(), Box::new(Want { retry, ..want() }));
        // The last ones without a new process, which hears a server out before it judges it.
        for round in 0..320 {
            if forget.contains(&round) {
                model.forget();
            }
            model.look(&desired(None));
            model.pass(10);
        }
        let plan = model.look(&desired(None));
        let allowed = if level == OnProvisionFailure::Retry { 3 } else { 1 };
        prop_assert!(model.bought <= allowed, "{:?}", model.status.rollbacks);
        match plan.stage {
            Stage::Serving(None) => prop_assert!(model.alive.values().all(|guest| guest.armed) && model.alive.len() == 1),
            Stage::Stalled("ProvisionFailed", _) => {
                prop_assert_eq!(model.alive.len(), usize::from(level == OnProvisionFailure::Keep));
                prop_assert!(!model.status.rollbacks.is_empty());
            }
            stage => prop_assert!(false, "{:?}", stage),
        }
        model.creations.clear();
        model.settle(&desired(Some("again".into())), &[]);
        prop_assert_eq!(model.alive.len(), 1);
        prop_assert!(model.bought <= allowed + 1);
    }
}
