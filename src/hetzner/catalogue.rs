//! What Hetzner offers: server types, locations, images.
//!
//! Read when somebody asks and kept for a while, since it is nearly constant: three requests serve
//! all classes of a project. Names are never compiled in, because types come and go per location.

use super::error::Error;
use super::offer::{Image, Location, Offer, ServerType};
use super::transport::{Call, Client};
use super::wire::{Meta, PER_PAGE, or_default};
use super::{Budget, Lane, Permit, RetryAt};
use serde::Deserialize;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Why the catalogue could not be read.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// The budget allows no request now.
    #[error("no request left for the catalogue")]
    Budget(RetryAt),
    /// The API failed.
    #[error("catalogue not readable")]
    Api(#[from] Error),
}

/// Server types, locations and images of one project, kept for a while.
pub struct Catalogue {
    max_age: Duration,
    cached: tokio::sync::Mutex<Cached>,
}

#[derive(Default)]
struct Cached {
    server_types: Option<Aged<ServerType>>,
    locations: Option<Aged<Location>>,
    system_images: Option<Aged<Image>>,
    images: HashMap<String, Aged<Image>>,
}

/// What was read, and when.
struct Aged<T> {
    read_at: Instant,
    items: Arc<[T]>,
}

impl<T> Aged<T> {
    fn fresh(&self, max_age: Duration, now: Instant) -> Option<Arc<[T]>> {
        let age = now.saturating_duration_since(self.read_at);
        (age < max_age).then(|| Arc::clone(&self.items))
    }
}

/// An image that was not found may be made any minute.
const MAX_AGE_OF_ABSENCE: Duration = Duration::from_mins(1);

impl Catalogue {
    /// An empty catalogue whose entries are read anew after `max_age`.
    pub fn new(max_age: Duration) -> Self {
        Self {
            max_age,
            cached: tokio::sync::Mutex::default(),
        }
    }

    /// What is offered for `image`, a name or an id; at most three lists and one look-up.
    ///
    /// # Errors
    /// What was read before stays: the next call goes on from there.
    pub async fn offer(
        &self,
        client: &Client,
        budget: &Budget,
        image: &str,
        now: Instant,
    ) -> Result<Arc<Offer>, CatalogueError> {
        let mut cached = self.cached.lock().await;
        let source = Source {
            client,
            budget,
            max_age: self.max_age,
            now,
        };
        let server_types = source
            .refresh(&mut cached.server_types, "GET /server_types")
            .await?;
        let locations = source
            .refresh(&mut cached.locations, "GET /locations")
            .await?;
        let system_images = source
            .refresh(&mut cached.system_images, SYSTEM_IMAGES)
            .await?;
        let named = |offered: &&Image| offered.name.as_deref() == Some(image);
        let mut images: Arc<[Image]> = system_images.iter().filter(named).cloned().collect();
        if images.is_empty() {
            images = source.other_image(&mut cached.images, image).await?;
        }
        let image = image.to_owned();
        Ok(Arc::new(Offer {
            server_types,
            locations,
            system_images,
            image,
            images,
        }))
    }

    /// The server types as they were read last; none: they were not read yet, or are being read.
    pub fn server_types(&self) -> Option<Arc<[ServerType]>> {
        let cached = self.cached.try_lock().ok()?;
        cached
            .server_types
            .as_ref()
            .map(|aged| Arc::clone(&aged.items))
    }
}

/// The list of Hetzner's own images; its filter is added by [`list_call`].
const SYSTEM_IMAGES: &str = "GET /images";

/// Where the catalogue is read from, and how old it may be.
struct Source<'a> {
    client: &'a Client,
    budget: &'a Budget,
    max_age: Duration,
    now: Instant,
}

impl Source<'_> {
    async fn refresh<T>(
        &self,
        cached: &mut Option<Aged<T>>,
        route: &'static str,
    ) -> Result<Arc<[T]>, CatalogueError>
    where
        ListPage<T>: for<'de> Deserialize<'de>,
    {
        if let Some(items) = cached
            .as_ref()
            .and_then(|aged| aged.fresh(self.max_age, self.now))
        {
            return Ok(items);
        }
        let mut items = Vec::new();
        let mut page = Some(1);
        while let Some(number) = page {
            let call = list_call(route)
                .query("per_page", PER_PAGE.to_string())
                .query("page", number.to_string());
            let answer: ListPage<T> = self.client.send(self.permit()?, call).await?;
            items.extend(answer.items);
            page = answer
                .meta
                .pagination
                .next_page
                .filter(|next| *next > number);
        }
        let items: Arc<[T]> = items.into();
        *cached = Some(Aged {
            read_at: self.now,
            items: Arc::clone(&items),
        });
        Ok(items)
    }

    /// An image that is not Hetzner's own: an app by its name, a snapshot by its id.
    async fn other_image(
        &self,
        cached: &mut HashMap<String, Aged<Image>>,
        image: &str,
    ) -> Result<Arc<[Image]>, CatalogueError> {
        cached.retain(|_, aged| {
            let absent = aged.items.is_empty();
            let max_age = if absent {
                self.max_age.min(MAX_AGE_OF_ABSENCE)
            } else {
                self.max_age
            };
            aged.fresh(max_age, self.now).is_some()
        });
        if let Some(aged) = cached.get(image) {
            return Ok(Arc::clone(&aged.items));
        }
        let items: Arc<[Image]> = self.client.find_image(self.permit()?, image).await?.into();
        cached.insert(
            image.to_owned(),
            Aged {
                read_at: self.now,
                items: Arc::clone(&items),
            },
        );
        Ok(items)
    }

    fn permit(&self) -> Result<Permit, CatalogueError> {
        self.budget
            .try_acquire(Lane::Other, "catalogue", Instant::now())
            .map_err(CatalogueError::Budget)
    }
}

