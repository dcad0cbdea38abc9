use super::*;
use crate::hetzner::stub::{Reply, client, serve};
use crate::hetzner::{Budget, Client};
use serde_json::{Value, json};
use std::time::Duration;

type Act = Box<dyn FnOnce(&mut Vec<Value>) + Send>;

/// The simulated project: its servers, and what happens after a page was answered.
#[derive(Default)]
struct Project {
    servers: Vec<Value>,
    after_page: Vec<(usize, Act)>,
    pages: usize,
    broken: bool,
}

struct World {
    inventory: Inventory,
    project: Arc<Mutex<Project>>,
    client: Client,
    budget: Budget,
    now: Instant,
}

fn server(id: u64) -> Value {
    json!({
        "id": id, "name": format!("s-{id}"), "status": "running",
        "labels": {"fleet": "f", "ns": "tenant", "name": format!("agent-{id}")},
    })
}

fn parsed(value: &Value) -> Server {
    serde_json::from_value(value.clone()).unwrap()
}

fn key(id: u64) -> Key {
    Key {
        namespace: "tenant".into(),
        name: format!("agent-{id}"),
    }
}

fn config() -> Config {
    let periods = Periods {
        fast: Duration::from_millis(20),
        slow: Duration::from_millis(40),
        poked: Duration::from_millis(5),
        flux: Duration::from_mins(10),
    };
    let key_labels = KeyLabels {
        namespace: "ns".into(),
        name: "name".into(),
    };
    Config {
        selector: "fleet=f".into(),
        key_labels,
        periods,
    }
}

fn answer(project: &Mutex<Project>, request: &str) -> Reply {
    assert!(
        request.contains("label_selector=fleet%3Df&per_page=50&sort=id%3Aasc"),
        "{request}"
    );
    let number: usize = request
        .split("&page=")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .unwrap()
        .parse()
        .unwrap();
    let mut project = project.lock().unwrap();
    if project.broken {
        return Reply::http("502 Bad Gateway", "", "<html></html>");
    }
    let matching: Vec<Value> = project
        .servers
        .iter()
        .filter(|server| server["labels"]["fleet"] == "f")
        .cloned()
        .collect();
    let page: Vec<&Value> = matching.iter().skip((number - 1) * 50).take(50).collect();
    let next = (number * 50 < matching.len()).then_some(number + 1);
    let body = json!({"servers": page, "meta": {"pagination": {"next_page": next, "total_entries": matching.len()}}});
    project.pages += 1;
    let pages = project.pages;
    if let Some(index) = project
        .after_page
        .iter()
        .position(|(page, _)| *page == pages)
    {
        let (_, act) = project.after_page.remove(index);
        act(&mut project.servers);
    }
    Reply::json("200 OK", &body)
}

impl World {
    async fn new(ids: std::ops::RangeInclusive<u64>) -> Self {
        let project = Project {
            servers: ids.map(server).collect(),
            ..Project::default()
        };
        let project = Arc::new(Mutex::new(project));
        let served = Arc::clone(&project);
        let endpoint = serve(move |request| answer(&served, request)).await;
        let (inventory, budget, now) = (Inventory::new(config()), Budget::new(), Instant::now());
        Self {
            inventory,
            project,
            client: client(&endpoint),
            budget,
            now,
        }
    }

    async fn list(&self) -> ListFacts {
        self.inventory
            .poll_once(&self.client, &self.budget)
            .await
            .unwrap()
    }

    fn remove(&self, id: u64) {
        self.project
            .lock()
            .unwrap()
            .servers
            .retain(|server| server["id"] != id);
    }

    /// Does `act` right after the `page`-th page from now on.
    fn after_page(&self, page: usize, act: impl FnOnce(&mut Vec<Value>) + Send + 'static) {
        let mut project = self.project.lock().unwrap();
        let page = project.pages + page;
        project.after_page.push((page, Box::new(act)));
    }

    fn presence(&self, id: u64) -> Presence {
        self.inventory.presence(ServerId(id))
    }

