//! The effects that a plan for a class may ask for, each of one kind and each harmless when done twice.

/// One effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Keep the object until its firewalls are gone.
    AddFinalizer,
    /// Let the object go.
    RemoveFinalizer,
    /// Keep a revision, so that it can be gone back to.
    KeepRevision(String),
    /// Delete the object of a former revision that nobody has.
    DropRevision(String),
    /// Check types, locations and image against what a project offers.
    CheckCatalogue(String),
    /// One effect in a project.
    In(String, ProjectStep),
}

/// One effect in one project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProjectStep {
    /// List the firewalls of the fleet.
    ReadFirewalls,
    /// Make the class's firewall.
    CreateFirewall,
    /// Put the labels back onto a firewall.
    LabelFirewall(i64),
    /// Put the rules back.
    SetRules(i64),
    /// Delete a firewall.
    DeleteFirewall(i64),
    /// Put servers behind their firewall again.
    Guard {
        /// Id of the firewall.
        firewall: i64,
        /// Ids of the servers.
        servers: Vec<i64>,
    },
    /// Take servers from behind the firewall of another class.
    Unguard {
        /// Id of the firewall.
        firewall: i64,
        /// Ids of the servers.
        servers: Vec<i64>,
    },
    /// Look for the class's network.
    FindNetwork,
}

impl Step {
    /// The kind of effect and its project, by which failures are remembered.
    pub fn key(&self) -> String {
        match self {
            Self::AddFinalizer => "AddFinalizer".into(),
            Self::RemoveFinalizer => "RemoveFinalizer".into(),
            Self::KeepRevision(_) => "KeepRevision".into(),
            Self::DropRevision(_) => "DropRevision".into(),
            Self::CheckCatalogue(project) => format!("CheckCatalogue {project}"),
            Self::In(project, step) => format!("{} {project}", step.kind()),
        }
    }
}

impl ProjectStep {
    const fn kind(&self) -> &'static str {
        match self {
            Self::ReadFirewalls => "ReadFirewalls",
            Self::CreateFirewall => "CreateFirewall",
            Self::LabelFirewall(_) => "LabelFirewall",
            Self::SetRules(_) => "SetRules",
            Self::DeleteFirewall(_) => "DeleteFirewall",
            Self::Guard { .. } => "Guard",
            Self::Unguard { .. } => "Unguard",
            Self::FindNetwork => "FindNetwork",
        }
    }
}
