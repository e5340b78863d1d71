//! JSON-RPC 2.0, one message a line: from bytes to typed calls, and from answers to bytes.
//!
//! Owns the rules of docs/protocol.md: which methods there are, their bounds, and which error answers what.
//! Pure and total: any bytes in any cut give the same calls and refusals. Called by [`super::socket`].
//!
//! An error in a notification is answered too, with `id: null`: JSON-RPC would have it swallowed, and its
//! author would never learn of the typing error.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::client::line::{Line, Lines, MAX_ANSWER, MAX_LINE};
use crate::client::message::{
    BEAT, Fault, Find, Hello, Label, Launch, MAX_PARAMS, Shutdown, Status, Watch, WatchEvent,
};

/// The longest name, version, key or id.
const MAX_WORD: usize = 128;

/// The id of a request: a number, a string or null.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Id(Value);

impl Id {
    /// The id in answers to what has none.
    pub const NULL: Id = Id(Value::Null);
}

impl From<u64> for Id {
    fn from(number: u64) -> Self {
        Id(number.into())
    }
}

/// What a process asks or tells.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    /// It says who it is.
    Hello(Hello),
    /// It takes players.
    Ready,
    /// It lives.
    Heartbeat,
    /// It tells facts about itself.
    Status(Box<Status>),
    /// It takes no new players.
    Draining,
    /// It is about to end by itself.
    Stopping,
    /// It looks for runs.
    Find(Find),
    /// It wants to be told of changes.
    Watch(Watch),
    /// It has heard enough of a process.
    Unwatch(Watch),
    /// It wants an instance started.
    Launch(Box<Launch>),
}

impl Call {
    /// True when the answer is nothing but "taken": given by the sockets themselves.
    pub fn plain(&self) -> bool {
        matches!(self, Call::Ready | Call::Heartbeat | Call::Status(_) | Call::Draining | Call::Stopping)
    }
}

/// A call; with an id when an answer is wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// `None`: a notification.
    pub id: Option<Id>,
    /// What is asked.
    pub call: Call,
}

/// A line that is no call, and the answer to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Of the request, or null.
    pub id: Id,
    /// Why.
    pub fault: Fault,
}

/// What the agent says to a process.
#[derive(Clone, Debug, PartialEq)]
pub enum Outgoing {
    /// The answer to a request.
    Answer {
        /// Of the request.
        id: Id,
        /// The result.
        result: Value,
    },
    /// The refusal of a request.
    Refused(Refusal),
    /// Save the world and end.
    Shutdown(Shutdown),
    /// Beat now.
    Ping,
    /// Something watched has changed.
    Watch(Box<WatchEvent>),
}

impl Outgoing {
    /// The answer to a request, from one of the shapes of [`crate::client::message`].
    pub fn answer(id: Id, result: &impl Serialize) -> Self {
        match serde_json::to_value(result) {
            Ok(result) => Outgoing::Answer { id, result },
            Err(e) => Outgoing::refused(id, Fault::ANSWER, format!("the answer cannot be written: {e}")),
        }
    }

    /// The refusal of a request; `code` is one of [`Fault`]'s constants.
    pub fn refused(id: Id, code: i64, why: impl Into<String>) -> Self {
        Outgoing::Refused(Refusal { id, fault: Fault::new(code, why) })
    }

    /// Appends the line, newline included.
    pub fn write(&self, out: &mut Vec<u8>) {
        let start = out.len();
        let value = match self {
            Outgoing::Answer { id, result } => Frame { id: Some(id), result: Some(result), ..EMPTY },
            Outgoing::Refused(Refusal { id, fault }) => Frame { id: Some(id), error: Some(fault), ..EMPTY },
            Outgoing::Shutdown(shutdown) => {
                Frame { method: Some("shutdown"), params: Some(Params::Shutdown(shutdown)), ..EMPTY }
            }
            Outgoing::Ping => Frame { method: Some("ping"), ..EMPTY },
            Outgoing::Watch(event) => {
                Frame { method: Some("watch"), params: Some(Params::Watch(event)), ..EMPTY }
            }
        };
        let written = serde_json::to_writer(&mut *out, &value);
        if written.is_err() || out.len() - start > MAX_ANSWER {
            out.truncate(start);
            let id = match self {
                Outgoing::Answer { id, .. } => id.clone(),
                _ => Id::NULL,
            };
            let why = format!("the answer is over {MAX_ANSWER} bytes: ask the HTTP API instead");
            Outgoing::refused(id, Fault::ANSWER, why).write(out);
            return;
        }
        out.push(b'\n');
    }

    /// True when a process that does not read loses nothing it cannot do without.
    pub fn droppable(&self) -> bool {
        match self {
            Outgoing::Answer { result, .. } => result.is_null(),
            Outgoing::Refused(_) | Outgoing::Ping => true,
            Outgoing::Shutdown(_) | Outgoing::Watch(_) => false,
        }
    }
}

#[derive(Serialize)]
struct Frame<'a> {
    jsonrpc: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a Id>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    params: Option<Params<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a Fault>,
}

const EMPTY: Frame<'static> =
    Frame { jsonrpc: "2.0", id: None, method: None, params: None, result: None, error: None };

