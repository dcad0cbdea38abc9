//! The firewall of a class, on real packets: who gets through is tried, not read.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bed::{Bed, Elsewhere, Failure, Instance, Outcome, PATIENCE, ensure, manifests};
use hetzner_sim::{Fault, FaultBody, FaultRule};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const HEALTH_PORT: u16 = 8080;
const EXTRA_PORT: u16 = 9000;

/// A class whose agent answers HTTP, asked for its health from this host.
fn class(bed: &Bed) -> Value {
    let mut class = bed.class();
    let serve = ["/usr/bin/python3", "-m", "http.server", "8080"];
    class["spec"]["agent"]["service"]["execStart"] = json!(serve);
    class["spec"]["health"] = json!({"http": {"port": HEALTH_PORT}, "interval": "1s"});
    class["spec"]["firewall"]["healthFrom"] = json!([network(bed.host())]);
    class
}

fn network(address: Ipv4Addr) -> String {
    format!("{address}/32")
}

/// Who tries to get through to one server.
struct Wall<'a> {
    bed: &'a Bed,
    elsewhere: Elsewhere,
    server: Ipv4Addr,
}

impl<'a> Wall<'a> {
    async fn of(bed: &'a Bed, one: &Instance<'_>) -> Outcome<Self> {
        let status = one.status().await?;
        let server = status["server"]["ipv4"].as_str().unwrap_or_default();
        Ok(Self {
            bed,
            elsewhere: Elsewhere::of(bed).await?,
            server: server.parse()?,
        })
    }

    /// Whether the operator's address, and whether another one, gets through to a port.
    async fn passes(&self, port: u16) -> Outcome<(bool, bool)> {
        let target = SocketAddr::from((self.server, port));
        let here = timeout(Duration::from_secs(1), TcpStream::connect(target));
        let elsewhere = self.elsewhere.reaches(target);
        let (here, elsewhere) = tokio::join!(here, elsewhere);
        Ok((matches!(here, Ok(Ok(_))), elsewhere?))
    }

    async fn lets(&self, port: u16, wanted: (bool, bool)) -> Outcome {
        let passes = self.passes(port).await?;
        ensure(passes == wanted, || {
            format!("port {port} lets (operator, others) through: {passes:?}, not {wanted:?}")
        })
    }

    async fn will_pass(&self, port: u16, wanted: (bool, bool)) -> Outcome {
        let what = format!("port {port} lets (operator, others) through: {wanted:?}");
        let mut last = None;
        let passed = self.bed.wait_until(&what, async || {
            Ok(*last.insert(self.passes(port).await?) == wanted)
        });
        let passed = passed.await;
        passed.map_err(|failure| Failure::new(format!("{failure}; now it is {last:?}")))
    }

