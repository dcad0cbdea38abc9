//! The lives that a crash may come into: each is one bed with one instance, to which something happens that makes the operator call out.

mod subscription;

use std::time::Duration;

use bed::{
    Bed, Call, Moment, Options, Outcome, Pace, TENANT, ensure, manifests, oracle, wait_within,
};
use hetzner_sim::Stage;
use serde_json::{Value, json};

/// A life with a crash in it takes seconds; this is used up by a failure only.
const LIFE_STEP: Duration = Duration::from_secs(90);
/// What the operator does after all else was seen to be done, it does by then.
const AFTERWARDS: Duration = Duration::from_secs(20);
/// What an update of the class writes on the server.
const MOTTO: &str = "/home/agent/motto";

/// What happens to the instance while a crash may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Story {
    /// Created, Ready, given another Secret, deleted, class and project too.
    Whole,
    /// Its class is changed in what is applied in place.
    Update,
    /// Its class is changed to what its probe does not like, so that it goes back.
    Return,
    /// Its class is changed in what only a new server can take up, and its disk is disposable.
    Replacement,
    /// It shall not run, and then it shall again.
    Suspension,
    /// Its first server cannot be installed.
    Rollback,
    /// Its customer subscribes, does not pay, is struck off, subscribes anew, and cancels.
    Subscription,
}

impl Story {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Whole,
        Self::Update,
        Self::Return,
        Self::Replacement,
        Self::Suspension,
        Self::Rollback,
        Self::Subscription,
    ];

    /// Whether the instance is Ready before it begins.
    fn is_of_a_ready_instance(self) -> bool {
        matches!(
            self,
            Self::Update | Self::Return | Self::Replacement | Self::Suspension
        )
    }

    /// How many servers there are in it, one after the other or beside one another.
    fn servers(self) -> usize {
        match self {
            Self::Whole | Self::Update | Self::Return | Self::Suspension | Self::Subscription => 1,
            Self::Replacement | Self::Rollback => 2,
        }
    }

    /// The class before anything happens to it.
    fn class(self, bed: &Bed) -> Value {
        let mut class = bed.class();
        match self {
            Self::Replacement => {
                class["spec"]["lifecycle"] = json!({"disk": "Disposable"});
                class["spec"]["agent"]["swap"] = json!("1G");
            }
            Self::Return => {
                let exec = json!({"command": "! grep -q bad motto"});
                class["spec"]["health"] = json!({"interval": "1s", "timeout": "10s", "exec": exec});
                class["spec"]["agent"]["files"] = json!([{"path": MOTTO, "content": "good"}]);
            }
            Self::Rollback => {
                // All fake machines see the same files.
                let tried = bed.dir().join("tried").display().to_string();
                let install = format!("mkdir {tried} 2>/dev/null && exit 7; true");
                class["spec"]["agent"]["install"] = json!([install]);
            }
            Self::Whole | Self::Update | Self::Suspension | Self::Subscription => {}
        }
        class
    }
}

/// One life, in which the operator is started again whenever it has crashed.
pub struct Life {
    bed: Bed,
    story: Story,
    crashed: bool,
    /// Calls of the process that made the instance Ready, where there was one.
    before: usize,
}

impl Life {
    /// A bed in which the story can begin, and an operator that crashes at a point, or at none.
    pub async fn begin(story: Story, point: Option<(&Call, Moment)>) -> Outcome<Self> {
        let mut bed = Bed::with(Options {
            operator: false,
            // Each operator that crashed leaves one behind.
            pace: Pace {
                lease: "6s",
                ..Pace::default()
            },
            ..Options::default()
        })
        .await?;
        bed.apply_basics().await?;
        bed.cluster.apply(&story.class(&bed)).await?;
        if story.is_of_a_ready_instance() {
            bed.operator.start()?;
            bed.create("one").await?.ready().await?;
            bed.operator.stop().await?;
        }
        let before = bed.operator.calls()?.len();
        match point {
            Some((call, moment)) => bed.operator.start_to_crash_at(call, moment)?,
            None => bed.operator.start()?,
        }
        Ok(Self {
            bed,
            story,
            crashed: false,
            before,
        })
    }

    /// Waits for a step of the life, over a crash.
    async fn until(&mut self, what: &str, reached: impl AsyncFn(&Bed) -> Outcome<bool>) -> Outcome {
        wait_within(LIFE_STEP, what, async || {
            if !self.crashed && self.bed.operator.has_crashed()? {
                self.crashed = true;
                self.bed.operator.start()?;
            }
            Ok(reached(&self.bed).await?.then_some(()))
        })
        .await
    }

    /// Lives it to its end; answers the calls that are its own, which a deletion that another story has too is not.
    pub async fn live(&mut self) -> Outcome<Vec<Call>> {
        match self.story {
            Story::Whole => self.is_created_and_given_another_secret().await?,
            Story::Update => self.is_updated().await?,
            Story::Return => self.goes_back().await?,
            Story::Replacement => self.is_replaced().await?,
            Story::Suspension => self.is_suspended_and_resumed().await?,
            Story::Rollback => self.is_rolled_back().await?,
            Story::Subscription => self.is_paid_for_suspended_and_ended().await?,
        }
        if self.story != Story::Subscription {
            self.bed.instance("one").serves().await?;
        }
        let told = self.bed.operator.calls()?.split_off(self.before);
        self.is_deleted().await?;
        Ok(match self.story {
            Story::Whole => self.bed.operator.calls()?,
            _ => told,
        })
    }

