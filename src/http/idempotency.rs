//! Requests that may be sent twice and must be carried out once: `Idempotency-Key`.
//!
//! Owns the answers of the last hour by key. In memory: an agent that was itself restarted in between has
//! forgotten them, and carries the request out again. The rules are those of the IETF's draft "The
//! Idempotency-Key HTTP Header Field": the same again gets the answer again, another request under a used key
//! is 422, one that comes while the first is under way is 409. Called by `operate`.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::HeaderMap;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::auth;
use super::problem::Refusal;

/// How long a key is held.
const HELD: Duration = Duration::from_secs(3600);
/// Keys held at once.
const MAX_KEYS: usize = 10_000;
/// The longest key, in characters.
const MAX_KEY: usize = 128;

/// The key of a request: the body's own, or the header `Idempotency-Key`.
pub(super) fn key(headers: &HeaderMap, body: Option<String>) -> Result<Option<String>, Refusal> {
    let key = match (body, headers.get("idempotency-key")) {
        (Some(key), _) => key,
        (None, Some(value)) => {
            value.to_str().map_err(|_| Refusal::bad_key("it is not plain ASCII"))?.to_owned()
        }
        (None, None) => return Ok(None),
    };
    match key.chars().count() {
        0 => Err(Refusal::bad_key("it is empty")),
        1..=MAX_KEY => Ok(Some(key)),
        length => Err(Refusal::bad_key(&format!("it has {length} characters, at most {MAX_KEY} are taken"))),
    }
}

/// See the module. Cheap to clone; all clones share the keys.
#[derive(Clone, Default)]
pub(super) struct Keys(Arc<Mutex<BTreeMap<String, Held>>>);

struct Held {
    request: Value,
    since: Instant,
    /// `None`: it is being carried out.
    answer: Option<Value>,
}

impl Keys {
    /// Carries a request out, under a key once an hour. What is refused is not held: it may be tried again. It
    /// is carried out to its end also when the asker goes away, so that the key tells what happened.
    pub(super) async fn once<T>(
        &self,
        key: Option<String>,
        request: &impl Serialize,
        work: impl Future<Output = Result<T, Refusal>> + Send + 'static,
    ) -> Result<T, Refusal>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
    {
        let Some(key) = key else { return work.await };
        let request = serde_json::to_value(request).map_err(unwritable)?;
        if let Some(answer) = self.take(&key, request, Instant::now())? {
            return serde_json::from_value(answer).map_err(unwritable);
        }
        let keys = self.clone();
        let work = auth::on_behalf(auth::asking(), work);
        let carried_out = tokio::spawn(async move {
            let under_way = UnderWay { keys, key };
            let result = work.await;
            if let Ok(answer) = &result {
                under_way.keep(serde_json::to_value(answer).map_err(unwritable)?);
            }
            result
        });
        carried_out.await.map_err(|e| Refusal::internal(format!("the request was not carried out: {e}")))?
    }