    /// Changes the firewall at Hetzner, as a person would in the Console, and waits for what the operator does about it.
    async fn is_answered(&self, action: &str, body: &Value, answer: &str) -> Outcome {
        let (bed, servers) = (self.bed, self.bed.cloud().servers());
        let wall = &servers[0]["public_net"]["firewalls"][0]["id"];
        let path = format!("/firewalls/{wall}/actions/{action}");
        let before = bed.latest_mutation();
        bed.at_hetzner("POST", &path, body).await?;
        let (hand, operator) = (
            format!("POST /firewalls/{{id}}/actions/{action}"),
            format!("POST /firewalls/{{id}}/actions/{answer}"),
        );
        // A server is left alone for a minute after its creation: it may not show its firewall yet.
        let what = format!("{hand} is answered by {operator}");
        let mut seen = vec![];
        let waited = bed::wait_within(2 * PATIENCE, &what, async || {
            seen = bed.mutations_after(before);
            Ok((seen == [hand.as_str(), &operator]).then_some(()))
        });
        let waited = waited.await;
        waited.map_err(|failure| Failure::new(format!("{failure}; seen were {seen:?}")))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_firewall_lets_through_whom_the_class_names_also_after_an_edit() -> Outcome {
    let Some(bed) = Bed::start_real().await? else {
        return Ok(());
    };
    let mut class = class(&bed);
    bed.change(&class).await?;
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    let wall = Wall::of(&bed, &one).await?;
    let listen = format!("systemd-run --quiet nc -lk {EXTRA_PORT}");
    one.shell(&listen).await?;
    wall.lets(22, (true, false)).await?;
    wall.lets(HEALTH_PORT, (true, false)).await?;
    wall.lets(EXTRA_PORT, (false, false)).await?;

    let (here, there) = (network(bed.host()), wall.elsewhere.network());
    let firewall = &mut class["spec"]["firewall"];
    firewall["healthFrom"] = json!([here, there]);
    let extra = format!("{EXTRA_PORT}-9001");
    firewall["rules"] =
        json!([{"direction": "In", "protocol": "Tcp", "port": extra, "networks": [there]}]);
    bed.change(&class).await?;
    wall.will_pass(EXTRA_PORT, (false, true)).await?;
    wall.lets(HEALTH_PORT, (true, true)).await?;
    wall.lets(22, (true, false)).await?;

    class["spec"]["firewall"] = json!({"sshFrom": [here, there], "healthFrom": [here]});
    bed.change(&class).await?;
    wall.will_pass(22, (true, true)).await?;
    wall.lets(HEALTH_PORT, (true, false)).await?;
    wall.lets(EXTRA_PORT, (false, false)).await?;
    assert_eq!(one.ready().await?, server);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outbound_rule_closes_all_other_ways_out() -> Outcome {
    let Some(bed) = Bed::start_real().await? else {
        return Ok(());
    };
    let one = bed.create("one").await?;
    one.ready().await?;
    let listeners = [
        TcpListener::bind((bed.host(), 0)).await?,
        TcpListener::bind((bed.host(), 0)).await?,
    ];
    let ports = [
        listeners[0].local_addr()?.port(),
        listeners[1].local_addr()?.port(),
    ];
    let ways_out = async || -> Outcome<[bool; 2]> {
        let mut open = [false; 2];
        for (port, open) in ports.iter().zip(&mut open) {
            let attempt = format!("nc -z -w 1 {} {port}", bed.host());
            *open = one.shell(&attempt).await.is_ok();
        }
        Ok(open)
    };
    assert_eq!(ways_out().await?, [true, true]);
    let mut class = bed.class();
    let rule = json!({"direction": "Out", "protocol": "Tcp", "port": ports[0].to_string(), "networks": [network(bed.host())]});
    class["spec"]["firewall"]["rules"] = json!([rule]);
    bed.change(&class).await?;
    let mut open = [true; 2];
    let waited = bed.wait_until("only the declared way out is left", async || {
        open = ways_out().await?;
        Ok(open == [true, false])
    });
    let waited = waited.await;
    waited.map_err(|failure| {
        Failure::new(format!("{failure}; open are (declared, other): {open:?}"))
    })?;
    // What the operator needs goes in, and its answers out.
    let value = bed.apply_secret("one").await?;
    one.has_in_file(manifests::SECRET_FILE, &value).await?;
    one.ready().await?;
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_firewall_that_was_changed_or_taken_off_by_hand_is_put_back() -> Outcome {
    let Some(bed) = Bed::start_real().await? else {
        return Ok(());
    };
    let one = bed.create("one").await?;
    let server = one.ready().await?;
    let wall = Wall::of(&bed, &one).await?;
    wall.lets(22, (true, false)).await?;

    let world = json!({"direction": "in", "protocol": "tcp", "port": "22", "source_ips": ["0.0.0.0/0"], "destination_ips": []});
    let rules = json!({"rules": [world]});
    wall.is_answered("set_rules", &rules, "set_rules").await?;
    wall.will_pass(22, (true, false)).await?;

    let off = json!({"remove_from": [{"type": "server", "server": {"id": server}}]});
    wall.is_answered("remove_from_resources", &off, "apply_to_resources")
        .await?;
    wall.will_pass(22, (true, false)).await?;
    assert_eq!(one.ready().await?, server);
    bed.delete_all().await?;
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_firewall_goes_with_its_class_also_when_hetzner_first_says_that_it_is_in_use() -> Outcome
{
    let Some(bed) = Bed::start_real().await? else {
        return Ok(());
    };
    let one = bed.create("one").await?;
    one.ready().await?;
    let in_use = Fault::Status {
        status: 422,
        code: Some("resource_in_use".into()),
        message: Some("firewall is still in use".into()),
        commit: false,
        body: FaultBody::Json,
    };
    let rule = FaultRule {
        times: Some(2),
        ..FaultRule::next("DELETE", "/firewalls/{id}", in_use)
    };
    let fault = bed.cloud().add_fault(rule);
    one.delete().await?;
    one.gone().await?;
    assert_eq!(bed.cloud().projects()[0].firewalls, 1);
    bed.delete_all().await?;
    let faults = bed.cloud().faults();
    let met = faults.iter().find(|state| state.id == fault);
    assert_eq!(met.map(|state| state.hits), Some(2));
    assert_eq!(bed.cloud().projects()[0].firewalls, 0);
    bed.finish().await
}
