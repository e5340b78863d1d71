//! What is kept of one run's status, cut to size.
//!
//! The agent of a run keeps all that the run says (`GET /v1/instances`); what goes to every host is this, at most
//! [`MAX_SUMMARY`] bytes of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::client::message::{Label, Status};

/// The most that a summary may be, as [`Summary::size`] counts it.
pub const MAX_SUMMARY: usize = 1024;
/// Labels that are kept: the first by name.
const MAX_LABELS: usize = 16;
/// A label with a longer name is left out.
const MAX_NAME: usize = 64;
/// Texts are cut here.
const MAX_TEXT: usize = 128;

/// See the module. A field that is `None` is not known.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Players now.
    pub players: Option<u32>,
    /// Players at most.
    pub capacity: Option<u32>,
    /// Simulation steps a second.
    pub fps: Option<f64>,
    /// How long a message to a player and back takes on average.
    pub ping_ms: Option<f64>,
    /// The map or level.
    pub map: Option<String>,
    /// One line for people.
    pub text: Option<String>,
    /// Anything else.
    pub labels: BTreeMap<String, Fact>,
}

/// The value of a label, as it travels. In JSON it is a [`Label`], which does not say of which kind it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Fact {
    /// true or false
    Flag(bool),
    /// A whole number.
    Whole(i64),
    /// Any other number.
    Number(f64),
    /// Text.
    Text(String),
}

impl Fact {
    fn of(value: &Value) -> Option<Fact> {
        match value {
            Value::Bool(flag) => Some(Fact::Flag(*flag)),
            Value::Number(number) => number.as_i64().map(Fact::Whole).or(number.as_f64().map(Fact::Number)),
            Value::String(text) => Some(Fact::Text(text.clone())),
            _ => None,
        }
    }

    /// True when it is written so.
    pub fn reads(&self, text: &str) -> bool {
        match self {
            Fact::Flag(flag) => text.parse() == Ok(*flag),
            Fact::Whole(number) => text.parse() == Ok(*number),
            Fact::Number(number) => text.parse() == Ok(*number),
            Fact::Text(own) => own == text,
        }
    }
}

impl Summary {
    /// What is kept of all that a run says.
    pub fn of(status: &Map<String, Value>) -> Summary {
        let number = |name: &str| u32::try_from(status.get(name)?.as_u64()?).ok();
        let measure = |name: &str| status.get(name)?.as_f64();
        let text = |name: &str| status.get(name)?.as_str().map(str::to_owned);
        let labels = status.get("labels").and_then(Value::as_object).into_iter().flatten();
        let whole = Summary {
            players: number("players"),
            capacity: number("capacity"),
            fps: measure("fps"),
            ping_ms: measure("ping_ms"),
            map: text("map"),
            text: text("text"),
            labels: labels.filter_map(|(name, value)| Some((name.clone(), Fact::of(value)?))).collect(),
        };
        whole.bounded()
    }

    /// No larger than a summary may be: texts are cut, and labels left out from the last on.
    pub fn bounded(mut self) -> Summary {
        let finite = |measure: Option<f64>| measure.filter(|measure| measure.is_finite());
        (self.fps, self.ping_ms) = (finite(self.fps), finite(self.ping_ms));
        self.map.iter_mut().chain(&mut self.text).for_each(cut);
        self.labels.retain(|name, fact| {
            match fact {
                Fact::Text(text) => cut(text),
                Fact::Number(number) if !number.is_finite() => return false,
                _ => {}
            }
            name.len() <= MAX_NAME
        });
        while self.labels.len() > MAX_LABELS || self.size() > MAX_SUMMARY {
            if self.labels.pop_last().is_none() {
                break;
            }
        }
        self
    }

    /// Bytes that it takes, about.
    pub fn size(&self) -> usize {
        let texts = self.map.iter().chain(&self.text).map(String::len).sum::<usize>();
        let label = |(name, fact): (&String, &Fact)| match fact {
            Fact::Text(text) => name.len() + text.len() + 3,
            _ => name.len() + 10,
        };
        32 + texts + self.labels.iter().map(label).sum::<usize>()
    }

    /// True when nothing is known.
    pub fn is_empty(&self) -> bool {
        *self == Summary::default()
    }

    /// True when it has this label.
    pub fn has(&self, name: &str, value: &str) -> bool {
        self.labels.get(name).is_some_and(|fact| fact.reads(value))
    }

    /// As the process API shows it.
    pub fn shown(&self) -> Status {
        let label = |fact: &Fact| match fact {
            Fact::Flag(flag) => Label::Flag(*flag),
            Fact::Whole(number) => Label::Whole(*number),
            Fact::Number(number) => Label::Number(*number),
            Fact::Text(text) => Label::Text(text.clone()),
        };
        Status {
            players: self.players,
            capacity: self.capacity,
            fps: self.fps,
            ping_ms: self.ping_ms,
            map: self.map.clone(),
            text: self.text.clone(),
            labels: self.labels.iter().map(|(name, fact)| (name.clone(), label(fact))).collect(),
            player_list: Vec::new(),
        }
    }
}

/// Cuts a text where a character ends.
fn cut(text: &mut String) {
    if text.len() > MAX_TEXT {
        let end = (0..=MAX_TEXT).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
    }
}
