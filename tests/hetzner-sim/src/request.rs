//! One API request as the handlers see it, and the reading of its body.
//!
//! Every complaint about a body is an `invalid_input` that names the field, as Hetzner words it.

use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::labels::{self, Labels};

/// A request below `/v1`, without its transport.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Path below `/v1`, such as `/servers/42`.
    pub(crate) path: String,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn segments(&self) -> Vec<&str> {
        self.path
            .split('/')
            .filter(|part| !part.is_empty())
            .collect()
    }

    /// The path with numbers replaced by `{id}`: `/servers/{id}/actions/poweron`.
    pub(crate) fn route(&self) -> String {
        self.segments()
            .iter()
            .fold(String::new(), |mut route, part| {
                let numeric = part.chars().all(|c| c.is_ascii_digit());
                route.push('/');
                route.push_str(if numeric { "{id}" } else { part });
                route
            })
    }

    pub(crate) fn is_mutation(&self) -> bool {
        self.method != "GET"
    }

    pub(crate) fn param(&self, name: &str) -> Option<&str> {
        let mut named = self
            .query
            .iter()
            .filter(|(key, value)| key == name && !value.is_empty());
        named.next().map(|(_, value)| value.as_str())
    }

    /// All values of a parameter that may be repeated.
    pub(crate) fn params<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let named = self.query.iter().filter(move |(key, _)| key == name);
        named
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    /// The numbers given for a repeated parameter, such as `id`.
    pub(crate) fn ids(&self, name: &str) -> Result<Vec<u64>, ApiError> {
        self.params(name)
            .map(|value| {
                value
                    .parse()
                    .map_err(|_| ApiError::invalid(name, "must be an integer"))
            })
            .collect()
    }

    /// The JSON body; an empty one counts as `{}`.
    pub(crate) fn input(&self) -> Result<Input, ApiError> {
        if self.body.is_empty() {
            return Ok(Input(Map::new()));
        }
        match serde_json::from_slice(&self.body) {
            Ok(Value::Object(fields)) => Ok(Input(fields)),
            _ => Err(ApiError::json_error()),
        }
    }
}

/// A reference by number or by name, as `server_type`, `image`, `location` and `ssh_keys` take it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum IdOrName {
    Id(u64),
    Name(String),
}

impl IdOrName {
    fn parse(value: &Value) -> Option<Self> {
        match value {
            Value::Number(number) => number.as_u64().map(Self::Id),
            Value::String(text) => Some(Self::from_text(text)),
            _ => None,
        }
    }

    pub(crate) fn from_text(text: &str) -> Self {
        text.parse()
            .map_or_else(|_| Self::Name(text.to_owned()), Self::Id)
    }

    /// Whether this refers to the resource of that id and name.
    pub(crate) fn is(&self, id: u64, name: &str) -> bool {
        match self {
            Self::Id(wanted) => *wanted == id,
            Self::Name(wanted) => wanted == name,
        }
    }
}

/// The object in a request's body. `null` counts as absent.
#[derive(Debug, Clone)]
pub(crate) struct Input(Map<String, Value>);

impl Input {
    fn get(&self, field: &str) -> Option<&Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    pub(crate) fn has(&self, field: &str) -> bool {
        self.0.contains_key(field)
    }

    fn read<'a, T>(
        &'a self,
        field: &str,
        kind: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.get(field) else {
            return Ok(None);
        };
        read(value)
            .map(Some)
            .ok_or_else(|| ApiError::invalid(field, format!("must be {kind}")))
    }

    pub(crate) fn text(&self, field: &str) -> Result<Option<&str>, ApiError> {
        self.read(field, "a string", Value::as_str)
    }

    pub(crate) fn flag(&self, field: &str) -> Result<Option<bool>, ApiError> {
        self.read(field, "a boolean", Value::as_bool)
    }

    pub(crate) fn id(&self, field: &str) -> Result<Option<u64>, ApiError> {
        self.read(field, "an integer", Value::as_u64)
    }

    pub(crate) fn ids(&self, field: &str) -> Result<Vec<u64>, ApiError> {
        let list = self.list(field)?;
        list.iter()
            .map(|value| {
                value
                    .as_u64()
                    .ok_or_else(|| ApiError::invalid(field, "must hold integers"))
            })
            .collect()
    }

    pub(crate) fn texts(&self, field: &str) -> Result<Vec<String>, ApiError> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        self.list(field)?
            .iter()
            .map(|value| text(value).ok_or_else(|| ApiError::invalid(field, "must hold strings")))
            .collect()
    }

    pub(crate) fn id_or_name(&self, field: &str) -> Result<Option<IdOrName>, ApiError> {
        self.read(field, "an id or a name", IdOrName::parse)
    }

    pub(crate) fn ids_or_names(&self, field: &str) -> Result<Vec<IdOrName>, ApiError> {
        let bad = || ApiError::invalid(field, "must hold ids or names");
        let list = self.list(field)?;
        list.iter()
            .map(|value| IdOrName::parse(value).ok_or_else(bad))
            .collect()
    }

    fn list(&self, field: &str) -> Result<&[Value], ApiError> {
        let list = self.read(field, "an array", Value::as_array)?;
        Ok(list.map_or(&[], Vec::as_slice))
    }

    pub(crate) fn object(&self, field: &str) -> Result<Option<Self>, ApiError> {
        self.read(field, "an object", |value| {
            value.as_object().cloned().map(Self)
        })
    }

    pub(crate) fn objects(&self, field: &str) -> Result<Vec<Self>, ApiError> {
        let bad = || ApiError::invalid(field, "must hold objects");
        let list = self.list(field)?;
        list.iter()
            .map(|value| value.as_object().cloned().map(Self).ok_or_else(bad))
            .collect()
    }

    /// The labels, checked; `None` when the field is absent.
    pub(crate) fn labels(&self) -> Result<Option<Labels>, ApiError> {
        let text =
            |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
        let read = |value: &Value| {
            value
                .as_object()?
                .iter()
                .map(text)
                .collect::<Option<Labels>>()
        };
        let found = self.read("labels", "a map of strings", read)?;
        if let Some(labels) = &found {
            labels::check(labels)?;
        }
        Ok(found)
    }

    /// The name that the resource must have: present and not empty.
    pub(crate) fn name(&self) -> Result<&str, ApiError> {
        required("name", self.text("name")?.filter(|name| !name.is_empty()))
    }
}

/// Complains about a required field that is absent.
pub(crate) fn required<T>(field: &str, value: Option<T>) -> Result<T, ApiError> {
    value.ok_or_else(|| ApiError::invalid(field, "Missing data for required field."))
}
