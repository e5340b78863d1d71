//! The whole directory, written out for those who begin to watch it.
//!
//! Owns the last text for each process that was asked for. After a restart of an agent all its watchers begin anew at
//! once: they share one text, made aside from the runtime that serves them, and one at a time. A text that is a little
//! old is as good as a new one while the changes that follow it are known. Called by `watchers`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use super::directory::view;
use super::sse::{Seen, event};
use crate::agent::ring::Ring;
use crate::cluster::feed::{At, END};
use crate::spec::ProcessName;
use crate::state::{self, State};

/// For how long a text is given to others.
const FRESH: Duration = Duration::from_secs(1);

struct Text {
    made: Instant,
    seen: Seen,
    text: Bytes,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub(super) struct Whole {
    states: watch::Receiver<Arc<State>>,
    ring: Ring,
    /// By what they are narrowed to.
    texts: Arc<Mutex<BTreeMap<Option<ProcessName>, Text>>>,
}

impl Whole {
    pub(super) fn new(states: watch::Receiver<Arc<State>>, ring: Ring) -> Whole {
        Whole { states, ring, texts: Arc::default() }
    }

    /// An event `snapshot`, and the place from which on changes follow it.
    pub(super) async fn read(&self, process: &Option<ProcessName>) -> (At, Bytes) {
        let mut texts = self.texts.lock().await;
        texts.retain(|_, text| text.made.elapsed() < FRESH);
        let history = self.ring.history();
        if let Some(text) = texts
            .get(process)
            .filter(|text| text.seen.history == history && self.ring.feed().knows(text.seen.at))
        {
            return (text.seen.at, text.text.clone());
        }
        let state = self.states.borrow().clone();
        let seen = Seen { history, at: (state.index, END) };
        let narrowed = process.clone();
        let text = tokio::task::spawn_blocking(move || write(&state, narrowed.as_ref(), seen)).await;
        // It ends without a text only with the runtime.
        let text = text.unwrap_or_default();
        texts.insert(process.clone(), Text { made: Instant::now(), seen, text: text.clone() });
        (seen.at, text)
    }
}

fn write(state: &State, process: Option<&ProcessName>, seen: Seen) -> Bytes {
    let entries: Vec<_> = match process {
        Some(name) => state::of_process(&state.directory, name).map(|(id, e)| view(state, id, e)).collect(),
        None => state.directory.iter().map(|(id, entry)| view(state, id, entry)).collect(),
    };
    event("snapshot", Some(seen), &entries)
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::agent::ring::Alone;
    use crate::cluster::feed::feed;

    #[tokio::test]
    async fn those_who_come_together_share_a_text_while_what_follows_it_is_known() {
        let (mut recorder, feed) = feed();
        let alone = Alone::to(mpsc::channel(1).0, "alpha".parse().unwrap());
        let ring = Ring::Alone(Alone { feed, history: 7, ..alone });
        let at = |index| Arc::new(State { index, ..State::default() });
        let (states, seen) = watch::channel(at(3));
        let whole = Whole::new(seen, ring);
        let (first, text) = whole.read(&None).await;
        assert_eq!(
            (first, &text[..]),
            ((3, END), "event: snapshot\nid: 7:3:4294967295\ndata: []\n\n".as_bytes())
        );
        states.send_replace(at(4));
        recorder.tell(&at(4));
        let (again, same) = whole.read(&None).await;
        assert_eq!((again, same.as_ptr()), (first, text.as_ptr()), "the same text");
        assert_eq!(whole.read(&Some("zone".parse().unwrap())).await.0, (4, END), "another one for a process");
        // What lies between is not known.
        states.send_replace(at(9));
        recorder.begin_anew(&at(9));
        assert_eq!(whole.read(&None).await.0, (9, END));
        states.send_replace(at(11));
        let until = tokio::time::Instant::now() + 5 * FRESH;
        while whole.read(&None).await.0 != (11, END) {
            assert!(tokio::time::Instant::now() < until, "a text that is given for ever");
            tokio::time::sleep(FRESH / 10).await;
        }
    }
}
