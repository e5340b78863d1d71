//! Whole states for hosts that the trail does not reach: encoded once, for all that can go on from there.
//!
//! Owns the encoded bytes, two of them at most: the newest, and the one that hosts may be in the middle of.
//! Encoding is done where blocking is allowed and under no lock that the applying of the log ever takes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::DeskError;
use crate::cluster::session::message::Place;
use crate::cluster::session::trail::Reader;
use crate::cluster::wire::codec::encode_unbounded;

/// Bytes that nobody has asked for during this time are let go.
const UNUSED: Duration = Duration::from_secs(60);
/// As many are kept.
const KEPT: usize = 2;

struct Whole {
    of: Place,
    bytes: Arc<Vec<u8>>,
    used: Instant,
}

/// See the module.
#[derive(Default)]
pub(super) struct Wholes(tokio::sync::Mutex<Vec<Whole>>);

impl Wholes {
    /// Lets go what nobody needs any more.
    pub(super) fn tidy(&self) {
        if let Ok(mut wholes) = self.0.try_lock() {
            wholes.retain(|whole| whole.used.elapsed() < UNUSED);
        }
    }

    /// The state that a host is in the middle of and where it goes on, or one that it begins with: the newest
    /// that the trail reaches, made now if there is none.
    pub(super) async fn get(
        &self,
        trail: &Reader,
        part: Option<(Place, u64)>,
    ) -> Result<(Place, Arc<Vec<u8>>, usize), DeskError> {
        // Whoever comes while one is being made waits here and finds it.
        let mut wholes = self.0.lock().await;
        if let Some((of, offset)) = part {
            let known = wholes.iter_mut().find(|whole| whole.of == of);
            // A place in a buffer of this process, or none.
            let offset = usize::try_from(offset).unwrap_or(usize::MAX);
            if let Some(whole) = known.filter(|whole| offset < whole.bytes.len()) {
                whole.used = Instant::now();
                return Ok((of, whole.bytes.clone(), offset));
            }
        }
        if let Some(whole) = wholes.last_mut().filter(|whole| trail.reaches(whole.of)) {
            whole.used = Instant::now();
            return Ok((whole.of, whole.bytes.clone(), 0));
        }
        let (of, state) = trail.head();
        let encoded = tokio::task::spawn_blocking(move || encode_unbounded(&*state)).await;
        let bytes = Arc::new(encoded.map_err(|_| DeskError::Stopping)??);
        if wholes.len() >= KEPT {
            wholes.remove(0);
        }
        wholes.push(Whole { of, bytes: bytes.clone(), used: Instant::now() });
        Ok((of, bytes, 0))
    }
}
