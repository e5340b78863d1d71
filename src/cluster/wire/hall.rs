//! Those of whom nothing is known yet: so many at once, and whoever lingers makes room for the next.
//!
//! Owns the places. Becoming known takes milliseconds, so strangers that say nothing, however many, keep nobody out.
//! Called by whoever listens: [`super::serve`] for other agents, `http` for those who ask the API over TLS.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// When there is no room for another one for so long, those that take longer are over.
const LINGER: Duration = Duration::from_millis(100);

/// See the module.
pub struct Hall {
    room: Arc<Semaphore>,
    guests: Vec<(Instant, oneshot::Sender<()>)>,
}

/// A place in the hall; whoever is known gives it back.
pub struct Guest {
    place: Option<OwnedSemaphorePermit>,
    displaced: oneshot::Receiver<()>,
}

impl Hall {
    /// For so many.
    pub fn of(most: usize) -> Hall {
        Hall { room: Arc::new(Semaphore::new(most)), guests: Vec::new() }
    }

    /// A place, once there is one.
    pub async fn enter(&mut self) -> Guest {
        let place = loop {
            self.guests.retain(|(_, guest)| !guest.is_closed());
            match tokio::time::timeout(LINGER, self.room.clone().acquire_owned()).await {
                Ok(place) => break place.ok(),
                Err(_) => self.guests.retain(|(since, _)| since.elapsed() < LINGER),
            }
        };
        let (guest, displaced) = oneshot::channel();
        self.guests.push((Instant::now(), guest));
        Guest { place, displaced }
    }
}

impl Guest {
    /// What makes it known; `None`: it took too long, and another one has its place.
    pub async fn while_unknown<T>(mut self, work: impl Future<Output = T>) -> Option<T> {
        let _place = self.place.take();
        tokio::select! {
            done = work => Some(done),
            _ = &mut self.displaced => None,
        }
    }
}
