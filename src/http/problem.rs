//! Refusals: the one place where an error becomes an HTTP status and RFC 9457 problem details.

use std::borrow::Cow;

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection, StringRejection};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::http::view::Problem;
use crate::spec::{HostName, InvalidName};

mod access;
mod cause;

/// A request that was not carried out. Detail says why and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    status: StatusCode,
    kind: Cow<'static, str>,
    title: Cow<'static, str>,
    detail: String,
}

impl Refusal {
    fn new(status: StatusCode, kind: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        Refusal { status, kind: kind.into(), title: title.into(), detail: detail.into() }
    }

    /// Why, in words.
    pub(super) fn detail(&self) -> &str {
        &self.detail
    }

    /// As HTTP has it.
    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    /// Its type and why.
    pub(super) fn said(&self) -> String {
        format!("{}: {}", self.kind, self.detail)
    }

    /// Another host does not answer.
    pub(super) fn unreachable(host: &HostName, why: &str) -> Self {
        let detail = format!("{host} does not answer ({why}): `bigbrother hosts` shows how it stands");
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "host-unreachable", "the host does not answer", detail)
    }

    /// What another host's agent refused, as it did.
    pub(super) fn of_another(host: &HostName, problem: Problem) -> Self {
        Refusal {
            status: StatusCode::from_u16(problem.status).unwrap_or(StatusCode::BAD_GATEWAY),
            kind: problem.kind.into(),
            title: problem.title.into(),
            detail: format!("{} (says {host})", problem.detail),
        }
    }

    /// A signal that kill-test does not send.
    pub(super) fn bad_signal(signal: &str) -> Self {
        let detail = format!("{signal:?} is none of SIGKILL, SIGSTOP, SIGCONT, SIGSEGV");
        Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "bad-signal", "not that signal", detail)
    }

    /// A change while nobody can make one.
    pub(super) fn no_quorum() -> Self {
        let detail = "the cluster has no quorum: `bigbrother peers` shows who is missing";
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "no-quorum", "no quorum", detail)
    }

    /// A host that is down already.
    pub(super) fn down_already(host: &HostName) -> Self {
        let detail = format!("{host} was declared down already: nothing belongs to it");
        Refusal::new(StatusCode::CONFLICT, "down-already", "down already", detail)
    }

    /// A host to be given up that lives.
    pub(super) fn still_heard(host: &HostName) -> Self {
        let detail = format!(
            "the primary has heard {host} within the last second, or is one for no longer: only a silent host is given \
             up; `bigbrother hosts` shows when each was heard. To empty one that lives, `bigbrother drain {host}`"
        );
        Refusal::new(StatusCode::CONFLICT, "still-heard", "not silent", detail)
    }

    /// A host to be emptied without another one.
    pub(super) fn nowhere_to_go(host: &HostName) -> Self {
        let detail = format!(
            "{host} is alone: there is no host to which its instances could go. `bigbrother stop --all` ends them, and \
             `bigbrother start --all` lets them run again; for a restart or an upgrade of the agent they need not end"
        );
        Refusal::new(StatusCode::CONFLICT, "alone", "there is no other host", detail)
    }

    /// A host that is no peer, to be changed as one.
    pub(super) fn attached(host: &HostName, agent: &str) -> Self {
        let address = if agent.is_empty() { "HOST:PORT" } else { agent };
        let detail = format!(
            "{host} is attached: it is no peer and has nothing to vote with. To make it one: `bigbrother peers add {host} \
             {address}`, add `{host} = \"{address}\"` to `peers` in its cluster.toml, and start its agent again; \
             `bigbrother peers` then shows whether it votes already. To take it out of the cluster for good, stop its \
             agent: it is declared down after `host_timeout`, and needs no `peers remove`"
        );
        Refusal::new(StatusCode::CONFLICT, "peers", "the peers stay as they are", detail)
    }

    /// A peer to be added that nobody would find.
    pub(super) fn no_address(host: &HostName) -> Self {
        let detail = format!("where does the agent of {host} listen? Give its \"address\", host:port");
        Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "no-address", "an address is missing", detail)
    }

    /// A peer's address that is none.
    pub(super) fn bad_address(host: &HostName, address: &str) -> Self {
        let detail = format!(
            "{address:?} is no address of a peer: give a host and a port such as \"10.0.0.1:7600\", which is `host.listen` \
             of {host}"
        );
        Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "bad-address", "no host and port", detail)
    }

    /// A peer to be removed that goes on.
    pub(super) fn peer_in_use(host: &HostName) -> Self {
        let detail = format!(
            "{host} is up and not drained and empty: it would hear of no change any more and go on with what it knows. \
             `bigbrother drain {host} --wait` first; if it is lost, wait until `bigbrother hosts` shows it down"
        );
        Refusal::new(StatusCode::CONFLICT, "peer-in-use", "not drained", detail)
    }

    /// A change of the peers that takes longer than a request may.
    pub(super) fn under_way() -> Self {
        let detail =
            "the peer has much to catch up with; it goes on: `bigbrother peers list` shows when it is done";
        Refusal::new(StatusCode::GATEWAY_TIMEOUT, "under-way", "not through yet", detail)
    }

    /// A request of another agent that is not about this host.
    pub(super) fn not_here(own: &HostName, host: &HostName) -> Self {
        let detail = format!("this is {own}; what another agent asks is not passed on to {host}");
        Refusal::new(StatusCode::MISDIRECTED_REQUEST, "not-here", "another host", detail)
    }

    /// A request of another agent that is no request.
    pub(super) fn bad_tunnel(why: &str) -> Self {
        Refusal::new(StatusCode::BAD_REQUEST, "bad-request", "the request cannot be read", why)
    }

    /// A path that is no route.
    pub(super) fn no_route(path: &str) -> Self {
        let detail = format!("there is nothing at {path}: docs/api.md lists the API");
        Refusal::new(StatusCode::NOT_FOUND, "no-route", "no such route", detail)
    }

    /// A route that does not know the method. The router adds `Allow`.
    pub(super) fn method(method: &str, path: &str) -> Self {
        let detail = format!("{path} does not take {method}: the Allow header names what it takes");
        Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "wrong method", detail)
    }

    /// A name that is legal but not there.
    pub(super) fn unknown(what: &'static str, name: &str, nearest: Option<&str>) -> Self {
        let (kind, title) = match what {
            "process" => ("no-process", "no such process"),
            "host" => ("no-host", "no such host"),
            _ => ("no-instance", "no such instance"),
        };
        let mut detail = format!("there is no {what} {name}");
        if let Some(nearest) = nearest {
            detail.push_str(&format!(": did you mean {nearest}?"));
        }
        Refusal::new(StatusCode::NOT_FOUND, kind, title, detail)
    }

    /// Anything but its status, asked of an agent that waits for something.
    pub(super) fn starting(waits: &str) -> Self {
        let detail = format!("the agent is starting: {waits}; `bigbrother status` shows when it is at work");
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "starting", "not yet", detail)
    }

    /// Something of a known instance that is not there.
    pub(super) fn nothing_there(detail: String) -> Self {
        Refusal::new(StatusCode::NOT_FOUND, "nothing-there", "nothing to show", detail)
    }

    /// The same, of a request that was made on a condition.
    pub(super) fn of_a_condition(self) -> Self {
        match self.kind.as_ref() {
            "revision" => Refusal { status: StatusCode::PRECONDITION_FAILED, ..self },
            _ => self,
        }
    }

    /// A query that means nothing.
    pub(super) fn query(detail: String) -> Self {
        Refusal::new(StatusCode::BAD_REQUEST, "unreadable", "cannot be read", detail)
    }

    /// A body of another type than the route takes.
    pub(super) fn media_type(detail: &str) -> Self {
        Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported-media-type",
            "wrong content type",
            detail,
        )
    }

    /// A cluster.toml with faults; `faults` are all of them, readable.
    pub(super) fn faults(faults: String) -> Self {
        Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-spec", "the file has faults", faults)
    }

    /// A reload that was refused; the old settings stay in force.
    pub(super) fn reload(reason: String) -> Self {
        Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "reload-failed", "not reloaded", reason)
    }

    /// A request that a web page of another origin makes a browser send.
    pub(super) fn foreign(detail: String) -> Self {
        Refusal::new(StatusCode::FORBIDDEN, "foreign-origin", "not for web pages", detail)
    }

    /// As many readers follow events and logs as are allowed.
    pub(super) fn too_many_followers(max: usize) -> Self {
        let detail = format!("{max} readers follow events or logs already: end one, or ask without follow");
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "too many followers", detail)
    }

    /// As many watch the directory as are allowed.
    pub(super) fn too_many_watchers(max: usize) -> Self {
        let detail = format!("{max} readers watch the directory here already: ask another host");
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "too many watchers", detail)
    }

    /// A watcher that has seen more than this host knows.
    pub(super) fn behind(index: u64) -> Self {
        let detail = format!("this host's copy has not reached {index} yet: try again, or ask another host");
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "behind", "not as new yet", detail)
    }

    /// Neither the request nor its answer was complete in time.
    pub(super) fn timeout() -> Self {
        let detail = "the request or its answer took too long; a change may still be carried out: look before you try again";
        Refusal::new(StatusCode::GATEWAY_TIMEOUT, "timeout", "took too long", detail)
    }

    /// An `Idempotency-Key` that cannot be used.
    pub(super) fn bad_key(why: &str) -> Self {
        let detail = format!("the Idempotency-Key cannot be used: {why}");
        Refusal::new(StatusCode::BAD_REQUEST, "bad-key", "not a key", detail)
    }

    /// A key under which something else was asked within the hour.
    pub(super) fn key_reused(key: &str) -> Self {
        let detail = format!(
            "{key:?} was used for another request within the hour: each request has a key of its own"
        );
        Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "key-reused", "a used key", detail)
    }

    /// A key whose request is not through yet.
    pub(super) fn key_under_way(key: &str) -> Self {
        let detail = format!("the request with the key {key:?} is under way: ask again");
        Refusal::new(StatusCode::CONFLICT, "key-under-way", "not through yet", detail)
    }

    /// As many keys as are held.
    pub(super) fn too_many_keys(max: usize) -> Self {
        let detail = format!("{max} requests with a key were made within the hour: wait, or ask without one");
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "too many keys", detail)
    }

    /// A count that no file could have.
    pub(super) fn too_many_instances(max: u32) -> Self {
        let detail = format!("a process has at most {max} instances");
        Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "too-many", "too many", detail)
    }

    /// A rolling restart of something other than a process.
    pub(super) fn not_rolling() -> Self {
        let detail =
            "a rolling restart is one of a whole process: its instances take turns; name the process";
        Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "not-rolling", "not a process", detail)
    }

    /// A token that is to hold for no time, or for too long.
    pub(super) fn bad_span() -> Self {
        let detail = "a token holds for some time, ten years at most, or without an end: leave out --expires (expires_in_ms)";
        Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "bad-span", "not that long", detail)
    }

    /// A body over the bound.
    pub(super) fn too_large() -> Self {
        let detail = format!("a body may have {} bytes", super::router::MAX_BODY);
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "the body is too large", detail)
    }

    /// Something that cannot be unless the program has a fault or the machine fails.
    pub(super) fn internal(detail: String) -> Self {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the agent failed", detail)
    }

    /// A body or query that could not be read, by the status that its reader proposes.
    fn unreadable(status: StatusCode, reason: String) -> Self {
        match status {
            StatusCode::PAYLOAD_TOO_LARGE => Refusal::too_large(),
            StatusCode::UNSUPPORTED_MEDIA_TYPE => Refusal::media_type(&reason),
            _ => Refusal::new(StatusCode::BAD_REQUEST, "bad-request", "the request cannot be read", reason),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let challenge = self.challenge();
        let problem = Problem {
            kind: self.kind.into_owned(),
            title: self.title.into_owned(),
            status: self.status.as_u16(),
            detail: self.detail,
        };
        let mut response = (self.status, Json(problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(challenge) = challenge {
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        if [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS].contains(&self.status) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<InvalidName> for Refusal {
    fn from(error: InvalidName) -> Self {
        Refusal::new(StatusCode::BAD_REQUEST, "bad-name", "not a name", error.to_string())
    }
}

macro_rules! unreadable {
    ($($rejection:ty),*) => {$(
        impl From<$rejection> for Refusal {
            fn from(rejection: $rejection) -> Self {
                Refusal::unreadable(rejection.status(), rejection.body_text())
            }
        }
    )*};
}

unreadable!(JsonRejection, PathRejection, QueryRejection, StringRejection);
