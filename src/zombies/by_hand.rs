//! `agentfleet sweep --dry-run`: the same look as the operator's, by a person's own access to the cluster, and nothing but a look.
//!
//! It deletes nothing, because a person's process knows of no Lease, no earlier sighting and no inventory. What it prints is what a sweep would
//! think of each thing when it sees it for the second time.

mod reader;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client as Kubernetes, ResourceExt, api::ListParams};
use secrecy::{ExposeSecret as _, SecretString};
use serde::de::DeserializeOwned;

use self::reader::Reader;
use super::{
    past::ask_all,
    plan::{Fine, Verdict, hold, verdict},
    world::{Claims, ProjectView, Thing, World},
};
use crate::{
    api::{AgentClass, AgentInstance, HetznerProject},
    fleet,
    hetzner::{self, Budget},
    keys::{KeyError, Keyring, MasterKey},
    kube_ext::{self, CallError, call, error_chain},
    labels,
};

/// How long a request to Hetzner may take.
const REQUEST: Duration = Duration::from_secs(30);
/// How many objects are asked for at once.
const PAGE: u32 = 500;

/// Where to look.
#[derive(Clone, Debug)]
pub struct Look {
    /// Namespace of the operator, with the master key.
    pub namespace: String,
    /// Base URL of the Hetzner Cloud API.
    pub endpoint: String,
    /// Port of SSH on servers.
    pub guest_port: u16,
    /// What is younger counts as young.
    pub min_age: Duration,
}

/// Why there is nothing to print.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// There is no way to the API server.
    #[error("cannot reach Kubernetes: check KUBECONFIG")]
    Config(#[from] kube::config::InferConfigError),
    /// No client can be made.
    #[error("cannot use the Kubernetes configuration")]
    Client(#[from] kube::Error),
    /// The cluster did not answer, or did not allow it.
    #[error("cannot read from Kubernetes")]
    Kubernetes(#[from] CallError),
    /// The master key is unusable.
    #[error(transparent)]
    Fleet(#[from] fleet::FleetError),
    /// There is no fleet in this cluster.
    #[error(
        "there is no Secret {0}/agentfleet-master-key: is this the operator's cluster, and --namespace its namespace?"
    )]
    NoFleet(String),
    /// The master key is not one.
    #[error("the Secret with the master key is not usable")]
    Key(#[from] KeyError),
}

/// What was found.
pub struct Found {
    world: World,
    min_age: Duration,
    /// Projects that cannot be looked at, and why.
    unread: BTreeMap<String, String>,
}

impl Look {
    /// Looks at all projects.
    ///
    /// # Errors
    /// When the cluster cannot be read; a project that cannot is told by [`Found::table`].
    pub async fn all(&self) -> Result<Found, LookError> {
        let config = kube::Config::infer().await?;
        let client = kube_ext::clients(&config)?.read;
        let keyring = self.keyring(&client).await?;
        let (mut projects, mut unread) = (vec![], BTreeMap::new());
        for project in list::<HetznerProject>(&client, "LIST hetznerprojects").await? {
            match self.project(&client, keyring.fleet(), &project).await {
                Ok(view) => projects.push(view),
                Err(why) => drop(unread.insert(project.name_any(), why)),
            }
        }
        let instances = list::<AgentInstance>(&client, "LIST agentinstances").await?;
        let classes = list::<AgentClass>(&client, "LIST agentclasses").await?;
        let mut world = World {
            projects,
            claims: Claims::of(&instances),
            classes: classes.iter().map(ResourceExt::name_any).collect(),
            now: Timestamp::now(),
            steady: Instant::now(),
        };
        self.ask(&keyring, &mut world).await;
        Ok(Found {
            world,
            min_age: self.min_age,
            unread,
        })
    }

    async fn keyring(&self, client: &Kubernetes) -> Result<Keyring, LookError> {
        let found = fleet::existing(client, &self.namespace).await?;
        let found = found.ok_or_else(|| LookError::NoFleet(self.namespace.clone()))?;
        let master = MasterKey::new(&found.name, found.master_key.expose_secret())?;
        Ok(Keyring::new(master, vec![])?)
    }

    async fn ask(&self, keyring: &Keyring, world: &mut World) {
        let open: Vec<(String, i64)> = world
            .things()
            .filter(|(_, thing)| verdict(thing, world, self.min_age) == Verdict::Ask)
            .map(|(project, thing)| (project.to_owned(), thing.id))
            .collect();
        let servers = world.servers_mut(|project, id| {
            open.iter()
                .any(|(other, asked)| other == project && *asked == id)
        });
        ask_all(keyring, self.guest_port, servers).await;
    }

    /// What is in a project, if its token shows the key that marks it.
    async fn project(
        &self,
        client: &Kubernetes,
        fleet: &str,
        project: &HetznerProject,
    ) -> Result<ProjectView, String> {
        let identity = project.status.as_ref().and_then(|status| status.identity);
        let identity = identity.ok_or("the operator has not accepted it yet")?;
        let token = token(client, project).await?;
        let hetzner = hetzner::Client::new(&self.endpoint, token, REQUEST).map_err(chain)?;
        let reader = Reader {
            hetzner,
            budget: Budget::new(),
            selector: format!("{}={fleet}", labels::FLEET),
        };
        let keys = reader.ssh_keys().await.map_err(chain)?;
        if !keys.contains(&identity) {
            return Err("its token belongs to another project".into());
        }
        let others = keys.into_iter().filter(|id| *id != identity);
        let mut things: Vec<Thing> = others.map(Thing::ssh_key).collect();
        things.extend(reader.servers(fleet).await.map_err(chain)?);
        things.extend(reader.firewalls().await.map_err(chain)?);
        things.extend(reader.snapshots().await.map_err(chain)?);
        Ok(ProjectView {
            name: project.name_any(),
            held: false,
            things,
        })
    }
}

fn chain(error: impl std::error::Error + 'static) -> String {
    error_chain(&error)
}

async fn list<K>(client: &Kubernetes, label: &str) -> Result<Vec<K>, CallError>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let (api, mut all) = (Api::<K>::all(client.clone()), vec![]);
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = call(label, api.list(&params)).await?;
        all.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(all),
        }
    }
}

