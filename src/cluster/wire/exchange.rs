//! The lines to all other hosts: one for each target and purpose, made when it is first asked for.
//!
//! Owns the asking ends. Lines to peers that are gone are closed by [`Exchange::keep`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use super::dial::{Dialer, Target};
use super::frame::Kind;
use super::hello::Purpose;
use super::line::{CallError, Line};

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Exchange {
    dialer: Dialer,
    connected: mpsc::Sender<Target>,
    lines: Arc<Mutex<BTreeMap<(Target, Purpose), Line>>>,
}

impl Exchange {
    /// `connected` hears of targets that can be reached again.
    pub fn new(dialer: Dialer, connected: mpsc::Sender<Target>) -> Exchange {
        Exchange { dialer, connected, lines: Arc::default() }
    }

    /// For connections that are not lines.
    pub fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    /// The line to a target.
    pub fn line(&self, target: &Target, purpose: Purpose) -> Line {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Line::new(self.dialer.clone(), target.clone(), purpose, self.connected.clone());
        lines.entry((target.clone(), purpose)).or_insert_with(new).clone()
    }

    /// Asks on the line to a target.
    pub async fn call(
        &self,
        target: &Target,
        purpose: Purpose,
        kind: Kind,
        body: Vec<u8>,
        ttl: Duration,
    ) -> Result<Vec<u8>, CallError> {
        self.line(target, purpose).call(kind, body, ttl).await
    }

    /// Closes the lines to all others.
    pub fn keep(&self, wanted: impl Fn(&Target) -> bool) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.retain(|(target, _), _| wanted(target));
    }
}
