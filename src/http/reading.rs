//! What all reads have in common: which copy of the state answers, how much of it is shown, and to whom it is new.
//!
//! Owns the words of that: `?consistent`, `?fields=`, `?limit=&after=` with the header `Link`, the header
//! `bigbrother-index`, `ETag` and `If-None-Match`. Knows nothing of what is read. Called by the routes that read.

use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher;
use std::num::NonZeroU32;
use std::sync::Arc;

use axum::Json;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::Value;
use utoipa::PartialSchema;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;

use super::problem::Refusal;
use super::router::Api;
use crate::state;

/// The state index of the copy that answered: what was committed up to it is in the answer.
pub(super) const INDEX: HeaderName = HeaderName::from_static("bigbrother-index");

/// A switch in a query: `?consistent`, `?consistent=true`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Switch(pub(super) bool);

impl<'de> Deserialize<'de> for Switch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "" | "true" => Ok(Switch(true)),
            "false" => Ok(Switch(false)),
            other => Err(de::Error::custom(format!("{other:?} is neither true nor false"))),
        }
    }
}

/// `KEY=VALUE`, a label that something has to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Label {
    pub(super) key: String,
    pub(super) value: String,
}

impl Label {
    pub(super) fn is_among(&self, labels: &std::collections::BTreeMap<String, String>) -> bool {
        labels.get(&self.key) == Some(&self.value)
    }
}

impl<'de> Deserialize<'de> for Label {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| de::Error::custom(format!("label={text}: it is written label=KEY=VALUE")))?;
        Ok(Label { key: key.to_owned(), value: value.to_owned() })
    }
}

/// The state that answers, and what the asker has seen already.
pub(super) struct Copy {
    pub(super) state: Arc<state::State>,
    history: u64,
    seen: Option<HeaderValue>,
}

impl Copy {
    /// This host's copy; `consistent`: once it has all that was committed anywhere.
    pub(super) async fn get(api: &Api, consistent: Switch, headers: &HeaderMap) -> Result<Copy, Refusal> {
        if consistent.0 {
            api.handle.ring.catch_up().await.map_err(|_| Refusal::no_quorum())?;
        }
        let state = api.handle.state.borrow().clone();
        let seen = headers.get(header::IF_NONE_MATCH).cloned();
        Ok(Copy { state, history: api.handle.ring.history(), seen })
    }

    /// An answer that differs only when the state does: who has seen it costs nothing.
    pub(super) fn answer<T: Serialize>(
        &self,
        body: impl FnOnce(&state::State) -> Result<T, Refusal>,
    ) -> Result<Response, Refusal> {
        self.answer_as(&format!("\"{:x}.{}\"", self.history, self.state.index), body)
    }

    /// An answer that is never the same again.
    pub(super) fn answer_once<T: Serialize>(
        &self,
        body: impl FnOnce(&state::State) -> Result<T, Refusal>,
    ) -> Result<Response, Refusal> {
        let index = [(INDEX, HeaderValue::from(self.state.index))];
        Ok((index, Json(body(&self.state)?)).into_response())
    }

    /// An answer that differs only when its tag does.
    pub(super) fn answer_as<T: Serialize>(
        &self,
        tag: &str,
        body: impl FnOnce(&state::State) -> Result<T, Refusal>,
    ) -> Result<Response, Refusal> {
        self.unless_seen(tag, || Ok(Json(body(&self.state)?).into_response()))
    }

    /// An answer that holds more than the state does: it differs when its content does.
    pub(super) fn answer_with<T: Serialize>(&self, body: &T) -> Result<Response, Refusal> {
        let bytes = serde_json::to_vec(body).map_err(|e| Refusal::internal(format!("no JSON: {e}")))?;
        let mut hasher = DefaultHasher::new();
        hasher.write(&bytes);
        let tag = format!("\"={:x}\"", hasher.finish());
        let json = [(header::CONTENT_TYPE, "application/json")];
        self.unless_seen(&tag, || Ok((json, bytes).into_response()))
    }

    fn unless_seen(
        &self,
        tag: &str,
        answer: impl FnOnce() -> Result<Response, Refusal>,
    ) -> Result<Response, Refusal> {
        let seen = self.seen.as_ref().is_some_and(|seen| is_among(tag, seen));
        let mut response = if seen { StatusCode::NOT_MODIFIED.into_response() } else { answer()? };
        let headers = response.headers_mut();
        headers.insert(INDEX, HeaderValue::from(self.state.index));
        // Digits and letters between quotes are a legal value.
        headers.extend(HeaderValue::from_str(tag).ok().map(|tag| (header::ETAG, tag)));
        Ok(response)
    }
}

fn is_among(tag: &str, seen: &HeaderValue) -> bool {
    let seen = seen.to_str().unwrap_or_default();
    seen.split(',').map(|one| one.trim().trim_start_matches("W/")).any(|one| one == tag || one == "*")
}

/// The rows of a page.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Rows<T> {
    /// With all their fields.
    Whole(Vec<T>),
    /// With those that were asked for.
    Short(Value),
}

/// How much of a list is shown.
#[derive(Clone, Debug, Default)]
pub(super) struct Part {
    limit: Option<NonZeroU32>,
    /// Names of fields, with commas between.
    fields: Option<String>,
}

impl Part {
    /// Refuses fields that rows of this shape do not have.
    pub(super) fn of<T: PartialSchema>(
        limit: Option<NonZeroU32>,
        fields: Option<String>,
    ) -> Result<Part, Refusal> {
        let known = fields.as_ref().map(|_| fields_of::<T>()).unwrap_or_default();
        let mut asked = fields.iter().flat_map(|fields| fields.split(','));
        if let Some(unknown) = asked.find(|field| !known.iter().any(|known| known == field)) {
            let detail = format!("there is no field {unknown:?}; there are {}", known.join(", "));
            return Err(Refusal::query(detail));
        }
        Ok(Part { limit, fields })
    }