    fn is_missing(&self, id: u64) -> bool {
        matches!(
            self.presence(id),
            Presence::NotListed { since: Some(_), .. }
        )
    }
}

/// The owners named in all changes so far.
fn drain(changes: &mut broadcast::Receiver<Change>) -> Vec<Key> {
    let mut keys = Vec::new();
    while let Ok(change) = changes.try_recv() {
        if let Change::Servers(of) = change {
            keys.extend(of.iter().cloned());
        }
    }
    keys
}

#[tokio::test]
async fn list_of_several_pages_fills_the_store_and_a_second_one_is_no_news() {
    let world = World::new(1..=120).await;
    let mut changes = world.inventory.subscribe();
    assert!(!world.inventory.snapshot().first_list_done());
    let facts = world.list().await;
    assert_eq!(
        (facts.number, facts.pages, facts.servers, facts.steady),
        (1, 3, 120, true)
    );
    assert_eq!(drain(&mut changes).len(), 120);
    let snapshot = world.inventory.snapshot();
    assert!(snapshot.first_list_done());
    assert_eq!(snapshot.servers().count(), 120);
    let found: Vec<_> = snapshot.of(&key(7)).map(|entry| entry.server.id).collect();
    assert_eq!(found, [ServerId(7)]);
    world.list().await;
    assert_eq!(drain(&mut changes), []);
    assert_eq!(
        changes.try_recv().err(),
        Some(broadcast::error::TryRecvError::Empty)
    );
}

#[tokio::test]
async fn server_hidden_by_a_shift_between_pages_is_kept_and_comes_back() {
    let world = World::new(1..=60).await;
    world.list().await;
    let mut changes = world.inventory.subscribe();
    // Somebody else deletes server 10: what was 51st is now 50th, on the page already read.
    world.after_page(1, |servers| servers.retain(|server| server["id"] != 10));
    assert!(!world.list().await.steady);
    assert!(world.is_missing(51));
    assert_eq!(world.presence(10), Presence::Listed);
    assert_eq!(drain(&mut changes), [key(51)]);
    assert!(world.list().await.steady);
    assert_eq!(world.presence(51), Presence::Listed);
    assert!(world.is_missing(10));
}

#[tokio::test]
async fn server_we_deleted_is_gone_after_a_list_begun_later() {
    let world = World::new(1..=3).await;
    world.list().await;
    let mut changes = world.inventory.subscribe();
    let deletion = world.inventory.begin_delete(ServerId(2));
    world.remove(2);
    deletion.accepted(world.now);
    assert_eq!(world.presence(2), Presence::Deleting);
    world.list().await;
    assert_eq!(world.presence(2), Presence::Gone);
    assert_eq!(world.inventory.of(&key(2)), []);
    assert_eq!(drain(&mut changes), [key(2), key(2)]);
    assert_eq!(world.inventory.snapshot().vanished_since(world.now), 0);
}

#[tokio::test]
async fn list_begun_before_the_delete_proves_nothing_and_does_not_bring_the_server_back() {
    let world = World::new(1..=60).await;
    world.list().await;
    let inventory = world.inventory.clone();
    let now = world.now;
    world.after_page(1, move |servers| {
        let deletion = inventory.begin_delete(ServerId(60));
        servers.retain(|server| server["id"] != 60);
        deletion.accepted(now);
    });
    world.list().await;
    assert_eq!(world.presence(60), Presence::Deleting);
    let inventory = world.inventory.clone();
    world.after_page(1, move |_| inventory.record_gone(ServerId(1), now));
    world.list().await;
    assert_eq!(
        world.presence(1),
        Presence::Gone,
        "its page was asked for before"
    );
}

#[tokio::test]
async fn delete_of_ours_between_pages_leaves_an_earlier_one_unsettled_until_it_is_asked_for() {
    let world = World::new(1..=120).await;
    world.list().await;
    world.remove(5);
    world
        .inventory
        .begin_delete(ServerId(5))
        .accepted(world.now);
    for (list, victim) in [(1, 118), (2, 119)] {
        let inventory = world.inventory.clone();
        // A create right after it keeps `total_entries` as it was.
        world.after_page(1, move |servers| {
            drop(inventory.begin_delete(ServerId(victim)));
            servers.retain(|server| server["id"] != victim);
            servers.push(server(victim + 100));
        });
        assert!(!world.list().await.steady);
        assert_eq!(world.presence(5) == Presence::Deleting, list == 1);
    }
    assert!(world.is_missing(5));
    assert!(world.list().await.steady);
    assert_eq!(world.presence(5), Presence::Gone);
}

