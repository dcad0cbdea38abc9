//! Lists: filters common to all resources, order, and pages.
//!
//! Pages are cut from the list as it is at that moment, so that a deletion between two pages shifts
//! what follows, as at Hetzner.

use std::cmp::Ordering;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::api::Reply;
use crate::error::ApiError;
use crate::labels::{Labels, Selector};
use crate::request::Request;

const DEFAULT_PER_PAGE: usize = 25;
const MAX_PER_PAGE: usize = 50;

/// What lists filter and sort by.
pub(crate) trait Listed {
    fn id(&self) -> u64;
    fn name(&self) -> &str;
    fn created(&self) -> Timestamp;
    fn labels(&self) -> Option<&Labels>;
}

/// Applies `name`, `label_selector` and `sort`.
pub(crate) fn select<'a, T: Listed>(
    request: &Request,
    all: impl Iterator<Item = &'a T>,
) -> Result<Vec<&'a T>, ApiError> {
    let name = request.param("name");
    let selector = request
        .param("label_selector")
        .map(Selector::parse)
        .transpose()?;
    let chosen = |item: &&T| {
        let labels = selector.as_ref().zip(item.labels());
        name.is_none_or(|name| item.name() == name)
            && labels.is_none_or(|(selector, labels)| selector.matches(labels))
    };
    let mut items: Vec<&T> = all.filter(chosen).collect();
    sort(request, &mut items)?;
    Ok(items)
}

fn sort<T: Listed>(request: &Request, items: &mut [&T]) -> Result<(), ApiError> {
    let orders: Vec<&str> = request.params("sort").collect();
    for order in orders.iter().rev() {
        let (field, direction) = order.split_once(':').unwrap_or((order, "asc"));
        let compare: fn(&T, &T) -> Ordering = match field {
            "id" => |a, b| a.id().cmp(&b.id()),
            "name" => |a, b| a.name().cmp(b.name()),
            "created" => |a, b| a.created().cmp(&b.created()),
            _ => {
                return Err(ApiError::invalid(
                    "sort",
                    format!("cannot sort by '{field}'"),
                ));
            }
        };
        match direction {
            "asc" => items.sort_by(|a, b| compare(a, b)),
            "desc" => items.sort_by(|a, b| compare(b, a)),
            _ => return Err(ApiError::invalid("sort", "direction must be asc or desc")),
        }
    }
    Ok(())
}

/// Which page was asked for, and where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Page {
    number: usize,
    size: usize,
    total: usize,
}

impl Page {
    fn of(request: &Request, total: usize) -> Result<Self, ApiError> {
        let number = number_param(request, "page", 1)?;
        let per_page = number_param(request, "per_page", DEFAULT_PER_PAGE)?;
        if per_page > MAX_PER_PAGE {
            return Err(ApiError::invalid(
                "per_page",
                format!("must be at most {MAX_PER_PAGE}"),
            ));
        }
        Ok(Self {
            number,
            size: per_page,
            total,
        })
    }

    fn last(self) -> usize {
        self.total.div_ceil(self.size).max(1)
    }

    fn previous(self) -> Option<usize> {
        (self.number > 1).then(|| self.number - 1)
    }

    fn next(self) -> Option<usize> {
        (self.number < self.last()).then(|| self.number + 1)
    }

    fn meta(self) -> Value {
        json!({"pagination": {
            "page": self.number,
            "per_page": self.size,
            "previous_page": self.previous(),
            "next_page": self.next(),
            "last_page": self.last(),
            "total_entries": self.total,
        }})
    }

    /// The `Link` header; `base` is the URL before its `?`.
    pub(crate) fn link(self, base: &str) -> String {
        let to = |page: usize, rel: &str| {
            format!("<{base}?page={page}&per_page={}>; rel=\"{rel}\"", self.size)
        };
        let mut links = Vec::new();
        links.extend(self.previous().map(|page| to(page, "prev")));
        links.extend(self.next().map(|page| to(page, "next")));
        links.push(to(self.last(), "last"));
        links.join(", ")
    }
}

fn number_param(request: &Request, name: &str, default: usize) -> Result<usize, ApiError> {
    match request.param(name).map(str::parse) {
        None => Ok(default),
        Some(Ok(number)) if number > 0 => Ok(number),
        Some(_) => Err(ApiError::invalid(name, "must be a positive integer")),
    }
}

/// Cuts the page that was asked for and answers it under `key`.
pub(crate) fn page<T>(
    request: &Request,
    key: &str,
    items: Vec<T>,
    show: impl FnMut(T) -> Value,
) -> Result<Reply, ApiError> {
    let page = Page::of(request, items.len())?;
    let skipped = (page.number - 1).saturating_mul(page.size);
    let shown: Vec<Value> = items
        .into_iter()
        .skip(skipped)
        .take(page.size)
        .map(show)
        .collect();
    let mut reply = Reply::ok(json!({key: shown, "meta": page.meta()}));
    reply.page = Some(page);
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(query: &[(&str, &str)]) -> Request {
        Request {
            method: "GET".to_owned(),
            path: "/servers".to_owned(),
            query: query
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            body: Vec::new(),
        }
    }

    fn numbers(query: &[(&str, &str)], count: u64) -> Value {
        page(&request(query), "numbers", (0..count).collect(), |n| {
            json!(n)
        })
        .unwrap()
        .body
        .unwrap()
    }

    #[test]
    fn pages_tell_where_they_lie() {
        let middle = numbers(&[("page", "2"), ("per_page", "10")], 25);
        assert_eq!(middle["numbers"].as_array().unwrap().len(), 10);
        assert_eq!(
            middle["meta"]["pagination"],
            json!({"page": 2, "per_page": 10, "previous_page": 1, "next_page": 3,
                   "last_page": 3, "total_entries": 25})
        );
        let last = numbers(&[("page", "3"), ("per_page", "10")], 25);
        assert_eq!(last["meta"]["pagination"]["next_page"], Value::Null);
    }

    #[test]
    fn an_empty_list_has_one_empty_page() {
        let empty = numbers(&[], 0);
        assert_eq!(
            empty["meta"]["pagination"],
            json!({"page": 1, "per_page": 25, "previous_page": null, "next_page": null,
                   "last_page": 1, "total_entries": 0})
        );
    }

    #[test]
    fn a_page_of_more_than_fifty_is_refused() {
        let error = page(&request(&[("per_page", "51")]), "n", vec![1], |n| json!(n)).unwrap_err();
        assert_eq!(error.status, 422);
    }
}
