//! The effects that a plan may ask for, each of one kind and each harmless when done twice.

use crate::{
    api::{
        HealthState, HeardOrders, ProvisioningRecord, RecoveryRecord, RollbackRecord, VoiceRecord,
    },
    hetzner::ActionId,
};

/// One effect.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Keep the object until nothing of it is left.
    AddFinalizer,
    /// Let the object go.
    RemoveFinalizer,
    /// Write onto the object that its deletion is held.
    HoldDeletion,
    /// Write down the orders that are carried out next.
    Hear(HeardOrders),
    /// Write down the server that is asked for next.
    Announce(ProvisioningRecord),
    /// Ask Hetzner for the server of the record.
    CreateServer(ProvisioningRecord),
    /// Ask Hetzner whether a server of this name exists.
    LookUp {
        /// Name of the `HetznerProject`.
        project: String,
        /// Name of the server.
        name: String,
    },
    /// Ask Hetzner whether a server that no list shows is gone.
    ConfirmGone {
        /// Name of the `HetznerProject`.
        project: String,
        /// Id of the server.
        id: i64,
    },
    /// Ask Hetzner what became of the parts of a creation that were under way when it answered.
    FollowUp {
        /// Name of the `HetznerProject`.
        project: String,
        /// The actions.
        actions: Vec<ActionId>,
    },
    /// Look for the newest snapshot of a server that is gone.
    FindSnapshot {
        /// Name of the `HetznerProject`.
        project: String,
        /// Id of the server.
        server: i64,
        /// Id of the snapshot that this server was itself made of.
        made_of: Option<i64>,
    },
    /// Delete a server.
    DeleteServer {
        /// Name of the `HetznerProject`.
        project: String,
        /// Id of the server.
        id: i64,
    },
    /// Label a server as one that outlives its instance, and tell where it is.
    Retain {
        /// Name of the `HetznerProject`.
        project: String,
        /// Id of the server.
        id: i64,
    },
    /// Switch a server on.
    PowerOn {
        /// Name of the `HetznerProject`.
        project: String,
        /// Id of the server.
        id: i64,
    },
    /// Ask a server to switch itself off.
    Shutdown {
        /// Name of the `HetznerProject`.
        project: String,
        /// Id of the server.
        id: i64,
    },
    /// Pull a server's plug.
    PowerOff {
        /// Name of the `HetznerProject`.
        project: String,
        /// Id of the server.
        id: i64,
    },
    /// Give a server that is off another type and its own disk; it is switched on by that.
    ChangeType {
        /// Name of the `HetznerProject`.
        project: String,
        /// Id of the server.
        id: i64,
        /// Name of the type.
        server_type: String,
    },
    /// Start a server again.
    Reboot {
        /// Name of the `HetznerProject`.
        project: String,
        /// Id of the server.
        id: i64,
        /// Whether its power is cut, since asking it was in vain.
        hard: bool,
    },
    /// Write this instance's UID onto a server of an earlier object of its name.
    TakeUp {
        /// Name of the `HetznerProject`.
        project: String,
        /// Id of the server.
        id: i64,
        /// The UID.
        uid: String,
    },
    /// Talk to the guest until it tells something new: its host key if that is not pinned yet, else its progress.
    Hello {
        /// Id of the server.
        server: i64,
        /// Its incarnation.
        incarnation: u32,
    },
    /// Replace the guest's program while it installs the agent: time that the configuration does not have to wait for afterwards.
    Upgrade {
        /// Id of the server.
        server: i64,
        /// An epoch that the guest accepts.
        epoch: i64,
    },
    /// Write down which server may run the agent, and the epoch of the next command.
    WriteVoice(VoiceRecord),
    /// Give the guest configuration and secrets, and the voice with them.
    Configure {
        /// Id of the server.
        server: i64,
        /// Its incarnation.
        incarnation: u32,
        /// The epoch that was written down for this.
        epoch: i64,
    },
    /// Ask the agent for its health from now on.
    Probe {
        /// Id of the server.
        server: i64,
        /// The epoch of its configuration.
        epoch: i64,
        /// What is known of its health already.
        presumed: Option<HealthState>,
    },
    /// Ask the agent no more: its server has no address.
    EndProbes {
        /// Id of the server.
        server: i64,
    },
    /// Write down what is done next for an agent whose probes fail, after all that was done before.
    WriteRecovery(RecoveryRecord),
    /// Write down a creation that failed, and what becomes of it.
    WriteRollback(RollbackRecord),
    /// Start the agent's unit again.
    Restart {
        /// Id of the server.
        server: i64,
        /// The epoch of its configuration.
        epoch: i64,
    },
    /// Take the voice away from a guest.
    Release {
        /// Id of the server.
        server: i64,
        /// Its incarnation.
        incarnation: u32,
        /// The epoch that was written down for this.
        epoch: i64,
    },
}