#[tokio::test]
async fn delete_that_was_accepted_without_effect_shows_the_server_again() {
    let world = World::new(1..=2).await;
    world.list().await;
    let (inventory, now) = (world.inventory.clone(), world.now);
    world.after_page(1, move |_| {
        inventory.begin_delete(ServerId(2)).accepted(now);
    });
    for list in ["begun before", "first", "second"] {
        world.list().await;
        let shown = world.presence(2) == Presence::Listed;
        assert_eq!(shown, list == "second", "{list}");
    }
}

#[tokio::test]
async fn delete_of_unknown_outcome_changes_nothing_and_a_404_ends_it() {
    let world = World::new(1..=2).await;
    world.list().await;
    drop(world.inventory.begin_delete(ServerId(2)));
    assert_eq!(world.presence(2), Presence::Listed);
    world
        .inventory
        .begin_delete(ServerId(2))
        .not_found(world.now);
    assert_eq!(world.presence(2), Presence::Gone);
    assert_eq!(world.inventory.snapshot().vanished_since(world.now), 0);
}

#[tokio::test]
async fn server_created_during_a_list_is_not_missing_from_it() {
    let world = World::new(1..=60).await;
    world.list().await;
    let inventory = world.inventory.clone();
    let now = world.now;
    world.after_page(2, move |servers| {
        servers.push(server(61));
        inventory.record_created(parsed(&server(61)), now);
    });
    world.list().await;
    assert_eq!(world.presence(61), Presence::Listed);
    assert_eq!(world.inventory.of(&key(61)).len(), 1);
    world.list().await;
    assert_eq!(world.presence(61), Presence::Listed);
}

#[tokio::test]
async fn page_older_than_an_answer_does_not_undo_it() {
    let world = World::new(1..=60).await;
    world.list().await;
    let inventory = world.inventory.clone();
    let now = world.now;
    world.after_page(1, move |_| {
        let mut newer = server(1);
        newer["labels"]["mark"] = "new".into();
        inventory.record_updated(parsed(&newer), now);
    });
    world.list().await;
    let snapshot = world.inventory.snapshot();
    assert_eq!(
        snapshot.get(ServerId(1)).unwrap().server.labels["mark"],
        "new"
    );
}

#[tokio::test]
async fn empty_list_drops_nothing_and_tells_how_many_are_missing() {
    let world = World::new(1..=5).await;
    world.list().await;
    let mut changes = world.inventory.subscribe();
    let servers = std::mem::take(&mut world.project.lock().unwrap().servers);
    let facts = world.list().await;
    assert_eq!((facts.servers, facts.steady), (0, true));
    assert_eq!(drain(&mut changes).len(), 5);
    let snapshot = world.inventory.snapshot();
    assert_eq!(snapshot.servers().count(), 5);
    assert_eq!(snapshot.vanished_since(world.now), 5);
    assert!(world.is_missing(3));

    world.inventory.record_gone(ServerId(3), Instant::now());
    assert_eq!(world.presence(3), Presence::Gone);
    assert_eq!(
        world.inventory.snapshot().vanished_since(world.now),
        5,
        "gone counts as missing"
    );
    assert_eq!(world.inventory.snapshot().vanished_since(Instant::now()), 0);

    world.project.lock().unwrap().servers = servers;
    world.list().await;
    assert_eq!(world.inventory.snapshot().vanished_since(world.now), 0);
    assert_eq!(
        world.presence(3),
        Presence::Listed,
        "a 404 is taken back by a later list"
    );
}

