//! What Hetzner offers: server types, locations, images.
//!
//! Read when somebody asks and kept for a while, since it is nearly constant: three requests serve
//! all classes of a project. Names are never compiled in, because types come and go per location.

use super::error::Error;
use super::servers::{Meta, PER_PAGE};
use super::transport::{Call, Client};
use super::wire::{id, open_enum, or_default, parsed};
use super::{Budget, Lane, Permit, RetryAt};
use serde::Deserialize;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

id! {
    /// Id of an image.
    ImageId
}

open_enum! {
    /// Instruction set of a server type or an image.
    Architecture {
        /// Intel or AMD.
        X86 = "x86",
        /// Ampere.
        Arm = "arm",
    }
}

/// One server type.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct ServerType {
    /// Its name, such as `cx23`.
    pub name: String,
    /// Its architecture.
    #[serde(default)]
    pub architecture: Option<Architecture>,
    /// Where it is offered.
    #[serde(default, deserialize_with = "or_default")]
    pub locations: Vec<TypeLocation>,
}

/// A server type in one location.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct TypeLocation {
    /// Name of the location.
    pub name: String,
    /// Whether it is in stock.
    #[serde(default)]
    pub available: Option<bool>,
    /// Set when it will not be offered any longer.
    #[serde(default)]
    pub deprecation: Option<Deprecation>,
}

/// When something goes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Deprecation {
    /// No new servers after that.
    #[serde(default, deserialize_with = "parsed")]
    pub unavailable_after: Option<jiff::Timestamp>,
}

/// One location.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Location {
    /// Its name, such as `nbg1`.
    pub name: String,
    /// Its network zone, such as `eu-central`.
    #[serde(default, deserialize_with = "or_default")]
    pub network_zone: String,
}

/// One image.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Image {
    /// Its id.
    pub id: ImageId,
    /// Its name; snapshots have none.
    #[serde(default)]
    pub name: Option<String>,
    /// Its architecture.
    #[serde(default)]
    pub architecture: Option<Architecture>,
}

/// Everything needed to check the places of one class.
#[derive(Clone, Debug, PartialEq)]
pub struct Offer {
    /// All server types.
    pub server_types: Arc<[ServerType]>,
    /// All locations.
    pub locations: Arc<[Location]>,
    /// Hetzner's own images.
    pub system_images: Arc<[Image]>,
    /// The image asked for, as it was written.
    pub image: String,
    /// The images that this names: one for each architecture.
    pub images: Arc<[Image]>,
}

/// A place that can be ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedPlace {
    /// Name of the server type.
    pub server_type: String,
    /// Name of the location.
    pub location: String,
    /// The image for this type.
    pub image: ImageId,
    /// The architecture of type and image, if told.
    pub architecture: Option<Architecture>,
    /// Whether Hetzner says it is in stock.
    pub available: bool,
}

/// A value that Hetzner does not offer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {value} is not offered{detail}; valid: {}", valid.join(", "))]
pub struct Problem {
    /// The field of the class: `serverTypes`, `locations` or `image`.
    pub field: &'static str,
    /// The value that is wrong.
    pub value: String,
    /// What it does not fit to, such as ` in nbg1`; empty if it is wrong everywhere.
    pub detail: String,
    /// Values that would do.
    pub valid: Vec<String>,
}

impl Offer {
    /// Checks that `server_type` can be ordered in `location` with the image, as of `at`.
    ///
    /// # Errors
    /// The first field that is wrong, and what it may be.
    pub fn validate(
        &self,
        server_type: &str,
        location: &str,
        at: jiff::Timestamp,
    ) -> Result<ResolvedPlace, Problem> {
        if !self
            .locations
            .iter()
            .any(|offered| offered.name == location)
        {
            let names = self.locations.iter().map(|offered| offered.name.as_str());
            return Err(problem("locations", location, "", names));
        }
        let wanted = self
            .server_types
            .iter()
            .find(|offered| offered.name == server_type);
        let Some(wanted) = wanted else {
            let here = self.types_in(location, at);
            return Err(problem("serverTypes", server_type, "", here));
        };
        let Some(available) = wanted.stock_in(location, at) else {
            let here = self.types_in(location, at);
            return Err(problem(
                "serverTypes",
                server_type,
                &format!(" in {location}"),
                here,
            ));
        };
        let image = self.image_for(wanted)?;
        Ok(ResolvedPlace {
            server_type: server_type.to_owned(),
            location: location.to_owned(),
            image: image.id,
            architecture: wanted.architecture.clone(),
            available,
        })
    }

    fn image_for(&self, server_type: &ServerType) -> Result<&Image, Problem> {
        let fits = |image: &&Image| match (&image.architecture, &server_type.architecture) {
            (Some(image), Some(server_type)) => image == server_type,
            _ => true,
        };
        self.images.iter().find(fits).ok_or_else(|| {
            let named = self
                .system_images
                .iter()
                .filter(fits)
                .filter_map(|image| image.name.as_deref());
            let detail = match &server_type.architecture {
                Some(architecture) if !self.images.is_empty() => format!(" for {architecture}"),
                _ => String::new(),
            };
            problem("image", &self.image, &detail, named)
        })
    }

    fn types_in(&self, location: &str, at: jiff::Timestamp) -> impl Iterator<Item = &str> {
        let here = move |offered: &&ServerType| offered.stock_in(location, at).is_some();
        self.server_types
            .iter()
            .filter(here)
            .map(|offered| offered.name.as_str())
    }
}

impl ServerType {
    /// Whether it is in stock in `location`; `None` if it is not offered there (any longer).
    fn stock_in(&self, location: &str, at: jiff::Timestamp) -> Option<bool> {
        if self.locations.is_empty() {
            return Some(true);
        }
        let here = self.locations.iter().find(|here| here.name == location)?;
        let gone = here
            .deprecation
            .as_ref()
            .and_then(|deprecation| deprecation.unavailable_after);
        gone.is_none_or(|gone| at < gone)
            .then_some(here.available != Some(false))
    }
}

fn problem<'a>(
    field: &'static str,
    value: &str,
    detail: &str,
    valid: impl Iterator<Item = &'a str>,
) -> Problem {
    let valid: BTreeSet<&str> = valid.collect();
    Problem {
        field,
        value: value.to_owned(),
        detail: detail.to_owned(),
        valid: valid.into_iter().map(str::to_owned).collect(),
    }
}

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
        let named: Arc<[Image]> = system_images
            .iter()
            .filter(|offered| offered.name.as_deref() == Some(image))
            .cloned()
            .collect();
        let images = if named.is_empty() {
            source.other_image(&mut cached.images, image).await?
        } else {
            named
        };
        let image = image.to_owned();
        Ok(Arc::new(Offer {
            server_types,
            locations,
            system_images,
            image,
            images,
        }))
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
                .query("per_page", PER_PAGE)
                .query("page", number);
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
            .query("include_deprecated", true);
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
            .send(permit, call.query("include_deprecated", true))
            .await?;
        Ok(answer.items)
    }
}
