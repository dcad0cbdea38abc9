//! A lost disk that comes back with a server made of its newest snapshot.
//!
//! Which snapshot that is stands in the record that permits the server, so that whatever crashes, no other attempt at it is an empty one. What is
//! bought, and when, is bounded as for any server that vanished.

use super::{
    Agent, Look, Plan, ProvisioningRecord, SLOW, ServerView, Stage, Step, creation::server_lost,
};
use crate::{
    agent_instance::{lost_disk::LostDisk, world::SnapshotLook},
    api::{ConditionType, SnapshotRecord},
};

impl Look<'_> {
    /// What is done about a lost disk.
    pub(super) fn restore(&self, lost: &LostDisk) -> Plan {
        let Ok(agent) = self.class() else {
            return Plan::wait(server_lost(lost, ""));
        };
        let Some(look) = self.snapshot_look(lost).filter(|look| !self.is_old(look)) else {
            return self.find_snapshot(lost);
        };
        let Some(snapshot) = snapshot_of(look) else {
            let stage = server_lost(lost, ", and there is no snapshot of it");
            return Plan::wait(stage).until(look.at + SLOW);
        };
        let words = restored(lost, &snapshot);
        if self.is_suspended() {
            return Plan::wait(Stage::Suspended(format!(
                "{words}; that is done when it shall run again"
            )));
        }
        if !look.fits {
            return Plan::wait(does_not_fit(lost, &snapshot, agent)).until(look.at + SLOW);
        }
        let held = format!(
            ", but snapshot {} of {} is there, of which lifecycle.recovery.recreations of AgentClass {} lets no server be made",
            snapshot.id, snapshot.created_at.0, agent.class
        );
        self.bring_back(agent, &words, lost.announced, server_lost(lost, &held))
    }

    /// The snapshot that the next server is made of; none: there is no lost disk, or none that can come back.
    pub(super) fn next_snapshot(&self) -> Option<(String, SnapshotRecord)> {
        let lost = self.world.lost_disk()?;
        let snapshot = snapshot_of(self.snapshot_look(&lost)?)?;
        Some((lost.project, snapshot))
    }

    /// Whether a record is for a disk of another kind than the one that is wanted now: an empty one, or a restored one.
    pub(super) fn is_for_another_disk(&self, record: &ProvisioningRecord) -> bool {
        record.snapshot.is_some() != self.world.lost_disk().is_some()
    }

    /// Whether a server is the one that is to have the lost disk again.
    pub(super) fn is_restored(&self, server: &ServerView) -> bool {
        self.world.record().is_some_and(|record| {
            let names = (&record.server_name, &record.project);
            record.snapshot.is_some() && names == (&server.name, &server.project)
        })
    }

    fn snapshot_look(&self, lost: &LostDisk) -> Option<&SnapshotLook> {
        let look = self.world.snapshot.as_ref();
        look.filter(|look| look.server == lost.server)
    }

    /// Whether it is time to look again: for what was not there, could not be had, or led to nothing.
    fn is_old(&self, look: &SnapshotLook) -> bool {
        let helps = look.newest.is_some() && look.fits && self.world.trouble.is_none();
        !helps && look.at + SLOW <= self.now
    }

    fn find_snapshot(&self, lost: &LostDisk) -> Plan {
        let step = Step::FindSnapshot {
            project: lost.project.clone(),
            server: lost.server,
            made_of: lost.made_of,
        };
        let told = self.world.status.conditions.iter().any(|told| {
            let stalled = told.type_ == ConditionType::Stalled.as_str() && told.status == "True";
            stalled && told.reason == "ServerLost"
        });
        let stage = if told {
            // That it is asked once more is no news.
            server_lost(lost, ", and there is no snapshot of it")
        } else {
            let words = format!(
                "server {} in project {} is gone, and its disk with it; a snapshot of it is looked for",
                lost.server, lost.project
            );
            Stage::Unhealthy("ServerLost", words)
        };
        match self.usable(&lost.project) {
            Ok(()) => Plan::act(step, stage),
            Err(_) => Plan::wait(stage),
        }
    }
}

fn snapshot_of(look: &SnapshotLook) -> Option<SnapshotRecord> {
    let newest = look.newest.as_ref()?;
    Some(SnapshotRecord {
        id: newest.id.number(),
        created_at: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(newest.created?),
        server: look.server,
    })
}

fn restored(lost: &LostDisk, snapshot: &SnapshotRecord) -> String {
    format!(
        "server {} in project {} is gone; it is restored from snapshot {} of {}, and what came after that is lost",
        lost.server, lost.project, snapshot.id, snapshot.created_at.0
    )
}

fn does_not_fit(lost: &LostDisk, snapshot: &SnapshotRecord, agent: &Agent) -> Stage {
    Stage::Stalled(
        "NoTypeForSnapshot",
        format!(
            "server {} in project {} is gone, and none of the server types of AgentClass {} can be made of its snapshot {} of {}: that takes the same architecture, and a disk that is not smaller",
            lost.server, lost.project, agent.class, snapshot.id, snapshot.created_at.0
        ),
    )
}