#[tokio::test]
async fn server_whose_labels_were_changed_by_hand_is_found_by_its_owner_and_makes_no_noise() {
    let world = World::new(1..=2).await;
    world.list().await;
    let mut stripped = server(2);
    stripped["labels"] = json!({});
    world.project.lock().unwrap().servers[1] = stripped.clone();
    world.list().await;
    assert!(world.is_missing(2));
    let mut changes = world.inventory.subscribe();
    let asked = Instant::now();
    world.inventory.record_updated(parsed(&stripped), asked);
    assert_eq!(drain(&mut changes), [key(2)]);
    let confirmed = |presence| matches!(presence, Presence::NotListed { confirmed: Some(at), .. } if at == asked);
    assert!(confirmed(world.inventory.of(&key(2))[0].presence));
    assert_eq!(
        world.inventory.snapshot().vanished_since(world.now),
        0,
        "it is there"
    );
    world
        .inventory
        .record_updated(parsed(&stripped), Instant::now());
    world.list().await;
    assert_eq!(drain(&mut changes), [], "the same answer again is no news");
}

#[tokio::test]
async fn after_a_restart_nothing_is_presumed_gone_before_it_was_asked_for() {
    let world = World::new(1..=2).await;
    world.list().await;
    let restarted = Inventory::new(config());
    let unknown = Presence::NotListed {
        since: None,
        confirmed: None,
    };
    assert_eq!(restarted.presence(ServerId(1)), unknown);
    restarted
        .poll_once(&world.client, &world.budget)
        .await
        .unwrap();
    assert_eq!(restarted.presence(ServerId(1)), Presence::Listed);
    assert_eq!(restarted.presence(ServerId(9)), unknown);
}

#[tokio::test]
async fn list_cut_short_marks_nothing_missing_and_shows_in_the_health() {
    let world = World::new(1..=60).await;
    world.list().await;
    world.project.lock().unwrap().broken = true;
    assert!(
        world
            .inventory
            .poll_once(&world.client, &world.budget)
            .await
            .is_err()
    );
    let health = world.inventory.health().borrow().clone();
    assert_eq!(health.last_error.unwrap().status(), Some(502));
    assert!(health.last_ok.is_some());
    assert_eq!(world.inventory.snapshot().vanished_since(world.now), 0);
    world.project.lock().unwrap().broken = false;
    world.list().await;
    assert!(world.inventory.health().borrow().last_error.is_none());
}

#[tokio::test]
async fn running_inventory_lists_again_and_a_poke_brings_it_forward() {
    let mut slow = config();
    slow.periods.slow = Duration::from_hours(1);
    slow.periods.fast = Duration::from_hours(1);
    let world = World::new(1..=2).await;
    let inventory = Inventory::new(slow);
    let mut changes = inventory.subscribe();
    let follow = async {
        while changes.recv().await.unwrap() != Change::Synced {}
        world.project.lock().unwrap().servers.push(server(3));
        inventory.poke();
        while changes.recv().await.unwrap() != Change::Synced {}
    };
    tokio::select! {
        never = inventory.run(&world.client, &world.budget) => match never {},
        done = tokio::time::timeout(Duration::from_secs(10), follow) => done.unwrap(),
    }
    assert_eq!(inventory.presence(ServerId(3)), Presence::Listed);
}

#[tokio::test]
async fn booting_server_makes_lists_frequent() {
    let mut lazy = config();
    lazy.periods.slow = Duration::from_hours(1);
    let world = World::new(1..=2).await;
    let inventory = Inventory::new(lazy);
    let mut changes = inventory.subscribe();
    let follow = async {
        while changes.recv().await.unwrap() != Change::Synced {}
        let mut booting = server(3);
        booting["status"] = "initializing".into();
        world.project.lock().unwrap().servers.push(booting.clone());
        inventory.record_created(parsed(&booting), Instant::now());
        for _ in 0..3 {
            while changes.recv().await.unwrap() != Change::Synced {}
        }
    };
    tokio::select! {
        never = inventory.run(&world.client, &world.budget) => match never {},
        done = tokio::time::timeout(Duration::from_secs(10), follow) => done.unwrap(),
    }
}