    /// Takes the key for this request; its answer when it was carried out already.
    fn take(&self, key: &str, request: Value, now: Instant) -> Result<Option<Value>, Refusal> {
        let mut keys = self.lock();
        match keys.get(key).filter(|held| now.duration_since(held.since) < HELD) {
            Some(held) if held.request != request => return Err(Refusal::key_reused(key)),
            Some(Held { answer: None, .. }) => return Err(Refusal::key_under_way(key)),
            Some(Held { answer, .. }) => return Ok(answer.clone()),
            None => {}
        }
        if keys.len() >= MAX_KEYS {
            keys.retain(|_, held| now.duration_since(held.since) < HELD);
        }
        if keys.len() >= MAX_KEYS {
            return Err(Refusal::too_many_keys(MAX_KEYS));
        }
        keys.insert(key.to_owned(), Held { request, since: now, answer: None });
        Ok(None)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Held>> {
        // Nothing that is done under the lock can leave it half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that is being carried out; its key is free again when it ends without an answer.
struct UnderWay {
    keys: Keys,
    key: String,
}

impl UnderWay {
    fn keep(&self, answer: Value) {
        if let Some(held) = self.keys.lock().get_mut(&self.key) {
            held.answer = Some(answer);
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut keys = self.keys.lock();
        if keys.get(&self.key).is_some_and(|held| held.answer.is_none()) {
            keys.remove(&self.key);
        }
    }
}

fn unwritable(error: serde_json::Error) -> Refusal {
    Refusal::internal(format!("an answer cannot be kept: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn kind(result: Result<Option<Value>, Refusal>) -> String {
        format!("{:?}", result.expect_err("it is refused"))
    }

    #[test]
    fn a_key_is_held_for_an_hour_and_then_free() {
        let keys = Keys::default();
        let now = Instant::now();
        assert_eq!(keys.take("k", json!(1), now), Ok(None));
        assert!(kind(keys.take("k", json!(1), now)).contains("under way"));
        UnderWay { keys: keys.clone(), key: "k".to_owned() }.keep(json!("done"));
        assert_eq!(keys.take("k", json!(1), now + HELD - Duration::from_millis(1)), Ok(Some(json!("done"))));
        assert!(kind(keys.take("k", json!(2), now)).contains("another request"));
        assert_eq!(keys.take("k", json!(2), now + HELD), Ok(None));
    }

    #[test]
    fn keys_are_bounded_and_old_ones_make_room() {
        let keys = Keys::default();
        let now = Instant::now();
        for number in 0..MAX_KEYS {
            assert_eq!(keys.take(&number.to_string(), json!(0), now), Ok(None));
        }
        assert!(kind(keys.take("more", json!(0), now)).contains("busy"));
        assert_eq!(keys.take("more", json!(0), now + HELD), Ok(None));
        assert_eq!(keys.lock().len(), 1);
    }

    #[tokio::test]
    async fn what_was_refused_or_went_wrong_may_be_tried_again() {
        let keys = Keys::default();
        let key = || Some("k".to_owned());
        let refused: Result<u32, _> =
            keys.once(key(), &1, async { Err(Refusal::nothing_there("no".to_owned())) }).await;
        assert!(refused.is_err());
        let broken: Result<u32, _> = keys.once(key(), &1, async { panic!("in the middle") }).await;
        assert!(format!("{broken:?}").contains("not carried out"));
        assert_eq!(keys.once(key(), &1, async { Ok(7) }).await, Ok(7));
        let again: Result<u32, _> = keys.once(key(), &1, async { unreachable!("done already") }).await;
        assert_eq!(again, Ok(7));
    }

    #[tokio::test]
    async fn an_asker_that_goes_away_leaves_the_answer_behind() {
        let keys = Keys::default();
        let (go, wait) = tokio::sync::oneshot::channel::<()>();
        let asking = {
            let keys = keys.clone();
            tokio::spawn(async move {
                let work = async move {
                    wait.await.ok();
                    Ok(7)
                };
                keys.once(Some("k".to_owned()), &1, work).await
            })
        };
        while keys.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        asking.abort();
        assert!(asking.await.is_err());
        go.send(()).expect("it is carried out all the same");
        let answered = async {
            while keys.lock()["k"].answer.is_none() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), answered).await.expect("the answer is kept");
        assert_eq!(keys.take("k", json!(1), Instant::now()), Ok(Some(json!(7))));
    }

    #[test]
    fn a_key_comes_from_the_body_or_the_header_and_is_bounded() {
        let mut headers = HeaderMap::new();
        assert_eq!(key(&headers, None), Ok(None));
        headers.insert("idempotency-key", "h".parse().expect("a header"));
        assert_eq!(key(&headers, None), Ok(Some("h".to_owned())));
        assert_eq!(key(&headers, Some("b".to_owned())), Ok(Some("b".to_owned())));
        assert!(key(&headers, Some(String::new())).is_err());
        assert!(key(&headers, Some("x".repeat(MAX_KEY))).is_ok());
        assert!(key(&headers, Some("x".repeat(MAX_KEY + 1))).is_err());
    }
}