async fn token(client: &Kubernetes, project: &HetznerProject) -> Result<SecretString, String> {
    let named = &project.spec.token_secret_ref;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &named.namespace);
    let secret = call("GET secrets", secrets.get(&named.name))
        .await
        .map_err(chain)?;
    let bytes = secret.data.as_ref().and_then(|data| data.get(&named.key));
    let text = bytes.and_then(|bytes| std::str::from_utf8(&bytes.0).ok());
    let text = text.map(str::trim).filter(|text| !text.is_empty());
    text.map(SecretString::from)
        .ok_or_else(|| format!("Secret {}/{} holds no token", named.namespace, named.name))
}

impl World {
    fn things(&self) -> impl Iterator<Item = (&str, &Thing)> {
        self.projects
            .iter()
            .flat_map(|ProjectView { name, things, .. }| {
                things.iter().map(move |thing| (name.as_str(), thing))
            })
    }
}

impl Found {
    /// Everything that is not plainly claimed, one line each, and what cannot be looked at.
    pub fn table(&self) -> String {
        let mut rows = vec![
            [
                "PROJECT", "KIND", "ID", "NAME", "AGE", "VERDICT", "WHY", "COMMAND",
            ]
            .map(str::to_owned)
            .to_vec(),
        ];
        rows.extend(
            self.world
                .things()
                .filter_map(|(project, thing)| self.row(project, thing)),
        );
        let mut text = if rows.len() > 1 {
            aligned(&rows)
        } else {
            "nothing carries this fleet's labels without belonging to anything\n".to_owned()
        };
        if let Some(hold) = hold(&self.world, self.min_age) {
            let _infallible = writeln!(text, "held: {hold}");
        }
        for (project, why) in &self.unread {
            let _infallible = writeln!(text, "project {project} was not looked at: {why}");
        }
        text
    }

    fn row(&self, project: &str, thing: &Thing) -> Option<Vec<String>> {
        let (word, reason) = match verdict(thing, &self.world, self.min_age) {
            Verdict::Fine(Fine::Claimed) => return None,
            Verdict::Fine(Fine::Retained) => ("keep", "a person wants it kept".to_owned()),
            Verdict::Fine(Fine::Busy) => ("wait", "something is being done to it".to_owned()),
            Verdict::Fine(Fine::Young) => ("wait", "it is young".to_owned()),
            Verdict::Sweep(reason) => ("sweep", reason.words(&thing.owner())),
            Verdict::Person(reason) => ("report", reason.words(&thing.owner())),
            Verdict::Ask => ("report", "its guest was not asked".to_owned()),
        };
        let age = thing.created.map(|created| {
            let seconds = self.world.now.duration_since(created).as_secs();
            let seconds = u64::try_from(seconds).unwrap_or_default();
            crate::api::Duration::from_secs(seconds).to_string()
        });
        let command = match word {
            "sweep" | "report" => thing.kind().command(thing.id),
            _ => String::new(),
        };
        Some(vec![
            project.to_owned(),
            thing.kind().word().to_owned(),
            thing.id.to_string(),
            thing.name.clone(),
            age.unwrap_or_else(|| "?".into()),
            word.to_owned(),
            reason,
            command,
        ])
    }
}

fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths);
        let padded: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}
