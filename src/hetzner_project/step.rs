//! The effects that a plan for a project may ask for, each of one kind and each harmless when done twice.

/// One effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Keep the object until nothing of ours is left in the project.
    AddFinalizer,
    /// Keep the token's Secret as long.
    HoldSecret,
    /// Let a Secret that is being deleted go: nothing needs it.
    ReleaseSecret,
    /// Make a client, a budget and an inventory for the token.
    Connect,
    /// List the SSH keys that carry our fleet.
    ReadKeys,
    /// Ask for the SSH key that the status names.
    LookUpIdentity(i64),
    /// Ask who has the name of our SSH key.
    LookUpKeyName,
    /// Ask for a server that an instance says it has here.
    LookUpServer(i64),
    /// Ask for the keys of people, by name.
    ReadAdminKeys(Vec<String>),
    /// List the firewalls of the fleet.
    ReadFirewalls,
    /// Make our SSH key, marked as held by this process.
    CreateKey,
    /// Write who acts in this project onto our SSH key.
    WriteHolder {
        /// Id of the key.
        key: i64,
        /// What to write.
        holder: String,
    },
    /// Delete a firewall whose class is gone.
    DeleteFirewall(i64),
    /// Delete our SSH key.
    DeleteKey(i64),
    /// Let the object go, and its Secret if no other project uses that.
    LetGo,
}

impl Step {
    /// The kind of effect, by which failures are remembered.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::AddFinalizer => "AddFinalizer",
            Self::HoldSecret => "HoldSecret",
            Self::ReleaseSecret => "ReleaseSecret",
            Self::Connect => "Connect",
            Self::ReadKeys => "ReadKeys",
            Self::LookUpIdentity(_) => "LookUpIdentity",
            Self::LookUpKeyName => "LookUpKeyName",
            Self::LookUpServer(_) => "LookUpServer",
            Self::ReadAdminKeys(_) => "ReadAdminKeys",
            Self::ReadFirewalls => "ReadFirewalls",
            Self::CreateKey => "CreateKey",
            Self::WriteHolder { .. } => "WriteHolder",
            Self::DeleteFirewall(_) => "DeleteFirewall",
            Self::DeleteKey(_) => "DeleteKey",
            Self::LetGo => "LetGo",
        }
    }
}