    /// The rows of one page, and whether more follow. Rows of the same key stay together: the next page begins
    /// behind a key.
    pub(super) fn cut<T, K: PartialEq>(
        &self,
        rows: impl Iterator<Item = T>,
        key: impl Fn(&T) -> &K,
    ) -> (Vec<T>, bool) {
        let limit = self.limit.map_or(usize::MAX, |limit| limit.get() as usize);
        let (mut rows, mut page) = (rows.peekable(), Vec::<T>::new());
        while let Some(row) =
            rows.next_if(|row| page.len() < limit || page.last().is_some_and(|last| key(last) == key(row)))
        {
            page.push(row);
        }
        (page, rows.peek().is_some())
    }

    /// Only the fields that were asked for.
    pub(super) fn project<T: Serialize>(&self, rows: Vec<T>) -> Result<Rows<T>, Refusal> {
        let Some(fields) = &self.fields else { return Ok(Rows::Whole(rows)) };
        let unwritable = |error: serde_json::Error| Refusal::internal(format!("no JSON: {error}"));
        let whole = serde_json::to_value(rows).map_err(unwritable)?;
        let fields: Vec<&str> = fields.split(',').collect();
        let Value::Array(rows) = whole else { return Ok(Rows::Short(whole)) };
        let narrow = |row: Value| -> Value {
            let kept = fields.iter().map(|field| ((*field).to_owned(), row[*field].clone()));
            Value::Object(kept.collect())
        };
        Ok(Rows::Short(rows.into_iter().map(narrow).collect()))
    }

    /// True when the asker sees this field.
    pub(super) fn shows(&self, field: &str) -> bool {
        self.fields.as_ref().is_none_or(|fields| fields.split(',').any(|shown| shown == field))
    }
}

/// The names of a shape's fields, as the OpenAPI document has them.
fn fields_of<T: PartialSchema>() -> Vec<String> {
    match T::schema() {
        RefOr::T(Schema::Object(object)) => object.properties.into_keys().collect(),
        _ => Vec::new(),
    }
}

/// Names the page that follows this row, to be had at once: a long poll has waited for the first one.
pub(super) fn link_next(response: &mut Response, uri: &Uri, last: Option<&str>) {
    let Some(last) = last else { return };
    let query = uri.query().unwrap_or_default().split('&');
    let not_kept = ["after=", "index=", "wait="];
    let kept = query.filter(|word| !word.is_empty() && !not_kept.iter().any(|name| word.starts_with(name)));
    let words: Vec<&str> = kept.collect();
    let after = format!("after={last}");
    let query = words.into_iter().chain([after.as_str()]).collect::<Vec<_>>().join("&");
    let link = HeaderValue::from_str(&format!("<{}?{query}>; rel=\"next\"", uri.path()));
    response.headers_mut().extend(link.ok().map(|link| (header::LINK, link)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::view::DirectoryView;

    #[test]
    fn a_page_ends_at_its_limit_and_says_whether_more_follow() {
        let part = |limit| Part { limit: NonZeroU32::new(limit), fields: None };
        let cut = |limit, rows: [u32; 3]| part(limit).cut(rows.into_iter(), |row| row);
        assert_eq!(cut(2, [0, 1, 2]), (vec![0, 1], true));
        assert_eq!(cut(3, [0, 1, 2]), (vec![0, 1, 2], false));
        assert_eq!(cut(0, [0, 1, 2]), (vec![0, 1, 2], false));
        assert_eq!(cut(1, [0, 0, 2]), (vec![0, 0], true));
    }

    #[test]
    fn the_next_page_is_of_the_same_question() {
        let link = |uri: &str| {
            let mut response = ().into_response();
            link_next(&mut response, &uri.parse().unwrap(), Some("zone.1"));
            response.headers()[header::LINK].to_str().unwrap().to_owned()
        };
        assert_eq!(link("/v1/d?limit=2"), "</v1/d?limit=2&after=zone.1>; rel=\"next\"");
        assert_eq!(link("/v1/d?after=zone.0&limit=2"), "</v1/d?limit=2&after=zone.1>; rel=\"next\"");
        // A long poll has waited once.
        assert_eq!(link("/v1/d?index=7&limit=2&wait=30s"), "</v1/d?limit=2&after=zone.1>; rel=\"next\"");
    }

    #[test]
    fn a_tag_is_found_among_those_that_were_seen() {
        let seen = |text: &'static str| is_among("\"a.1\"", &HeaderValue::from_static(text));
        assert!(seen("\"a.1\"") && seen("\"x\", W/\"a.1\"") && seen("*"));
        assert!(!seen("\"a.2\"") && !seen("a.1") && !seen(""));
    }

    #[test]
    fn the_fields_are_those_of_the_shape() {
        let fields = fields_of::<DirectoryView>();
        assert!(
            fields.contains(&"instance".to_owned()) && fields.contains(&"ports".to_owned()),
            "{fields:?}"
        );
        let part = |fields: &str| Part { limit: None, fields: Some(fields.to_owned()) };
        assert!(part("a,b").shows("b") && !part("a,b").shows("c") && Part::default().shows("c"));
        let of = |fields: &str| Part::of::<DirectoryView>(None, Some(fields.to_owned()));
        assert!(of("instance,ports").is_ok() && of("instance,pid").is_err() && of("").is_err());
    }
}
