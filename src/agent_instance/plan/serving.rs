//! An instance with a server: from its first boot to an agent that serves.

use super::{
    Agent, CONTACT, ConfigureFailure, Configured, ContactProblem, Cure, InstallPhase, Look, Plan,
    Power, SecretsView, ServerView, Stage, Step, TOLD_FROM, Upgrade, VoiceRecord, armed_here,
    health::without_address, rollback::rolling_back,
};

/// Reason of somebody who answers in a server's place.
pub(super) const HOST_KEY_CHANGED: &str = "HostKeyChanged";

impl Look<'_> {
    pub(super) fn server(&self, server: &ServerView) -> Plan {
        if server.deleting {
            // Its successor is asked for when it is surely gone (I13).
            let failed = self.failed(server.incarnation.into());
            let stage = failed.map_or(Stage::Creating, |failed| {
                rolling_back(failed.reason, &failed.message)
            });
            return self.await_end(server, stage);
        }
        if server.blocked && !self.is_suspended() {
            return Plan::wait(Stage::Stalled(
                "ProviderBlocked",
                format!(
                    "Hetzner blocked the address of server {}; a new server would not help: see the Hetzner Console for the reason",
                    server.id
                ),
            ));
        }
        let plan = if self.is_suspended() {
            self.suspend(server)
        } else if let Some(plan) = self.retyped(server).or_else(|| self.replaced(server)) {
            plan
        } else {
            self.on_trial(server, self.towards_serving(server))
        };
        let well = matches!(plan.stage, Stage::Serving(_));
        let steps = if server.listed {
            let surplus = self.surplus(server, well);
            plan.steps.into_iter().chain(surplus).collect()
        } else {
            // What lives is not called dead by a list: nothing else is done or said before Hetzner was asked for it.
            self.confirm_gone(&server.project, server.id).steps
        };
        Plan { steps, ..plan }
    }

    pub(super) fn towards_serving(&self, server: &ServerView) -> Plan {
        if server.power == Power::Off {
            return self.power_on(server);
        }
        if self.world.pinned(server).is_none() {
            return self.bootstrap(server);
        }
        let hello = server.guest.hello.as_ref();
        if self.world.voice_holder() == Some(server.incarnation)
            && self.world.applied(server).is_some()
        {
            return self.holder(server);
        }
        match hello.map(|hello| &hello.phase) {
            None => self.contact(server, "has not told how far its installation is"),
            Some(InstallPhase::Running) => Plan {
                stage: Stage::Installing,
                ..self.installing(server)
            },
            Some(InstallPhase::Failed(why)) => Plan {
                stage: Stage::InstallFailed(why.clone()),
                ..self.contact(server, "")
            },
            Some(InstallPhase::Done) => self.holder(server),
        }
    }

    fn installing(&self, server: &ServerView) -> Plan {
        if server.guest.upgrade != Upgrade::Due || server.guest.busy {
            return self.contact(server, "");
        }
        // First of all, so that it is the new program that hears the end of the installation, and gives the answer at once.
        let upgrade = Step::Upgrade {
            server: server.id,
            // Nothing may have been written down for it yet, and the guest takes none below.
            epoch: self.epoch(server).max(1),
        };
        Plan::act(upgrade, Stage::Installing)
    }

    fn power_on(&self, server: &ServerView) -> Plan {
        let holds = self.world.voice_holder() == Some(server.incarnation);
        if let Some(why) = self.hands_off().filter(|_| holds) {
            let words = format!("server {} is off; {why}", server.id);
            return Plan::wait(Stage::Unhealthy("PoweredOff", words));
        }
        let words = format!("server {} is off and is powered on", server.id);
        let recovering = || self.recovering(self.class().ok()?);
        let stage = if holds {
            recovering().unwrap_or(Stage::Unhealthy("PoweredOff", words))
        } else {
            Stage::Booting(words)
        };
        match server.guest.powered {
            Some(asked) if asked + CONTACT > self.now => Plan::wait(stage).until(asked + CONTACT),
            _ => {
                let step = Step::PowerOn {
                    project: server.project.clone(),
                    id: server.id,
                };
                self.at_hetzner(&server.project, step, stage)
            }
        }
    }

    /// Until a host key is proven nothing but a challenge is sent (I5). A proven key is pinned by writing it into the status, which comes with
    /// the next look.
    fn bootstrap(&self, server: &ServerView) -> Plan {
        if server.guest.proven.is_some() {
            return Plan::wait(Stage::Installing);
        }
        if self.waits_for_call(server) {
            return Plan::wait(Stage::Booting(
                "waits for the server to post its host key".into(),
            ))
            .until(self.now + CONTACT);
        }
        self.contact(server, "has not answered yet")
    }

    /// Whether the record in hand is this server's, so that the proof it was born with counts.
    pub(super) fn is_booting(&self, server: &ServerView) -> bool {
        self.world
            .record()
            .is_some_and(|record| record.server_name == server.name)
            && self.world.voice_holder() != Some(server.incarnation)
    }

    pub(super) fn contact(&self, server: &ServerView, what: &str) -> Plan {
        let guest = &server.guest;
        let stage = self.contact_stage(server, what);
        let fails_since = guest.contact.as_ref().filter(|(problem, _)| {
            !matches!(problem, ContactProblem::Silent(_)) || self.overdue(server)
        });
        match fails_since {
            _ if guest.busy => Plan::wait(stage),
            Some((_, at)) if *at + CONTACT > self.now => Plan::wait(stage).until(*at + CONTACT),
            _ => Plan::act(
                Step::Hello {
                    server: server.id,
                    incarnation: server.incarnation,
                },
                stage,
            ),
        }
    }

    fn contact_stage(&self, server: &ServerView, what: &str) -> Stage {
        let overdue = if self.overdue(server) {
            "; this takes longer than lifecycle.firstContactTimeout"
        } else {
            ""
        };
        let contact = server.guest.contact.as_ref().map(|(problem, _)| problem);
        // That a server is silent while it boots is no news.
        let news = contact.filter(|problem| {
            !matches!(problem, ContactProblem::Silent(_)) || self.overdue(server)
        });
        match news {
            None => Stage::Booting(format!("server {} {what}{overdue}", server.id)),
            Some(ContactProblem::Silent(why)) => Stage::Booting(format!(
                "server {} does not answer ({why}){overdue}",
                server.id
            )),
            Some(ContactProblem::WrongProof(why)) => Stage::Troubled(
                "HostKeyUnproven",
                format!(
                    "what answers at the address of server {} cannot prove that it is this server ({why}); nothing was sent to it",
                    server.id
                ),
            ),
            Some(ContactProblem::HostKeyChanged(why)) => host_key_changed(server, why),
            Some(ContactProblem::LoginRefused(why)) => {
                Stage::Troubled("LoginRefused", format!("server {}: {why}", server.id))
            }
            Some(ContactProblem::Garbage(why)) => {
                Stage::Troubled("GuestNotUnderstood", format!("server {}: {why}", server.id))
            }
        }
    }

    fn overdue(&self, server: &ServerView) -> bool {
        let timeout = self
            .class()
            .map_or(CONTACT, |agent| agent.lifecycle.first_contact_timeout.get());
        server
            .created_at
            .is_none_or(|created| created + timeout < self.now)
    }

    /// The guest is installed or was configured before: the voice, then configuration and secrets.
    fn holder(&self, server: &ServerView) -> Plan {
        if matches!(
            server.guest.contact,
            Some((ContactProblem::HostKeyChanged(_), _))
        ) {
            return self.contact(server, "");
        }
        if let Some(why) = server.stranger() {
            // Its probes go on, and say when it is back.
            return Plan::wait(host_key_changed(server, why));
        }
        if server.address().is_none() && self.world.spoken(server).is_some() {
            return without_address(server);
        }
        if self.world.voice_holder() != Some(server.incarnation) && armed_here(server) {
            return self.record_voice(server);
        }
        let (agent, tag) = match (self.class(), &self.world.secrets) {
            (Ok(agent), SecretsView::Met { tag }) => (agent, tag),
            (Err((reason, message)), _) => return self.unconfigurable(server, reason, message),
            (_, SecretsView::Unmet(reason, message)) => {
                return self.unconfigurable(server, reason, message.clone());
            }
            (_, SecretsView::Unknown) => {
                return self.unconfigurable(
                    server,
                    "SecretUnread",
                    "the Secret was not read yet".into(),
                );
            }
        };
        let wanted = (agent.config_revision.clone(), tag.clone());
        match &server.guest.configured {
            _ if server.guest.busy && server.guest.restarts => {
                Plan::wait(Stage::Starting(String::new()))
            }
            _ if server.guest.busy => Plan::wait(self.applying(server)),
            // Another server is to have what is wanted, though somebody keeps that from being prepared.
            _ if self.world.awaits_next(server) && self.world.spoken(server).is_some() => self
                .refreshed(server)
                .unwrap_or_else(|| self.serving(server, agent)),
            Some(configured) if configured.sent == wanted => match &configured.outcome {
                Err(failure) if failure.again.is_some_and(|again| again <= self.now) => {
                    self.configure(server)
                }
                Err(failure) => self.refused(server, agent, failure),
                Ok(_) => self.serving(server, agent),
            },
            // What came of that on the server is not known: it may have been too late for the former configuration to stay.
            Some(Configured {
                outcome: Err(failure),
                ..
            }) if !failure.was_without_effect() => self.configure(server),
            _ if self.world.spoken(server).as_ref() == Some(&wanted)
                && !self.is_anothers(server) =>
            {
                self.serving(server, agent)
            }
            _ => self.configure(server),
        }
    }

    /// What the guest could not apply waits: for its time, or for another class or Secret. An agent that spoke before goes on with what it has,
    /// and is still asked for its health (I6).
    fn refused(&self, server: &ServerView, agent: &Agent, failure: &ConfigureFailure) -> Plan {
        let words = format!("{}: {}", failure.reason, failure.message);
        let stalled = || Stage::ConfigureFailed(failure.reason.clone(), failure.message.clone());
        let plan = match failure.cure {
            _ if failure.as_before && self.world.spoken(server).is_some() => {
                self.goes_on(server, agent, &words)
            }
            Cure::Change | Cure::Person => Plan::wait(stalled()),
            Cure::Time if failure.times < TOLD_FROM => Plan::wait(self.applying(server)),
            Cure::Time => Plan::wait(Stage::Troubled("ConfigureFailed", words)),
        };
        match failure.again {
            Some(again) => plan.until(again),
            None => plan,
        }
    }

    fn goes_on(&self, server: &ServerView, agent: &Agent, refused: &str) -> Plan {
        let plan = self.probed(server, agent, Some(("ConfigureFailed", refused.to_owned())));
        let stage = match plan.stage {
            Stage::Unhealthy(reason, words) => {
                Stage::Unhealthy(reason, format!("{words}; {refused}"))
            }
            Stage::Recovering(reason, words) => {
                Stage::Recovering(reason, format!("{words}; {refused}"))
            }
            Stage::Starting(words) if words.is_empty() => Stage::Starting(refused.to_owned()),
            Stage::Starting(words) => Stage::Starting(format!("{words}; {refused}")),
            stage => stage,
        };
        Plan { stage, ..plan }
    }

    /// What an armed server says of itself is written down, with the epoch after its own: the status was lost, or restored from an older day (I12).
    fn record_voice(&self, server: &ServerView) -> Plan {
        let voice = VoiceRecord {
            incarnation: Some(i64::from(server.incarnation)),
            epoch: self.epoch(server) + 1,
        };
        Plan::act(Step::WriteVoice(voice), self.applying(server))
    }

    pub(super) fn epoch(&self, server: &ServerView) -> i64 {
        let recorded = self.world.voice().map_or(0, |voice| voice.epoch);
        recorded.max(server.guest.hello.as_ref().map_or(0, |hello| hello.epoch))
    }

    /// A server that serves goes on doing so when its class or Secret is gone; another one waits.
    fn unconfigurable(&self, server: &ServerView, reason: &'static str, message: String) -> Plan {
        match self.world.spoken(server) {
            Some(_) => Plan::wait(self.health(server, Some((reason, message)))),
            None => Plan::wait(Stage::Waiting(reason, message)),
        }
    }

    /// Whether the guest still belongs to an earlier object, whose server was taken up.
    fn is_anothers(&self, server: &ServerView) -> bool {
        let armed_for = server
            .guest
            .hello
            .as_ref()
            .and_then(|hello| hello.armed_for.as_ref());
        armed_for.is_some_and(|uid| *uid != self.identity.uid)
    }

    pub(super) fn applying(&self, server: &ServerView) -> Stage {
        match self.world.spoken(server) {
            Some(_) => Stage::Updating,
            None => Stage::Installing,
        }
    }

    /// Each `configure` carries an epoch that was written down first, so that a late one can be told from the present (I11, I13).
    pub(super) fn configure(&self, server: &ServerView) -> Plan {
        if server.guest.hello.is_none() {
            return Plan {
                stage: self.applying(server),
                ..self.contact(server, "")
            };
        }
        let told = self.world.status.server.as_ref();
        if told.is_none_or(|told| told.id != server.id) {
            // Its host key is pinned by the status first.
            return Plan::wait(self.applying(server));
        }
        let before = self.world.voice().is_some_and(|voice| voice.epoch > 1);
        if let Some(plan) = self.hush_others(server).filter(|_| before) {
            return plan;
        }
        let voice = self
            .world
            .voice()
            .filter(|voice| voice.incarnation == Some(i64::from(server.incarnation)));
        match voice {
            Some(voice) if self.world.fresh_epoch == Some(voice.epoch) => Plan::act(
                Step::Configure {
                    server: server.id,
                    incarnation: server.incarnation,
                    epoch: voice.epoch,
                },
                self.applying(server),
            ),
            _ => {
                let voice = VoiceRecord {
                    incarnation: Some(i64::from(server.incarnation)),
                    epoch: self.epoch(server) + 1,
                };
                Plan::act(Step::WriteVoice(voice), self.applying(server))
            }
        }
    }
}

pub(super) fn host_key_changed(server: &ServerView, why: &str) -> Stage {
    Stage::Stalled(
        HOST_KEY_CHANGED,
        format!(
            "what answers at the address of server {} has another host key than the pinned one ({why}); nothing was sent to it",
            server.id
        ),
    )
}
