//! Private networks: found by name, never changed.

use super::Permit;
use super::error::Error;
use super::transport::{Call, Client};
use super::wire::or_default;
use serde::Deserialize;

#[derive(Deserialize)]
struct Many {
    #[serde(deserialize_with = "or_default")]
    networks: Vec<Network>,
}

#[derive(Deserialize)]
struct Network {
    id: u64,
}

impl Client {
    /// The id of the network of this name, if there is one; names are unique in a project.
    ///
    /// # Errors
    /// As every request.
    pub async fn network_by_name(&self, permit: Permit, name: &str) -> Result<Option<u64>, Error> {
        let call = Call::new("GET /networks").query("name", name);
        let answer: Many = self.send(permit, call).await?;
        Ok(answer.networks.first().map(|network| network.id))
    }
}

#[cfg(test)]
mod tests {
    use crate::hetzner::stub::{Reply, client, permit, serve};
    use serde_json::json;

    #[tokio::test]
    async fn network_is_found_by_its_name_or_not_there() {
        let endpoint = serve(|request| {
            let found = request.starts_with("GET /v1/networks?name=inner ");
            let networks = if found {
                json!([{"id": 4711, "name": "inner", "ip_range": "10.0.0.0/8"}])
            } else {
                json!([])
            };
            Reply::json("200 OK", &json!({ "networks": networks }))
        })
        .await;
        let client = client(&endpoint);
        assert_eq!(
            client.network_by_name(permit(), "inner").await.unwrap(),
            Some(4711)
        );
        assert_eq!(
            client.network_by_name(permit(), "other").await.unwrap(),
            None
        );
    }
}