#[derive(Serialize)]
#[serde(untagged)]
enum Params<'a> {
    Shutdown(&'a Shutdown),
    Watch(&'a WatchEvent),
}

/// The incremental decoder of one connection.
#[derive(Debug)]
pub struct Decoder {
    lines: Lines,
}

impl Default for Decoder {
    fn default() -> Self {
        Decoder { lines: Lines::new(MAX_LINE) }
    }
}

impl Decoder {
    /// A line has begun that has not ended.
    pub fn is_amid_line(&self) -> bool {
        self.lines.is_half()
    }

    /// Takes the next bytes and calls `each` for every request or refusal that they complete.
    pub fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(Result<Request, Refusal>)) {
        self.lines.feed(bytes, |line| {
            each(match line {
                Line::Whole(line) => read(line),
                Line::TooLong => {
                    refuse(Id::NULL, Fault::LINE, format!("a line is over the limit of {MAX_LINE} bytes"))
                }
            });
        });
    }
}

fn refuse<T>(id: Id, code: i64, why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { id, fault: Fault::new(code, why) })
}

/// One line, without its end.
pub fn read(line: &[u8]) -> Result<Request, Refusal> {
    if line == BEAT.as_bytes() {
        return Ok(Request { id: None, call: Call::Heartbeat });
    }
    let mut message: Map<String, Value> = match serde_json::from_slice(line) {
        Ok(Value::Object(message)) => message,
        Ok(Value::Array(_)) => {
            return refuse(Id::NULL, Fault::INVALID, "batches are not taken: send one message a line");
        }
        Ok(_) => return refuse(Id::NULL, Fault::INVALID, "a message is a JSON object"),
        Err(e) => return refuse(Id::NULL, Fault::PARSE, format!("not JSON: {e}")),
    };
    let id = match message.remove("id") {
        None => None,
        Some(Value::String(text)) if text.len() > MAX_WORD => {
            let why = format!("an id has at most {MAX_WORD} bytes");
            return refuse(Id::NULL, Fault::INVALID, why);
        }
        Some(id @ (Value::Null | Value::Number(_) | Value::String(_))) => Some(Id(id)),
        Some(_) => {
            return refuse(Id::NULL, Fault::INVALID, "an id is a number, a string or null");
        }
    };
    let answer_to = || id.clone().unwrap_or(Id::NULL);
    if message.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
        return refuse(answer_to(), Fault::INVALID, "\"jsonrpc\" must be \"2.0\"");
    }
    let Some(Value::String(method)) = message.remove("method") else {
        return refuse(answer_to(), Fault::INVALID, "\"method\" must be a string");
    };
    match call(&method, message.remove("params"), line.len()) {
        Ok(call) => Ok(Request { id, call }),
        Err(fault) => Err(Refusal { id: answer_to(), fault }),
    }
}

fn call(method: &str, params: Option<Value>, length: usize) -> Result<Call, Fault> {
    match method {
        "heartbeat" => Ok(Call::Heartbeat),
        "ready" => Ok(Call::Ready),
        "draining" => Ok(Call::Draining),
        "stopping" => Ok(Call::Stopping),
        "hello" => {
            let hello: Hello = shape(method, params)?;
            bounded("client", &hello.client)?;
            bounded("version", &hello.version)?;
            Ok(Call::Hello(hello))
        }
        "status" => {
            small(method, length)?;
            let mut status: Box<Status> = shape(method, params)?;
            disarm(&mut status);
            Ok(Call::Status(status))
        }
        "find" => Ok(Call::Find(shape(method, params)?)),
        "watch" => Ok(Call::Watch(shape(method, params)?)),
        "unwatch" => Ok(Call::Unwatch(shape(method, params)?)),
        "launch" => {
            small(method, length)?;
            let launch: Box<Launch> = shape(method, params)?;
            bounded("key", launch.key.as_deref().unwrap_or_default())?;
            Ok(Call::Launch(launch))
        }
        _ => {
            let name: String = method.chars().take(MAX_WORD).collect();
            Err(Fault::new(
                Fault::METHOD,
                format!(
                    "no method {name:?}: there are hello, ready, heartbeat, status, draining, stopping, \
                     find, watch, unwatch and launch"
                ),
            ))
        }
    }
}

fn shape<T: DeserializeOwned>(method: &str, params: Option<Value>) -> Result<T, Fault> {
    let params = params.unwrap_or_else(|| Value::Object(Map::new()));
    if !params.is_object() {
        return Err(Fault::new(Fault::PARAMS, format!("{method}: \"params\" must be an object")));
    }
    T::deserialize(params).map_err(|e| Fault::new(Fault::PARAMS, format!("{method}: {e}")))
}

/// Takes the control characters out: a status is shown on operators' terminals.
fn disarm(status: &mut Status) {
    let labels = status.labels.values_mut().filter_map(|label| match label {
        Label::Text(text) => Some(text),
        _ => None,
    });
    let players = status.player_list.iter_mut();
    let players = players.flat_map(|player| [Some(&mut player.name), player.id.as_mut()]).flatten();
    for text in status.map.iter_mut().chain(&mut status.text).chain(labels).chain(players) {
        text.retain(|c| !c.is_control());
    }
}

fn bounded(what: &str, text: &str) -> Result<(), Fault> {
    if text.len() > MAX_WORD {
        return Err(Fault::new(Fault::PARAMS, format!("{what} has at most {MAX_WORD} bytes")));
    }
    Ok(())
}

fn small(method: &str, length: usize) -> Result<(), Fault> {
    if length > MAX_PARAMS {
        let why = format!("{method} is {length} bytes, over its limit of {MAX_PARAMS}");
        return Err(Fault::new(Fault::PARAMS, why));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