fn list_call(route: &'static str) -> Call {
    let call = Call::new(route);
    if route == SYSTEM_IMAGES {
        return call
            .query("type", "system")
            .query("status", "available")
            .query("include_deprecated", "true");
    }
    call
}

/// One page of any of the three lists.
#[derive(Deserialize)]
#[serde(bound = "T: Deserialize<'de>")]
struct ListPage<T> {
    #[serde(alias = "server_types", alias = "locations", alias = "images")]
    items: Vec<T>,
    #[serde(default, deserialize_with = "or_default")]
    meta: Meta,
}

#[derive(Deserialize)]
struct OneImage {
    image: Image,
}

impl Client {
    /// The images of this id or name, one for each architecture.
    async fn find_image(&self, permit: Permit, image: &str) -> Result<Vec<Image>, Error> {
        if let Ok(id) = image.parse() {
            let answer: Result<OneImage, Error> = self
                .send(permit, Call::new("GET /images/{id}").id(id))
                .await;
            return match answer {
                Ok(OneImage { image }) => Ok(vec![image]),
                Err(error) if error.class() == super::Class::NotFound => Ok(Vec::new()),
                Err(error) => Err(error),
            };
        }
        let call = Call::new("GET /images")
            .query("name", image)
            .query("status", "available");
        let answer: ListPage<Image> = self
            .send(permit, call.query("include_deprecated", "true"))
            .await?;
        Ok(answer.items)
    }
}

#[cfg(test)]
mod tests {
    use super::super::ImageId;
    use super::super::stub::{Reply, client, serve};
    use super::*;
    use serde_json::json;
    use std::sync::Mutex;

    /// Answers like the API and notes the paths asked for.
    async fn api() -> (Client, Arc<Mutex<Vec<String>>>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&asked);
        let endpoint = serve(move |request| {
            let path = request.split(' ').nth(1).unwrap().to_owned();
            let body = match path.as_str() {
                path if path.starts_with("/v1/server_types") => {
                    let second = path.contains("&page=2");
                    let next = (!second).then_some(2);
                    let name = if second { "cx33" } else { "cx23" };
                    json!({"server_types": [{"name": name}], "meta": {"pagination": {"next_page": next}}})
                }
                path if path.starts_with("/v1/locations") => json!({"locations": [{"name": "nbg1"}]}),
                path if path.contains("type=system") => json!({"images": [{"id": 1, "name": "debian-13"}]}),
                path if path.contains("name=docker-ce") => json!({"images": [{"id": 5, "name": "docker-ce"}]}),
                "/v1/images/77" => json!({"image": {"id": 77, "name": null}}),
                "/v1/images/78" => json!({"error": {"code": "not_found", "message": "no"}}),
                _ => json!({"images": []}),
            };
            let status = if body.get("error").is_some() { "404 Not Found" } else { "200 OK" };
            noted.lock().unwrap().push(path);
            Reply::json(status, &body)
        })
        .await;
        (client(&endpoint), asked)
    }

    #[tokio::test]
    async fn catalogue_is_read_once_for_all_who_ask_and_again_when_it_is_old() {
        let (client, asked) = api().await;
        let (budget, now) = (Budget::new(), Instant::now());
        let catalogue = Catalogue::new(Duration::from_hours(1));
        let offer = catalogue
            .offer(&client, &budget, "debian-13", now)
            .await
            .unwrap();
        assert_eq!(
            (offer.server_types.len(), offer.images[0].id),
            (2, ImageId(1))
        );
        assert_eq!(asked.lock().unwrap().len(), 4, "the types have two pages");
        catalogue
            .offer(&client, &budget, "debian-13", now)
            .await
            .unwrap();
        assert_eq!(asked.lock().unwrap().len(), 4);
        catalogue
            .offer(&client, &budget, "debian-13", now + Duration::from_hours(1))
            .await
            .unwrap();
        assert_eq!(asked.lock().unwrap().len(), 8);
    }

    #[tokio::test]
    async fn other_images_are_found_by_name_or_id_and_absence_is_kept_shortly() {
        let (client, asked) = api().await;
        let (budget, now) = (Budget::new(), Instant::now());
        let catalogue = Catalogue::new(Duration::from_hours(1));
        for (image, ids) in [
            ("docker-ce", vec![5]),
            ("77", vec![77]),
            ("78", vec![]),
            ("nix", vec![]),
        ] {
            let offer = catalogue.offer(&client, &budget, image, now).await.unwrap();
            let found: Vec<u64> = offer.images.iter().map(|image| image.id.0).collect();
            assert_eq!(found, ids, "{image}");
        }
        let requests = asked.lock().unwrap().len();
        for (later, more) in [(59, 0), (60, 1)] {
            let then = now + Duration::from_secs(later);
            catalogue.offer(&client, &budget, "78", then).await.unwrap();
            assert_eq!(asked.lock().unwrap().len(), requests + more);
        }
    }

    #[tokio::test]
    async fn exhausted_budget_is_told_and_what_was_read_stays() {
        let (client, asked) = api().await;
        let (budget, now) = (Budget::new(), Instant::now());
        let held: Vec<Permit> = (0..3)
            .map(|_| budget.try_acquire(Lane::Create, "a", now).ok().unwrap())
            .collect();
        let catalogue = Catalogue::new(Duration::from_hours(1));
        let refused = catalogue.offer(&client, &budget, "debian-13", now).await;
        assert!(matches!(refused, Err(CatalogueError::Budget(RetryAt(at))) if at > now));
        assert_eq!(asked.lock().unwrap().len(), 0);
        drop(held);
        assert!(
            catalogue
                .offer(&client, &budget, "debian-13", now)
                .await
                .is_ok()
        );
    }
}
