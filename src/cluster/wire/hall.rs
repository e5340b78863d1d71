//! Those of whom nothing is known yet: so many at once, and whoever lingers makes room for the next.
//!
//! Owns the places. Becoming known takes milliseconds, and a few round trips for who is far away: strangers that say
//! nothing, however many, keep nobody out, and a crowd from one address makes room before anybody else has to.
//! Called by whoever listens: [`super::serve`] for other agents, `http` for those who ask the API over TLS.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// When there is no room, whoever takes longer is over.
const LINGER: Duration = Duration::from_millis(100);
/// An address that has more places than these gives one up at once to another that has less.
const SHARE: usize = 16;

/// See the module.
pub struct Hall {
    room: Arc<Semaphore>,
    /// In the order in which they came.
    strangers: Vec<Stranger>,
}

struct Stranger {
    address: IpAddr,
    since: Instant,
    place: oneshot::Sender<()>,
}

/// A place in the hall; whoever is known gives it back.
pub struct Guest {
    place: Option<OwnedSemaphorePermit>,
    displaced: oneshot::Receiver<()>,
}

impl Hall {
    /// For so many.
    pub fn of(most: usize) -> Hall {
        Hall { room: Arc::new(Semaphore::new(most)), strangers: Vec::new() }
    }

    /// A place, once there is one.
    pub async fn enter(&mut self, address: IpAddr) -> Guest {
        let address = neighbourhood(address);
        let place = loop {
            self.strangers.retain(|stranger| !stranger.place.is_closed());
            let wait = if self.room.available_permits() > 0 { LINGER } else { self.make_room(address) };
            if let Ok(place) = tokio::time::timeout(wait, self.room.clone().acquire_owned()).await {
                break place.ok();
            }
        };
        let (stranger, displaced) = oneshot::channel();
        self.strangers.push(Stranger { address, since: Instant::now(), place: stranger });
        Guest { place, displaced }
    }

    /// Of the address that has the most, the one that came first goes, when it is time; how long to wait for room.
    fn make_room(&mut self, newcomer: IpAddr) -> Duration {
        let mut crowds = BTreeMap::new();
        for (at, stranger) in self.strangers.iter().enumerate() {
            crowds.entry(stranger.address).or_insert((0, Reverse(at))).0 += 1;
        }
        let Some((most, Reverse(first))) = crowds.values().max().copied() else { return LINGER };
        let own = crowds.get(&newcomer).map_or(0, |(count, _)| *count);
        let left = LINGER.saturating_sub(self.strangers[first].since.elapsed());
        if left.is_zero() || (most > SHARE && own < most) {
            self.strangers.remove(first);
            return LINGER;
        }
        left
    }
}

/// What counts as one address: of IPv6 a /64, which is one subscriber's.
pub fn neighbourhood(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        four => four,
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

#[cfg(test)]
mod tests {
    use tokio::task::JoinHandle;

    use super::*;

    /// Somebody who says nothing; it ends when it is displaced.
    async fn silent(hall: &mut Hall, address: &str) -> JoinHandle<()> {
        let guest = hall.enter(address.parse().unwrap()).await;
        tokio::spawn(async move { _ = guest.while_unknown(std::future::pending::<()>()).await })
    }

    #[tokio::test]
    async fn a_crowd_from_one_address_makes_room_before_anybody_else() {
        let mut hall = Hall::of(SHARE + 2);
        let far = silent(&mut hall, "192.0.2.1").await;
        // Of one subscriber, and more than there is room for.
        let mut crowd = Vec::new();
        for n in 0..2 * (SHARE + 1) {
            crowd.push(silent(&mut hall, &format!("2001:db8::{n:x}")).await);
        }
        let began = Instant::now();
        let near = silent(&mut hall, "192.0.2.2").await;
        assert!(began.elapsed() < LINGER * 3 / 4, "it waits {:?} for its place", began.elapsed());
        assert!(!far.is_finished() && !near.is_finished(), "the crowd has displaced somebody else");
        assert!(crowd[0].is_finished());
    }

    #[tokio::test]
    async fn where_all_have_the_same_whoever_lingers_makes_room() {
        let mut hall = Hall::of(2);
        let began = Instant::now();
        let first = silent(&mut hall, "192.0.2.1").await;
        let second = silent(&mut hall, "192.0.2.2").await;
        let _third = silent(&mut hall, "192.0.2.3").await;
        assert!(began.elapsed() >= LINGER, "{:?}", began.elapsed());
        assert!(first.is_finished() && !second.is_finished());
    }

    #[test]
    fn neighbours_of_one_line_are_one() {
        let of = |text: &str| neighbourhood(text.parse().unwrap()).to_string();
        assert_eq!(of("192.0.2.7"), "192.0.2.7");
        assert_eq!(of("::ffff:192.0.2.7"), "192.0.2.7");
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
    }
}
