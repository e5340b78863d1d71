//! Requests that come from other agents of the cluster, through the tunnel: answered like those of the Unix socket.
//!
//! Owns the tasks of those at work, at most [`AT_WORK`]. Called by `server`.

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use axum::response::IntoResponse;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::auth::Origin;
use super::problem::Refusal;
use super::server::stopped;
use crate::cluster::tunnel::{Answered, Asked, MAX_ANSWER, Tunnelled};
use crate::cluster::wire::Outlet;

/// Requests at work at once.
const AT_WORK: usize = 256;
/// Headers of an answer that mean something to whoever asked.
const TOLD: [&str; 7] =
    ["content-type", "retry-after", "allow", "etag", "link", "bigbrother-index", super::piece::NEXT];

/// Answers until the agent stops.
pub(super) async fn answer_all(
    mut tunnelled: mpsc::Receiver<Tunnelled>,
    router: Router,
    mut shutdown: watch::Receiver<bool>,
) {
    let mut tasks = JoinSet::new();
    loop {
        let room = tasks.len() < AT_WORK;
        tokio::select! {
            () = stopped(&mut shutdown) => return,
            Some(_) = tasks.join_next() => {}
            request = tunnelled.recv(), if room => match request {
                Some(request) => drop(tasks.spawn(answer(request, router.clone()))),
                // Nobody can ask any more; the API goes on.
                None => return stopped(&mut shutdown).await,
            },
        }
    }
}

async fn answer(Tunnelled { asked, mut reply, from, outlet }: Tunnelled, router: Router) {
    tracing::debug!(%from, method = asked.method, path = asked.path, "asked by another agent");
    let answered = async {
        match request(asked, Origin::Host(from), outlet) {
            Ok(request) => match TowerToHyperService::new(router).call(request).await {
                Ok(response) => whole(response).await,
                Err(never) => match never {},
            },
            Err(error) => whole(Refusal::bad_tunnel(&error.to_string()).into_response()).await,
        }
    };
    tokio::select! {
        answered = answered => drop(reply.send(answered)),
        // Its time is over.
        () = reply.closed() => {}
    }
}

fn request(asked: Asked, origin: Origin, outlet: Outlet) -> Result<Request<Body>, axum::http::Error> {
    let request = Request::builder().method(asked.method.as_str()).uri(asked.path);
    let mut request = request.extension(origin).extension(outlet);
    for (name, value) in &asked.headers {
        request = request.header(name, value);
    }
    request.body(Body::from(asked.body))
}

async fn whole(response: Response<Body>) -> Answered {
    let (head, body) = response.into_parts();
    let told = TOLD.iter().filter_map(|name| {
        let value = head.headers.get(*name)?.to_str().ok()?;
        Some(((*name).to_owned(), value.to_owned()))
    });
    match axum::body::to_bytes(body, MAX_ANSWER).await {
        Ok(body) => Answered { status: head.status.as_u16(), headers: told.collect(), body: body.to_vec() },
        Err(error) => {
            let text = format!("the answer cannot be carried to another host: {error}");
            let status = StatusCode::INTERNAL_SERVER_ERROR.as_u16();
            Answered { status, headers: Vec::new(), body: text.into_bytes() }
        }
    }
}