    async fn is_created_and_given_another_secret(&mut self) -> Outcome {
        self.bed.create("one").await?;
        self.until("Ready", is_ready).await?;
        let secret = self.bed.apply_secret("one").await?;
        self.until("the new Secret is on the server", async |bed| {
            Ok(holds(bed, manifests::SECRET_FILE, &secret).await? && is_ready(bed).await?)
        })
        .await
    }

    async fn is_updated(&mut self) -> Outcome {
        let mut class = self.story.class(&self.bed);
        class["spec"]["agent"]["files"] = json!([{"path": MOTTO, "content": "second"}]);
        self.bed.cluster.apply(&class).await?;
        self.until("the server is as the class says", async |bed| {
            Ok(holds(bed, MOTTO, "second").await? && is_ready(bed).await?)
        })
        .await?;
        self.until("UpToDate", async |bed| is(bed, "UpToDate").await)
            .await
    }

    async fn goes_back(&mut self) -> Outcome {
        let mut class = self.story.class(&self.bed);
        class["spec"]["agent"]["files"] = json!([{"path": MOTTO, "content": "bad"}]);
        self.bed.cluster.apply(&class).await?;
        self.until("it has what it was Ready with", async |bed| {
            let status = bed.instance("one").status().await?;
            let refused = status["refusedRevision"].is_string();
            Ok(refused && holds(bed, MOTTO, "good").await? && is_ready(bed).await?)
        })
        .await?;
        self.until("the class says that it failed", async |bed| {
            let class = bed
                .cluster
                .get("AgentClass", None, manifests::CLASS)
                .await?;
            Ok(class.is_some_and(|class| class["status"]["failedRevision"].is_string()))
        })
        .await
    }

    async fn is_replaced(&mut self) -> Outcome {
        let former = self.bed.instance("one").serves().await?;
        let mut class = self.story.class(&self.bed);
        class["spec"]["agent"]["swap"] = json!("2G");
        self.bed.cluster.apply(&class).await?;
        self.until("it serves on another server", async |bed| {
            let status = bed.instance("one").status().await?;
            Ok(status["server"]["id"] != json!(former) && is_ready(bed).await?)
        })
        .await?;
        self.until("the former server is gone", async |bed| {
            Ok(bed.cloud().machine(former).is_err() && is(bed, "UpToDate").await?)
        })
        .await
    }

    async fn is_suspended_and_resumed(&mut self) -> Outcome {
        let server = self.bed.instance("one").serves().await?;
        self.suspend(true).await?;
        self.until_off(server).await?;
        self.suspend(false).await?;
        self.until("Ready again", is_ready).await
    }

    async fn until_off(&mut self, server: u64) -> Outcome {
        self.until("its server is off", async |bed| {
            let status = bed.instance("one").status().await?;
            let told = oracle::condition(&status, "Ready");
            Ok(told.is_some_and(|told| told["reason"] == "Suspended")
                && bed.cloud().machine(server)?.stage == Stage::Off)
        })
        .await
    }

    async fn suspend(&self, suspend: bool) -> Outcome {
        let spec = json!({"spec": {"suspend": suspend}});
        self.bed
            .cluster
            .merge("AgentInstance", Some(TENANT), "one", spec)
            .await
    }

    async fn is_rolled_back(&mut self) -> Outcome {
        self.bed.create("one").await?;
        self.until("Ready on another server", is_ready).await?;
        let status = self.bed.instance("one").status().await?;
        let failed = status["rollbacks"].as_array().map_or(0, Vec::len);
        ensure(failed == 1, || format!("one failed: {status:#}"))
    }

    async fn is_deleted(&mut self) -> Outcome {
        for (kind, namespace, name) in [
            ("AgentInstance", Some(TENANT), "one"),
            ("AgentClass", None, manifests::CLASS),
            ("HetznerProject", None, manifests::PROJECT),
        ] {
            self.is_gone(kind, namespace, name).await?;
        }
        Ok(())
    }

    /// Deletes an object, and waits until nothing is left of it.
    async fn is_gone(&mut self, kind: &str, namespace: Option<&str>, name: &str) -> Outcome {
        self.bed.cluster.delete(kind, namespace, name).await?;
        self.until(&format!("the {kind} is gone"), async |bed| {
            Ok(bed.cluster.get(kind, namespace, name).await?.is_none())
        })
        .await
    }

    /// Waits for a crash that may come after all else was seen to be done; whether it came.
    pub async fn crash(&mut self) -> Outcome<bool> {
        let crash = wait_within(AFTERWARDS, "the point is reached", async || {
            Ok((self.crashed || self.bed.operator.has_crashed()?).then_some(()))
        });
        let reached = crash.await.is_ok();
        if reached && !self.crashed {
            self.bed.operator.start()?;
        }
        Ok(reached)
    }

    /// Fails unless nothing is left, no more servers were bought than the story needs, and what holds in every test held.
    pub async fn end(self) -> Outcome {
        self.bed.delete_all().await?;
        let lives = self.bed.cloud().lives();
        ensure(lives.len() == self.story.servers(), || {
            format!("bought: {lives:#?}")
        })?;
        match self.story {
            Story::Replacement => self.bed.finish_after_replacements().await,
            _ => self.bed.finish().await,
        }
    }
}

async fn is_ready(bed: &Bed) -> Outcome<bool> {
    is(bed, "Ready").await
}

async fn is(bed: &Bed, kind: &str) -> Outcome<bool> {
    let status = bed.instance("one").status().await?;
    Ok(oracle::condition(&status, kind).is_some_and(|found| found["status"] == "True"))
}

async fn holds(bed: &Bed, path: &str, text: &str) -> Outcome<bool> {
    let file = bed.instance("one").file(path).await?;
    Ok(file.is_some_and(|file| file.contains(text)))
}
